//! The labels that a client gives an image: title, tags, file name and visibility. Uploads and imports share
//! the rules.

use serde::Serialize;

use super::{ContentHash, ContentHasher, Visibility, text_enum::text_enum};

/// Characters of a title at most.
const MAX_TITLE_CHARS: usize = 500;

/// Tags of an image at most.
const MAX_TAGS: usize = 32;

/// Characters of a tag at most.
const MAX_TAG_CHARS: usize = 64;

/// Bytes of a file name at most, as in most file systems.
const MAX_FILENAME_BYTES: usize = 255;

text_enum! {
    /// A label that a client names and gives as text.
    "label" Label {
        /// The title.
        Title = "title",
        /// Tags, separated by commas.
        Tags = "tags",
        /// Who may read the bytes.
        Visibility = "visibility",
    }
}

impl Label {
    /// Whether it may be given several times.
    pub fn is_repeatable(self) -> bool {
        self == Self::Tags
    }
}

/// The labels of one image, each within its limits. Serialized, they have the names of their columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// The title, if the client gave one.
    pub title: Option<String>,
    /// The tags, each once, in the order given.
    pub tags: Vec<String>,
    /// The file name without folders, if the client gave one.
    pub filename: Option<String>,
    /// Who may read the bytes. `None` if the client does not say; a stored image always has one.
    pub visibility: Option<Visibility>,
}

impl Labels {
    /// Sets a label from text; tags are added to those before. Fails with the reason if the text breaks a
    /// rule.
    pub fn set(&mut self, label: Label, text: &str) -> Result<(), String> {
        match label {
            Label::Title => self.title = line(text, MAX_TITLE_CHARS)?,
            Label::Tags => text.split(',').try_for_each(|tag| self.add_tag(tag))?,
            Label::Visibility => {
                let names = |_| "must be `public` or `private`".to_owned();
                self.visibility = Some(text.trim().parse().map_err(names)?);
            }
        }
        Ok(())
    }

    /// Adds a tag without surrounding space, unless it is empty or already there. Fails with the reason if
    /// the tag breaks a rule.
    pub fn add_tag(&mut self, text: &str) -> Result<(), String> {
        let Some(tag) = line(text, MAX_TAG_CHARS)? else { return Ok(()) };
        if self.tags.contains(&tag) {
            return Ok(());
        }
        if self.tags.len() == MAX_TAGS {
            return Err(format!("at most {MAX_TAGS} are allowed"));
        }
        self.tags.push(tag);
        Ok(())
    }

    /// Sets the file name to the last component of a path, printable and of bounded length; clears it if
    /// nothing is left.
    pub fn set_filename(&mut self, path: &str) {
        self.filename = file_name(path);
    }

    /// Identifies the payload of an upload: equal if and only if the bytes and all labels are.
    ///
    /// Fingerprints are stored with idempotency keys and outlive an upgrade, so those of uploads without a
    /// new label must not change: a new label is added only if it is given, as the visibility is, and behind
    /// a text that no other label has there.
    pub fn fingerprint(&self, content: ContentHash) -> ContentHash {
        let mut hasher = ContentHasher::default();
        hasher.update(content.as_bytes());
        // Each part with its length, so that no two payloads give the same bytes.
        let mut add = |part: Option<&str>| {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hasher.update(&length.to_be_bytes());
            hasher.update(part.unwrap_or_default().as_bytes());
        };
        add(self.title.as_deref());
        add(self.filename.as_deref());
        self.tags.iter().for_each(|tag| add(Some(tag)));
        if let Some(visibility) = self.visibility {
            add(None);
            add(Some(visibility.as_str()));
        }
        hasher.finish()
    }
}

fn file_name(path: &str) -> Option<String> {
    let last = path.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut name: String = last.chars().filter(|c| !is_invisible_control(*c)).collect();
    name.truncate(name.floor_char_boundary(MAX_FILENAME_BYTES));
    let name = name.trim();
    (!matches!(name, "" | "." | "..")).then(|| name.to_owned())
}

/// Whether a character is not shown, but changes how others are: a control, a separator of lines, or one that
/// turns the direction of text (Unicode's `Bidi_Control`), by which `gpj.exe` is shown as `exe.jpg`.
pub fn is_invisible_control(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// `text` without surrounding space, if it is short enough and printable; `None` if nothing is left.
fn line(text: &str, max_chars: usize) -> Result<Option<String>, String> {
    let text = text.trim();
    if text.chars().count() > max_chars {
        return Err(format!("at most {max_chars} characters are allowed"));
    }
    if text.chars().any(is_invisible_control) {
        return Err("control characters are not allowed, also those of text direction".to_owned());
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
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
            ("a\u{202e}gpj.exe", Some("agpj.exe")),
            ("\u{200e}\u{2066}a\u{2069}\u{61c}.png", Some("a.png")),
            (" .. ", None),
            ("\u{202e}", None),
            ("folder/", None),
        ];
        for (name, expected) in cases {
            assert_eq!(file_name(name).as_deref(), expected, "{name}");
        }
        let long = file_name(&"é".repeat(200)).expect("a name");
        assert_eq!(long, "é".repeat(127));
    }

    #[test]
    fn tags_are_split_trimmed_deduplicated_and_bounded() {
        let mut given = Labels::default();
        given.set(Label::Tags, "cat, dog,,cat ").expect("tags");
        given.set(Label::Tags, "bird").expect("tags");
        assert_eq!(given.tags, ["cat", "dog", "bird"]);
        let many = (0..40).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert!(given.set(Label::Tags, &many).is_err());
        assert!(given.set(Label::Tags, &"x".repeat(65)).is_err());
        for control in ['\u{7}', '\u{202e}', '\u{2067}', '\u{200f}', '\u{2028}'] {
            assert!(given.set(Label::Title, &format!("a{control}b")).is_err(), "{control:?}");
            assert!(given.set(Label::Tags, &format!("a{control}b")).is_err(), "{control:?}");
        }
        given.set(Label::Title, "\u{5d0}\u{200d}\u{1f469}").expect("joiners belong to letters");
        given.set(Label::Title, "  ").expect("empty");
        assert_eq!(given.title, None);
        given.set(Label::Visibility, " private ").expect("visibility");
        assert_eq!(given.visibility, Some(Visibility::Private));
        assert!(given.set(Label::Visibility, "").is_err());
    }

    fn labels(title: Option<&str>, tags: &[&str], filename: Option<&str>) -> Labels {
        Labels {
            title: title.map(str::to_owned),
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            filename: filename.map(str::to_owned),
            visibility: None,
        }
    }

    #[test]
    fn fingerprint_covers_all_labels() {
        let content = ContentHash::of(b"x");
        let public = Labels { visibility: Some(Visibility::Public), ..Labels::default() };
        let private = Labels { visibility: Some(Visibility::Private), ..Labels::default() };
        let all = [
            labels(None, &[], None).fingerprint(content),
            labels(Some("ab"), &[], None).fingerprint(content),
            labels(None, &[], Some("ab")).fingerprint(content),
            labels(None, &["ab"], None).fingerprint(content),
            labels(None, &["a", "b"], None).fingerprint(content),
            labels(Some("a"), &["b"], None).fingerprint(content),
            public.fingerprint(content),
            private.fingerprint(content),
            Labels::default().fingerprint(ContentHash::of(b"y")),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all[n + 1..].iter().all(|other| other != one), "{n}");
        }
    }

    /// They are in the databases of installations: a retry across an upgrade must find its upload.
    #[test]
    fn fingerprints_stay_as_they_are() {
        let content = ContentHash::of(b"x");
        assert_eq!(
            Labels::default().fingerprint(content).to_string(),
            "9be0f3300ee3ae23adcf0c511d5a3e8c57b9d3f042f176fcb1a2dbcb24777cba"
        );
        let full = labels(Some("Cat"), &["a", "b"], Some("cat.jpg"));
        let full = Labels { visibility: Some(Visibility::Private), ..full };
        assert_eq!(
            full.fingerprint(content).to_string(),
            "de28877af9f5ef99d4b5281dfbae960a95648b01c61fe111db0ad8c2096c1aae"
        );
    }
}
