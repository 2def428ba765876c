//! candle-mi's side of one workload, in a process of its own; the flags and the printed JSON are those of peer.py.
//!
//! As its documentation has it: `HookSpec::capture` and `intervene`, `MIBackend::forward`. Samples are sorted by length and padded on the right, which
//! its causal mask makes harmless. It has no way to end a pass early, so every layer and the LM head run; and no cache of keys and values,
//! so each step of a generation is a pass over everything.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_mi::{
    GenericTransformer, HookPoint, HookSpec, Intervention, MIBackend, TransformerConfig,
};
use candle_nn::VarBuilder;
use serde_json::{Value, json};

const BATCH_SIZES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const NEW_TOKENS: usize = 64;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

struct Args {
    flags: HashMap<String, String>,
}

impl Args {
    fn read() -> Self {
        let mut flags = HashMap::new();
        let mut words = std::env::args().skip(1).peekable();
        while let Some(flag) = words.next() {
            let value = words.next_if(|w| !w.starts_with("--")).unwrap_or_default();
            flags.insert(flag.trim_start_matches("--").to_owned(), value);
        }
        Args { flags }
    }

    fn get(&self, flag: &str) -> Result<&str> {
        let value = self.flags.get(flag).map(String::as_str);
        value.ok_or_else(|| format!("--{flag} is missing").into())
    }
}

struct Peer {
    model: GenericTransformer,
    n_layers: usize,
    width: usize,
    workload: String,
    out: PathBuf,
}

impl Peer {
    fn open(args: &Args) -> Result<Self> {
        let folder = Path::new(args.get("model")?);
        let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
        let dtype = match args.get("dtype")? {
            "float32" => DType::F32,
            "bfloat16" => DType::BF16,
            other => return Err(format!("no dtype {other}").into()),
        };
        let weights = std::fs::read(folder.join("model.safetensors"))?;
        let weights = VarBuilder::from_buffered_safetensors(weights, dtype, &Device::Cpu)?;
        let parsed = TransformerConfig::from_hf_config(&config)?;
        Ok(Peer {
            n_layers: parsed.num_layers,
            width: parsed.hidden_size,
            model: GenericTransformer::load(parsed, &Device::Cpu, dtype, weights)?,
            workload: args.get("workload")?.to_owned(),
            out: args.get("out")?.into(),
        })
    }

    fn run(&self, samples: &[(usize, Vec<u32>)], size: usize) -> Result<()> {
        let mut order: Vec<&(usize, Vec<u32>)> = samples.iter().collect();
        order.sort_by_key(|(_, tokens)| tokens.len());
        for (number, batch) in order.chunks(size).enumerate() {
            let rows = if self.workload == "steered" {
                self.generate(batch)?
            } else {
                self.extract(batch)?
            };
            candle_core::safetensors::save(
                &rows,
                self.out.join(format!("{number:05}.safetensors")),
            )?;
        }
        Ok(())
    }

    fn extract(&self, batch: &[&(usize, Vec<u32>)]) -> Result<HashMap<String, Tensor>> {
        let layers = match &self.workload[..] {
            "residuals" => 0..self.n_layers,
            "last-token" => self.n_layers / 2..self.n_layers / 2 + 1,
            other => return Err(format!("candle-mi has not all points of {other}").into()),
        };
        let mut hooks = HookSpec::new();
        for layer in layers.clone() {
            hooks.capture(HookPoint::ResidPost(layer));
        }
        let longest = batch
            .iter()
            .map(|(_, tokens)| tokens.len())
            .max()
            .unwrap_or(0);
        let mut ids = Vec::with_capacity(batch.len() * longest);
        for (_, tokens) in batch {
            ids.extend(tokens);
            ids.resize(ids.len().next_multiple_of(longest), 0);
        }
        let ids = Tensor::from_vec(ids, (batch.len(), longest), &Device::Cpu)?;
        let cache = self.model.forward(&ids, &hooks)?;
        let mut rows = HashMap::new();
        for layer in layers {
            let found = cache.require(&HookPoint::ResidPost(layer))?;
            for (row, (number, tokens)) in batch.iter().enumerate() {
                let n = tokens.len();
                let first = if self.workload == "last-token" {
                    n - 1
                } else {
                    0
                };
                let name = format!("{number}.blocks.{layer}.hook_resid_post");
                rows.insert(name, found.i((row, first..n))?.contiguous()?);
            }
        }
        Ok(rows)
    }

    /// One after the other: a batch would need padding on the left, and it has no mask for that.
    fn generate(&self, batch: &[&(usize, Vec<u32>)]) -> Result<HashMap<String, Tensor>> {
        let wave: Vec<f64> = (0..self.width).map(|i| (i as f64).sin()).collect();
        let norm = wave.iter().map(|x| x * x).sum::<f64>().sqrt();
        let vector: Vec<f32> = wave.iter().map(|x| (20.0 * x / norm) as f32).collect();
        let vector = Tensor::from_vec(vector, (1, 1, self.width), &Device::Cpu)?;
        let mut hooks = HookSpec::new();
        hooks.intervene(
            HookPoint::ResidPost(self.n_layers / 2),
            Intervention::Add(vector),
        );
        let mut rows = HashMap::new();
        for (number, prompt) in batch {
            let mut tokens = prompt.clone();
            for _ in 0..NEW_TOKENS {
                let ids = Tensor::new(&tokens[..], &Device::Cpu)?.unsqueeze(0)?;
                let logits = self.model.forward(&ids, &hooks)?.into_output();
                let last = logits.i((0, tokens.len() - 1))?.to_dtype(DType::F32)?;
                tokens.push(last.argmax(0)?.to_scalar::<u32>()?);
            }
            let new: Vec<i64> = tokens[prompt.len()..].iter().map(|&t| t.into()).collect();
            rows.insert(
                format!("{number}.generated"),
                Tensor::new(new, &Device::Cpu)?,
            );
        }
        Ok(rows)
    }

    fn timed(&self, samples: &[(usize, Vec<u32>)], size: usize) -> Result<Value> {
        std::fs::create_dir_all(&self.out)?;
        if self.workload != "steered" {
            self.run(&samples[..1], 1)?; // first-call costs
        }
        let start = Instant::now();
        self.run(samples, size)?;
        Ok(json!({"batch_size": size, "seconds": start.elapsed().as_secs_f64()}))
    }
}

fn main() -> Result<()> {
    let args = Args::read();
    let peer = Peer::open(&args)?;
    let mut samples = Vec::new();
    for (number, line) in std::fs::read_to_string(args.get("data")?)?
        .lines()
        .enumerate()
    {
        let line: Value = serde_json::from_str(line)?;
        samples.push((number, serde_json::from_value(line["tokens"].clone())?));
    }
    if args.flags.contains_key("tune") {
        let few: Vec<(usize, Vec<u32>)> = samples.into_iter().step_by(4).collect();
        let sizes = BATCH_SIZES.iter().filter(|&&size| size <= few.len().max(1));
        let ways: Result<Vec<Value>> = sizes.map(|&size| peer.timed(&few, size)).collect();
        println!("{}", Value::Array(ways?));
    } else {
        println!(
            "{}",
            peer.timed(&samples, args.get("batch-size")?.parse()?)?
        );
    }
    Ok(())
}
