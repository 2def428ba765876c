//! What each text form gives, and how it says what is wrong.

use super::*;
use crate::data::{CharSpan, Fields, Kept};

fn with_fields(fields: Fields) -> ReadOptions {
    ReadOptions {
        fields: Some(fields),
        ..ReadOptions::default()
    }
}

#[test]
fn jsonl_gives_texts_tokens_and_messages_record_by_record() {
    let lines = "{\"text\": \"a\\n\u{e9}\", \"tokens\": [9]}\n\
                 {\"tokens\": [0, 4294967295]}\r\n\
                 {\"text\": null, \"messages\": [{\"role\": \"user\", \"content\": \"hi\", \"name\": \"x\"}]}";
    let records = read("a.jsonl", lines, ReadOptions::default()).unwrap();
    let inputs: Vec<Input> = records.iter().map(|r| r.input.clone()).collect();
    assert_eq!(
        inputs,
        [
            Input::Text("a\né".to_owned()),
            Input::Tokens(vec![0, u32::MAX]),
            Input::Messages(vec![("user".to_owned(), "hi".to_owned())]),
        ]
    );
    let places: Vec<(u64, u64)> = records.iter().map(|r| (r.index, r.line)).collect();
    assert_eq!(places, [(0, 1), (1, 2), (2, 3)]);
}

#[test]
fn the_named_field_is_the_input_even_beside_the_usual_ones() {
    let line =
        r#"{"text": "a", "prompt": "b", "ids": [3], "chat": [{"role": "u", "content": ""}]}"#;
    let input = |fields| {
        read("a.jsonl", line, with_fields(fields)).unwrap()[0]
            .input
            .clone()
    };
    assert_eq!(
        input(Fields::Text("prompt".into())),
        Input::Text("b".into())
    );
    assert_eq!(input(Fields::Tokens("ids".into())), Input::Tokens(vec![3]));
    let chat = Input::Messages(vec![("u".into(), String::new())]);
    assert_eq!(input(Fields::Messages("chat".into())), chat);
}

#[test]
fn a_missing_input_names_the_fields_that_are_there_and_the_flag_that_helps() {
    let said = message(
        "a.jsonl",
        "{\"text\":\"a\"}\n{\"statement\":\"b\",\"label\":1}\n",
        ReadOptions::default(),
    );
    assert_says(
        &said,
        &[
            "a.jsonl:2:",
            "`text`",
            "statement, label",
            "--text-field",
            "--skip-bad",
        ],
    );
    let said = message("a.jsonl", "{}", with_fields(Fields::Text("prompt".into())));
    assert_says(
        &said,
        &["a.jsonl:1:", "no field `prompt`", "no fields at all"],
    );
}

#[test]
fn kept_fields_keep_their_types_and_null_is_none() {
    let line = r#"{"text":"t","a":1,"b":-2.5,"c":true,"d":"x","e":null,"f":{"k":[1, 2]},"g":18446744073709551615}"#;
    let records = read("a.jsonl", line, keep(&["d", "a", "b", "c", "e", "f", "g"])).unwrap();
    let text = |s: &str| Some(Kept::Text(s.to_owned()));
    assert_eq!(
        records[0].kept,
        [
            text("x"),
            Some(Kept::Int(1)),
            Some(Kept::Float(-2.5)),
            Some(Kept::Bool(true)),
            None,
            text("{\"k\":[1,2]}"),
            text("18446744073709551615"),
        ]
    );
}

#[test]
fn a_missing_kept_field_names_field_file_line_and_what_is_there() {
    let lines = "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"id\":7}\n";
    let said = message("a.jsonl", lines, keep(&["label"]));
    assert_says(&said, &["a.jsonl:2:", "`label`", "text, id", "--keep"]);
}

#[test]
fn spans_come_with_a_text_and_may_be_switched_off() {
    let line = r#"{"text": "Paris is big", "spans": {"city": [0, 5]}}"#;
    let city = CharSpan {
        name: "city".into(),
        start: 0,
        end: 5,
        message: None,
    };
    assert_eq!(
        read("a.jsonl", line, ReadOptions::default()).unwrap()[0].spans,
        [city]
    );
    let off = ReadOptions {
        spans_field: String::new(),
        ..ReadOptions::default()
    };
    assert_eq!(read("a.jsonl", line, off).unwrap()[0].spans, []);
    let said = message(
        "a.jsonl",
        r#"{"text": "Paris", "spans": {"city": [0, 6]}}"#,
        ReadOptions::default(),
    );
    assert_says(
        &said,
        &["a.jsonl:1:", "`spans`", "`city`", "has 5", "[start, end]"],
    );
    let tokens = r#"{"tokens": [1], "spans": {"city": [0, 5]}}"#;
    assert_eq!(
        read("a.jsonl", tokens, ReadOptions::default()).unwrap()[0].spans,
        []
    );
}

#[test]
fn an_empty_line_of_jsonl_is_an_error_and_a_final_newline_is_not_a_line() {
    assert_eq!(texts("a.jsonl", "{\"text\":\"a\"}\n"), ["a"]);
    let said = message(
        "a.jsonl",
        "{\"text\":\"a\"}\n\n{\"text\":\"b\"}\n",
        ReadOptions::default(),
    );
    assert_says(&said, &["a.jsonl:2:", "empty line"]);
}

#[test]
fn txt_gives_a_line_a_sample() {
    assert_eq!(
        texts("a.txt", "one\r\n two \nthree"),
        ["one", " two ", "three"]
    );
    assert_eq!(texts("a.txt", "\u{feff}one\n"), ["one"]);
    let said = message("a.txt", "one\n\nthree\n", ReadOptions::default());
    assert_says(&said, &["a.txt:2:", "empty line", "remove"]);
}

#[test]
fn txt_has_no_fields_to_keep_or_to_read_tokens_from() {
    let said = message("a.txt", "one\n", keep(&["label"]));
    assert_says(&said, &["a.txt:", "no fields", "`label`", ".jsonl"]);
    let said = message(
        "a.txt",
        "one\n",
        with_fields(Fields::Tokens("tokens".into())),
    );
    assert_says(&said, &["no fields", "tokens"]);
    let any_name = with_fields(Fields::Text("prompt".into()));
    assert_eq!(read("a.txt", "one\n", any_name).unwrap().len(), 1);
}

#[test]
fn csv_takes_quotes_commas_and_newlines_in_cells_and_knows_the_line() {
    let csv = "id,text,label\n1,\"a, \"\"b\"\"\nc\",1\n\n2,plain \"quoted\" word,0\n007,last,0.5";
    let records = read("a.csv", csv, keep(&["label", "id"])).unwrap();
    let lines: Vec<(String, u64)> = records.iter().map(|r| (text_of(r), r.line)).collect();
    assert_eq!(
        lines,
        [
            ("a, \"b\"\nc".to_owned(), 2),
            ("plain \"quoted\" word".to_owned(), 5),
            ("last".to_owned(), 6),
        ]
    );
    assert_eq!(records[0].kept, [Some(Kept::Int(1)), Some(Kept::Int(1))]);
    let text = Some(Kept::Text("007".to_owned()));
    assert_eq!(records[2].kept, [Some(Kept::Float(0.5)), text]);
}

#[test]
fn csv_with_windows_line_ends_knows_its_lines_too() {
    let csv = "\u{feff}text\r\n\"a\r\nb\"\r\nc\r\n\r\nd\r\n";
    let records = read("a.csv", csv, ReadOptions::default()).unwrap();
    let lines: Vec<(String, u64)> = records.iter().map(|r| (text_of(r), r.line)).collect();
    let expected = [("a\r\nb", 2), ("c", 4), ("d", 6)];
    assert_eq!(lines, expected.map(|(text, line)| (text.to_owned(), line)));
}

#[test]
fn tsv_is_csv_with_tabs() {
    let records = read(
        "a.tsv",
        "text\tlabel\na, b\tx\n\"c\td\"\t\n",
        keep(&["label"]),
    )
    .unwrap();
    assert_eq!(text_of(&records[0]), "a, b");
    assert_eq!(records[0].kept, [Some(Kept::Text("x".to_owned()))]);
    assert_eq!(text_of(&records[1]), "c\td");
    assert_eq!(records[1].kept, [None]);
}

#[test]
fn cells_of_csv_hold_tokens_messages_and_spans_as_json() {
    let csv = "tokens,n\n\"[1, 2]\",1\n[3],2\n";
    let records = read("a.csv", csv, ReadOptions::default()).unwrap();
    assert_eq!(records[0].input, Input::Tokens(vec![1, 2]));
    assert_eq!(records[1].input, Input::Tokens(vec![3]));
    let csv = "text,spans\nParis,\"{\"\"city\"\": [0, 5]}\"\nRome,\n";
    let records = read("a.csv", csv, ReadOptions::default()).unwrap();
    assert_eq!(records[0].spans.len(), 1);
    assert_eq!(records[1].spans.len(), 0);
    let said = message("a.csv", "tokens\n1 2 3\n", ReadOptions::default());
    assert_says(&said, &["a.csv:2:", "`tokens`", "JSON"]);
}

#[test]
fn a_table_without_the_columns_asked_for_is_refused_at_its_header_even_when_skipping() {
    let said = message("a.csv", "statement,label\na,1\n", skipping());
    assert_says(
        &said,
        &[
            "a.csv:1:",
            "`text`",
            "statement, label",
            "header",
            "--text-field",
        ],
    );
    let said = message("a.tsv", "text\nb\n", keep(&["label"]));
    assert_says(&said, &["a.tsv:1:", "no column `label`", "there are: text"]);
    let said = message("a.csv", "text,text\na,b\n", ReadOptions::default());
    assert_says(&said, &["a.csv:1:", "two columns", "`text`"]);
}

#[test]
fn a_row_with_too_few_or_too_many_cells_is_a_bad_record() {
    let csv = "text,label\na,1\nb\nc,1,2\nd,0\n";
    let said = message("a.csv", csv, ReadOptions::default());
    assert_says(&said, &["a.csv:3:", "1 cells", "2 columns"]);
    let records = read("a.csv", csv, skipping()).unwrap();
    let indices: Vec<u64> = records.iter().map(|r| r.index).collect();
    assert_eq!(indices, [0, 3]);
}

#[test]
fn an_empty_cell_is_an_empty_sample() {
    let said = message("a.csv", "text,label\n,1\n", ReadOptions::default());
    assert_says(&said, &["a.csv:2:", "`text` is empty"]);
}

#[test]
fn a_quote_that_never_closes_is_an_error_at_its_line_and_not_one_long_text() {
    for end in ["", "\n", "\n\n"] {
        let csv = format!("text,label\na,1\n\n\"b,1\nc,1{end}");
        let said = message("a.csv", csv, skipping());
        assert_says(&said, &["a.csv:4:", "quote", "never closed"]);
    }
    let said = message("a.csv", "text\na\n\"", ReadOptions::default());
    assert_says(&said, &["a.csv:3:", "never closed"]);
}

#[test]
fn json_is_an_array_of_objects_read_in_order() {
    let json = "\u{feff}\n[ {\"text\": \"a]}\\\"\"} ,\n  {\"text\": \"b\",\n \"label\": [1, {\"x\": \"]\"}]}\n]\n";
    let records = read("a.json", json, ReadOptions::default()).unwrap();
    assert_eq!(text_of(&records[0]), "a]}\"");
    assert_eq!(text_of(&records[1]), "b");
    assert_eq!((records[1].index, records[1].line), (1, 2));
    assert!(records[1].place().ends_with("a.json element 2"));
}

#[test]
fn a_bad_element_of_json_is_named_with_its_line_and_may_be_skipped() {
    let json = "[{\"text\": \"a\"},\n {\"text\":\n 'b'},\n 3, {\"text\": \"c\"}]";
    let said = message("a.json", json, ReadOptions::default());
    assert_says(&said, &["a.json:3 (element 2):", "column 2"]);
    let records = read("a.json", json, skipping()).unwrap();
    let left: Vec<(u64, u64)> = records.iter().map(|r| (r.index, r.line)).collect();
    assert_eq!(left, [(0, 1), (3, 4)]);
}

#[test]
fn json_that_is_not_one_array_is_refused_with_the_remedy() {
    for (json, what) in [
        ("{\"text\": \"a\"}\n{\"text\": \"b\"}\n", "begins with `{`"),
        ("", "empty"),
        ("[{\"text\":\"a\"}] []", "after the end"),
        ("[{\"text\":\"a\"},]", "`]` where an object"),
        ("[,]", "`,` where an object"),
        ("[{\"text\":\"a\"}}", "`}` between elements"),
    ] {
        let said = message("a.json", json, skipping());
        assert_says(&said, &["a.json:1", what, ".jsonl"]);
    }
    for json in [
        "[",
        "[{\"text\":\"a\"}",
        "[{\"text\":\"a\"},\n",
        "[{\"text\":\"a\"},{\"te",
        "[{\"text\":\"a\"},3",
    ] {
        let said = message("a.json", json, skipping());
        assert_says(&said, &["a.json:", "truncated"]);
    }
}

#[test]
fn tokens_go_before_text_only_where_that_is_asked_for() {
    let line = "{\"text\":\"a\",\"tokens\":[7]}\n";
    assert_eq!(texts("a.jsonl", line), ["a"]);
    let tokens_first = ReadOptions {
        tokens_first: true,
        ..ReadOptions::default()
    };
    let records = read("a.jsonl", line, tokens_first.clone()).unwrap();
    assert_eq!(records[0].input, Input::Tokens(vec![7]));
    let records = read("a.jsonl", "{\"text\":\"a\"}\n", tokens_first).unwrap();
    assert_eq!(records[0].input, Input::Text("a".into()));
}
