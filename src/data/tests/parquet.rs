//! Parquet files, written here by the crate's column writers.

use super::*;
use crate::data::{CharSpan, Kept};
use ::parquet::basic::Compression;
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use std::sync::Arc;

/// Writes row groups of the schema with `columns`, which gets the number of the group.
fn file(
    schema: &str,
    groups: usize,
    compression: Compression,
    columns: impl Fn(usize, &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    for group in 0..groups {
        let mut columns_of = writer.next_row_group().unwrap();
        columns(group, &mut columns_of);
        columns_of.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

macro_rules! column {
    ($group:expr, $type:ty, $values:expr, $definition:expr, $repetition:expr) => {{
        let mut column = $group.next_column().unwrap().unwrap();
        column
            .typed::<$type>()
            .write_batch(&$values, $definition, $repetition)
            .unwrap();
        column.close().unwrap();
    }};
}

fn strings(texts: &[&str]) -> Vec<ByteArray> {
    texts.iter().map(|text| ByteArray::from(*text)).collect()
}

const TEXTS: &str = "message m {
    optional binary text (UTF8);
    required int64 id;
    required double score;
    optional boolean label;
    required binary unread (UTF8);
}";

fn two_groups_of_two(compression: Compression) -> Vec<u8> {
    file(TEXTS, 2, compression, |group, columns| {
        let texts = [["a", "é"], ["c", "d"]][group];
        column!(columns, ByteArrayType, strings(&texts), Some(&[1, 1]), None);
        column!(columns, Int64Type, [group as i64, -1], None, None);
        column!(columns, DoubleType, [0.5, f64::NAN], None, None);
        column!(columns, BoolType, [true], Some(&[1, 0]), None);
        column!(columns, ByteArrayType, strings(&["x", "y"]), None, None);
    })
}

#[test]
fn rows_of_all_row_groups_come_in_order_with_their_kept_fields() {
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
        Compression::GZIP(Default::default()),
        Compression::LZ4_RAW,
    ] {
        let bytes = two_groups_of_two(compression);
        let records = read("a.parquet", bytes, keep(&["id", "label", "score"])).unwrap();
        let texts: Vec<String> = records.iter().map(text_of).collect();
        assert_eq!(texts, ["a", "é", "c", "d"]);
        let places: Vec<(u64, u64)> = records.iter().map(|r| (r.index, r.line)).collect();
        assert_eq!(places, [(0, 1), (1, 2), (2, 3), (3, 4)]);
        let kept = [Kept::Int(1), Kept::Bool(true), Kept::Float(0.5)].map(Some);
        assert_eq!(records[2].kept, kept);
        assert_eq!(records[3].kept[..2], [Some(Kept::Int(-1)), None]);
        assert!(matches!(records[3].kept[2], Some(Kept::Float(x)) if x.is_nan()));
        assert!(records[2].place().ends_with("a.parquet row 3"));
    }
}

const TOKENS: &str = "message m {
    optional group tokens (LIST) { repeated group list { optional int32 element; } }
}";

#[test]
fn lists_of_integers_are_tokens_and_bad_rows_are_named_and_skipped() {
    let bytes = file(TOKENS, 1, Compression::SNAPPY, |_, columns| {
        // [1, 2], null, [], [3], [-4], [null]
        let definition = [3, 3, 0, 1, 3, 3, 2];
        let repetition = [0, 1, 0, 0, 0, 0, 0];
        column!(
            columns,
            Int32Type,
            [1, 2, 3, -4],
            Some(&definition),
            Some(&repetition)
        );
    });
    let folder = Folder::with("a.parquet", &bytes);
    let mut dataset = folder.open(&["a.parquet"], skipping()).unwrap();
    let good: Vec<(u64, Input)> = dataset
        .by_ref()
        .map(|r| r.map(|r| (r.index, r.input)).unwrap())
        .collect();
    assert_eq!(
        good,
        [(0, Input::Tokens(vec![1, 2])), (3, Input::Tokens(vec![3]))]
    );
    let reasons = dataset.skip_reasons();
    assert_eq!(reasons.len(), 4);
    assert_says(&reasons[0], &["a.parquet row 2:", "`tokens` is null"]);
    assert_says(&reasons[1], &["row 3:", "no tokens"]);
    assert_says(&reasons[2], &["row 5:", "item 0 (from 0) is -4"]);
    assert_says(&reasons[3], &["row 6:", "item 0 (from 0) is null"]);
}

#[test]
fn lists_of_structs_are_messages_and_spans() {
    let schema = "message m {
        required group messages (LIST) { repeated group list { required group element {
            required binary role (UTF8); required binary content (UTF8); } } }
        required group spans (LIST) { repeated group list { required group element {
            required binary name (UTF8); required int64 start; required int64 end; optional int32 message; } } }
    }";
    let bytes = file(schema, 1, Compression::UNCOMPRESSED, |_, columns| {
        let (two, turns) = (Some(&[1i16, 1][..]), Some(&[0i16, 1][..]));
        column!(
            columns,
            ByteArrayType,
            strings(&["user", "assistant"]),
            two,
            turns
        );
        column!(
            columns,
            ByteArrayType,
            strings(&["hello", "hi"]),
            two,
            turns
        );
        column!(
            columns,
            ByteArrayType,
            strings(&["s"]),
            Some(&[1]),
            Some(&[0])
        );
        column!(columns, Int64Type, [0], Some(&[1]), Some(&[0]));
        column!(columns, Int64Type, [2], Some(&[1]), Some(&[0]));
        column!(columns, Int32Type, [1], Some(&[2]), Some(&[0]));
    });
    let records = read("a.parquet", bytes, ReadOptions::default()).unwrap();
    let turn = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    let messages = vec![turn("user", "hello"), turn("assistant", "hi")];
    assert_eq!(records[0].input, Input::Messages(messages));
    let span = CharSpan {
        name: "s".into(),
        start: 0,
        end: 2,
        message: Some(1),
    };
    assert_eq!(records[0].spans, [span]);
}

#[test]
fn missing_columns_are_named_with_those_there() {
    let bytes = two_groups_of_two(Compression::SNAPPY);
    let said = message("a.parquet", &bytes, keep(&["topic"]));
    assert_says(
        &said,
        &[
            "a.parquet:",
            "no column `topic`",
            "text, id, score, label, unread",
        ],
    );
    let bytes = file(
        "message m { required int32 n; }",
        1,
        Compression::SNAPPY,
        |_, columns| {
            column!(columns, Int32Type, [1], None, None);
        },
    );
    let said = message("a.parquet", bytes, ReadOptions::default());
    assert_says(
        &said,
        &[
            "no column `text` or `tokens` or `messages`",
            "there are: n",
            "--text-field",
        ],
    );
}

#[test]
fn a_column_of_bytes_is_text_where_it_is_utf8() {
    let bytes = file(
        "message m { required binary text; }",
        1,
        Compression::SNAPPY,
        |_, columns| {
            let values = [
                ByteArray::from("é"),
                ByteArray::from(vec![0xFF]),
                ByteArray::from("z"),
            ];
            column!(columns, ByteArrayType, values, None, None);
        },
    );
    let said = message("a.parquet", &bytes, ReadOptions::default());
    assert_says(&said, &["a.parquet row 2:", "`text`", "UTF-8"]);
    let texts: Vec<String> = read("a.parquet", &bytes, skipping())
        .unwrap()
        .iter()
        .map(text_of)
        .collect();
    assert_eq!(texts, ["é", "z"]);
}

#[test]
fn a_string_column_that_is_not_utf8_is_an_error_with_its_row() {
    let bytes = file(
        "message m { required binary text (UTF8); }",
        1,
        Compression::SNAPPY,
        |_, columns| {
            let values = [ByteArray::from("a"), ByteArray::from(vec![0xFF; 5000])];
            column!(columns, ByteArrayType, values, None, None);
        },
    );
    let said = message("a.parquet", bytes, skipping());
    assert_says(&said, &["a.parquet row 2:", "damaged"]);
    assert!(said.len() < 2000);
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_is_cut() {
    let bytes = two_groups_of_two(Compression::SNAPPY);
    for cut in 0..bytes.len() {
        let said = message("a.parquet", &bytes[..cut], skipping());
        assert_says(&said, &["a.parquet", "Parquet", "truncated"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_file_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        lists in any::<bool>(),
    ) {
        let mut bytes = if lists {
            file(TOKENS, 1, Compression::UNCOMPRESSED, |_, columns| {
                column!(columns, Int32Type, [1, 2, 3], Some(&[3, 3, 0, 3]), Some(&[0, 1, 0, 0]));
            })
        } else {
            two_groups_of_two(Compression::UNCOMPRESSED)
        };
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let folder = Folder::with("a.parquet", &bytes);
        let dataset = folder.open(&["a.parquet"], skipping()).unwrap();
        for record in dataset.take(10_000) {
            if let Err(error) = record {
                prop_assert_eq!(error.to_string().lines().count(), 1);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_not_parquet(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = b"PAR1".to_vec();
        framed.extend(&bytes);
        framed.extend((bytes.len() as u32).to_le_bytes());
        framed.extend(b"PAR1");
        for contents in [bytes, framed] {
            prop_assert!(read("a.parquet", contents, ReadOptions::default()).is_err());
        }
    }
}

#[test]
fn a_compression_that_is_not_read_is_no_damage() {
    let mut bytes = file(
        "message m { required binary text (UTF8); }",
        1,
        Compression::SNAPPY,
        |_, group| column!(group, ByteArrayType, [ByteArray::from("a")], None, None),
    );
    // The column's metadata in Thrift's compact form: its path, then its codec, 1 (here zigzag) for snappy and 4 for brotli.
    let snappy = b"\x04text\x15\x02";
    let at = bytes
        .windows(snappy.len())
        .rposition(|w| w == snappy)
        .unwrap();
    bytes[at + snappy.len() - 1] = 0x08;
    let message = message("a.parquet", bytes, ReadOptions::default());
    assert_says(
        &message,
        &["a.parquet row 1", "brotli", "write it with snappy"],
    );
    assert!(!message.contains("damaged"), "{message}");
}
