//! Texts for the trace, equal in every run of a seed.

/// Shortens UUIDs: `#n` for ids of the simulation, which count up, and `*` for random ids of the product.
/// Long texts are truncated.
pub(super) fn short(text: &str) -> String {
    const UUID: usize = 36;
    const LONGEST: usize = 200;
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() && out.len() < LONGEST {
        let id = rest.get(..UUID).and_then(uuid);
        let step = if id.is_some() { UUID } else { rest.chars().next().map_or(1, char::len_utf8) };
        out.push_str(&id.unwrap_or_else(|| rest[..step].to_owned()));
        rest = &rest[step..];
    }
    for (long, short) in [("JobId(", "job("), ("TaskId(", "task("), ("WorkerId(*)", "me")] {
        out = out.replace(long, short);
    }
    out
}

fn uuid(text: &str) -> Option<String> {
    let dashes = [8, 13, 18, 23];
    let fits = text.bytes().enumerate().all(|(at, byte)| {
        if dashes.contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() }
    });
    if !fits {
        return None;
    }
    let number = u128::from_str_radix(&text.replace('-', ""), 16).ok()?;
    Some(if number < 1 << 32 { format!("#{number}") } else { "*".to_owned() })
}
