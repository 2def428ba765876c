use std::collections::BTreeMap;

use super::*;

#[derive(Deserialize)]
struct Fixture {
    templates: BTreeMap<String, Spec>,
    chats: BTreeMap<String, Vec<Message>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Spec {
    tokens: BTreeMap<String, String>,
    source: String,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    chat: String,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat_templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Fixture {
    fn template(&self, name: &str) -> ChatTemplate {
        let spec = &self.templates[name];
        let tokens = TOKENS
            .into_iter()
            .filter_map(|k| Some((k, spec.tokens.get(k)?.as_str())));
        ChatTemplate::from_source(name, &spec.source, &tokens.collect::<Vec<_>>()).unwrap()
    }
}

/// The parts of a rendered chat that its turns name: (role, whole, content).
fn parts(chat: &RenderedChat) -> Vec<(&str, &str, &str)> {
    let text = |range: &Range<usize>| &chat.text[range.clone()];
    let turns = chat.turns.iter();
    turns
        .map(|t| (t.role.as_str(), text(&t.whole), text(&t.content)))
        .collect()
}

#[test]
fn texts_and_refusals_are_those_of_transformers() {
    let fixture = fixture();
    assert!(fixture.cases.len() >= 160);
    for case in &fixture.cases {
        let template = fixture.template(&case.template);
        let ours = template.text(&fixture.chats[&case.chat], case.add_generation_prompt);
        let what = format!(
            "{} / {} / {}",
            case.template, case.chat, case.add_generation_prompt
        );
        match (&case.text, &case.error) {
            (Some(text), None) => assert_eq!(ours.as_ref(), Ok(text), "{what}"),
            (None, Some(error)) => {
                let said = ours.unwrap_err();
                assert!(said.contains(error.as_str()), "{what}: {said}");
            }
            _ => panic!("{what}: neither text nor error"),
        }
    }
}

#[test]
fn contents_are_found_where_they_are_in_every_template() {
    let fixture = fixture();
    let mut located = 0;
    for case in fixture.cases.iter().filter(|c| c.text.is_some()) {
        let messages = &fixture.chats[&case.chat];
        let what = format!(
            "{} / {} / {}",
            case.template, case.chat, case.add_generation_prompt
        );
        let chat = match fixture
            .template(&case.template)
            .render(messages, case.add_generation_prompt)
        {
            Ok(chat) => chat,
            // The one thing these templates do that can't be located: leave a message out.
            Err(Error::Turns { why, .. }) => {
                assert!(why.contains("leaves its content out"), "{what}: {why}");
                continue;
            }
            Err(error) => panic!("{what}: {error}"),
        };
        let mut wholes: Vec<_> = chat.turns.iter().map(|t| t.whole.clone()).collect();
        wholes.sort_by_key(|whole| whole.start);
        assert!(
            wholes.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "{what}"
        );
        for ((role, whole, content), message) in parts(&chat).into_iter().zip(messages) {
            assert_eq!(role, message.role, "{what}");
            assert!(whole.contains(content), "{what}");
            let same = match case.template.as_str() {
                "json-and-generation" => true,
                "reasoning-dropped" => message.content.ends_with(content),
                _ => content.trim() == message.content.trim(),
            };
            assert!(same, "{what}: {content:?}");
            located += 1;
        }
    }
    assert!(located > 250, "{located}");
}

#[test]
fn whole_turns_hold_their_headers_and_ends_but_nothing_that_no_message_says() {
    let fixture = fixture();
    let chat = |template: &str, chat: &str| {
        fixture
            .template(template)
            .render(&fixture.chats[chat], true)
            .unwrap()
    };
    let q = "Is the moon made of cheese?";
    let a = "No, of rock.";
    let mistral = chat("mistral-v0.1", "three turns");
    let first = "[INST] Is the moon made of cheese? [/INST]";
    assert_eq!(
        parts(&mistral),
        [
            ("user", first, q),
            ("assistant", "No, of rock.</s> ", a),
            ("user", first, q)
        ]
    );
    assert_eq!(mistral.turns[0].whole.start, "<s>".len());

    let llama = chat("llama-3", "system");
    let head = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    assert_eq!(
        parts(&llama),
        [
            (
                "system",
                &*(head("system") + "Answer in one word.<|eot_id|>"),
                "Answer in one word."
            ),
            ("user", &*(head("user") + q + "<|eot_id|>"), q),
        ]
    );
    assert_eq!(llama.turns[0].whole.start, "<|begin_of_text|>".len());
    assert_eq!(
        llama.turns[1].whole.end,
        llama.text.len() - head("assistant").len()
    );

    // The default system prompt is in no turn.
    let chatml = chat("chatml-default-system", "one user turn");
    assert_eq!(
        parts(&chatml),
        [("user", &*format!("<|im_start|>user\n{q}<|im_end|>\n"), q)]
    );
    assert!(
        chatml
            .text
            .starts_with("<|im_start|>system\nYou are a small")
    );

    let zephyr = chat("zephyr", "system");
    assert_eq!(parts(&zephyr)[1].1, format!("<|user|>\n{q}</s>\n"));
}

#[test]
fn a_system_prompt_inside_a_user_turn_is_a_turn_of_its_own() {
    let fixture = fixture();
    let system = "Answer in one word.";
    let llama = fixture
        .template("llama-2")
        .render(&fixture.chats["system"], false)
        .unwrap();
    let user = "\n<</SYS>>\n\nIs the moon made of cheese? [/INST]";
    assert_eq!(
        parts(&llama),
        [
            ("system", "[INST] <<SYS>>\nAnswer in one word.", system),
            ("user", user, "Is the moon made of cheese?"),
        ]
    );
    // Here it is written into the last user turn, after the turns that it comes before.
    let mistral = fixture.template("mistral-v0.3");
    let mistral = mistral
        .render(&fixture.chats["system, three turns"], false)
        .unwrap();
    let roles: Vec<_> = mistral.turns.iter().map(|t| t.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert!(mistral.turns[0].content.start > mistral.turns[2].whole.end);
    assert_eq!(&mistral.text[mistral.turns[0].content.clone()], system);
    assert_eq!(
        &mistral.text[mistral.turns[2].whole.clone()],
        " No, of rock.</s>"
    );
}

#[test]
fn kept_whitespace_is_content_and_stripped_whitespace_is_not() {
    let fixture = fixture();
    let content = |template: &str| {
        let chat = fixture
            .template(template)
            .render(&fixture.chats["spaces"], false)
            .unwrap();
        chat.text[chat.turns[0].content.clone()].to_string()
    };
    assert_eq!(content("chatml-default-system"), "  And Mars?\n\n");
    assert_eq!(content("llama-3"), "And Mars?");
    let half = "{% for m in messages %}<{{ m.role }}>{{ m.content.lstrip() if m.role == 'user' else m.content }}{% endfor %}";
    let half = ChatTemplate::from_source("half", half, &[]).unwrap();
    let chat = half
        .render(
            &[Message::new("user", " a "), Message::new("tool", " b ")],
            false,
        )
        .unwrap();
    assert_eq!(
        parts(&chat),
        [("user", "<user>a ", "a "), ("tool", "<tool> b ", " b ")]
    );
}

#[test]
fn reasoning_that_the_template_drops_is_not_content() {
    let fixture = fixture();
    let chat = fixture
        .template("reasoning-dropped")
        .render(&fixture.chats["reasoning"], false)
        .unwrap();
    assert_eq!(
        parts(&chat)[1],
        (
            "assistant",
            "<|im_start|>assistant\nNo, of rock.<|im_end|>\n",
            "No, of rock."
        )
    );
    // The template looks at how this content begins, so it can bear no marker there.
    let tool = [
        Message::new("user", "2 + 2?"),
        Message::new("user", "<tool_response>4"),
    ];
    let looks = "{% for m in messages %}{% if m.content.startswith('<tool_response>') %}T{% else %}U{% endif %}{{ m.content }};{% endfor %}";
    let looks = ChatTemplate::from_source("looks", looks, &[]).unwrap();
    let chat = looks.render(&tool, false).unwrap();
    assert_eq!(
        parts(&chat),
        [
            ("user", "U2 + 2?;", "2 + 2?"),
            ("user", "T<tool_response>4;", "<tool_response>4")
        ]
    );
}

#[test]
fn what_cannot_be_located_exactly_is_an_error_that_names_template_and_message() {
    let refused = |source: &str, content: &str| {
        let template = ChatTemplate::from_source("m/chat_template.jinja", source, &[]).unwrap();
        let said = template
            .render(&[Message::new("user", content)], false)
            .unwrap_err()
            .to_string();
        assert!(
            said.starts_with(
                "m/chat_template.jinja: chat template: can't tell exactly where message 0 (user)"
            ),
            "{said}"
        );
        said
    };
    assert!(refused("nothing", "hello").contains("leaves its content out"));
    assert!(
        refused(
            "{{ messages[0].content }} {{ messages[0].content }}",
            "hello"
        )
        .contains("more than once")
    );
    assert!(
        refused("{{ messages[0].content | length }}", "hello").contains("leaves its content out")
    );
    assert!(
        refused(
            "{% if messages[0].content %}a{{ messages[0].content }}{% endif %}",
            ""
        )
        .contains("empty")
    );
    let ambiguous = "a{{ messages[0].content if messages[0].content[0] == 'a' else '' }}";
    refused(ambiguous, "aa");
}

#[test]
fn a_template_is_found_where_transformers_looks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    assert!(ChatTemplate::open(dir.path()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}}"#,
    );
    assert!(ChatTemplate::open(dir.path()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
    );
    assert_eq!(
        ChatTemplate::open(dir.path()).unwrap().unwrap().source(),
        "d"
    );
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}"#,
    );
    let template = ChatTemplate::open(dir.path()).unwrap().unwrap();
    assert_eq!(
        template
            .render(&[Message::new("user", "hi")], false)
            .unwrap()
            .text,
        "<s>hi"
    );
    write("chat_template.jinja", "{{ messages[0].content }}!");
    let template = ChatTemplate::open(dir.path()).unwrap().unwrap();
    assert_eq!(
        template
            .render(&[Message::new("user", "hi")], false)
            .unwrap()
            .text,
        "hi!"
    );
    write("chat_template.jinja", "{% for %}");
    let said = ChatTemplate::open(dir.path()).unwrap_err().to_string();
    assert!(
        said.contains("chat_template.jinja: chat template:"),
        "{said}"
    );
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}]}"#,
    );
    assert!(
        ChatTemplate::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("`default`")
    );
}
