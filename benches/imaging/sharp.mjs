// The sharp engine: renders images with sharp for run.py.
//
//   node sharp.mjs DIR    DIR is where npm installed sharp
//
// Reads one JSON request per line of stdin, writes one answer per line of stdout (README.md).
import { readFile, writeFile } from 'node:fs/promises';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';

const sharp = createRequire(path.resolve(process.argv[2], 'package.json'))('sharp');

const SIZES = [1280, 640, 256];
const JPEG = { quality: 80, chromaSubsampling: '4:2:0' };
const WEBP = { quality: 80, effort: 4 };

// One thread, and no cache between repetitions: each must do the whole work.
sharp.concurrency(1);
sharp.cache(false);

const within = (size) => [size, size, { fit: 'inside', withoutEnlargement: true }];

function encode(pipeline, request, timing = {}) {
  return request.format === 'webp'
    ? pipeline.webp({ ...WEBP, ...timing })
    : pipeline.jpeg({ ...JPEG, optimizeCoding: request.optimize });
}

// What people usually write: the whole pipeline again for each size.
async function usual(bytes, request) {
  const renditions = [];
  for (const size of SIZES) {
    const pipeline = sharp(bytes, { animated: request.format === 'webp' })
      .rotate()
      .resize(...within(size));
    renditions.push(await encode(pipeline, request).toBuffer({ resolveWithObject: true }));
  }
  return renditions;
}

// The best that sharp can do: one decode, and each size from the raw pixels of the one above it.
async function best(bytes, request, header) {
  let pixels = await toRaw(
    prepare(sharp(bytes, { animated: request.format === 'webp' }).rotate(), request, header)
      .resize(...within(SIZES[0])),
    header,
  );
  // Raw pixels carry no frame times.
  const timing = header.pages > 1 ? { delay: header.delay, loop: header.loop } : {};
  const encoded = (pipeline) =>
    encode(keepGrey(pipeline, header), request, timing).toBuffer({ resolveWithObject: true });

  const renditions = [await encoded(fromRaw(pixels))];
  for (const size of SIZES.slice(1, -1)) {
    pixels = await toRaw(fromRaw(pixels).resize(...within(size)), header);
    renditions.push(await encoded(fromRaw(pixels)));
  }
  // No size is made from the smallest, so one pipeline resizes and encodes it.
  renditions.push(await encoded(fromRaw(pixels).resize(...within(SIZES.at(-1)))));
  return renditions;
}

// Drop an opaque alpha channel, which would only cost premultiplication.
function prepare(pipeline, request, header) {
  return header.hasAlpha && request.format === 'jpeg' ? pipeline.flatten() : pipeline;
}

// By default sharp turns a gray image into three equal channels.
function keepGrey(pipeline, header) {
  return pipeline.toColourspace(header.space === 'b-w' ? 'b-w' : 'srgb');
}

function toRaw(pipeline, header) {
  return keepGrey(pipeline, header).raw().toBuffer({ resolveWithObject: true });
}

function fromRaw({ data, info }) {
  const { width, height, channels, pageHeight } = info;
  return sharp(data, { raw: { width, height, channels, pageHeight }, animated: Boolean(pageHeight) });
}

const MODES = { usual, best };

function memoryKib(name) {
  const line = readFileSync('/proc/self/status', 'utf8').match(new RegExp(`^${name}:\\s+(\\d+)`, 'm'));
  return Number(line[1]);
}

async function measured(render) {
  const cpu = process.cpuUsage();
  const wall = process.hrtime.bigint();
  const renditions = await render();
  const wallMs = Number(process.hrtime.bigint() - wall) / 1e6;
  const { user, system } = process.cpuUsage(cpu);
  return { renditions, wallMs, cpuMs: (user + system) / 1e3 };
}

async function described(rendition, size, request) {
  const { data, info } = rendition;
  const output = { size, path: null, bytes: data.length, width: info.width, height: info.pageHeight ?? info.height };
  if (request.out) {
    const suffix = request.format === 'webp' ? 'webp' : 'jpg';
    output.path = path.join(request.out, `${path.basename(request.file)}-${size}.${suffix}`);
    await writeFile(output.path, data);
  }
  return output;
}

let idleKib; // measured at the first request: later requests see what earlier ones left behind

async function answer(request) {
  const render = MODES[request.mode];
  if (!render) return { error: `sharp has no mode ${request.mode}` };
  const bytes = await readFile(request.file);
  idleKib ??= memoryKib('VmRSS');
  // Before the clock starts, in favor of sharp: the kind of image counts as known.
  const header = await sharp(bytes, { animated: request.format === 'webp' }).metadata();

  const cpu = [];
  const wall = [];
  let renditions;
  for (let i = 0; i < request.repeat; i += 1) {
    const once = await measured(() => render(bytes, request, header));
    cpu.push(once.cpuMs);
    wall.push(once.wallMs);
    renditions = once.renditions;
  }
  const peakKib = memoryKib('VmHWM');
  const outputs = [];
  for (const [i, size] of SIZES.entries()) outputs.push(await described(renditions[i], size, request));
  return { cpu_ms: cpu, wall_ms: wall, outputs, peak_kib: peakKib, idle_kib: idleKib };
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const reply = await answer(JSON.parse(line)).catch((error) => ({ error: error.message }));
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
