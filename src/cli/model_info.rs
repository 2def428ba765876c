//! `streamgauge model info`

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{CliResult, format, out};
use crate::engine::dims;
use crate::hooks::{Dims, Site};
use crate::model::{ChatTemplate, Config, Model, RopeScaling, Tokenizer, resolve};

/// Look at a model.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Info(InfoArgs),
}

/// What a checkpoint is: its sizes, parameters, files and fingerprint, and every hook point that it has.
///
/// The weights are checked as extraction checks them (every tensor's name, shape and dtype) but not read.
#[derive(Debug, Args)]
struct InfoArgs {
    /// Model: a directory in Hugging Face layout, or a hub id (ORG/NAME, ORG/NAME@REVISION).
    #[arg(long, value_name = "M")]
    model: String,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ModelArgs) -> CliResult {
    let What::Info(args) = &args.what;
    let model = Model::open(&resolve(&args.model)?)?;
    let tokenizer = model
        .dir
        .join("tokenizer.json")
        .is_file()
        .then(|| Tokenizer::open(&model.dir))
        .transpose()?;
    let template = ChatTemplate::open(&model.dir)?;
    if args.json {
        out(format_args!(
            "{}\n",
            as_json(&model, tokenizer.as_ref(), template.as_ref())
        ));
    } else {
        out(text(&model, tokenizer.as_ref(), template.as_ref()));
    }
    Ok(())
}

/// What sizes a row has at `site`, in words for the ragged ones.
fn shape(site: Site, dims: &Dims) -> String {
    let sizes: Vec<String> = site.row_shape(dims).iter().map(usize::to_string).collect();
    if site.is_ragged() {
        format!("[{}, rows, tokens] a sample", sizes.join(", "))
    } else {
        format!("[{}]", sizes.join(", "))
    }
}

/// `blocks.0-29.hook_resid_post`: the layers that have the point, as a pattern names them.
fn name(site: Site, dims: &Dims) -> String {
    let layers = if dims.n_layers == 1 {
        "0".into()
    } else {
        format!("{{0-{}}}", dims.n_layers - 1)
    };
    site.template().replacen(".L.", &format!(".{layers}."), 1)
}

fn rope(config: &Config) -> Value {
    let theta = config.rope.theta;
    match config.rope.scaling {
        RopeScaling::Default => json!({ "type": "default", "theta": theta }),
        RopeScaling::Linear { factor } => {
            json!({ "type": "linear", "theta": theta, "factor": factor })
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "type": "llama3",
            "theta": theta,
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    }
}

fn as_json(model: &Model, tokenizer: Option<&Tokenizer>, template: Option<&ChatTemplate>) -> Value {
    let c = &model.config;
    let dims = dims(c);
    let files: Vec<Value> = model
        .weights
        .files()
        .iter()
        .map(|(path, bytes)| json!({ "path": path, "bytes": bytes }))
        .collect();
    let hook_points: Vec<Value> = Site::ALL
        .iter()
        .map(|&site| {
            json!({
                "name": site.template(),
                "layers": site.is_per_layer().then_some(dims.n_layers),
                "row_shape": site.row_shape(&dims),
                "heads": site.heads(&dims),
                "ragged": site.is_ragged(),
            })
        })
        .collect();
    json!({
        "dir": model.dir,
        "fingerprint": model.fingerprint,
        "parameters": model.weights.n_params(),
        "dtype": model.weights.dtype().to_string(),
        "config": {
            "model_type": c.model_type,
            "hidden_size": c.hidden_size,
            "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "intermediate_size": c.intermediate_size,
            "vocab_size": c.vocab_size,
            "max_position_embeddings": c.max_position_embeddings,
            "rms_norm_eps": c.rms_norm_eps,
            "rope": rope(c),
            "sliding_window": c.sliding_window,
            "tie_word_embeddings": model.weights.is_tied(),
            "bos_token_id": c.bos_token_id,
            "eos_token_ids": c.eos_token_ids,
        },
        "files": files,
        "tokenizer": tokenizer.map(|t| json!({
            "vocab_size": t.vocab_size(),
            "adds_bos": t.adds_bos(),
            "bos_token_id": t.bos_id(),
            "fingerprint": t.fingerprint(),
        })),
        "chat_template": template.map(ChatTemplate::source),
        "hook_points": hook_points,
    })
}

fn text(model: &Model, tokenizer: Option<&Tokenizer>, template: Option<&ChatTemplate>) -> String {
    let c = &model.config;
    let dims = dims(c);
    let files = model.weights.files();
    let rope = match c.rope.scaling {
        RopeScaling::Default => format!("theta {}", c.rope.theta),
        RopeScaling::Linear { factor } => format!("theta {}, linear by {factor}", c.rope.theta),
        RopeScaling::Llama3 {
            factor,
            original_max_position_embeddings: original,
            ..
        } => {
            format!(
                "theta {}, llama3 by {factor} beyond {original} positions",
                c.rope.theta
            )
        }
    };
    let window = c.sliding_window.map_or("none".into(), |w| {
        format!("{} keys, the token's own included", format::count(w as u64))
    });
    let count = |n: usize| format::count(n as u64);
    let mut lines = vec![
        format!(
            "{}: {}, fingerprint {}",
            model.dir.display(),
            c.model_type,
            model.fingerprint
        ),
        format!(
            "parameters   {} in {}",
            count(model.weights.n_params()),
            model.weights.dtype()
        ),
        format!("layers       {}", c.n_layers),
        format!(
            "widths       residual stream {}, MLP {}, head {}",
            count(c.hidden_size),
            count(c.intermediate_size),
            c.head_dim
        ),
        format!(
            "heads        {} query, {} key/value",
            c.n_heads, c.n_kv_heads
        ),
        format!(
            "vocabulary   {}, LM head {}",
            count(c.vocab_size),
            if model.weights.is_tied() {
                "tied to the embedding"
            } else {
                "of its own"
            }
        ),
        format!(
            "positions    {}, sliding window {window}",
            count(c.max_position_embeddings)
        ),
        format!("RoPE         {rope}"),
        format!("RMSNorm      eps {:e}", c.rms_norm_eps),
        match tokenizer {
            Some(t) if t.adds_bos() => format!(
                "tokenizer    {} tokens, adds BOS to plain text",
                count(t.vocab_size())
            ),
            Some(t) => format!("tokenizer    {} tokens, adds no BOS", count(t.vocab_size())),
            None => "tokenizer    none: give datasets as `tokens`".into(),
        },
        format!(
            "chat         {}",
            if template.is_some() {
                "has a template"
            } else {
                "no template: give `text` or `tokens`"
            }
        ),
    ];
    for (path, bytes) in &files {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        lines.push(format!(
            "file         {name}, {} bytes",
            format::count(*bytes)
        ));
    }
    lines.push("hook points, with the shape of a row:".into());
    let width = Site::ALL
        .iter()
        .map(|&site| name(site, &dims).len())
        .max()
        .unwrap_or(0);
    for &site in &Site::ALL {
        lines.push(format!(
            "  {:width$}  {}",
            name(site, &dims),
            shape(site, &dims)
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}
