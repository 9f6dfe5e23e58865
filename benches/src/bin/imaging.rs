//! The Safelight engine of `make bench-imaging`: renders pictures on request, and reports the cost. The
//! protocol is in benches/imaging/README.md.

use std::{
    env, fs,
    io::{BufRead, Write, stdin, stdout},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use safelight_config::Config;
use safelight_decoder::{Attempt, Decoder, DecoderLimits};
use safelight_domain::{Failure, ImageFormat, Lane, Owner, Presets};
use safelight_imaging::{Rendered, Renderer};
use safelight_workers::decoder_options;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use turbojpeg::{Compressor, Decompressor, ScalingFactor, YuvImage};

#[derive(Deserialize)]
struct Request {
    file: PathBuf,
    mode: Mode,
    optimize: bool,
    repeat: u32,
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// The work of a worker.
    Full,
    /// A scaled decode and one encoding of each size: the minimal work.
    Floor,
}

#[derive(Serialize)]
struct Response {
    cpu_ms: Vec<f64>,
    wall_ms: Vec<f64>,
    outputs: Vec<Output>,
    idle_kib: u64,
    peak_kib: u64,
}

#[derive(Serialize)]
struct Output {
    size: u32,
    path: Option<PathBuf>,
    bytes: usize,
    width: u32,
    height: u32,
}

#[derive(Serialize)]
struct ErrorResponse {
    error: String,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // `isolation` starts decoders with this command, as `safelight decoder` does.
        ["decoder", ref limits @ ..] => decode(limits),
        ["engine"] => serve(),
        ["isolation", file] => isolation(Path::new(file)),
        _ => bail!("usage: imaging engine | imaging isolation FILE"),
    }
}

fn decode(limits: &[&str]) -> Result<()> {
    let number = |name: &str| -> Result<u64> {
        let value = limits.iter().find_map(|limit| limit.strip_prefix(name));
        Ok(value.context("a limit is missing")?.parse()?)
    };
    let limits = DecoderLimits {
        cpu_seconds: number("--cpu-seconds=")?,
        memory_bytes: number("--memory-bytes=")?,
        sandbox: limits.contains(&"--sandbox"),
        niceness: i32::try_from(number("--niceness=")?)?,
    };
    Ok(safelight_decoder::run(limits)?)
}

/// Renders a picture in this process and in a decoder process in turn, and prints the difference.
fn isolation(file: &Path) -> Result<()> {
    const ROUNDS: usize = 51;
    let bytes = Bytes::from(fs::read(file)?);
    let config = safelight_config::load(None).map_err(|error| anyhow!("{error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut renderer = Renderer::new()?;
    let (mut in_process, mut in_decoder) = (Timed::default(), Timed::default());
    runtime.block_on(async {
        let slot = Arc::new(Arc::new(Semaphore::new(1)).acquire_owned().await?);
        let (lane, owner) = (Lane::Interactive, Owner::local());
        let attempt = Attempt { slot, lane, owner, stop: CancellationToken::new() };
        let decoder = Decoder::new(decoder_options(&config), 1);
        for _ in 0..ROUNDS {
            let limits = decoder_options(&config).limits;
            in_process.run(|| renderer.render(&bytes, &config.presets, limits, &|| false))?;
            let started = Instant::now();
            decoder.render(bytes.clone(), config.presets.clone(), &attempt).await?;
            in_decoder.wall_ms.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        anyhow::Ok(())
    })?;
    let (in_process, in_decoder) = (median(in_process.wall_ms), median(in_decoder.wall_ms));
    println!(
        "in this process {in_process:.2} ms, in a decoder {in_decoder:.2} ms: {:.2} ms more",
        in_decoder - in_process
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn serve() -> Result<()> {
    let config = safelight_config::load(None).map_err(|error| anyhow!("{error}"))?;
    let mut renderer = Renderer::new()?;
    let mut output = stdout().lock();
    for line in stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?).context("a request")?;
        let response = match respond(&mut renderer, &config, &request) {
            Ok(response) => serde_json::to_string(&response)?,
            Err(error) => serde_json::to_string(&ErrorResponse { error: format!("{error:#}") })?,
        };
        writeln!(output, "{response}")?;
        output.flush()?;
    }
    Ok(())
}

fn respond(renderer: &mut Renderer, config: &Config, request: &Request) -> Result<Response> {
    ensure!(!request.optimize, "renditions have the standard Huffman tables");
    let idle_kib = memory("VmRSS")?;
    let bytes = fs::read(&request.file)?;
    let limits = decoder_options(config).limits;
    let mut make = || -> Result<Vec<Rendered>, Failure> {
        Ok(renderer.render(&bytes, &config.presets, limits, &|| false)?.renditions)
    };
    let mut timed = Timed::default();
    let results = match request.mode {
        Mode::Full => {
            let mut results = Vec::new();
            for _ in 0..request.repeat {
                results = timed.run(&mut make)?;
            }
            results
        }
        Mode::Floor => {
            let results = make()?;
            let mut floor = Floor::new(&bytes, &results)?;
            for _ in 0..request.repeat {
                timed.run(|| floor.run(&bytes))?;
            }
            results
        }
    };
    let peak_kib = memory("VmHWM")?;
    let outputs = results.iter().map(|one| output(one, &config.presets, request));
    let outputs = outputs.collect::<Result<_>>()?;
    Ok(Response { cpu_ms: timed.cpu_ms, wall_ms: timed.wall_ms, outputs, idle_kib, peak_kib })
}

#[derive(Default)]
struct Timed {
    cpu_ms: Vec<f64>,
    wall_ms: Vec<f64>,
}

impl Timed {
    fn run<T, E>(&mut self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let (cpu, wall) = (cpu_ms(), Instant::now());
        let done = work()?;
        self.cpu_ms.push(cpu_ms() - cpu);
        self.wall_ms.push(wall.elapsed().as_secs_f64() * 1000.0);
        Ok(done)
    }
}

/// Processor time of this process so far, user and system, in ms.
fn cpu_ms() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss)] // a benchmark does not run that long
    let ms = used.tv_sec as f64 * 1e3 + used.tv_nsec as f64 / 1e6;
    ms
}

/// A value of `/proc/self/status` in KiB.
fn memory(name: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
    Ok(line.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?)
}

fn output(one: &Rendered, presets: &Presets, request: &Request) -> Result<Output> {
    let Rendered { rendition, data } = one;
    let preset = presets.get(&rendition.preset).context("a preset that is not configured")?;
    let size = preset.size.width;
    let name = request.file.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{name}-{size}.{}", rendition.format.extension());
    let path = request.out.as_ref().map(|out| out.join(name));
    if let Some(path) = &path {
        fs::write(path, data)?;
    }
    let (width, height) = (rendition.width, rendition.height);
    Ok(Output { size, path, bytes: data.len(), width, height })
}

/// libjpeg-turbo alone: decodes at the smallest scale that the largest rendition allows, and encodes
/// existing planes.
struct Floor {
    decompressor: Decompressor,
    compressor: Compressor,
    decoded: YuvImage<Vec<u8>>,
    renditions: Vec<YuvImage<Vec<u8>>>,
}

impl Floor {
    fn new(bytes: &[u8], rendered: &[Rendered]) -> Result<Self> {
        if ImageFormat::sniff(bytes) != Some(ImageFormat::Jpeg) {
            bail!("only JPEG has a floor");
        }
        let largest = rendered.iter().map(|one| one.rendition.width.max(one.rendition.height));
        let largest = largest.max().unwrap_or(1) as usize;
        let mut decompressor = Decompressor::new()?;
        let header = decompressor.read_header(bytes)?;
        let by = |by: &usize| header.width.max(header.height) / by >= largest;
        let scale = ScalingFactor::new(1, [8, 4, 2].into_iter().find(by).unwrap_or(1));
        decompressor.set_scaling_factor(scale)?;
        let scaled = header.scaled(scale);
        let decoded = YuvImage {
            pixels: vec![0; 3 * (scaled.width + 4) * (scaled.height + 4)],
            width: scaled.width,
            height: scaled.height,
            align: 1,
            subsamp: header.subsamp,
        };
        let renditions = rendered.iter().map(|one| turbojpeg::decompress_to_yuv(&one.data));
        let renditions = renditions.collect::<Result<_, _>>()?;
        let mut compressor = Compressor::new()?;
        compressor.set_quality(80)?;
        Ok(Self { decompressor, compressor, decoded, renditions })
    }

    fn run(&mut self, bytes: &[u8]) -> Result<()> {
        self.decompressor.decompress_to_yuv(bytes, self.decoded.as_deref_mut())?;
        for planes in &self.renditions {
            self.compressor.compress_yuv_to_vec(planes.as_deref())?;
        }
        Ok(())
    }
}
