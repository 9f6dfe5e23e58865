//! What padding after entropy-coded data looks like.

/// How many zeros before the padding the decoder may have used: those that it read ahead (a register of 64 bits),
/// and as many that are the end of the data. A hole in the data is longer.
const MAX_USED_ZEROS: usize = 16;

/// Whether `unused` bytes are padding, if the data ends with so many zeros.
pub(super) fn is_padding(zeros: usize, unused: usize) -> bool {
    (unused..=unused + MAX_USED_ZEROS).contains(&zeros)
}

/// The number of zeros at the end.
pub(super) fn zeros_before(bytes: &[u8]) -> usize {
    bytes.iter().rev().take_while(|&&byte| byte == 0).count()
}
