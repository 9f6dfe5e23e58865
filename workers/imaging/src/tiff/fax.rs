//! Fax compression: ITU-T T.4 (group 3, one- and two-dimensional), T.6 (group 4), and TIFF's variant without
//! line ends (TIFF 6.0, section 10). The tables of codes are those of the crate `fax`, whose decoder knows
//! no two-dimensional group 3 and does not tell where it invents rows.

use std::convert::Infallible;

use fax::{
    BitReader, ByteReader,
    maps::{Mode, black, mode, white},
};
use safelight_domain::Failure;

use crate::failure::{damaged, unsupported};

/// The variants of fax compression in TIFF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaxCoding {
    /// One-dimensional rows that begin on whole bytes.
    Rle,
    /// Rows with line ends before them.
    Group3 {
        two_dimensional: bool,
    },
    Group4,
}

/// How the next row is coded.
enum Row {
    OneDimensional,
    TwoDimensional,
    /// The document ends; the rows after its end are white.
    End,
}

/// Codes are looked up by up to 13 bits, which must be there even if the last code is shorter.
const PADDING: [u8; 4] = [0; 4];

/// Fills packed rows of one bit per pixel, in which 1 is black. Encoders may omit white rows before the end.
pub(super) fn decode(
    stored: &[u8],
    coding: FaxCoding,
    width: u32,
    rows: &mut [u8],
) -> Result<(), Failure> {
    let padded = stored.iter().chain(&PADDING).map(|byte| Ok::<u8, Infallible>(*byte));
    let Ok(reader) = ByteReader::new(padded);
    let mut lines = Lines { reader, width, reference: Vec::new(), current: Vec::new() };
    let row_bytes = usize::try_from(width.div_ceil(8)).unwrap_or(usize::MAX);
    rows.fill(0);
    for row in rows.chunks_mut(row_bytes) {
        let next = match coding {
            FaxCoding::Rle => Row::OneDimensional,
            FaxCoding::Group3 { two_dimensional } => lines.line_end(two_dimensional),
            FaxCoding::Group4 => Row::TwoDimensional,
        };
        let is_coded = match next {
            Row::OneDimensional => lines.one_dimensional().map(|()| true),
            Row::TwoDimensional => lines.two_dimensional()?,
            Row::End => Some(false),
        };
        if !is_coded.ok_or_else(damaged)? {
            return Ok(());
        }
        lines.paint(row);
        if coding == FaxCoding::Rle {
            let left = lines.reader.bits_to_byte_boundary();
            let Ok(()) = lines.reader.consume(left);
        }
    }
    Ok(())
}

/// Decodes row after row. A row is the list of positions at which its color changes; it begins white.
struct Lines<R> {
    reader: R,
    width: u32,
    reference: Vec<u32>,
    current: Vec<u32>,
}

impl<R: BitReader> Lines<R> {
    /// Skips the line end before a row, with the zeros that fill it up. The document ends at several line
    /// ends in a row.
    fn line_end(&mut self, two_dimensional: bool) -> Row {
        let mut ends = 0;
        let mut row = Row::OneDimensional;
        while self.reader.peek(11) == Some(0) {
            while self.reader.peek(1) == Some(0) {
                let _ = self.reader.consume(1);
            }
            if self.reader.peek(1).is_none() {
                // Only padding was left.
                return Row::OneDimensional;
            }
            let _ = self.reader.consume(1);
            ends += 1;
            if two_dimensional {
                let tag = self.reader.peek(1);
                let _ = self.reader.consume(1);
                row = if tag == Some(0) { Row::TwoDimensional } else { Row::OneDimensional };
            }
            if ends == 2 {
                return Row::End;
            }
        }
        row
    }

    /// The length of a run: codes for multiples of 64, then one for the rest.
    fn run(&mut self, is_black: bool) -> Option<u32> {
        let mut length = 0_u32;
        loop {
            let code = if is_black {
                black::decode(&mut self.reader)
            } else {
                white::decode(&mut self.reader)
            };
            let code = u32::from(code?);
            length = length.checked_add(code)?;
            if code < 64 {
                return Some(length);
            }
            if length > self.width {
                return None;
            }
        }
    }

    fn one_dimensional(&mut self) -> Option<()> {
        let (mut at, mut is_black) = (0, false);
        self.current.clear();
        while at < self.width {
            at = self.end_of_run(at, is_black)?;
            self.change(at);
            is_black = !is_black;
        }
        self.end_row();
        Some(())
    }

    /// `Some(false)` at the end of the document, `None` if the codes are invalid.
    fn two_dimensional(&mut self) -> Result<Option<bool>, Failure> {
        self.current.clear();
        let mut at = 0;
        let mut is_black = false;
        let mut is_start = true;
        while at < self.width {
            // The crate's table takes more zeros for the end, too: those after the last byte.
            if self.reader.peek(12) == Some(0) {
                return Ok(None);
            }
            let Some(mode) = mode::decode(&mut self.reader) else { return Ok(None) };
            let next = match mode {
                Mode::Pass => Some(self.changes(at, is_black, is_start)[1]),
                Mode::Vertical(by) => {
                    let [first, _] = self.changes(at, is_black, is_start);
                    let next = first.checked_add_signed(by.into());
                    // Of the places of a row, only its start can be reached twice.
                    let next = next.filter(|next| {
                        *next <= self.width && (*next > at || (is_start && *next == at))
                    });
                    next.inspect(|next| {
                        self.change(*next);
                        is_black = !is_black;
                    })
                }
                Mode::Horizontal => {
                    let first = self.end_of_run(at, is_black);
                    let second = first.and_then(|first| self.end_of_run(first, !is_black));
                    first.zip(second).map(|(first, second)| {
                        self.change(first);
                        self.change(second);
                        second
                    })
                }
                Mode::EOF if is_start => return Ok(Some(false)),
                Mode::EOF => None,
                Mode::Extension => {
                    return Err(unsupported("TIFF", "uncompressed parts in fax data"));
                }
            };
            let Some(next) = next else { return Ok(None) };
            at = next;
            is_start = false;
        }
        self.end_row();
        Ok(Some(true))
    }

    fn end_of_run(&mut self, at: u32, is_black: bool) -> Option<u32> {
        at.checked_add(self.run(is_black)?).filter(|end| *end <= self.width)
    }

    /// The next change in the row above to the color that the current one is not, and the change after it
    /// (`b1` and `b2` in T.4). At the start of a row, a change at its first pixel counts.
    fn changes(&self, at: u32, is_black: bool, is_start: bool) -> [u32; 2] {
        let is_right = |change: &u32| *change <= at && !(is_start && *change == at);
        let mut first = self.reference.partition_point(is_right);
        if (first % 2 == 1) != is_black {
            first += 1;
        }
        let change = |at: usize| self.reference.get(at).copied().unwrap_or(self.width);
        [change(first), change(first + 1)]
    }

    /// Two changes at one place are none.
    fn change(&mut self, at: u32) {
        if self.current.last() == Some(&at) {
            self.current.pop();
        } else {
            self.current.push(at);
        }
    }

    fn end_row(&mut self) {
        if self.current.last() == Some(&self.width) {
            self.current.pop();
        }
        std::mem::swap(&mut self.reference, &mut self.current);
    }

    /// Sets the bits of the black runs of the last row.
    fn paint(&self, row: &mut [u8]) {
        for run in self.reference.chunks(2) {
            let start = run[0] as usize;
            let end = run.get(1).copied().unwrap_or(self.width) as usize;
            let mut at = start;
            while at < end {
                if at.is_multiple_of(8) && end - at >= 8 {
                    row[at / 8] = u8::MAX;
                    at += 8;
                } else {
                    row[at / 8] |= 0x80 >> (at % 8);
                    at += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs a string of zeros and ones; spaces are ignored.
    fn bits(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).map(|b| b - b'0').collect();
        let pack =
            |bits: &[u8]| bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | bit << (7 - at));
        digits.chunks(8).map(pack).collect()
    }

    fn rows(text: &str, coding: FaxCoding, height: usize) -> Result<Vec<u8>, Failure> {
        let mut rows = vec![0xAA; height];
        decode(&bits(text), coding, 8, &mut rows).map(|()| rows)
    }

    const EOL: &str = "000000000001";

    #[test]
    fn one_dimensional_rows() {
        // 4 white, 4 black; 8 white; 0 white, 8 black.
        let coded = ["1011 011", "10011", "00110101 000101"];
        let expected = vec![0x0F, 0, 0xFF];
        // In group 3, each row has a line end before it, here with zeros that fill it up.
        let lines: String = coded.iter().map(|row| ["0000", EOL, row].concat()).collect();
        let group3 = FaxCoding::Group3 { two_dimensional: false };
        assert_eq!(rows(&lines, group3, 3).ok(), Some(expected.clone()));
        // In TIFF's variant, each row begins on a whole byte.
        let whole = "1011 011 0  10011 000  00110101 000101 00";
        assert_eq!(rows(whole, FaxCoding::Rle, 3).ok(), Some(expected));
    }

    #[test]
    fn two_dimensional_rows() {
        // The first row by runs; the second moves its change one pixel to the right; the third passes it.
        let group3 = FaxCoding::Group3 { two_dimensional: true };
        let coded = format!("{EOL}1 1011 011 {EOL}0 011 1 {EOL}0 0001 1");
        assert_eq!(rows(&coded, group3, 3).ok(), Some(vec![0x0F, 0x07, 0]));
        // Group 4: horizontal 0 white and 3 black, then to the end; the same; the change one to the left.
        let coded = "001 00110101 10 1   1 1 1   1 010 1";
        assert_eq!(rows(coded, FaxCoding::Group4, 3).ok(), Some(vec![0xE0, 0xE0, 0xC0]));
    }

    #[test]
    fn missing_rows_are_damage_unless_the_document_ends() {
        // A row whose first pixels are black, then the end, once for all rows that are missing.
        let expected = [&[0xF0][..], &[0; 20]].concat();
        let group4 = format!("001 00110101 011 1 {EOL}{EOL}");
        assert_eq!(rows(&group4, FaxCoding::Group4, 21).ok(), Some(expected.clone()));
        let row = "00110101 011 1011";
        let group3 = format!("{EOL}{row}{}", EOL.repeat(6));
        let coding = FaxCoding::Group3 { two_dimensional: false };
        assert_eq!(rows(&group3, coding, 21).ok(), Some(expected.clone()));
        let tagged = format!("{EOL}1{row}{}", format!("{EOL}1").repeat(6));
        let coding = FaxCoding::Group3 { two_dimensional: true };
        assert_eq!(rows(&tagged, coding, 21).ok(), Some(expected));
        assert!(rows("001 00110101 10 1", FaxCoding::Group4, 3).is_err(), "cut short");
        assert!(rows("10011 10011", FaxCoding::Rle, 4).is_err(), "cut short");
        // 16 white pixels in a row of 8.
        assert!(rows("101010", FaxCoding::Rle, 1).is_err(), "too long");
    }
}
