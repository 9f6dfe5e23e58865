//! The items of a HEIF file that make its picture: colors and alpha (ISO/IEC 23008-12, and the AVIF and MIAF
//! specifications).

use super::{
    boxes::Meta,
    error::HeifError::{self, Corrupt, Unsupported},
    grid::Grid,
    properties::{HeifHeader, ItemProperties},
};

/// Largest number of samples of a picture. Beyond it the decoders' 32-bit sums would overflow.
const MAX_SAMPLES: u32 = 1 << 30;

/// Largest number of tiles. 200 megapixels in the usual tiles are 800. Each costs a search of the boxes.
const MAX_TILES: u32 = 2048;

/// Largest number of candidates for alpha items of a picture without tiles.
const MAX_AUXILIARIES: usize = 16;

/// How an item is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Av1,
    Hevc,
}

/// An item with pixels: one coded picture, or a grid of them.
pub(crate) struct Coded {
    pub codec: Codec,
    pub grid: Option<Grid>,
    /// The coded items: the item itself, or the tiles in row-major order.
    pub tiles: Vec<u32>,
    /// Width and height, in pixels.
    pub size: (u32, u32),
    /// Width and height of each coded item, in pixels.
    pub tile: (u32, u32),
}

/// The item that holds a picture's alpha.
pub(crate) struct Alpha {
    pub coded: Coded,
    /// Whether the colors are multiplied by it.
    pub premultiplied: bool,
}

/// A file whose picture and alpha items are known.
pub(crate) struct Container<'a> {
    pub meta: Meta<'a>,
    /// The properties of the picture, with the colors and the coding of its first tile where it has none.
    pub properties: ItemProperties<'a>,
    pub color: Coded,
    pub alpha: Option<Alpha>,
}

impl<'a> Container<'a> {
    /// Reads everything that is needed before decoding.
    pub fn open(file: &'a [u8]) -> Result<Self, HeifError> {
        let mut meta = Meta::open(file)?;
        if meta.item_type(meta.primary)? == *b"tmap" {
            // A picture with a gain map: the first input is the picture for ordinary screens.
            meta.primary = *meta.targets(*b"dimg", meta.primary)?.first().ok_or(Corrupt)?;
        }
        let mut properties = ItemProperties::of(&meta, meta.primary)?;
        let color = Coded::find(&meta, meta.primary, &properties)?;
        check_samples(color.size)?;
        if color.grid.is_some() {
            let first = ItemProperties::of(&meta, *color.tiles.first().ok_or(Corrupt)?)?;
            properties.complete(&first);
        }
        let alpha = find_alpha(&meta, &color)?;
        Ok(Self { meta, properties, color, alpha })
    }

    pub fn header(&self) -> Result<HeifHeader, HeifError> {
        let (width, height) = self.color.size;
        Ok(HeifHeader {
            width,
            height,
            has_alpha: self.alpha.is_some(),
            coding: match self.color.codec {
                Codec::Av1 => self.properties.av1.ok_or(Corrupt)?,
                Codec::Hevc => self.properties.hevc.ok_or(Corrupt)?.0,
            },
            is_hevc: self.color.codec == Codec::Hevc,
            largest: self.largest(),
            file_bytes: self.meta.file.len() as u64,
            orientation: self.properties.orientation(),
            crop: self.properties.crop(self.color.size),
        })
    }

    /// The longest width and height of the picture and its coded items, in pixels.
    fn largest(&self) -> (u32, u32) {
        let alpha = self.alpha.as_ref().map_or((0, 0), |alpha| alpha.coded.tile);
        let longest = |size: u32, tile: u32, alpha: u32| size.max(tile).max(alpha);
        let (size, tile) = (self.color.size, self.color.tile);
        (longest(size.0, tile.0, alpha.0), longest(size.1, tile.1, alpha.1))
    }

    /// Whether anything in the picture needs this codec.
    pub fn needs(&self, codec: Codec) -> bool {
        self.color.codec == codec || self.alpha.as_ref().is_some_and(|it| it.coded.codec == codec)
    }
}

impl Coded {
    fn find(meta: &Meta<'_>, id: u32, properties: &ItemProperties<'_>) -> Result<Self, HeifError> {
        let announced = properties.size;
        if meta.item_type(id)? != *b"grid" {
            let size = announced.ok_or(Corrupt)?;
            return Ok(Self {
                codec: codec(meta, id)?,
                grid: None,
                tiles: vec![id],
                size,
                tile: size,
            });
        }
        let grid = Grid::parse(&meta.data(id)?)?;
        if announced.is_some_and(|size| size != grid.size) {
            return Err(Corrupt);
        }
        Self::of_tiles(meta, grid, meta.targets(*b"dimg", id)?)
    }

    fn of_tiles(meta: &Meta<'_>, grid: Grid, tiles: Vec<u32>) -> Result<Self, HeifError> {
        let count = grid.rows * grid.columns;
        if count > MAX_TILES {
            return Err(Unsupported("too many tiles"));
        }
        let first = *tiles.first().ok_or(Corrupt)?;
        if tiles.len() != count as usize {
            return Err(Corrupt);
        }
        let codec = codec(meta, first)?;
        let tile = ItemProperties::of(meta, first)?.size.ok_or(Corrupt)?;
        grid.check_tiles(tile)?;
        check_samples(tile)?;
        Ok(Self { codec, grid: Some(grid), tiles, size: grid.size, tile })
    }
}

fn check_samples((width, height): (u32, u32)) -> Result<(), HeifError> {
    match width.checked_mul(height) {
        Some(0) => Err(Corrupt),
        Some(1..=MAX_SAMPLES) => Ok(()),
        _ => Err(Unsupported("more than 2³⁰ pixels")),
    }
}

/// The codec of a coded item.
pub(crate) fn codec(meta: &Meta<'_>, id: u32) -> Result<Codec, HeifError> {
    match &meta.item_type(id)? {
        b"av01" => Ok(Codec::Av1),
        b"hvc1" | b"hev1" => Ok(Codec::Hevc),
        b"grid" | b"iden" | b"iovl" | b"tmap" => Err(Unsupported("derived image")),
        _ => Err(Unsupported("a codec other than AV1 and HEVC")),
    }
}

/// Finds the alpha of a picture: of the whole, or of each of its tiles. It must have the same size.
fn find_alpha(meta: &Meta<'_>, color: &Coded) -> Result<Option<Alpha>, HeifError> {
    let (mut of_picture, mut of_tiles, mut multiplied) = (Vec::new(), Vec::new(), Vec::new());
    let most = MAX_AUXILIARIES * color.tiles.len();
    meta.each_reference(|kind, from, to| match &kind {
        b"auxl" if to == meta.primary && of_picture.len() < MAX_AUXILIARIES => {
            of_picture.push(from);
        }
        b"auxl" if color.grid.is_some() && of_tiles.len() < most => of_tiles.push((to, from)),
        b"prem" if multiplied.len() < most => multiplied.push(to),
        _ => {}
    })?;
    let coded = match (alpha_among(meta, of_picture.into_iter()), color.grid) {
        (Some((id, properties)), _) => Coded::find(meta, id, &properties)?,
        (None, Some(grid)) => {
            let mut found = Vec::new();
            for tile in &color.tiles {
                let own = of_tiles.iter().filter(|(to, _)| to == tile).map(|(_, from)| *from);
                found.extend(alpha_among(meta, own).map(|(id, _)| id));
            }
            if found.is_empty() {
                return Ok(None);
            }
            if found.len() != color.tiles.len() {
                return Err(Unsupported("alpha of some tiles only"));
            }
            Coded::of_tiles(meta, grid, found)?
        }
        (None, None) => return Ok(None),
    };
    if coded.size != color.size {
        return Err(Unsupported("alpha of another size"));
    }
    let premultiplied = coded.tiles.iter().any(|id| multiplied.contains(id)) || {
        // A grid of alpha is multiplied as a whole.
        !meta.targets(*b"prem", meta.primary)?.is_empty()
    };
    Ok(Some(Alpha { coded, premultiplied }))
}

/// The first alpha item. Other auxiliary items, such as a depth map, are not needed and may be invalid.
fn alpha_among<'a>(
    meta: &Meta<'a>,
    mut candidates: impl Iterator<Item = u32>,
) -> Option<(u32, ItemProperties<'a>)> {
    candidates.find_map(|id| {
        let properties = ItemProperties::of(meta, id).ok()?;
        (properties.holds_alpha == Some(true)).then_some((id, properties))
    })
}
