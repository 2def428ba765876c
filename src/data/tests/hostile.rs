//! Input that is broken, or means harm: an error that says what and where, and never a panic.

use super::*;
use crate::data::csv::TableReader;
use crate::data::fields::Wanted;
use crate::data::json::JsonReader;
use crate::data::jsonl::JsonlReader;
use crate::data::lines::text_input;
use crate::data::source::RecordReader;
use crate::data::txt::TxtReader;
use proptest::prelude::*;
use std::io::Cursor;
use std::sync::Arc;

#[test]
fn invalid_utf8_is_named_with_its_place_in_every_form_and_may_be_skipped() {
    let cases: [(&str, &[u8], &str); 7] = [
        ("a.txt", b"ok\nb\xFFd\nok\n", "a.txt:2:"),
        (
            "a.jsonl",
            b"{\"text\":\"ok\"}\n{\"text\":\"\xC3\x28\"}\n{\"text\":\"ok\"}\n",
            "a.jsonl:2:",
        ),
        (
            "a.jsonl",
            b"{\"text\":\"ok\"}\n{\"text\":\"x\",\"other\":\"\xFF\"}\n{\"text\":\"ok\"}\n",
            "a.jsonl:2:",
        ),
        (
            "a.jsonl",
            b"{\"text\":\"ok\"}\n{\"text\":\"\\ud800\"}\n{\"text\":\"ok\"}\n",
            "a.jsonl:2:",
        ),
        (
            "a.json",
            b"[{\"text\":\"ok\"},\n{\"text\":\n\"\x80\"},{\"text\":\"ok\"}]",
            "a.json:3 (element 2):",
        ),
        ("a.csv", b"text,x\nok,\nb,\xFF\nok,\n", "a.csv:3:"),
        ("a.tsv", b"text\nok\n\xE2\x82\nok\n", "a.tsv:3:"),
    ];
    for (name, contents, place) in cases {
        let said = message(name, contents, ReadOptions::default());
        assert_says(&said, &[place, "--skip-bad"]);
        if !said.contains("hex escape") {
            assert_says(&said, &["UTF-8"]);
        }
        assert_eq!(read(name, contents, skipping()).unwrap().len(), 2, "{name}");
    }
    assert_says(
        &message("a.csv", b"te\xFFxt\na\n", ReadOptions::default()),
        &["a.csv:1:", "UTF-8"],
    );
}

#[test]
fn utf16_is_recognised_by_its_mark() {
    for name in ["a.txt", "a.jsonl", "a.json", "a.csv"] {
        let said = message(name, b"\xFF\xFEt\0e\0x\0t\0", ReadOptions::default());
        assert_says(&said, &[name, "UTF-16", "iconv"]);
    }
}

#[test]
fn raw_nul_bytes_are_refused_and_escaped_ones_are_text() {
    for (name, contents) in [
        ("a.txt", "a\0b\n"),
        ("a.csv", "text\na\0b\n"),
        ("a.tsv", "text\n\0end of file\0\n"),
    ] {
        assert_says(
            &message(name, contents, ReadOptions::default()),
            &[name, "NUL"],
        );
    }
    let said = message("a.jsonl", "{\"text\":\"a\0b\"}", ReadOptions::default());
    assert_says(&said, &["a.jsonl:1:", "control character"]);
    assert_eq!(texts("a.jsonl", r#"{"text":"a\u0000b"}"#), ["a\0b"]);
}

#[test]
fn a_table_cannot_end_itself_early_by_saying_what_we_say_at_its_end() {
    let csv = "text\na\n\0end of file\0\nb\n";
    let records = read("a.csv", csv, skipping()).unwrap();
    assert_eq!(records.len(), 2);
    for end in ["", "\n", "\n\n\n"] {
        let said = message(
            "a.csv",
            format!("text\na\n\0end of file\0{end}"),
            ReadOptions::default(),
        );
        assert_says(&said, &["a.csv:3:", "NUL"]);
    }
}

#[test]
fn token_ids_must_be_whole_numbers_below_two_to_the_32() {
    for bad in [
        "-1",
        "1.0",
        "0.5",
        "1e2",
        "4294967296",
        "1e30",
        "\"7\"",
        "null",
        "[1]",
        "true",
    ] {
        let said = message(
            "a.jsonl",
            format!("{{\"tokens\": [5, {bad}]}}"),
            ReadOptions::default(),
        );
        assert_says(&said, &["a.jsonl:1:", "`tokens`: item 1", "whole numbers"]);
    }
    for (bad, what) in [
        ("\"1 2\"", "a string"),
        ("7", "a number"),
        ("{}", "an object"),
    ] {
        let said = message(
            "a.jsonl",
            format!("{{\"tokens\": {bad}}}"),
            ReadOptions::default(),
        );
        assert_says(&said, &["`tokens` must be an array", what]);
    }
}

#[test]
fn an_input_of_the_wrong_type_or_an_empty_one_is_named() {
    for (line, what) in [
        (r#"{"text": 3}"#, "`text` must be a string, and is a number"),
        (r#"{"text": ["a"]}"#, "is an array"),
        (r#"{"text": ""}"#, "empty text"),
        (r#"{"text": null}"#, "`text` is null"),
        (r#"{"tokens": []}"#, "no tokens"),
        (r#"{"messages": []}"#, "no messages"),
        (r#"{"messages": "hi"}"#, "must be an array of messages"),
        (
            r#"{"messages": ["hi"]}"#,
            "message 0 (from 0) must be an object",
        ),
        (r#"{"messages": [{"role": "user"}]}"#, "has no `content`"),
        (r#"{"messages": [{"content": "a"}]}"#, "has no `role`"),
        (
            r#"{"messages": [{"role": "user", "content": [{"text": "a"}]}]}"#,
            "`content` must be a string",
        ),
        (
            r#"{"messages": [{"role": "a", "content": "", "tool_calls": [{}]}]}"#,
            "tool_calls",
        ),
        (r#"{"text": "a", "text": "b"}"#, "appears twice"),
    ] {
        let said = message("a.jsonl", line, ReadOptions::default());
        assert_says(&said, &["a.jsonl:1:", what]);
    }
}

#[test]
fn bad_json_says_what_and_at_which_column() {
    for (line, what) in [
        ("{\"text\": \"a\"", "EOF"),
        ("{\"text\": \"a\"} {}", "trailing characters at column 15"),
        ("[1]", "expected an object"),
        ("\"a\"", "expected an object"),
        ("{'text': 1}", "column 2"),
        ("{\"text\": NaN}", "column"),
        ("{\"text\": 1e999}", "out of range"),
    ] {
        let said = message("a.jsonl", line, ReadOptions::default());
        assert_says(&said, &["a.jsonl:1:", what, "correct the JSON"]);
    }
}

#[test]
fn a_bomb_of_nested_brackets_is_an_error_and_the_stack_holds() {
    for open in ["[", "{\"a\":"] {
        let bomb = open.repeat(1_000_000);
        let said = message(
            "a.jsonl",
            format!("{{\"text\": {bomb}"),
            ReadOptions::default(),
        );
        assert_says(&said, &["a.jsonl:1:", "recursion"]);
        let close = if open == "[" { "]" } else { "}" };
        let inner = if open == "[" { "" } else { "1" };
        let json = format!("[{{\"text\": {bomb}{inner}{}}}]", close.repeat(1_000_000));
        let said = message("a.json", json, ReadOptions::default());
        assert_says(&said, &["(element 1)", "recursion"]);
        let csv = format!("tokens\n\"{}\"\n", bomb.replace('"', "\"\""));
        let said = message("a.csv", csv, ReadOptions::default());
        assert_says(&said, &["a.csv:2:", "recursion"]);
    }
}

#[test]
fn messages_stay_one_short_line_whatever_the_file_holds() {
    let long = "\\u001b[31m\\n".repeat(100_000);
    let line = format!("{{\"text\": \"a\", \"spans\": {{\"{long}\": 3}}}}");
    let said = message("a.jsonl", line, ReadOptions::default());
    assert!(said.len() < 2000, "{} bytes", said.len());
    assert!(!said.contains('\u{1b}'));
    let line = format!("{{\"{long}\": 3}}");
    let said = message("a.jsonl", line, ReadOptions::default());
    assert!(said.len() < 2000 && !said.contains('\u{1b}'));
}

type Small = fn(Arc<str>, Vec<u8>, &Wanted) -> Result<Box<dyn RecordReader>, Error>;

/// Readers that hold at most 64 bytes of a record.
const SMALL: [(&str, Small); 4] = [
    ("txt", |file, bytes, _| {
        Ok(Box::new(TxtReader::new(
            file.clone(),
            text_input(&file, Box::new(Cursor::new(bytes)))?,
            64,
        )))
    }),
    ("jsonl", |file, bytes, _| {
        Ok(Box::new(JsonlReader::new(
            file.clone(),
            text_input(&file, Box::new(Cursor::new(bytes)))?,
            64,
        )))
    }),
    ("json", |file, bytes, _| {
        Ok(Box::new(JsonReader::new(
            file.clone(),
            text_input(&file, Box::new(Cursor::new(bytes)))?,
            64,
        )))
    }),
    ("csv", |file, bytes, wanted| {
        let input = text_input(&file, Box::new(Cursor::new(bytes)))?;
        Ok(Box::new(TableReader::new(file, input, b',', 64, wanted)?))
    }),
];

#[test]
fn a_record_beyond_the_limit_is_an_error_and_the_next_is_read() {
    let long = "x".repeat(100);
    let wanted = Wanted::new(&ReadOptions::default()).unwrap();
    for ((form, reader), contents) in SMALL.into_iter().zip([
        format!("a\n{long}\nb\n"),
        format!("{{\"text\":\"a\"}}\n{{\"text\":\"{long}\"}}\n{{\"text\":\"b\"}}\n"),
        format!("[{{\"text\":\"a\"}},\n{{\"text\":\"{long}\"}},\n{{\"text\":\"b\"}}]"),
    ]) {
        let mut reader = reader("f".into(), contents.into_bytes(), &wanted).unwrap();
        assert!(reader.next_record(&wanted).unwrap().is_ok(), "{form}");
        let error = reader.next_record(&wanted).unwrap().unwrap_err();
        assert!(matches!(error, Error::Record { .. }), "{form}: {error}");
        assert_says(&error.to_string(), &["f:2", "longer than 64 bytes"]);
        assert!(reader.next_record(&wanted).unwrap().is_ok(), "{form}");
        assert!(reader.next_record(&wanted).is_none(), "{form}");
    }
}

#[test]
fn a_row_beyond_the_limit_ends_the_table_and_points_at_the_quote() {
    let wanted = Wanted::new(&ReadOptions::default()).unwrap();
    let contents = format!("text\na\n\"{}", "b\n".repeat(100_000));
    let mut reader = SMALL[3].1("f".into(), contents.into_bytes(), &wanted).unwrap();
    let error = loop {
        if let Err(error) = reader.next_record(&wanted).unwrap() {
            break error;
        }
    };
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert_says(
        &error.to_string(),
        &["f:3:", "longer than 64 bytes", "quote"],
    );
}

/// Bytes that look enough like each form to get past its first check.
fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "text",
        "\"",
        "\n",
        "\r\n",
        ",",
        "\t",
        "{",
        "}",
        "[",
        "]",
        ":",
        "{\"text\":\"a\"}",
        "\"tokens\"",
        "-1",
        "[1,2]",
        "\\",
        "\\u12",
        "\0",
        "\u{feff}",
        "é",
        "null",
        "1e999",
        "spans",
        " ",
        "\"messages\":[{\"role\":\"u\"",
        "\0end of file\0",
    ]);
    let bytes = prop_oneof![
        4 => pieces.prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(bytes, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_never_panic_and_every_text_reader_ends(
        bytes in likely_bytes(),
        header in any::<bool>(),
    ) {
        let wanted = Wanted::new(&keep(&["text"])).unwrap();
        for (form, reader) in SMALL {
            let mut contents = bytes.clone();
            if header && form == "csv" {
                contents.splice(0..0, *b"text,x\n");
            } else if header && form == "json" {
                contents.insert(0, b'[');
            }
            let Ok(mut reader) = reader("f".into(), contents.clone(), &wanted) else { continue };
            let mut steps = 0;
            while let Some(read) = reader.next_record(&wanted) {
                steps += 1;
                prop_assert!(steps <= contents.len() + 1);
                match read {
                    Ok(raw) => drop(crate::data::fields::interpret(raw.body, &wanted)),
                    Err(Error::Record { .. }) => {}
                    Err(error) => {
                        prop_assert_eq!(error.to_string().lines().count(), 1);
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn any_text_survives_every_form_that_can_hold_it(text in "[^\0]{1,20}") {
        let json = serde_json::json!({ "text": text }).to_string();
        prop_assert_eq!(&texts("a.jsonl", format!("{json}\n")), std::slice::from_ref(&text));
        prop_assert_eq!(&texts("a.json", format!("[{json},\n{json}]"))[1..], std::slice::from_ref(&text));
        let cell = format!("\"{}\"", text.replace('"', "\"\""));
        prop_assert_eq!(&texts("a.csv", format!("id,text\n1,{cell}\n")), std::slice::from_ref(&text));
        prop_assert_eq!(&texts("a.tsv", format!("text\tid\n{cell}\t1")), std::slice::from_ref(&text));
    }

    #[test]
    fn csv_lines_are_those_a_person_would_count(
        rows in prop::collection::vec(("[a-z\n\",é]{1,6}", 0usize..3), 1..12),
        windows in any::<bool>(),
    ) {
        let newline = if windows { "\r\n" } else { "\n" };
        let mut csv = format!("text,n{newline}");
        let mut expected = Vec::new();
        for (text, blank_lines) in &rows {
            csv.push_str(&newline.repeat(*blank_lines));
            expected.push((text.clone(), 1 + csv.matches('\n').count() as u64));
            csv.push_str(&format!("\"{}\",1{newline}", text.replace('"', "\"\"")));
        }
        let records = read("a.csv", &csv, ReadOptions::default()).unwrap();
        let found: Vec<(String, u64)> = records.iter().map(|r| (text_of(r), r.line)).collect();
        prop_assert_eq!(found, expected);
    }
}
