//! Token ids and chat turns with the real tokenizers of SmolLM2 (scripts/fetch-model) and Mistral v0.1
//! (scripts/fetch-mistral-tokenizer), against Hugging Face's and mistral-common's.

mod common;

use std::path::{Path, PathBuf};

use serde_json::Value;
use streamgauge::model::{ChatTemplate, Message, Tokenizer};

fn fixture(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(common::fixtures().join(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

fn mistral() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(".models/mistral-v0.1-tokenizer");
    assert!(
        dir.join("tokenizer.json").is_file(),
        "{} is not there: run scripts/fetch-mistral-tokenizer",
        dir.display()
    );
    dir
}

#[test]
fn smollm2_texts_get_the_ids_that_hugging_face_gives() {
    let tokenizer = Tokenizer::open(&common::smollm2()).unwrap();
    let texts = fixture("smollm2_tokens.json")["texts"]
        .as_array()
        .unwrap()
        .clone();
    assert!(texts.len() >= 20);
    for case in texts {
        let text = case["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoding.ids, ids(&case["ids"]), "{text:?}");
        assert_eq!(encoding.offsets.len(), encoding.ids.len());
        assert!(
            encoding
                .offsets
                .iter()
                .all(|o| text.get(o.clone()).is_some() || o.end <= text.len())
        );
    }
}

#[test]
fn smollm2_chats_are_rendered_and_tokenised_as_hugging_face_does() {
    let dir = common::smollm2();
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let template = ChatTemplate::open(&dir).unwrap().unwrap();
    for case in fixture("smollm2_tokens.json")["chats"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let rendered = template
            .render(&messages, case["add_generation_prompt"].as_bool().unwrap())
            .unwrap();
        assert_eq!(rendered.text, case["text"].as_str().unwrap());
        let encoding = tokenizer.encode_chat(&rendered).unwrap();
        assert_eq!(encoding.ids, ids(&case["ids"]));
        for (message, turn) in messages.iter().zip(&encoding.turns) {
            assert_eq!(message.role, turn.role);
            let content = &encoding.ids[turn.content.start as usize..turn.content.end as usize];
            let text = tokenizer.decode(content, false).unwrap();
            assert_eq!(
                text.trim(),
                message.content.trim(),
                "a turn's content tokens are its message's"
            );
        }
    }
}

#[test]
fn single_turn_inst_chats_get_the_ids_that_mistral_common_gives() {
    let dir = mistral();
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let template = ChatTemplate::open(&dir).unwrap().unwrap();
    let conversations = fixture("mistral_chat_ids.json")["conversations"]
        .as_array()
        .unwrap()
        .clone();
    assert!(conversations.len() >= 30);
    for case in conversations {
        let content = case["content"].as_str().unwrap();
        let rendered = template
            .render(&[Message::new("user", content)], true)
            .unwrap();
        assert_eq!(rendered.text, case["text"].as_str().unwrap());
        assert_eq!(
            tokenizer.encode_chat(&rendered).unwrap().ids,
            ids(&case["ids"]),
            "{content:?}"
        );
    }
}
