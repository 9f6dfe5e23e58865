//! From the bytes of a HEIF file to pixels.

use image::DynamicImage;
use safelight_domain::Failure;

use super::{
    aperture::Crop,
    coding::Cicp,
    container::{Alpha, Codec, Coded, Container, codec},
    convert::{AlphaPlane, Conversion},
    error::HeifError::{self, Corrupt, Unsupported},
    grid::JoinedTiles,
    planes::Planes,
    properties::{HeifHeader, ItemProperties},
};
use crate::{
    avif,
    color::ToSrgb,
    hdr::ToneMap,
    heic,
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};

/// A decoded picture, cropped but not rotated.
#[derive(Debug)]
pub(crate) struct HeifPicture {
    /// Gray, RGB or RGBA of 8 bits; never premultiplied.
    pub image: DynamicImage,
    pub icc: Option<Vec<u8>>,
    /// The code points of the colors; sRGB after tone mapping.
    pub cicp: Cicp,
}

/// Reads the header from the container alone. HEVC is rejected unless it is `allowed`.
pub(crate) fn header(bytes: &[u8], hevc_allowed: bool) -> Result<HeifHeader, HeifError> {
    let container = Container::open(bytes)?;
    if !hevc_allowed && container.needs(Codec::Hevc) {
        return Err(Unsupported("HEIC is switched off (`heic`)"));
    }
    container.header()
}

/// Decodes the picture, without rotating it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let HeifPicture { image, icc, cicp } = decode_coded(bytes)?;
    let image = normalize(image);
    let layout = icc_layout(&image);
    let color = match icc {
        Some(icc) => ToSrgb::from_icc(&icc, layout),
        None => ToSrgb::from_code_points(cicp.primaries, cicp.transfer, layout),
    };
    Ok(Picture::full(image, color))
}

/// [`decode`] without the conversion to sRGB.
pub(crate) fn decode_coded(bytes: &[u8]) -> Result<HeifPicture, HeifError> {
    let container = Container::open(bytes)?;
    let header = container.header()?;
    let properties = &container.properties;
    let color = decode_planes(&container, &container.color)?;
    let fits = color.depth <= header.coding.depth
        && color.chroma.half_samples_per_pixel() <= header.coding.chroma.half_samples_per_pixel();
    if !fits {
        // The memory was checked for what the container announces.
        return Err(Corrupt);
    }
    let alpha = match &container.alpha {
        Some(Alpha { coded, .. }) => Some(decode_planes(&container, coded)?),
        None => None,
    };
    let mut cicp = properties.nclx.unwrap_or(color.cicp);
    let tone_map = ToneMap::new(cicp.primaries, cicp.transfer, properties.brightness.peak());
    let conversion = Conversion {
        cicp,
        siting: header.coding.siting,
        tone_map: tone_map.as_ref(),
        alpha: container.alpha.as_ref().zip(alpha.as_ref()).map(|(alpha, planes)| AlphaPlane {
            planes,
            // MIAF demands full range, and the files of HEVC encoders have it whatever they declare.
            full_range: alpha.coded.codec == Codec::Hevc || planes.cicp.full_range,
            premultiplied: alpha.premultiplied,
        }),
    };
    let mut image = conversion.apply(&color)?;
    if let Some(Crop { x, y, width, height }) = header.crop {
        image = image.crop_imm(x, y, width, height);
    }
    let mut icc = properties.icc.map(<[u8]>::to_vec);
    if tone_map.is_some() {
        (cicp.primaries, cicp.transfer, icc) = (1, 13, None);
    }
    Ok(HeifPicture { image, icc, cicp })
}

/// Decodes an item, or all tiles of a grid.
fn decode_planes(container: &Container<'_>, coded: &Coded) -> Result<Planes, HeifError> {
    let Some(grid) = coded.grid else {
        let id = *coded.tiles.first().ok_or(Corrupt)?;
        return decode_item(container, id, coded);
    };
    let mut joined: Option<JoinedTiles> = None;
    for id in &coded.tiles {
        let tile = decode_item(container, *id, coded)?;
        match &mut joined {
            Some(joined) => joined.add(&tile)?,
            None => joined.insert(JoinedTiles::new(grid, &tile)?).add(&tile)?,
        }
    }
    Ok(joined.ok_or(Corrupt)?.finish())
}

fn decode_item(container: &Container<'_>, id: u32, coded: &Coded) -> Result<Planes, HeifError> {
    let meta = &container.meta;
    if codec(meta, id)? != coded.codec {
        return Err(Unsupported("tiles of different codecs"));
    }
    let properties = ItemProperties::of(meta, id)?;
    // Before it is decoded: the memory was checked for tiles like the first.
    if properties.size.ok_or(Corrupt)? != coded.tile {
        return Err(Unsupported("tiles that differ in size or format"));
    }
    let data = meta.data(id)?;
    match coded.codec {
        Codec::Av1 => avif::decode(&data, coded.tile),
        Codec::Hevc => heic::decode(&data, properties.hevc.ok_or(Corrupt)?.1, coded.tile),
    }
}
