//! What a file names, line by line (NDJSON): `"PATH"` or `{"path": …, "title": …, "tags": […],
//! "filename": …}`. A path is absolute, relative to the list's folder, or `s3://BUCKET/KEY`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use safelight_common::roots;
use serde::Deserialize;

use super::{Entry, Place, SourceError, on_thread};

/// Bytes of a line at most.
const LINE_BYTES: u64 = 64 * 1024;

pub(in crate::backfill) struct List {
    path: PathBuf,
    /// What its lines may name; anything if empty.
    roots: Vec<String>,
}

/// A line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Path(String),
    Picture(Picture),
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
    pub fn new(path: PathBuf, roots: Vec<String>) -> Self {
        Self { path, roots }
    }

    pub async fn count(&self) -> Result<u64, SourceError> {
        let path = self.path.clone();
        on_thread(move || {
            let mut lines = Lines::from(&path, None)?;
            let mut count = 0;
            while let Some((_, line)) = lines.next(&path)? {
                count += u64::from(!is_blank(&line));
            }
            Ok(count)
        })
        .await
    }

    pub async fn page(&self, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, SourceError> {
        let (path, roots) = (self.path.clone(), self.roots.clone());
        let after = after.map(str::to_owned);
        on_thread(move || {
            let mut lines = Lines::from(&path, after.as_deref())?;
            let mut entries = Vec::new();
            while entries.len() < limit
                && let Some((number, line)) = lines.next(&path)?
            {
                if !is_blank(&line) {
                    entries.push(entry(&path, &roots, number, &line, lines.cursor()));
                }
            }
            Ok(entries)
        })
        .await
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// The entry that a line names; an invalid one, if it names none.
fn entry(list: &Path, roots: &[String], number: u64, line: &[u8], cursor: String) -> Entry {
    let refuse = |cursor, why: String| {
        let name = format!("{}:{number}", list.display());
        let place = Place::File(list.to_owned());
        Entry { invalid: Some(why), filename: None, ..Entry::at(cursor, name, place) }
    };
    let picture = match serde_json::from_slice(line) {
        Ok(Line::Picture(picture)) => picture,
        Ok(Line::Path(path)) => Picture { path, title: None, tags: Vec::new(), filename: None },
        Err(_) if line.len() as u64 >= LINE_BYTES => {
            return refuse(cursor, format!("the line is longer than {LINE_BYTES} bytes"));
        }
        Err(_) => {
            let expected =
                "neither a path in quotes nor {\"path\": …, \"title\": …, \"tags\": […]}";
            return refuse(cursor, expected.to_owned());
        }
    };
    let place = match picture.path.strip_prefix("s3://").map(|rest| rest.split_once('/')) {
        Some(Some((bucket, key))) if !bucket.is_empty() && !key.is_empty() => {
            Place::Object { bucket: bucket.to_owned(), key: key.to_owned() }
        }
        Some(_) => return refuse(cursor, "expected s3://BUCKET/KEY".to_owned()),
        None => {
            let folder = list.parent().unwrap_or(Path::new("/"));
            Place::File(folder.join(&picture.path))
        }
    };
    let named = match &place {
        Place::File(path) => path.to_string_lossy().into_owned(),
        Place::Object { .. } => picture.path.clone(),
    };
    if !roots.is_empty() && !roots::contain(roots, &named) {
        return refuse(cursor, format!("{named} is outside of `import_roots`"));
    }
    let is_file = match &place {
        // Whatever it is that is not there, opening says so.
        Place::File(path) => path.metadata().map_or(true, |about| about.is_file()),
        Place::Object { .. } => true,
    };
    let entry = Entry::at(cursor, named, place);
    let filename = picture.filename.or(entry.filename);
    Entry { title: picture.title, tags: picture.tags, filename, is_file, ..entry }
}

/// The lines of a file from a place on. Cursors are `BYTES:LINES` read.
struct Lines {
    file: BufReader<File>,
    bytes: u64,
    number: u64,
}

impl Lines {
    fn from(path: &Path, cursor: Option<&str>) -> Result<Self, SourceError> {
        let mut file = File::open(path).map_err(|error| SourceError::at(path, error))?;
        let stands = cursor.and_then(|cursor| cursor.split_once(':'));
        let number = |text: &str| text.parse().unwrap_or(0);
        let (bytes, line) = stands.map_or((0, 0), |(bytes, line)| (number(bytes), number(line)));
        file.seek(SeekFrom::Start(bytes)).map_err(|error| SourceError::at(path, error))?;
        Ok(Self { file: BufReader::new(file), bytes, number: line })
    }

    /// The next line with its number, the first being 1. Of one that is too long, its beginning.
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
        self.bytes += read;
        self.number += 1;
        Ok(Some((self.number, line)))
    }

    fn cursor(&self) -> String {
        format!("{}:{}", self.bytes, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_read_from_where_the_cursor_says() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("list.ndjson");
        let long = format!("\"{}\"", "x".repeat(100_000));
        let lines = [
            "\"a.jpg\"",
            "",
            r#"{"path":"/b/c.png","title":"C","tags":["x"]}"#,
            &long,
            r#"{"path":"d","colour":1}"#,
            "nonsense",
            r#""s3://bucket/some/key.gif""#,
        ];
        std::fs::write(&path, lines.join("\n")).expect("list");
        let list = List::new(path.clone(), Vec::new());
        assert_eq!(list.count().await.expect("count"), 6);
        let mut entries = Vec::new();
        let mut cursor = None::<String>;
        loop {
            let page = list.page(cursor.as_deref(), 1).await.expect("page");
            let Some(entry) = page.into_iter().next() else { break };
            cursor = Some(entry.cursor.clone());
            entries.push(entry);
        }
        let valid: Vec<bool> = entries.iter().map(|entry| entry.invalid.is_none()).collect();
        assert_eq!(valid, [true, true, false, false, false, true]);
        assert!(matches!(&entries[0].place, Place::File(p) if *p == folder.path().join("a.jpg")));
        assert_eq!(entries[1].title.as_deref(), Some("C"));
        assert_eq!(entries[1].tags, ["x"]);
        assert_eq!(entries[1].filename.as_deref(), Some("c.png"));
        assert!(entries[2].name.ends_with(":4"), "{}", entries[2].name);
        assert_eq!(entries[5].filename.as_deref(), Some("key.gif"));
    }

    #[tokio::test]
    async fn a_list_names_nothing_outside_of_the_roots() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("list.ndjson");
        std::fs::write(folder.path().join("in.jpg"), b"x").expect("file");
        std::fs::write(
            &path,
            "\"in.jpg\"\n\"/etc/passwd\"\n\"../../etc/passwd\"\n\"s3://other/a\"",
        )
        .expect("list");
        let roots = vec![folder.path().to_string_lossy().into_owned()];
        let page = List::new(path, roots).page(None, 9).await.expect("page");
        let valid: Vec<bool> = page.iter().map(|entry| entry.invalid.is_none()).collect();
        assert_eq!(valid, [true, false, false, false]);
    }
}
