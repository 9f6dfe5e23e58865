//! Which coefficients the scans of a JPEG have brought so far.
//!
//! Source: ISO/IEC 10918-1 (T.81), B.2.3 (scan headers) and G.1.1 (progressive scans).

use super::markers::{DAC, DHT, DQT, DRI, EOI, Header, Parts, SOS};

/// The most bytes that sorted scans may take for tables, which are repeated before each of them.
const MAX_SORTED_TABLES: usize = 1 << 20;

/// What a scan contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScanHeader {
    /// Positions of its components in the frame.
    components: Vec<usize>,
    /// The first and the last coefficient in zigzag order.
    first: usize,
    last: usize,
    /// The number of low bits that are missing afterwards.
    low: u8,
}

impl ScanHeader {
    /// `None` for one that the decoder will reject.
    pub fn read(segment: &[u8], header: &Header) -> Option<Self> {
        let (&count, rest) = segment.split_first()?;
        let (selectors, &[first, last, bits]) = rest.split_at_checked(2 * usize::from(count))?
        else {
            return None;
        };
        let mut components = Vec::with_capacity(usize::from(count));
        for pair in selectors.chunks_exact(2) {
            // Some encoders give all components the same identifier.
            let is_next = |&at: &usize| header.ids[at] == pair[0] && !components.contains(&at);
            let next = (0..header.ids.len()).find(is_next)?;
            components.push(next);
        }
        if !header.is_progressive() {
            return Some(Self { components, first: 0, last: 63, low: 0 });
        }
        let (first, last) = (usize::from(first), usize::from(last));
        (first <= last && last < 64).then_some(Self { components, first, last, low: bits & 15 })
    }

    fn is_first_dc(&self, progress: &Progress) -> bool {
        self.first == 0 && self.components.iter().any(|&at| progress.missing[at][0].is_none())
    }
}

/// What a scan adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Novelty {
    /// Coefficients, or more bits of them.
    New,
    /// Coefficients of a component whose mean values are not known yet.
    BeforeDc,
    /// Nothing: all of it is known.
    Known,
}

/// The state of all coefficients.
pub(super) struct Progress {
    /// For each component and coefficient, the number of low bits that are missing; `None` if all are.
    missing: Vec<[Option<u8>; 64]>,
    is_progressive: bool,
}

impl Progress {
    pub fn new(header: &Header) -> Self {
        let missing = vec![[None; 64]; header.ids.len()];
        Self { missing, is_progressive: header.is_progressive() }
    }

    pub fn advance(&mut self, scan: &ScanHeader) -> Novelty {
        let mut novelty = Novelty::Known;
        for &component in &scan.components {
            let missing = &mut self.missing[component];
            if scan.first > 0 && missing[0].is_none() {
                novelty = Novelty::BeforeDc;
            }
            for known in &mut missing[scan.first..=scan.last] {
                if *known != Some(scan.low) && novelty == Novelty::Known {
                    novelty = Novelty::New;
                }
                *known = Some(scan.low);
            }
        }
        if self.is_progressive { novelty } else { Novelty::New }
    }

    /// Whether every component has had a scan, in a progressive picture one of mean values.
    pub fn has_all_components(&self) -> bool {
        self.missing.iter().all(|coefficients| coefficients[0].is_some())
    }

    /// Whether no bit of any coefficient is missing.
    pub fn is_complete(&self) -> bool {
        self.missing.iter().flatten().all(|missing| *missing == Some(0))
    }
}

/// The same picture with the first scan of mean values of each component before all other scans. Tables may change
/// between scans, so each gets those that precede it in the file. `None` if that would take too much memory.
pub(super) fn sorted(bytes: &[u8], header: &Header) -> Option<Vec<u8>> {
    let mut progress = Progress::new(header);
    let (mut first, mut others) = (Vec::new(), Vec::new());
    let mut tables = Vec::new();
    let mut repeated = 0;
    // What belongs to no scan comes first. The scans are copied once, because the memory for more is not counted.
    let mut sorted = Vec::with_capacity(bytes.len() + MAX_SORTED_TABLES);
    let mut parts = Parts::new(bytes);
    while let Some(part) = parts.next() {
        match part.marker {
            SOS => {
                let scan = ScanHeader::read(&bytes[part.body], header)?;
                let data = parts.skip_scan();
                repeated += tables.len();
                if repeated > MAX_SORTED_TABLES {
                    return None;
                }
                let list = if scan.is_first_dc(&progress) { &mut first } else { &mut others };
                list.push((tables.len(), part.whole.start..data.end));
                progress.advance(&scan);
            }
            DQT | DHT | DAC | DRI => tables.extend_from_slice(&bytes[part.whole]),
            EOI => {}
            _ => sorted.extend_from_slice(&bytes[part.whole]),
        }
    }
    for (tables_before, scan) in first.into_iter().chain(others) {
        sorted.extend_from_slice(&tables[..tables_before]);
        sorted.extend_from_slice(&bytes[scan]);
    }
    sorted.extend_from_slice(&[0xFF, EOI]);
    Some(sorted)
}
