//! A tiny model that can chat: a fixture's random weights with a tokenizer of letters and a template. What it says means nothing.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fixtures;

const BOS: &str = "<s>";
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q: ' + message['content'] + '\\n' }}\
{% else %}{{ 'A: ' + message['content'] + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}";

/// Makes the model in `dir`: 3 layers, d 64, vocabulary 160, no window, 512 positions.
pub fn tiny_chat_model(dir: &Path) -> PathBuf {
    let (from, to) = (
        fixtures().join("models/mistral-window4"),
        dir.join("tiny-chat"),
    );
    std::fs::create_dir(&to).unwrap();
    let weights = "model.safetensors";
    std::os::unix::fs::symlink(from.join(weights), to.join(weights)).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    // So that the first words of a prompt reach its last token.
    config["sliding_window"] = Value::Null;
    let write =
        |name: &str, value: &Value| std::fs::write(to.join(name), value.to_string()).unwrap();
    write("config.json", &config);
    write("tokenizer.json", &tokenizer());
    write(
        "tokenizer_config.json",
        &json!({ "bos_token": BOS, "eos_token": "</s>", "chat_template": TEMPLATE }),
    );
    to
}

/// Byte-level BPE over the printable characters, with a few merges, so that an answer is one token.
fn tokenizer() -> Value {
    let merges = [
        ("e", "s"),
        ("y", "es"),
        ("Y", "es"),
        ("n", "o"),
        ("N", "o"),
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("Ġ", "a"),
        ("i", "n"),
        ("e", "r"),
        ("o", "n"),
        ("Ġ", "i"),
        ("Ġi", "s"),
    ];
    let mut vocab = Map::new();
    let mut next = 0;
    let mut add = |token: String| {
        if !vocab.contains_key(&token) {
            vocab.insert(token, next.into());
            next += 1;
        }
    };
    ["<unk>", BOS, "</s>"].map(|special| add(special.into()));
    (b'!'..=b'~').for_each(|b| add(char::from(b).into()));
    add("Ġ".into());
    add("Ċ".into());
    merges.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    let special = |id: u32, content: &str| json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, BOS), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>(),
        },
    })
}
