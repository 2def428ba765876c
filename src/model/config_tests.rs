use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn mistral() -> Value {
    json!({
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu",
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", "use_cache": true,
        "initializer_range": 0.02, "attention_dropout": 0.0, "transformers_version": "4.34.0"
    })
}

fn llama() -> Value {
    let mut config = mistral();
    config["model_type"] = json!("llama");
    config["architectures"] = json!(["LlamaForCausalLM"]);
    config
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

fn parse(config: Value) -> Result<Config> {
    Config::from_json(&config.to_string(), Path::new("m/config.json"))
}

fn message(config: Value) -> String {
    let message = parse(config).unwrap_err().to_string();
    assert!(message.starts_with("m/config.json: "), "{message}");
    assert!(!message.contains('\n'));
    message
}

#[test]
fn mistrals_config_is_read_whole() {
    let config = parse(mistral()).unwrap();
    assert_eq!(
        config,
        Config {
            model_type: "mistral".into(),
            hidden_size: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            intermediate_size: 14336,
            vocab_size: 32000,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: 1e4,
                scaling: RopeScaling::Default
            },
            sliding_window: Some(4096),
            tie_word_embeddings: false,
            max_position_embeddings: 32768,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
        }
    );
}

#[test]
fn the_window_is_mistrals_alone_and_4096_where_the_key_is_absent() {
    let window = |config| parse(config).unwrap().sliding_window;
    assert_eq!(window(mistral()), Some(4096));
    assert_eq!(window(with(mistral(), "sliding_window", json!(4))), Some(4));
    assert_eq!(window(with(mistral(), "sliding_window", Value::Null)), None);
    assert_eq!(window(without(mistral(), "sliding_window")), Some(4096));
    assert_eq!(window(llama()), None);
    assert!(message(with(mistral(), "sliding_window", json!(0))).contains("`sliding_window` is 0"));
}

#[test]
fn head_dim_may_differ_from_hidden_over_heads() {
    let config = parse(with(mistral(), "head_dim", json!(160))).unwrap();
    assert_eq!(config.head_dim, 160);
    assert_eq!(
        parse(with(mistral(), "head_dim", Value::Null))
            .unwrap()
            .head_dim,
        128
    );
    assert!(message(with(mistral(), "head_dim", json!(15))).contains("even"));
    assert!(message(with(mistral(), "hidden_size", json!(4097))).contains("multiple"));
}

#[test]
fn a_llama_without_key_value_heads_has_one_per_query_head() {
    assert_eq!(
        parse(without(llama(), "num_key_value_heads"))
            .unwrap()
            .n_kv_heads,
        32
    );
    assert_eq!(
        parse(with(mistral(), "num_key_value_heads", Value::Null))
            .unwrap()
            .n_kv_heads,
        32
    );
    assert!(
        message(without(mistral(), "num_key_value_heads"))
            .contains("`num_key_value_heads` is missing")
    );
    assert!(message(with(llama(), "num_key_value_heads", json!(5))).contains("divisor"));
}

#[test]
fn rope_is_read_in_every_spelling() {
    let rope = |config| parse(config).unwrap().rope;
    assert_eq!(rope(without(llama(), "rope_theta")).theta, 1e4);
    let new = json!({"rope_theta": 500000.0, "rope_type": "default"});
    assert_eq!(
        rope(with(
            without(llama(), "rope_theta"),
            "rope_parameters",
            new.clone()
        ))
        .theta,
        5e5
    );
    assert_eq!(
        rope(with(llama(), "rope_parameters", new)).theta,
        5e5,
        "the inner theta wins"
    );

    let linear = RopeScaling::Linear { factor: 4.0 };
    for key in ["type", "rope_type"] {
        let scaling = json!({key: "linear", "factor": 4});
        assert_eq!(rope(with(llama(), "rope_scaling", scaling)).scaling, linear);
    }
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    for key in ["rope_scaling", "rope_parameters"] {
        let read = rope(with(llama(), key, llama3.clone()));
        assert_eq!(read.theta, 1e4);
        assert_eq!(
            read.scaling,
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192.0
            }
        );
    }
    let both = with(
        with(llama(), "rope_scaling", llama3.clone()),
        "rope_parameters",
        llama3,
    );
    assert!(message(both).contains("keep one"));
}

#[test]
fn another_rope_is_refused_and_never_ignored() {
    for kind in ["yarn", "dynamic", "longrope", "su", "mrope"] {
        let said = message(with(
            llama(),
            "rope_scaling",
            json!({"type": kind, "factor": 2.0}),
        ));
        assert!(
            said.contains("`rope_scaling.rope_type`") && said.contains(kind),
            "{said}"
        );
    }
    let cases = [
        (
            json!({"rope_type": "linear"}),
            "`rope_parameters.factor` is missing",
        ),
        (
            json!({"rope_type": "linear", "factor": 0}),
            "`rope_parameters.factor` is 0",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8}),
            "low_freq_factor` is missing",
        ),
        (json!({"rope_theta": "big"}), "`rope_parameters.rope_theta`"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (
            json!({"full_attention": {"rope_type": "default"}}),
            "share one rotary",
        ),
        (json!([1]), "an object"),
    ];
    for (rope, expected) in cases {
        let said = message(with(llama(), "rope_parameters", rope));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_missing_needed_key_is_named_with_its_file() {
    for key in [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
    ] {
        let said = message(without(llama(), key));
        assert!(said.contains(&format!("`{key}` is missing")), "{said}");
        assert!(message(with(llama(), key, json!({"a": 1}))).contains(key));
    }
}

#[test]
fn whatever_would_change_the_computation_is_refused_by_name() {
    let cases = [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("qk_layernorm", json!(true)),
        ("num_local_experts", json!(8)),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4}),
        ),
        ("hidden_act", json!("gelu")),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        (
            "layer_types",
            json!(["sliding_attention", "sliding_attention"]),
        ),
        ("pretraining_tp", json!(2)),
        ("partial_rotary_factor", json!(0.5)),
        ("residual_multiplier", json!(0.22)),
        ("final_logit_softcapping", json!(30.0)),
        ("is_causal", json!(false)),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("auto_map", json!({"AutoModelForCausalLM": "modeling_x.X"})),
        ("model_type", json!("qwen2")),
    ];
    for (key, value) in cases {
        let said = message(with(llama(), key, value.clone()));
        assert!(
            said.contains(&format!("`{key}`")) && said.contains("not supported"),
            "{said}"
        );
    }
    let harmless = [
        ("attention_bias", json!(false)),
        ("pretraining_tp", json!(1)),
        ("quantization_config", Value::Null),
        ("hidden_act", json!("swish")),
        ("layer_types", json!(["full_attention"])),
        ("partial_rotary_factor", json!(1.0)),
        ("auto_map", json!({"AutoConfig": "configuration_x.X"})),
        ("some_new_key", json!({"anything": [1, 2]})),
    ];
    for (key, value) in harmless {
        assert!(parse(with(llama(), key, value)).is_ok(), "{key}");
    }
}

#[test]
fn impossible_sizes_are_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-4096)),
        ("hidden_size", json!(4096.5)),
        ("vocab_size", json!(u64::MAX)),
        ("num_hidden_layers", json!("32")),
        ("intermediate_size", json!(1u64 << 40)),
        ("rms_norm_eps", json!(-1e-5)),
    ] {
        assert!(message(with(llama(), key, value)).contains(key));
    }
}

#[test]
fn end_of_sequence_may_be_one_id_or_several_and_generation_config_wins() {
    assert_eq!(
        parse(with(llama(), "eos_token_id", json!([2, 7])))
            .unwrap()
            .eos_token_ids,
        [2, 7]
    );
    assert!(
        parse(without(llama(), "eos_token_id"))
            .unwrap()
            .eos_token_ids
            .is_empty()
    );
    assert!(message(with(llama(), "eos_token_id", json!(["</s>"]))).contains("eos_token_id"));

    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Config::open(dir.path()),
        Err(Error::NoConfig { .. })
    ));
    std::fs::write(dir.path().join("config.json"), llama().to_string()).unwrap();
    assert_eq!(Config::open(dir.path()).unwrap().eos_token_ids, [2]);
    let generation = dir.path().join("generation_config.json");
    std::fs::write(&generation, r#"{"eos_token_id": [128001, 128009]}"#).unwrap();
    assert_eq!(
        Config::open(dir.path()).unwrap().eos_token_ids,
        [128001, 128009]
    );
    std::fs::write(&generation, "[").unwrap();
    assert!(
        Config::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("generation_config.json")
    );
}

#[test]
fn what_is_not_a_json_object_is_refused_with_its_place() {
    for text in ["", "[]", "{", "\"config\"", "{\"model_type\": }"] {
        let error = Config::from_json(text, Path::new("m/config.json")).unwrap_err();
        assert!(matches!(error, Error::Json { .. }), "{error}");
    }
}

/// Any JSON value, three levels deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z3]{0,8}".prop_map(Value::from),
        Just(json!("linear")),
        Just(json!("llama3")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known: Vec<String> = mistral()
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .chain([
            "head_dim",
            "rope_scaling",
            "rope_parameters",
            "rope_type",
            "type",
            "factor",
            "layer_types",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ])
        .map(String::from)
        .collect();
    prop_oneof![4 => prop::sample::select(known), 1 => "[a-z_]{1,10}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn no_config_makes_the_parser_panic(changes in prop::collection::vec((any_key(), any_json()), 1..4)) {
        let mut config = llama();
        for (key, value) in changes {
            config[key] = value;
        }
        if let Ok(config) = parse(config) {
            prop_assert!(config.n_heads % config.n_kv_heads == 0 && config.head_dim % 2 == 0);
            prop_assert!(config.hidden_size > 0 && config.rope.theta > 0.0);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,64}") {
        let _ = Config::from_json(&text, Path::new("config.json"));
    }
}
