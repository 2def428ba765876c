//! `config.json`: the shape of a model, and the refusal of every key that would change its computation.
//!
//! Values, defaults and precedence are those of `transformers` 5 (`LlamaConfig`, `MistralConfig`). Keys that would lead
//! to another computation than ours are refused by name; unknown keys are ignored as `transformers` ignores them.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{Error, Result, json_object, read, read_if_present};
use super::rope::{Rope, RopeScaling};

/// The largest hidden, MLP or head width, and number of heads or layers, that is taken for a real model's.
const MAX_SIZE: usize = 1 << 20;
/// The largest vocabulary and context that are taken for a real model's.
const MAX_LONG_SIZE: usize = 1 << 28;
/// `MistralConfig`'s window where the key is absent.
const MISTRAL_WINDOW: usize = 4096;
/// `PreTrainedConfig`'s RoPE base where no key gives one (the first Llama's files don't).
const DEFAULT_THETA: f64 = 10_000.0;

/// What a Llama-architecture model's forward pass needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `llama` or `mistral`.
    pub model_type: String,
    /// `d`: width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// `H`: query heads.
    pub n_heads: usize,
    /// `K`: key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// `h`: width of a head; even, and not necessarily `hidden_size / n_heads`.
    pub head_dim: usize,
    /// `f`: width of the MLP.
    pub intermediate_size: usize,
    /// `V`: number of token ids.
    pub vocab_size: usize,
    /// ε of RMSNorm, added to the mean square.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Number of keys that a query sees, itself included; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest sample, in tokens, that the model was made for.
    pub max_position_embeddings: usize,
    /// Beginning of sequence, where the config names it.
    pub bos_token_id: Option<u32>,
    /// Every id that ends a generation: `generation_config.json`'s if it has them, else `config.json`'s.
    pub eos_token_ids: Vec<u32>,
}

impl Config {
    /// Reads `config.json`, and the end-of-sequence ids of `generation_config.json`, in `dir`.
    ///
    /// # Errors
    /// [`Error::NoConfig`], unreadable files, and all of [`Config::from_json`]'s.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if !path.exists() {
            return Err(Error::NoConfig {
                dir: dir.to_path_buf(),
            });
        }
        let bytes = read(&path)?;
        let text = std::str::from_utf8(&bytes).map_err(|e| Error::Json {
            path: path.clone(),
            why: format!("not UTF-8: {e}"),
        })?;
        let mut config = Self::from_json(text, &path)?;
        let path = dir.join("generation_config.json");
        if let Some(bytes) = read_if_present(&path)? {
            let keys = Keys {
                map: json_object(&bytes, &path)?,
                path: &path,
            };
            if let Some(ids) = keys.token_ids("eos_token_id")? {
                config.eos_token_ids = ids;
            }
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// Bad JSON, a needed key that is missing, a value of the wrong type or an impossible size, and any key that asks
    /// for a computation other than a plain Llama block: each names the key and the file.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let keys = Keys {
            map: json_object(text.as_bytes(), path)?,
            path,
        };
        let model_type = keys.model_type()?;
        keys.refuse_other_computations()?;

        let hidden_size = keys.size("hidden_size", MAX_SIZE)?;
        let n_heads = keys.size("num_attention_heads", MAX_SIZE)?;
        let n_kv_heads = match keys.optional_size("num_key_value_heads", MAX_SIZE)? {
            Some(n) => n,
            // A null means one key/value head per query head for both; an absent key does so only for Llama.
            None if model_type == "llama" || keys.map.contains_key("num_key_value_heads") => {
                n_heads
            }
            None => return Err(keys.missing("num_key_value_heads")),
        };
        if n_heads % n_kv_heads != 0 {
            return Err(keys.bad(
                "num_key_value_heads",
                n_kv_heads,
                &format!("a divisor of num_attention_heads ({n_heads})"),
            ));
        }
        let head_dim = match keys.optional_size("head_dim", MAX_SIZE)? {
            Some(n) => n,
            None if hidden_size % n_heads == 0 => hidden_size / n_heads,
            None => {
                return Err(keys.bad(
                    "hidden_size",
                    hidden_size,
                    &format!(
                        "a multiple of num_attention_heads ({n_heads}) where head_dim is not given"
                    ),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(keys.bad("head_dim", head_dim, "an even number (RoPE rotates pairs)"));
        }
        let max_position_embeddings = keys.size("max_position_embeddings", MAX_LONG_SIZE)?;
        let sliding_window = keys.sliding_window(&model_type)?;
        keys.check_layer_types(&model_type, sliding_window)?;
        let rms_norm_eps = keys
            .float("rms_norm_eps")?
            .ok_or_else(|| keys.missing("rms_norm_eps"))?;
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(keys.bad("rms_norm_eps", rms_norm_eps, "a small number ≥ 0"));
        }
        Ok(Self {
            hidden_size,
            n_layers: keys.size("num_hidden_layers", MAX_SIZE)?,
            n_heads,
            n_kv_heads,
            head_dim,
            intermediate_size: keys.size("intermediate_size", MAX_SIZE)?,
            vocab_size: keys.size("vocab_size", MAX_LONG_SIZE)?,
            rms_norm_eps,
            rope: keys.rope()?,
            sliding_window,
            tie_word_embeddings: keys.bool("tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings,
            bos_token_id: keys
                .token_ids("bos_token_id")?
                .and_then(|ids| ids.first().copied()),
            eos_token_ids: keys.token_ids("eos_token_id")?.unwrap_or_default(),
            model_type,
        })
    }
}

/// The keys of one JSON file, with errors that name it.
struct Keys<'a> {
    map: Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    /// The value of a key; an explicit null counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn missing(&self, key: &str) -> Error {
        Error::MissingKey {
            path: self.path.to_path_buf(),
            key: key.to_string(),
        }
    }

    fn bad(&self, key: &str, found: impl ToString, expected: &str) -> Error {
        Error::BadValue {
            path: self.path.to_path_buf(),
            key: key.to_string(),
            found: shorten(found.to_string()),
            expected: expected.to_string(),
        }
    }

    fn unsupported(&self, key: &str, value: impl ToString, why: &str) -> Error {
        Error::Unsupported {
            path: self.path.to_path_buf(),
            key: key.to_string(),
            value: shorten(value.to_string()),
            why: why.to_string(),
        }
    }

    fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.bad(key, value, &format!("an integer from 1 to {max}"))),
        }
    }

    fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?
            .ok_or_else(|| self.missing(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() => Ok(Some(x)),
                _ => Err(self.bad(key, value, "a number")),
            },
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(value) => Err(self.bad(key, value, "true or false")),
        }
    }

    /// One token id or a list of them.
    fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let ids = match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        ids.iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .map(Some)
            .ok_or_else(|| self.bad(key, value, "a token id or a list of them"))
    }

    fn model_type(&self) -> Result<String> {
        match self.get("model_type") {
            None => Err(self.missing("model_type")),
            Some(Value::String(s)) if s == "llama" || s == "mistral" => Ok(s.clone()),
            Some(value) => Err(self.unsupported(
                "model_type",
                value,
                "streamgauge runs `mistral` and `llama` models",
            )),
        }
    }

    fn refuse_other_computations(&self) -> Result<()> {
        for (key, why) in REFUSED_UNLESS_FALSY {
            if let Some(value) = self.get(key).filter(|v| !is_falsy(v)) {
                return Err(self.unsupported(key, value, why));
            }
        }
        for (key, why) in REFUSED_UNLESS_ONE {
            if let Some(value) = self.get(key).filter(|v| v.as_f64() != Some(1.0)) {
                return Err(self.unsupported(key, value, why));
            }
        }
        for key in ["hidden_act", "hidden_activation"] {
            // `swish` is the same function under its other name.
            if let Some(value) = self
                .get(key)
                .filter(|v| !matches!(v.as_str(), Some("silu" | "swish")))
            {
                return Err(self.unsupported(key, value, "the MLP is silu(gate) · up"));
            }
        }
        if let Some(value) = self.get("is_causal").filter(|v| is_falsy(v)) {
            return Err(self.unsupported("is_causal", value, "attention is causal"));
        }
        if let Some(value) = self.get("architectures") {
            let name = value.get(0).and_then(Value::as_str).unwrap_or_default();
            let known = ["llamaforcausallm", "mistralforcausallm"];
            if !known.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(self.unsupported(
                    "architectures",
                    value,
                    "only LlamaForCausalLM and MistralForCausalLM are computed here",
                ));
            }
        }
        let custom = self
            .get("auto_map")
            .and_then(Value::as_object)
            .and_then(|map| {
                let mut classes = map.iter();
                classes.find(|(k, _)| {
                    k.as_str() == "AutoModel" || k.as_str() == "AutoModelForCausalLM"
                })
            });
        if let Some((_, class)) = custom {
            return Err(self.unsupported(
                "auto_map",
                class,
                "the model brings its own Python code",
            ));
        }
        Ok(())
    }

    fn sliding_window(&self, model_type: &str) -> Result<Option<usize>> {
        // LlamaAttention never reads the key.
        if model_type != "mistral" {
            return Ok(None);
        }
        if !self.map.contains_key("sliding_window") {
            return Ok(Some(MISTRAL_WINDOW));
        }
        self.optional_size("sliding_window", usize::MAX >> 1)
    }

    /// `layer_types` may only repeat what the other keys say: both classes ignore it.
    fn check_layer_types(&self, model_type: &str, window: Option<usize>) -> Result<()> {
        let Some(value) = self.get("layer_types") else {
            return Ok(());
        };
        let expected = match window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        let uniform = value
            .as_array()
            .is_some_and(|list| list.iter().all(|kind| kind.as_str() == Some(expected)));
        if uniform {
            return Ok(());
        }
        let why = format!("every layer of this {model_type} config has {expected}");
        Err(self.unsupported("layer_types", value, &why))
    }

    fn rope(&self) -> Result<Rope> {
        let spelling = match (self.get("rope_scaling"), self.get("rope_parameters")) {
            (Some(old), Some(_)) => {
                return Err(self.unsupported(
                    "rope_scaling",
                    old,
                    "rope_parameters is given as well; keep one of the two",
                ));
            }
            (Some(_), None) => "rope_scaling",
            _ => "rope_parameters",
        };
        let map = match self.get(spelling) {
            None => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(value) => return Err(self.bad(spelling, value, "an object")),
        };
        if let Some((key, value)) = map.iter().find(|(_, v)| v.is_object()) {
            return Err(self.unsupported(
                &format!("{spelling}.{key}"),
                value,
                "all layers share one rotary embedding",
            ));
        }
        RopeKeys {
            keys: Keys {
                map,
                path: self.path,
            },
            spelling,
            config: self,
        }
        .read()
    }
}

/// The keys of `rope_scaling` or `rope_parameters`, and of the config around them.
struct RopeKeys<'a> {
    keys: Keys<'a>,
    spelling: &'static str,
    config: &'a Keys<'a>,
}

impl RopeKeys<'_> {
    fn read(&self) -> Result<Rope> {
        let name = |key: &str| format!("{}.{key}", self.spelling);
        let kind = match self.keys.get("rope_type").or(self.keys.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind,
            Some(value) => return Err(self.keys.bad(&name("rope_type"), value, "a string")),
        };
        if let Some(value) = self
            .keys
            .get("partial_rotary_factor")
            .filter(|v| v.as_f64() != Some(1.0))
        {
            return Err(self.keys.unsupported(
                &name("partial_rotary_factor"),
                value,
                "the whole head is rotated",
            ));
        }
        let theta = match self.positive("rope_theta")? {
            Some(theta) => theta,
            None => match self.config.float("rope_theta")? {
                Some(theta) if theta > 0.0 => theta,
                Some(theta) => return Err(self.config.bad("rope_theta", theta, "a number > 0")),
                None => DEFAULT_THETA,
            },
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: self.needed("factor")?,
            },
            "llama3" => {
                let low_freq_factor = self.needed("low_freq_factor")?;
                let high_freq_factor = self.needed("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    return Err(self.keys.bad(
                        &name("high_freq_factor"),
                        high_freq_factor,
                        &format!("more than low_freq_factor ({low_freq_factor})"),
                    ));
                }
                // A top-level key wins over the one inside, as in transformers.
                let context = match self.config.float("original_max_position_embeddings")? {
                    Some(context) if context > 0.0 => context,
                    _ => self.needed("original_max_position_embeddings")?,
                };
                RopeScaling::Llama3 {
                    factor: self.needed("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: context,
                }
            }
            other => {
                return Err(self.keys.unsupported(
                    &name("rope_type"),
                    other,
                    "streamgauge computes `default`, `linear` and `llama3`",
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.keys.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self
                .keys
                .bad(&format!("{}.{key}", self.spelling), value, "a number > 0")),
        }
    }

    fn needed(&self, key: &str) -> Result<f64> {
        self.positive(key)?
            .ok_or_else(|| self.keys.missing(&format!("{}.{key}", self.spelling)))
    }
}

/// Keys that change the computation unless they are null, false, 0 or empty.
const REFUSED_UNLESS_FALSY: &[(&str, &str)] = &[
    ("attention_bias", "attention projections have no bias here"),
    ("qkv_bias", "attention projections have no bias here"),
    ("use_bias", "projections have no bias here"),
    ("mlp_bias", "MLP projections have no bias here"),
    ("use_qk_norm", "queries and keys are not normalised here"),
    ("qk_norm", "queries and keys are not normalised here"),
    ("qk_layernorm", "queries and keys are not normalised here"),
    ("num_experts", "mixtures of experts are not computed here"),
    (
        "num_local_experts",
        "mixtures of experts are not computed here",
    ),
    (
        "n_routed_experts",
        "mixtures of experts are not computed here",
    ),
    (
        "moe_intermediate_size",
        "mixtures of experts are not computed here",
    ),
    (
        "quantization_config",
        "quantised weights are not read; use the bf16, f16 or f32 checkpoint",
    ),
    (
        "compression_config",
        "compressed weights are not read; use the bf16, f16 or f32 checkpoint",
    ),
    (
        "attn_logit_softcapping",
        "attention scores are not capped here",
    ),
    ("final_logit_softcapping", "logits are not capped here"),
    (
        "query_pre_attn_scalar",
        "attention scores are scaled by 1/sqrt(head_dim)",
    ),
    ("attention_chunk_size", "attention is not chunked here"),
    ("attention_sinks", "attention has no sinks here"),
    ("alibi", "positions are rotary here"),
    ("use_alibi", "positions are rotary here"),
    ("no_rope_layers", "every layer is rotated here"),
    ("no_rope_layer_interval", "every layer is rotated here"),
    ("rope_interleave", "rotation pairs the two halves of a head"),
    (
        "rope_interleaved",
        "rotation pairs the two halves of a head",
    ),
    ("use_bidirectional_attention", "attention is causal"),
    ("is_encoder_decoder", "only decoders are computed here"),
    ("add_cross_attention", "only decoders are computed here"),
    (
        "use_parallel_residual",
        "attention and MLP run one after the other",
    ),
    ("parallel_attn", "attention and MLP run one after the other"),
];

/// Keys that change the computation unless they are null or 1.
const REFUSED_UNLESS_ONE: &[(&str, &str)] = &[
    ("pretraining_tp", "projections are not computed in slices"),
    ("partial_rotary_factor", "the whole head is rotated"),
    ("rotary_pct", "the whole head is rotated"),
    ("embedding_multiplier", "embeddings are not scaled here"),
    ("embedding_scale", "embeddings are not scaled here"),
    ("scale_emb", "embeddings are not scaled here"),
    (
        "attention_multiplier",
        "attention scores are scaled by 1/sqrt(head_dim)",
    ),
    (
        "residual_multiplier",
        "residual branches are not scaled here",
    ),
    ("logits_scaling", "logits are not scaled here"),
    ("logit_scale", "logits are not scaled here"),
];

fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// A value as an error message can carry it: on one line, not too long.
fn shorten(mut text: String) -> String {
    const LONGEST: usize = 80;
    text.retain(|c| !c.is_control());
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST).chain(['…']).collect();
    }
    text
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
