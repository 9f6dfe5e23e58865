//! Writes the initial corpus of the fuzz targets: `corpus FOLDER`. One small picture for each variant that
//! the decoders treat differently, generated because the repository contains no binary files.

use std::{error::Error, fs, io::Cursor, path::{Path, PathBuf}};

use exif::{Field, In, Rational, Tag, Value, experimental::Writer};
use image::{Delay, DynamicImage, ExtendedColorType, Frame, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage, codecs::{bmp::BmpEncoder, gif::GifEncoder}};
use img_parts::{ImageEXIF, ImageICC, png::Png, webp::WebP};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use moxcms::ColorProfile;
use safelight_fuzz::{CHOICES, LIMITS, SECRET};
use safelight_imaging::{Preset, PresetFormat, Presets, Renderer, Size};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const WIDTH: u16 = 40;
const HEIGHT: u16 = 24;

fn main() -> Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err("usage: corpus FOLDER".into());
    };
    let pictures = pictures()?;
    // Each picture with the next one, and their border.
    for ((first, picture), (second, next)) in pictures.iter().zip(pictures.iter().cycle().skip(1)) {
        if let Ok(border) = u16::try_from(picture.len()) {
            let pair = [&picture[..], &next[..], &border.to_le_bytes()].concat();
            write(&folder.join("two_pictures").join(format!("{first}-{second}")), &pair)?;
        }
    }
    for (at, (name, picture)) in (0..).zip(&pictures) {
        write(&folder.join("header").join(name), picture)?;
        // The last byte selects the presets: each format for each picture, and the other options in turn.
        for format in 0..5 {
            let choice = format + 5 * ((at + 7 * format) % (CHOICES / 5));
            let path = folder.join("render").join(format!("{name}-{choice}"));
            write(&path, &[&picture[..], &[choice]].concat())?;
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    Ok(fs::write(path, bytes)?)
}

fn pictures() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let plain = DynamicImage::from(RgbImage::from_fn(WIDTH.into(), HEIGHT.into(), color));
    let clear = RgbaImage::from_fn(WIDTH.into(), HEIGHT.into(), |x, y| {
        let Rgb([r, g, b]) = color(x, y);
        Rgba([r, g, b, if x < 20 { 0 } else { 255 }])
    });
    let clear = DynamicImage::from(clear);
    let (exif, icc) = (exif()?, ColorProfile::new_display_p3().encode()?);
    let encoded = |image: &DynamicImage, format| -> Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format)?;
        Ok(bytes.into_inner())
    };
    let png = encoded(&plain, ImageFormat::Png)?;
    let gif = gif(&clear)?;
    let mut documented = Png::from_bytes(png.clone().into())?;
    documented.set_exif(Some(exif.clone().into()));
    documented.set_icc_profile(Some(icc.clone().into()));
    let mut profiled = WebP::from_bytes(rendered(&gif, PresetFormat::Webp)?.into())?;
    profiled.set_exif(Some(exif.clone().into()));
    profiled.set_icc_profile(Some(icc.clone().into()));
    let gray = DynamicImage::from(plain.to_luma8());
    Ok(vec![
        ("gray.jpg", encoded(&gray, ImageFormat::Jpeg)?),
        ("420.jpg", jpeg(&plain, |it| it.set_sampling_factor(SamplingFactor::F_2_2))?),
        ("444.jpg", jpeg(&plain, |it| it.set_sampling_factor(SamplingFactor::F_1_1))?),
        ("411.jpg", jpeg(&plain, |it| it.set_sampling_factor(SamplingFactor::F_4_1))?),
        ("progressive.jpg", jpeg(&plain, |it| it.set_progressive(true))?),
        ("restarts.jpg", jpeg(&plain, |it| it.set_restart_interval(2))?),
        ("exif.jpg", jpeg_with(&plain, |it| Ok(it.add_exif_metadata(&exif)?))?),
        ("icc.jpg", jpeg_with(&plain, |it| Ok(it.add_icc_profile(&icc)?))?),
        ("cmyk.jpg", cmyk()?),
        ("no-tables.jpg", without_tables(&jpeg(&plain, |_| ())?)),
        ("two-starts.jpg", [b"\xFF\xD8", &jpeg(&plain, |_| ())?[..]].concat()),
        ("gray.png", encoded(&gray, ImageFormat::Png)?),
        ("palette.png", palette_png()?),
        ("alpha.png", encoded(&clear, ImageFormat::Png)?),
        ("16-bit.png", encoded(&clear.to_rgba16().into(), ImageFormat::Png)?),
        ("exif-icc.png", documented.encoder().bytes().to_vec()),
        ("still.gif", encoded(&plain, ImageFormat::Gif)?),
        ("lossy.webp", rendered(&png, PresetFormat::Webp)?),
        ("lossy-alpha.webp", rendered(&encoded(&clear, ImageFormat::Png)?, PresetFormat::Webp)?),
        ("lossless.webp", encoded(&clear, ImageFormat::WebP)?),
        ("animated.webp", rendered(&gif, PresetFormat::Webp)?),
        ("animated-exif-icc.webp", profiled.encoder().bytes().to_vec()),
        ("animated.gif", gif),
        ("rgb.tif", encoded(&plain, ImageFormat::Tiff)?),
        ("16-bit.tif", encoded(&plain.to_rgb16().into(), ImageFormat::Tiff)?),
        ("float.tif", encoded(&plain.to_rgb32f().into(), ImageFormat::Tiff)?),
        ("rgb.bmp", encoded(&plain, ImageFormat::Bmp)?),
        ("palette.bmp", palette_bmp()?),
        ("opaque.avif", rendered(&png, PresetFormat::Avif)?),
        ("420.heic", heic(&plain)?),
        ("alpha.avif", rendered(&encoded(&clear, ImageFormat::Png)?, PresetFormat::Avif)?),
    ])
}

/// Gradients with one hard edge.
fn color(x: u32, y: u32) -> Rgb<u8> {
    let byte = |value: u32| u8::try_from(value % 256).unwrap_or(0);
    Rgb([byte(6 * x), byte(10 * y), if x + y < 30 { 200 } else { 20 }])
}

fn jpeg(image: &DynamicImage, set: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Result<Vec<u8>> {
    jpeg_with(image, |encoder| {
        set(encoder);
        Ok(())
    })
}

fn jpeg_with(
    image: &DynamicImage,
    set: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 80);
    set(&mut encoder)?;
    encoder.encode(image.as_bytes(), WIDTH, HEIGHT, ColorType::Rgb)?;
    Ok(bytes)
}

/// Without quantization and Huffman tables, like a frame of a video.
fn without_tables(jpeg: &[u8]) -> Vec<u8> {
    let mut left = jpeg.to_vec();
    let is_table = |pair: &[u8]| matches!(pair, [0xFF, 0xDB | 0xC4]);
    while let Some(at) = left.windows(2).position(is_table) {
        let Some(&[high, low]) = left.get(at + 2..at + 4).and_then(<[u8]>::first_chunk) else { break };
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        left.drain(at..end.min(left.len()));
    }
    left
}

fn cmyk() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let inks: Vec<u8> = (0..WIDTH * HEIGHT * 4).map(|n| n.to_le_bytes()[0]).collect();
    Encoder::new(&mut bytes, 80).encode(&inks, WIDTH, HEIGHT, ColorType::Cmyk)?;
    Ok(bytes)
}

/// Four bits a pixel.
fn palette_png() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH.into(), HEIGHT.into());
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Four);
    encoder.set_palette((0..48).map(|n| n * 5).collect::<Vec<u8>>());
    encoder.set_trns(vec![0, 128]);
    let indices: Vec<u8> = (0..WIDTH / 2 * HEIGHT).map(|n| n.to_le_bytes()[0]).collect();
    encoder.write_header()?.write_image_data(&indices)?;
    Ok(bytes)
}

fn palette_bmp() -> Result<Vec<u8>> {
    let palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];
    let indices: Vec<u8> = (0..WIDTH * HEIGHT).map(|n| n.to_le_bytes()[0] % 4).collect();
    let mut bytes = Vec::new();
    BmpEncoder::new(&mut bytes).encode_with_palette(
        &indices,
        WIDTH.into(),
        HEIGHT.into(),
        ExtendedColorType::L8,
        Some(&palette),
    )?;
    Ok(bytes)
}

/// Three frames; one is smaller than the canvas.
fn gif(image: &DynamicImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    let delay = Delay::from_numer_denom_ms(70, 1);
    encoder.encode_frame(Frame::from_parts(image.to_rgba8(), 0, 0, delay))?;
    let part = image.crop_imm(15, 5, 12, 10).to_rgba8();
    encoder.encode_frame(Frame::from_parts(part, 3, 4, delay))?;
    encoder.encode_frame(Frame::from_parts(image.fliph().to_rgba8(), 0, 0, delay))?;
    drop(encoder);
    Ok(bytes)
}

/// An orientation, an artist, a time and a position.
fn exif() -> Result<Vec<u8>> {
    let degrees =
        |parts: [u32; 3]| Value::Rational(parts.map(|num| Rational { num, denom: 1 }).to_vec());
    let text = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let fields = [
        (Tag::Orientation, Value::Short(vec![6])),
        (Tag::Artist, text("A. Photographer")),
        (Tag::DateTimeOriginal, text("2023:07:14 18:30:05")),
        (Tag::OffsetTimeOriginal, text("+02:00")),
        (Tag::GPSLatitude, degrees([33, 51, 36])),
        (Tag::GPSLatitudeRef, text("S")),
        (Tag::GPSLongitude, degrees([151, 12, 0])),
        (Tag::GPSLongitudeRef, text("E")),
        (Tag::GPSAreaInformation, Value::Undefined(SECRET.to_vec(), 0)),
    ]
    .map(|(tag, value)| Field { tag, ifd_num: In::PRIMARY, value });
    let mut writer = Writer::new();
    fields.iter().for_each(|field| writer.push_field(field));
    let mut block = Cursor::new(Vec::new());
    writer.write(&mut block, false)?;
    Ok(block.into_inner())
}

/// HEIC, by an encoder in Rust.
fn heic(image: &DynamicImage) -> Result<Vec<u8>> {
    let options = heifer::EncodeOptions::default();
    Ok(heifer::encode_rgb8(WIDTH.into(), HEIGHT.into(), image.as_bytes(), &options)?)
}

/// A rendition by the code under test.
fn rendered(bytes: &[u8], format: PresetFormat) -> Result<Vec<u8>> {
    let preset = Preset { formats: format.into(), ..Preset::new(Size::square(40)) };
    let presets = Presets::from([("it".to_owned(), preset)]);
    let made = Renderer::new()?.render(bytes, &presets, LIMITS, &|| false)?;
    Ok(made.renditions.first().ok_or("no rendition")?.data.to_vec())
}
