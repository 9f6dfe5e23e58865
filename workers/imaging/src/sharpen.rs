//! An unsharp mask.

/// Sharpens rows of `width` pixels of `N` bytes in place: moves each sample away from the mean of its
/// neighborhood (binomial, 3 × 3) by `percent` of the difference.
pub(super) fn sharpen<const N: usize>(samples: &mut [u8], width: usize, percent: u8) {
    let stride = width * N;
    if percent == 0 || stride == 0 {
        return;
    }
    let rows = samples.len() / stride;
    // The next row needs this one unchanged.
    let mut above = samples[..stride.min(samples.len())].to_vec();
    for row in 0..rows {
        let (head, tail) = samples.split_at_mut((row + 1) * stride);
        let current = &mut head[row * stride..];
        let original = current.to_vec();
        let below = if row + 1 < rows { &tail[..stride] } else { &original[..] };
        for (at, sample) in current.iter_mut().enumerate() {
            let column = |row: &[u8], offset: usize| u32::from(row[offset]);
            let (left, right) = (at.checked_sub(N).unwrap_or(at), at + N);
            let right = if right < stride { right } else { at };
            let blur = |row: &[u8]| column(row, left) + 2 * column(row, at) + column(row, right);
            let sixteenths = blur(&above) + 2 * blur(&original) + blur(below);
            *sample = amplify(original[at], sixteenths, percent);
        }
        above = original;
    }
}

/// Moves a sample away from `mean`, which is in sixteenths.
fn amplify(sample: u8, mean: u32, percent: u8) -> u8 {
    let sample = i32::from(sample);
    let difference = 16 * sample - i32::try_from(mean).unwrap_or(i32::MAX);
    let moved = sample + difference * i32::from(percent) / 1600;
    u8::try_from(moved.clamp(0, 255)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharpen_steepens_edges_and_keeps_flat_areas() {
        let edge: Vec<u8> = [100, 100, 100, 140, 140, 140].repeat(4);
        let mut sharp = edge.clone();
        sharpen::<1>(&mut sharp, 6, 100);
        for row in sharp.chunks(6) {
            assert_eq!((row[0], row[5]), (100, 140));
            assert!(row[2] < 100 && row[3] > 140, "{row:?}");
        }
        let mut same = edge.clone();
        sharpen::<1>(&mut same, 6, 0);
        assert_eq!(same, edge);
        // Channels are independent, and values do not wrap around.
        let mut colors = vec![255, 0, 7, 0, 255, 7, 255, 0, 7];
        sharpen::<3>(&mut colors, 3, 100);
        assert_eq!(colors, [255, 0, 7, 0, 255, 7, 255, 0, 7]);
    }
}
