// The sharp engine of the suite.
//
//   node sharp_peer.mjs DIR    DIR is where npm installed sharp
//
// One JSON request per line of stdin, one answer per line of stdout (README.md).
import { createRequire } from 'node:module';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import readline from 'node:readline';

const sharp = createRequire(path.resolve(process.argv[2], 'package.json'))('sharp');
sharp.cache(false);

const FASTEST_MS = 10;
const SLOW_MS = 100;
// Formats whose pages are an animation; in others the first one counts.
const ANIMATED = new Set(['gif', 'webp']);

const open = (bytes, page = 0) => sharp(bytes, { page });

async function save(bytes, page, size, file) {
  await open(bytes, page)
    .autoOrient()
    .resize(size, size, { fit: 'inside', withoutEnlargement: true })
    .toColourspace('srgb')
    .png()
    .toFile(file);
  return file;
}

async function moving(bytes, header, request) {
  const durations = header.delay.map((ms) => (ms <= FASTEST_MS ? SLOW_MS : ms));
  const samples = [];
  // Which frames to compare follows from the durations, by the same rule as for the other engines.
  for (const number of sampleFrames(durations, request.fractions)) {
    const file = path.join(request.out, `sharp-${number}.png`);
    samples.push(await save(bytes, number, request.size, file));
  }
  return { durations, plays: header.loop, samples };
}

function sampleFrames(durations, fractions) {
  const total = durations.reduce((sum, ms) => sum + ms, 0);
  return fractions.map((fraction) => {
    let end = 0;
    const found = durations.findIndex((ms) => (end += ms) > total * fraction);
    return found < 0 ? durations.length - 1 : found;
  });
}

async function answer(request) {
  const bytes = await readFile(request.file);
  const header = await open(bytes).metadata();
  const still = await save(bytes, 0, request.size, path.join(request.out, 'sharp.png'));
  const reply = { size: [header.autoOrient.width, header.autoOrient.height], still };
  const animated = ANIMATED.has(header.format) && header.pages > 1;
  return animated ? { ...reply, ...(await moving(bytes, header, request)) } : reply;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const reply = await answer(JSON.parse(line)).catch((error) => ({ error: error.message }));
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
