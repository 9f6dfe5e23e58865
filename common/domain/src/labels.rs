//! The labels that a client gives an image: title, tags and file name. Uploads and imports share the rules.

use serde::Serialize;

/// Characters of a title at most.
const MAX_TITLE_CHARS: usize = 500;

/// Tags of an image at most.
const MAX_TAGS: usize = 32;

/// Characters of a tag at most.
const MAX_TAG_CHARS: usize = 64;

/// Bytes of a file name at most, as in most file systems.
const MAX_FILENAME_BYTES: usize = 255;

/// The labels of one image, each within its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// The title, if the client gave one.
    pub title: Option<String>,
    /// The tags, each once, in the order given.
    pub tags: Vec<String>,
    /// The file name without folders, if the client gave one.
    pub filename: Option<String>,
}

impl Labels {
    /// Sets the title without surrounding space; an empty one clears it. Fails with the reason if the
    /// title breaks a rule.
    pub fn set_title(&mut self, text: &str) -> Result<(), String> {
        let title = checked(text, MAX_TITLE_CHARS)?;
        self.title = (!title.is_empty()).then(|| title.to_owned());
        Ok(())
    }

    /// Adds a tag without surrounding space, unless it is empty or already there. Fails with the reason if
    /// the tag breaks a rule.
    pub fn add_tag(&mut self, text: &str) -> Result<(), String> {
        let tag = checked(text, MAX_TAG_CHARS)?;
        if tag.is_empty() || self.tags.iter().any(|known| known == tag) {
            return Ok(());
        }
        if self.tags.len() == MAX_TAGS {
            return Err(format!("at most {MAX_TAGS} are allowed"));
        }
        self.tags.push(tag.to_owned());
        Ok(())
    }

    /// Sets the file name to the last component of a path, printable and of bounded length; clears it if
    /// nothing is left.
    pub fn set_filename(&mut self, path: &str) {
        self.filename = file_name(path);
    }
}

fn file_name(path: &str) -> Option<String> {
    let last = path.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut name: String = last.chars().filter(|c| !c.is_control()).collect();
    name.truncate(name.floor_char_boundary(MAX_FILENAME_BYTES));
    let name = name.trim();
    (!matches!(name, "" | "." | "..")).then(|| name.to_owned())
}

/// `text` without surrounding space, if it is short enough and printable.
fn checked(text: &str, max_chars: usize) -> Result<&str, String> {
    let text = text.trim();
    if text.chars().count() > max_chars {
        return Err(format!("at most {max_chars} characters are allowed"));
    }
    if text.chars().any(char::is_control) {
        return Err("control characters are not allowed".to_owned());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_lose_folders_and_control_characters() {
        let cases = [
            ("cat.jpg", Some("cat.jpg")),
            ("../../etc/passwd", Some("passwd")),
            ("C:\\pictures\\cat.jpg", Some("cat.jpg")),
            ("a\r\nb\0.png", Some("ab.png")),
            (" .. ", None),
            ("folder/", None),
        ];
        for (name, expected) in cases {
            assert_eq!(file_name(name).as_deref(), expected, "{name}");
        }
        let long = file_name(&"é".repeat(200)).expect("a name");
        assert_eq!(long, "é".repeat(127));
    }
}
