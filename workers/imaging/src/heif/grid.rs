//! Grids: a picture in tiles of equal size (ISO/IEC 23008-12, 6.6.2.3).

use super::{
    boxes::Reader,
    error::HeifError::{self, Corrupt, Unsupported},
    planes::{Planes, Samples, reserve},
};

/// The layout of a grid item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub rows: u32,
    pub columns: u32,
    /// The picture's size in pixels. The tiles may reach beyond it to the right and at the bottom.
    pub size: (u32, u32),
}

impl Grid {
    pub fn parse(data: &[u8]) -> Result<Self, HeifError> {
        let mut data = Reader(data);
        let [version, flags, rows, columns] = data.array()?;
        if version != 0 {
            return Err(Unsupported("a version of grid"));
        }
        let wide = flags & 1 == 1;
        let size = (data.id(wide)?, data.id(wide)?);
        Ok(Self { rows: u32::from(rows) + 1, columns: u32::from(columns) + 1, size })
    }

    /// Checks that tiles of this size cover the picture, and that none is outside of it.
    pub fn check_tiles(&self, (width, height): (u32, u32)) -> Result<(), HeifError> {
        let covers = |whole: u32, tile: u32, count: u32| {
            let before_last = u64::from(tile) * u64::from(count - 1);
            let whole = u64::from(whole);
            before_last < whole && whole <= before_last + u64::from(tile)
        };
        let covered =
            covers(self.size.0, width, self.columns) && covers(self.size.1, height, self.rows);
        if covered { Ok(()) } else { Err(Corrupt) }
    }
}

/// The picture that a grid's tiles are copied to.
pub(crate) struct JoinedTiles {
    planes: Planes,
    tile: (u32, u32),
    columns: u32,
    next: u32,
}

impl JoinedTiles {
    /// An empty picture for tiles like `first`.
    pub fn new(grid: Grid, first: &Planes) -> Result<Self, HeifError> {
        grid.check_tiles(first.size)?;
        // Otherwise a tile would begin in the middle of a chroma sample.
        let (across, down) = first.chroma.steps();
        let is_whole =
            |side: u32, step: usize, count| count == 1 || (side as usize).is_multiple_of(step);
        if !is_whole(first.size.0, across, grid.columns) || !is_whole(first.size.1, down, grid.rows)
        {
            return Err(Unsupported("tiles of an odd size"));
        }
        let mut planes = Planes {
            size: grid.size,
            samples: Vec::new(),
            chroma: first.chroma,
            depth: first.depth,
            cicp: first.cicp,
        };
        for (plane, samples) in first.samples.iter().enumerate() {
            let (width, height) = planes.plane_size(plane);
            planes.samples.push(match samples {
                Samples::Bytes(_) => Samples::Bytes(zeros(width * height)?),
                Samples::Words(_) => Samples::Words(zeros(width * height)?),
            });
        }
        Ok(Self { planes, tile: first.size, columns: grid.columns, next: 0 })
    }

    /// Copies the next tile, in row-major order.
    pub fn add(&mut self, tile: &Planes) -> Result<(), HeifError> {
        let like_first = tile.size == self.tile
            && tile.chroma == self.planes.chroma
            && tile.depth == self.planes.depth;
        if !like_first {
            return Err(Unsupported("tiles that differ in size or format"));
        }
        let (row, column) = (self.next / self.columns, self.next % self.columns);
        self.next += 1;
        for plane in 0..tile.samples.len() {
            let (across, down) = if plane == 0 { (1, 1) } else { tile.chroma.steps() };
            let left = (column * self.tile.0) as usize / across;
            let top = (row * self.tile.1) as usize / down;
            let (from_width, to_width) =
                (tile.plane_size(plane).0, self.planes.plane_size(plane).0);
            let position = TilePosition { left, top, from_width, to_width };
            match (&tile.samples[plane], &mut self.planes.samples[plane]) {
                (Samples::Bytes(from), Samples::Bytes(to)) => position.copy(from, to),
                (Samples::Words(from), Samples::Words(to)) => position.copy(from, to),
                _ => return Err(Corrupt),
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Planes {
        self.planes
    }
}

/// Where a tile's plane is in the picture's.
struct TilePosition {
    left: usize,
    top: usize,
    from_width: usize,
    to_width: usize,
}

impl TilePosition {
    /// Copies what is inside of the picture.
    fn copy<T: Copy>(&self, from: &[T], to: &mut [T]) {
        let width = self.from_width.min(self.to_width.saturating_sub(self.left));
        let rows = to.chunks_exact_mut(self.to_width).skip(self.top);
        for (to, from) in rows.zip(from.chunks_exact(self.from_width)) {
            to[self.left..self.left + width].copy_from_slice(&from[..width]);
        }
    }
}

fn zeros<T: Copy + Default>(length: usize) -> Result<Vec<T>, HeifError> {
    let mut memory = reserve(length)?;
    memory.resize(length, T::default());
    Ok(memory)
}
