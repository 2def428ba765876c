//! Text made fit for HTML and SVG. Whatever a model, a prompt or a path says, it stays text.

/// For element content and double-quoted attributes. Characters that XML does not know become �.
pub fn text(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A path below the page's folder as a link's target; `None` where it is no such path, and so no link.
pub fn href(path: &str) -> Option<String> {
    let outside = path.is_empty()
        || path.starts_with(['/', '\\', '?', '#'])
        || path.split('/').any(|part| part == "..");
    if outside {
        return None;
    }
    let mut safe = String::from("./");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                safe.push(byte.into())
            }
            byte => safe.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(safe)
}

/// What a model wrote, with its line ends and controls seen: `⏎`, `⇥`, and the pictures of the others.
pub fn seen(token: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '⏎',
        '\t' => '⇥',
        '\r' => '␍',
        c if (c as u32) < 32 => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        c => c,
    };
    token.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(
            text(r#"<b a="1" b='2'>&"#),
            "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;"
        );
        assert_eq!(text("a\0b\u{1b}c\nd"), "a\u{fffd}b\u{fffd}c\nd");
    }

    #[test]
    fn links_lead_below_the_page_only() {
        assert_eq!(
            href("E7/store a/manifest.json").as_deref(),
            Some("./E7/store%20a/manifest.json")
        );
        assert_eq!(
            href("javascript:alert(1)").as_deref(),
            Some("./javascript%3Aalert%281%29")
        );
        for outside in ["", "/etc/passwd", "../x", "a/../../x", "//host/x"] {
            assert_eq!(href(outside), None, "{outside}");
        }
    }

    #[test]
    fn line_ends_in_tokens_are_seen() {
        assert_eq!(seen("a\n\tb\u{7}"), "a⏎⇥b␇");
    }
}
