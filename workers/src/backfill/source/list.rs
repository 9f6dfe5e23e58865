//! The pictures that a file lists, one per line (NDJSON): `"PATH"` or `{"path": …, "title": …, "tags": […],
//! "filename": …}`. A path is absolute, relative to the list's folder, or `s3://BUCKET/KEY`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use safelight_domain::{Label, Labels, clean};
use serde::Deserialize;

use super::{
    candidate::{Candidate, Location, Verdict},
    error::SourceError,
    reader::Reader,
};

/// Bytes of a line at most.
const LINE_BYTES: u64 = 64 * 1024;

/// Some editors write it before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) struct List {
    path: PathBuf,
    /// Opened once: what has the path later may be another file.
    file: Arc<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Picture {
    path: String,
    title: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    filename: Option<String>,
}

impl List {
    pub fn new(path: PathBuf, file: File) -> Self {
        Self { path, file: Arc::new(file) }
    }

    pub async fn count(&self, reader: &Reader) -> Result<u64, SourceError> {
        let (path, file) = (self.path.clone(), self.file.clone());
        reader
            .run(move |progress| {
                let mut lines = Lines::of(file, None);
                let mut count = 0;
                while let Some((_, line)) = lines.next(&path)? {
                    progress.show()?;
                    count += u64::from(!is_blank(&line));
                }
                Ok(count)
            })
            .await
    }

    pub async fn page(
        &self,
        reader: &Reader,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Candidate>, SourceError> {
        let (path, file) = (self.path.clone(), self.file.clone());
        let after = after.map(str::to_owned);
        reader
            .run(move |progress| {
                let mut lines = Lines::of(file, after.as_deref());
                let mut candidates = Vec::new();
                while candidates.len() < limit
                    && let Some((number, line)) = lines.next(&path)?
                {
                    progress.show()?;
                    if !is_blank(&line) {
                        candidates.push(candidate(&path, number, &line, lines.cursor()));
                    }
                }
                Ok(candidates)
            })
            .await
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// The candidate that a line names; an invalid one, if it names none.
fn candidate(list: &Path, number: u64, line: &[u8], cursor: String) -> Candidate {
    let named = picture(line).and_then(|(picture, labels)| {
        let location = location(list, &picture)?;
        Ok((picture, labels, location))
    });
    let (picture, labels, location) = match named {
        Ok(named) => named,
        Err(why) => {
            let name = format!("{}:{number}", list.display());
            let location = Location::File(list.to_owned());
            // It may quote the line, which can be long and contain anything.
            let verdict = Some(Verdict::Invalid(clean(&why)));
            let labels = Labels::default();
            return Candidate { verdict, labels, ..Candidate::at(cursor, &name, location) };
        }
    };
    let name = match &location {
        Location::File(path) => path.to_string_lossy().into_owned(),
        Location::Object { .. } => picture.path,
    };
    let candidate = Candidate::at(cursor, &name, location);
    let filename = labels.filename.or(candidate.labels.filename);
    Candidate { labels: Labels { filename, ..labels }, ..candidate }
}

/// The picture that a line names, with the same rules for title and tags as in uploads; or what is wrong with
/// it.
fn picture(line: &[u8]) -> Result<(Picture, Labels), String> {
    if line.len() as u64 >= LINE_BYTES {
        return Err(format!("the line is longer than {LINE_BYTES} bytes"));
    }
    let picture: Picture = match line.trim_ascii_start().first() {
        Some(b'"') => {
            let path = serde_json::from_slice(line).map_err(|error| error.to_string())?;
            Picture { path, title: None, tags: Vec::new(), filename: None }
        }
        Some(b'{') => {
            let mut json = serde_json::Deserializer::from_slice(line);
            let picture = serde_path_to_error::deserialize(&mut json).map_err(|error| {
                let at = error.path().to_string();
                if at == "." {
                    error.inner().to_string()
                } else {
                    format!("`{at}`: {}", error.inner())
                }
            })?;
            json.end().map_err(|error| error.to_string())?;
            picture
        }
        _ => {
            let expected =
                "neither a path in quotes nor {\"path\": …, \"title\": …, \"tags\": […]}";
            return Err(expected.to_owned());
        }
    };
    let mut labels = Labels::default();
    for tag in &picture.tags {
        labels.add_tag(tag).map_err(|why| format!("`tags`: {why}"))?;
    }
    if let Some(title) = &picture.title {
        labels.set(Label::Title, title).map_err(|why| format!("`title`: {why}"))?;
    }
    if let Some(name) = &picture.filename {
        labels.set_filename(name);
    }
    Ok((picture, labels))
}

/// The location of a line's picture; or what is wrong with its path.
fn location(list: &Path, picture: &Picture) -> Result<Location, String> {
    match picture.path.strip_prefix("s3://").map(|rest| rest.split_once('/')) {
        _ if picture.path.contains('\0') => Err("`path`: no path has a NUL in it".to_owned()),
        Some(Some((bucket, key))) if !bucket.is_empty() && !key.is_empty() => {
            Ok(Location::Object { bucket: bucket.to_owned(), key: key.to_owned() })
        }
        Some(_) => Err("`path`: expected s3://BUCKET/KEY".to_owned()),
        None => Ok(Location::File(list.parent().unwrap_or(Path::new("/")).join(&picture.path))),
    }
}

/// The lines of a file after a cursor, which is `BYTES:LINES` read so far.
struct Lines {
    file: BufReader<Shared>,
    bytes: u64,
    number: u64,
}

impl Lines {
    fn of(file: Arc<File>, cursor: Option<&str>) -> Self {
        let position = cursor.and_then(|cursor| cursor.split_once(':'));
        let number = |text: &str| text.parse().unwrap_or(0);
        let (bytes, line) = position.map_or((0, 0), |(bytes, line)| (number(bytes), number(line)));
        let file = BufReader::new(Shared { file, position: bytes });
        Self { file, bytes, number: line }
    }

    /// The next line with its number, starting with 1. A line that is too long is cut.
    fn next(&mut self, path: &Path) -> Result<Option<(u64, Vec<u8>)>, SourceError> {
        let at = |error| SourceError::at(path, error);
        let mut line = Vec::new();
        let mut limited = (&mut self.file).take(LINE_BYTES);
        let mut read = limited.read_until(b'\n', &mut line).map_err(at)? as u64;
        if read == 0 {
            return Ok(None);
        }
        if read == LINE_BYTES && line.last() != Some(&b'\n') {
            read += self.file.skip_until(b'\n').map_err(at)? as u64;
        }
        if self.bytes == 0 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        self.bytes += read;
        self.number += 1;
        Ok(Some((self.number, line)))
    }

    fn cursor(&self) -> String {
        format!("{}:{}", self.bytes, self.number)
    }
}

/// A reader of a file whose other readers have positions of their own.
struct Shared {
    file: Arc<File>,
    position: u64,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn list_continues_after_cursor() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("list.ndjson");
        let long = format!("\"{}\"", "x".repeat(100_000));
        let lines = [
            "\"a.jpg\"",
            "",
            r#"{"path":"/b/c.png","title":"C","tags":["x"]}"#,
            &long,
            r#"{"path":"d","shape":1}"#,
            "nonsense",
            r#""s3://bucket/some/key.gif""#,
        ];
        std::fs::write(&path, format!("\u{feff}{}", lines.join("\n"))).expect("list");
        let list = List::new(path.clone(), File::open(&path).expect("list"));
        let reader = Reader::default();
        assert_eq!(list.count(&reader).await.expect("count"), 6);
        let mut candidates = Vec::new();
        let mut cursor = None::<String>;
        loop {
            let page = list.page(&reader, cursor.as_deref(), 1).await.expect("page");
            let Some(candidate) = page.into_iter().next() else { break };
            cursor = Some(candidate.cursor.clone());
            candidates.push(candidate);
        }
        let valid: Vec<bool> =
            candidates.iter().map(|candidate| candidate.verdict.is_none()).collect();
        assert_eq!(valid, [true, true, false, false, false, true]);
        let first = folder.path().join("a.jpg");
        assert!(matches!(&candidates[0].location, Location::File(path) if *path == first));
        assert_eq!(candidates[1].labels.title.as_deref(), Some("C"));
        assert_eq!(candidates[1].labels.tags, ["x"]);
        assert_eq!(candidates[1].labels.filename.as_deref(), Some("c.png"));
        assert!(candidates[2].name.ends_with(":4"), "{}", candidates[2].name);
        assert_eq!(candidates[5].labels.filename.as_deref(), Some("key.gif"));
    }

    #[test]
    fn list_validates_lines_like_uploads() {
        let candidate =
            |line: &str| candidate(Path::new("/list"), 1, line.as_bytes(), String::new());
        for (line, why) in [
            (r#"{"path":"a","title":"x\u0000y"}"#, "`title`: control characters"),
            (r#"{"path":"a","tags":["ok","\u0007"]}"#, "`tags`: control characters"),
            (r#"{"path":"a","tags":["ok",7]}"#, "`tags[1]`: invalid type"),
            (r#"{"path":"a\u0000b"}"#, "`path`: no path has a NUL"),
            (r#"{"path":"s3://bucket"}"#, "`path`: expected s3://"),
            (r#"{"title":"x"}"#, "missing field `path`"),
            (r#"{"path":"a"} {}"#, "trailing characters"),
            (r#""a" "b""#, "trailing characters"),
            ("a.jpg", "neither a path in quotes"),
        ] {
            let found = candidate(line).verdict;
            let is_expected =
                matches!(&found, Some(Verdict::Invalid(reason)) if reason.contains(why));
            assert!(is_expected, "{line}: {found:?}");
        }
        let valid = candidate(
            r#"{"path":"/a/b.jpg","title":" ","tags":["x "," x"],"filename":"../c.jpg"}"#,
        );
        let labels = valid.labels;
        assert_eq!((labels.title, labels.tags), (None, vec!["x".to_owned()]));
        assert_eq!(labels.filename.as_deref(), Some("c.jpg"));
    }
}
