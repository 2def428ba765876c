//! The weights: safetensors files, mapped, and every tensor checked against the config before any is used.
//!
//! Nothing is copied or converted here. A tensor is a name, a dtype, a shape and the bytes in the mapping, which may be
//! misaligned for the dtype: whoever widens them reads them as bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use super::config::Config;
use super::error::{Error, Result, json_object, read_if_present};
use super::header::{self, TensorEntry};
use crate::sys::map::MappedFile;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const EMBED: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";
/// How many problems an error spells out.
const SHOWN: usize = 4;

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    fn from_header(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

/// One tensor in the mapping; row-major, little-endian.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// `product(shape) · dtype.size()` bytes, not necessarily aligned for the dtype.
    pub bytes: &'a [u8],
}

/// The tensors of one block. Projections are [out, in]: `y = x · Wᵀ`.
#[derive(Debug, Clone, Copy)]
pub struct LayerTensors<'a> {
    /// `[d]`: gain of the norm before attention.
    pub input_norm: Tensor<'a>,
    /// [H·h, d]
    pub q: Tensor<'a>,
    /// [K·h, d]
    pub k: Tensor<'a>,
    /// [K·h, d]
    pub v: Tensor<'a>,
    /// [d, H·h]
    pub o: Tensor<'a>,
    /// `[d]`: gain of the norm before the MLP.
    pub post_norm: Tensor<'a>,
    /// [f, d]
    pub gate: Tensor<'a>,
    /// [f, d]
    pub up: Tensor<'a>,
    /// [d, f]
    pub down: Tensor<'a>,
}

/// Per block, in the order of [`LayerTensors`]' fields.
const PER_LAYER: [&str; 9] = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// A checkpoint's tensors, mapped.
#[derive(Debug)]
pub struct Weights {
    files: Vec<WeightFile>,
    tensors: Vec<Located>,
    embed: usize,
    /// The embedding's where the two are tied.
    lm_head: usize,
    norm: usize,
    layers: Vec<[usize; PER_LAYER.len()]>,
}

#[derive(Debug)]
struct WeightFile {
    map: MappedFile,
    /// Bytes before the tensors' data.
    header: usize,
}

#[derive(Debug)]
struct Located {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
    bytes: Range<usize>,
}

impl Weights {
    /// Maps the checkpoint in `dir`: `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// No weights, an index that lists absent files or tensors, files that break the format, and tensors that are
    /// missing, extra (but for `rotary_emb.inv_freq`), mis-shaped or mis-typed: the first few named, all counted.
    pub fn open(dir: &Path, config: &Config) -> Result<Self> {
        let listed = listed_files(dir)?;
        let mut files = Vec::with_capacity(listed.len());
        let mut found: HashMap<String, (usize, TensorEntry)> = HashMap::new();
        let mut problems = Problems::default();
        for (path, names) in listed {
            let map = MappedFile::open(&path).map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?;
            let (tensors, header) = header::parse(&map).map_err(|why| Error::Safetensors {
                path: path.clone(),
                why,
            })?;
            let file = files.len();
            let mut unseen = names;
            for tensor in tensors {
                unseen.remove(&tensor.name);
                if let Some((other, _)) = found.get(&tensor.name) {
                    let other: &WeightFile = &files[*other];
                    problems.add(format!(
                        "tensor `{}` is in {} and in {}",
                        tensor.name,
                        file_name(other.map.path()),
                        file_name(&path)
                    ));
                } else {
                    found.insert(tensor.name.clone(), (file, tensor));
                }
            }
            for name in unseen {
                problems.add(format!(
                    "tensor `{name}` is listed in {INDEX} for {}, which doesn't have it",
                    file_name(&path)
                ));
            }
            files.push(WeightFile { map, header });
        }
        problems.check(dir)?;
        Self::assemble(dir, config, files, found)
    }

    fn assemble(
        dir: &Path,
        config: &Config,
        files: Vec<WeightFile>,
        found: HashMap<String, (usize, TensorEntry)>,
    ) -> Result<Self> {
        let mut checked = Checked {
            found,
            tensors: Vec::new(),
            problems: Problems::default(),
        };
        let d = config.hidden_size;
        let embed = checked.take(EMBED.into(), &[config.vocab_size, d]);
        let norm = checked.take(NORM.into(), &[d]);
        let shapes = layer_shapes(config);
        let layers = (0..config.n_layers)
            .map(|layer| {
                std::array::from_fn(|i| {
                    let name = format!("model.layers.{layer}.{}.weight", PER_LAYER[i]);
                    checked.take(name, &shapes[i])
                })
            })
            .collect();
        let tied = config.tie_word_embeddings;
        let lm_head = if tied && !checked.found.contains_key(LM_HEAD) {
            embed
        } else {
            checked.take(LM_HEAD.into(), &[config.vocab_size, d])
        };
        for name in checked.found.into_keys().collect::<BTreeSet<_>>() {
            // Old checkpoints saved the RoPE frequencies, which follow from the config.
            if !name.ends_with("rotary_emb.inv_freq") {
                let why = "has no place in a Llama block";
                checked
                    .problems
                    .add(format!("tensor `{name}` is extra: it {why}"));
            }
        }
        checked.problems.check(dir)?;
        let mut weights = Self {
            files,
            tensors: checked.tensors,
            embed,
            lm_head,
            norm,
            layers,
        };
        if tied && lm_head != embed {
            let (embed, head) = (weights.embed(), weights.lm_head());
            if embed.dtype != head.dtype || embed.bytes != head.bytes {
                return Err(Error::Checkpoint {
                    path: dir.to_path_buf(),
                    why: format!(
                        "config.json ties the embeddings (tie_word_embeddings), but `{LM_HEAD}` differs from \
                         `{EMBED}`; set tie_word_embeddings to false or remove the tensor"
                    ),
                });
            }
            weights.lm_head = weights.embed;
        }
        Ok(weights)
    }

    fn tensor(&self, index: usize) -> Tensor<'_> {
        let t = &self.tensors[index];
        Tensor {
            name: &t.name,
            dtype: t.dtype,
            shape: &t.shape,
            bytes: &self.files[t.file].map[t.bytes.clone()],
        }
    }

    /// The embedding [V, d].
    pub fn embed(&self) -> Tensor<'_> {
        self.tensor(self.embed)
    }

    /// The unembedding [V, d]; the embedding itself where the two are tied.
    pub fn lm_head(&self) -> Tensor<'_> {
        self.tensor(self.lm_head)
    }

    /// Whether [`Weights::lm_head`] is [`Weights::embed`].
    pub fn is_tied(&self) -> bool {
        self.lm_head == self.embed
    }

    /// Gain `[d]` of the final norm.
    pub fn norm(&self) -> Tensor<'_> {
        self.tensor(self.norm)
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The tensors of block `layer`.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn layer(&self, layer: usize) -> LayerTensors<'_> {
        let [input_norm, q, k, v, o, post_norm, gate, up, down] =
            self.layers[layer].map(|index| self.tensor(index));
        LayerTensors {
            input_norm,
            q,
            k,
            v,
            o,
            post_norm,
            gate,
            up,
            down,
        }
    }

    /// The dtype that most of the numbers have.
    pub fn dtype(&self) -> Dtype {
        let mut counts = BTreeMap::<Dtype, usize>::new();
        for t in self.used() {
            *counts.entry(t.dtype).or_default() += t.bytes.len() / t.dtype.size();
        }
        let most = counts.into_iter().max_by_key(|&(_, count)| count);
        most.map_or(Dtype::F32, |(dtype, _)| dtype)
    }

    /// Number of parameters; a tied embedding counts once.
    pub fn n_params(&self) -> usize {
        self.used().map(|t| t.bytes.len() / t.dtype.size()).sum()
    }

    /// The tensors that the forward pass reads, each once.
    fn used(&self) -> impl Iterator<Item = &Located> {
        let unused = |t: &&Located| !(self.is_tied() && t.name == LM_HEAD);
        self.tensors.iter().filter(unused)
    }

    /// The weight files and their sizes in bytes.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let sized = |f: &WeightFile| (f.map.path().to_path_buf(), f.map.len() as u64);
        self.files.iter().map(sized).collect()
    }

    /// Identifies the model: xxh3-128, in hex, of the bytes of `config.json` and of each weight file's header and size.
    /// The data itself is not read.
    pub fn fingerprint(&self, config_json: &[u8]) -> String {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let mut section = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        section(config_json);
        for file in &self.files {
            section(&file.map[..file.header]);
            section(&(file.map.len() as u64).to_le_bytes());
        }
        format!("{:032x}", hash.digest128())
    }
}

/// The expected shapes, in the order of [`PER_LAYER`].
fn layer_shapes(config: &Config) -> [Vec<usize>; PER_LAYER.len()] {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    // `Config` bounds each factor to 2^20.
    let (q, kv) = (
        config.n_heads * config.head_dim,
        config.n_kv_heads * config.head_dim,
    );
    [
        vec![d],
        vec![q, d],
        vec![kv, d],
        vec![kv, d],
        vec![d, q],
        vec![d],
        vec![f, d],
        vec![f, d],
        vec![d, f],
    ]
}

/// Tensors as they are taken out of what the files hold, one by one, and compared with what the config says.
struct Checked {
    found: HashMap<String, (usize, TensorEntry)>,
    tensors: Vec<Located>,
    problems: Problems,
}

impl Checked {
    /// The index of the tensor `name`, or, where it doesn't fit, of nothing: then there is a problem more.
    fn take(&mut self, name: String, shape: &[usize]) -> usize {
        let problem = match self.found.remove(&name) {
            None => format!("tensor `{name}` {shape:?} is missing"),
            Some((file, entry)) => match Dtype::from_header(&entry.dtype) {
                _ if entry.shape != shape => format!(
                    "tensor `{name}` has shape {:?}, expected {shape:?}",
                    entry.shape
                ),
                None => format!(
                    "tensor `{name}` has dtype {}, expected F32, F16 or BF16",
                    entry.dtype
                ),
                Some(dtype) => {
                    self.tensors.push(Located {
                        name,
                        dtype,
                        shape: entry.shape,
                        file,
                        bytes: entry.bytes,
                    });
                    return self.tensors.len() - 1;
                }
            },
        };
        self.problems.add(problem);
        usize::MAX
    }
}

/// Everything that doesn't fit, so that one error can say how much it is.
#[derive(Default)]
struct Problems {
    first: Vec<String>,
    count: usize,
}

impl Problems {
    fn add(&mut self, problem: String) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(problem);
        }
    }

    fn check(&self, dir: &Path) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        Err(Error::Tensors {
            dir: dir.to_path_buf(),
            first: self.first.join("; "),
            shown: self.first.len(),
            count: self.count,
        })
    }
}

/// The weight files of a checkpoint, sorted by name, each with the tensors that the index lists for it.
fn listed_files(dir: &Path) -> Result<Vec<(PathBuf, BTreeSet<String>)>> {
    let checkpoint = |path: &Path, why: String| Error::Checkpoint {
        path: path.to_path_buf(),
        why,
    };
    let single = dir.join(SINGLE);
    if single.exists() {
        return Ok(vec![(single, BTreeSet::new())]);
    }
    let path = dir.join(INDEX);
    let Some(bytes) = read_if_present(&path)? else {
        let remedy = if dir.join("pytorch_model.bin").exists()
            || dir.join("pytorch_model.bin.index.json").exists()
        {
            "only a pickle (pytorch_model.bin), which is not read; save the model as safetensors"
        } else {
            "give the directory that holds the weights"
        };
        let why = format!("no {SINGLE} and no {INDEX} here; {remedy}");
        return Err(checkpoint(dir, why));
    };
    let mut files = BTreeMap::<PathBuf, BTreeSet<String>>::new();
    for (name, file) in index_entries(&bytes, &path)? {
        files.entry(dir.join(file)).or_default().insert(name);
    }
    if files.is_empty() {
        return Err(checkpoint(&path, "it lists no tensor".into()));
    }
    let absent: Vec<_> = files
        .keys()
        .filter(|f| !f.exists())
        .map(|f| file_name(f))
        .collect();
    if !absent.is_empty() {
        let why = format!(
            "it lists files that are not here: {}; fetch them",
            absent.join(", ")
        );
        return Err(checkpoint(&path, why));
    }
    Ok(files.into_iter().collect())
}

/// The (tensor, file) pairs of an index; every file is a plain name beside the index.
pub(super) fn index_entries(bytes: &[u8], path: &Path) -> Result<Vec<(String, String)>> {
    let checkpoint = |why: String| Error::Checkpoint {
        path: path.to_path_buf(),
        why,
    };
    let index = json_object(bytes, path)?;
    let map = index.get("weight_map").and_then(|v| v.as_object());
    let map = map.ok_or_else(|| checkpoint("it has no `weight_map` object".into()))?;
    map.iter()
        .map(|(name, file)| {
            let file = file.as_str().ok_or_else(|| {
                checkpoint(format!("the file of tensor `{name}` is not a string"))
            })?;
            let mut parts = Path::new(file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None)
                if part.to_str() == Some(file));
            if !plain {
                let why = format!("the file of tensor `{name}` is {file:?}, not a plain file name");
                return Err(checkpoint(why));
            }
            Ok((name.clone(), file.to_string()))
        })
        .collect()
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
