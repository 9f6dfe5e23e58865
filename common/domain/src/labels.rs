//! The rules for titles, tags and file names, in uploads and in imports.

/// Maximum number of characters in a title.
const MAX_TITLE_CHARS: usize = 500;

/// Maximum number of tags of an image.
const MAX_TAGS: usize = 32;

/// Maximum number of characters in a tag.
const MAX_TAG_CHARS: usize = 64;

/// Maximum number of bytes in a file name, as in most file systems.
const MAX_FILENAME_BYTES: usize = 255;

/// Trims a title; an empty one becomes `None`. The error says why a title is invalid.
pub fn title(text: &str) -> Result<Option<String>, String> {
    let title = checked(text, MAX_TITLE_CHARS)?;
    Ok((!title.is_empty()).then(|| title.to_owned()))
}

/// Trims a tag, and adds it unless it is empty or a duplicate. The error says why a tag is invalid.
pub fn add_tag(tags: &mut Vec<String>, text: &str) -> Result<(), String> {
    let tag = checked(text, MAX_TAG_CHARS)?;
    if tag.is_empty() || tags.iter().any(|known| known == tag) {
        return Ok(());
    }
    if tags.len() == MAX_TAGS {
        return Err(format!("at most {MAX_TAGS} are allowed"));
    }
    tags.push(tag.to_owned());
    Ok(())
}

/// The last component of a path, without control characters and with limited length; `None` if nothing is
/// left.
pub fn file_name(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut name: String = last.chars().filter(|c| !c.is_control()).collect();
    name.truncate(name.floor_char_boundary(MAX_FILENAME_BYTES));
    let name = name.trim();
    (!matches!(name, "" | "." | "..")).then(|| name.to_owned())
}

/// Trims `text`, and checks that it is short enough and printable.
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
