//! Words as a shell splits them: what stands inside one quoted argument (`--edit '…'`) quotes as outside.

/// Splits at white space; `'…'` keeps everything as it is, `"…"` all but `\"` and `\\`, and outside of quotes a backslash
/// keeps the next character.
///
/// # Errors
/// A quote that does not end, a backslash at the end; says which.
pub(super) fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    // `None` between words: `''` is a word, nothing is not.
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            '\\' => {
                let next = chars
                    .next()
                    .ok_or("it ends in a backslash that keeps nothing")?;
                word.get_or_insert_default().push(next);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Takes the rest of a quoted part, its closing quote included.
fn quoted(quote: char, chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), String> {
    let open = || format!("a {quote} opens and does not close");
    loop {
        match chars.next().ok_or_else(open)? {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next().ok_or_else(open)? {
                c @ ('"' | '\\') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

/// The word, quoted where [`split`] would not give it back as it is.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '\'' | '"' | '\\');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_and_backslashes_keep_what_a_shell_keeps() {
        let words = |text: &str| split(text).unwrap();
        assert_eq!(words("  a  b=c\td "), ["a", "b=c", "d"]);
        assert_eq!(
            words(r#"v='my dir/d'#k x="a \"b\" \n""#),
            ["v=my dir/d#k", r#"x=a "b" \n"#]
        );
        assert_eq!(words(r"a\ b ''"), ["a b", ""]);
        assert!(split("a 'b").unwrap_err().contains("does not close"));
        assert!(split("a\\").unwrap_err().contains("backslash"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec(any::<String>(), 0..4)) {
            let line: Vec<String> = words.iter().map(|w| quote(w)).collect();
            prop_assert_eq!(split(&line.join(" ")).unwrap(), words);
        }

        #[test]
        fn no_string_makes_the_splitter_panic(text in any::<String>()) {
            let _ = split(&text);
        }
    }
}
