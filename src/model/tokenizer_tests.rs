use serde_json::json;

use super::super::chat::{ChatTemplate, Message};
use super::*;

/// A directory with a word-level tokenizer that adds `<s>` and splits on whitespace; truncating to 2 and padding, as
/// files from training runs do.
fn directory(config: Value) -> tempfile::TempDir {
    let words = [
        "<s>", "</s>", "[INST]", "[/INST]", "hello", "world", "é", "?", "[UNK]",
    ];
    let vocab: Map<String, Value> = words
        .iter()
        .zip(0..)
        .map(|(w, i)| (w.to_string(), json!(i)))
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1,
            "pad_type_id": 0, "pad_token": "</s>"},
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn text_becomes_ids_with_byte_offsets_and_bos_where_asked() {
    let dir = directory(json!({"bos_token": {"content": "<s>", "lstrip": false}}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let plain = tokenizer.encode("hello é world ?", false).unwrap();
    assert_eq!(plain.ids, [4, 6, 5, 7]);
    assert_eq!(plain.offsets, [0..5, 6..8, 9..14, 15..16]);
    let special = tokenizer.encode("hello", true).unwrap();
    assert_eq!(
        (special.ids, special.offsets),
        (vec![0, 4], vec![0..0, 0..5])
    );
    assert_eq!(tokenizer.bos_id(), Some(0));
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.vocab_size(), 9);
    assert_eq!(tokenizer.token(6).as_deref(), Some("é"));
    assert_eq!(tokenizer.id("é"), Some(6));
    assert_eq!(tokenizer.token(99), None);
    assert_eq!(tokenizer.decode(&[0, 4, 5], true).unwrap(), "hello world");
    assert_eq!(
        tokenizer.decode(&[0, 4, 5], false).unwrap(),
        "<s> hello world"
    );
}

#[test]
fn bos_comes_from_the_tokenizers_files_and_then_from_config() {
    let bos = |config, more: &[(&str, Value)]| {
        let dir = directory(config);
        for (file, value) in more {
            std::fs::write(dir.path().join(file), value.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        (tokenizer.bos_id(), tokenizer.adds_bos())
    };
    assert_eq!(bos(json!({"bos_token": "<s>"}), &[]), (Some(0), true));
    assert_eq!(bos(json!({"bos_token": null}), &[]), (None, false));
    let map = ("special_tokens_map.json", json!({"bos_token": "<s>"}));
    assert_eq!(bos(json!({}), &[map]), (Some(0), true));
    let config = ("config.json", json!({"bos_token_id": 1}));
    assert_eq!(bos(json!({}), &[config]), (Some(1), false));
}

#[test]
fn a_chats_turns_are_token_ranges() {
    let dir = directory(json!({"bos_token": "<s>", "eos_token": "</s>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let template = ChatTemplate::open(dir.path()).unwrap().unwrap();
    let messages = [
        Message::new("user", "hello world"),
        Message::new("assistant", "world ?"),
        Message::new("user", "?"),
    ];
    let chat = template.render(&messages, false).unwrap();
    assert_eq!(
        chat.text,
        "<s> [INST] hello world [/INST] world ? </s> [INST] ? [/INST]"
    );
    let encoded = tokenizer.encode_chat(&chat).unwrap();
    assert_eq!(encoded.ids, [0, 2, 4, 5, 3, 5, 7, 1, 2, 7, 3]);
    let ranges: Vec<_> = encoded
        .turns
        .iter()
        .map(|t| (t.role.as_str(), t.content.clone(), t.whole.clone()))
        .collect();
    assert_eq!(
        ranges,
        [
            ("user", 2..4, 1..5),
            ("assistant", 5..7, 5..8),
            ("user", 9..10, 8..11)
        ]
    );
}

#[test]
fn an_empty_range_is_an_empty_token_range_in_its_place() {
    let offsets = [0..2, 2..5, 5..5, 5..9];
    assert_eq!(token_range(&offsets, &(2..5)), 1..2);
    assert_eq!(token_range(&offsets, &(1..6)), 0..4);
    assert_eq!(token_range(&offsets, &(5..5)), 3..3);
    assert_eq!(token_range(&offsets, &(9..9)), 4..4);
    assert_eq!(token_range(&[], &(0..0)), 0..0);
}

#[test]
fn a_token_across_turns_belongs_to_the_one_that_has_its_last_byte() {
    let offsets = [0..3, 3..6, 6..9];
    // A border inside the second token, as when a turn ends in a space that merges with the next header.
    assert_eq!(whole_range(&offsets, &(0..4), &(0..1)), 0..1);
    assert_eq!(whole_range(&offsets, &(4..9), &(2..3)), 1..3);
    // Unless it is content.
    assert_eq!(whole_range(&offsets, &(0..4), &(0..2)), 0..2);
    assert_eq!(whole_range(&offsets, &(3..3), &(1..1)), 1..1);
}

#[test]
fn fingerprints_tell_tokenizers_and_their_bos_apart() {
    let print = |config| {
        Tokenizer::open(directory(config).path())
            .unwrap()
            .fingerprint()
    };
    let one = print(json!({"bos_token": "<s>"}));
    assert_eq!(one.len(), 32);
    assert_eq!(
        one,
        print(json!({"bos_token": "<s>", "model_max_length": 7}))
    );
    assert_ne!(one, print(json!({})));
}

#[test]
fn a_missing_or_broken_tokenizer_says_where_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let said = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(
        said.contains("no tokenizer.json here") && said.contains("`tokens`"),
        "{said}"
    );
    for text in ["", "[]", "{\"model\": 3}", "{\"version\": \"9\"}"] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let said = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(said.contains("tokenizer.json: not a tokenizer"), "{said}");
    }
}
