//! One file of a tap: safetensors, with the header written by us. The crate's serializer would sort tensors by dtype; here
//! `activations` comes first, and the header is padded with spaces so that the data starts on a 4 KiB boundary.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{Error, Result};
use crate::compact::Code;

/// Where a file's data starts: 8 + the header's length is a multiple of this.
pub const ALIGN: usize = 4096;
/// The longest header that safetensors readers accept.
const MAX_HEADER: usize = 100_000_000;

/// What a tap's numbers are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    F32,
    F16,
    BF16,
    /// 8 bits, see [`crate::compact`].
    #[serde(rename = "fp8-e4m3")]
    F8E4M3,
    /// As above.
    Int8,
}

impl StoreDtype {
    /// Bytes per number; of the 8-bit forms, what stands beside the codes comes on top.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 | Self::Int8 => 1,
        }
    }

    /// What an 8-bit form stores numbers as.
    pub fn code(self) -> Option<Code> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::F8E4M3 => Some(Code::F8E4M3),
            Self::Int8 => Some(Code::I8),
        }
    }

    /// The name in a safetensors header.
    pub(crate) fn safetensors(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            Self::F8E4M3 => Dtype::F8_E4M3,
            Self::Int8 => Dtype::I8,
        }
    }
}

impl fmt::Display for StoreDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F8E4M3 => "fp8-e4m3",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for StoreDtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            "fp8-e4m3" => Ok(Self::F8E4M3),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::Plan(format!(
                "unknown store dtype {s:?}; use f32, f16, bf16, fp8-e4m3 or int8"
            ))),
        }
    }
}

/// A tensor to be laid out: they follow one another in the order given, without holes.
#[derive(Debug, Clone)]
pub(crate) struct TensorSpec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: u64,
}

/// Writes a header: the 8-byte length and the JSON, padded to a multiple of [`ALIGN`] in all.
///
/// # Errors
/// More tensors than a safetensors header can name (about a million).
pub(crate) fn encode_header(
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec],
) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut begin = 0u64;
    for t in tensors {
        let end = begin + t.bytes;
        header.insert(
            t.name.clone(),
            json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [begin, end]}),
        );
        begin = end;
    }
    let json = Value::Object(header).to_string();
    let padded = (8 + json.len()).next_multiple_of(ALIGN);
    if padded - 8 > MAX_HEADER {
        return Err(Error::Plan(format!(
            "{} tensors make a header of {padded} bytes, more than the {MAX_HEADER} that readers accept; make shards smaller",
            tensors.len()
        )));
    }
    let mut bytes = Vec::with_capacity(padded);
    bytes.extend_from_slice(&((padded - 8) as u64).to_le_bytes());
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(padded, b' ');
    Ok(bytes)
}

/// One tensor of a parsed file.
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// A parsed header: every tensor lies inside the file, they leave no hole, and shapes and lengths agree.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    /// Where the data starts: the header's length with its 8-byte prefix.
    pub len: usize,
    /// In the order of their bytes.
    pub tensors: Vec<StoredTensor>,
    by_name: HashMap<String, usize>,
}

impl Header {
    /// Parses the header of the file at `path`, whose whole content is `file`.
    ///
    /// # Errors
    /// Whatever makes the file no valid safetensors file of exactly this length.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let invalid =
            |e: &dyn fmt::Display| Error::damaged(path, format!("no valid safetensors file ({e})"));
        let (n, metadata) = SafeTensors::read_metadata(file).map_err(|e| invalid(&e))?;
        let len = n + 8;
        let mut tensors = Vec::new();
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let bytes = len + begin..len + end;
            if bytes.start > bytes.end || bytes.end > file.len() {
                return Err(invalid(&format!("tensor {name:?} lies outside the file")));
            }
            tensors.push(StoredTensor {
                name,
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes,
            });
        }
        // Tensors without bytes may share an offset; the index tensors are written last.
        let last = |name: &str| {
            ["sample", "position", "token", "order"]
                .iter()
                .position(|&n| n == name)
                .map_or(0, |i| i + 1)
        };
        tensors.sort_by_cached_key(|t| (t.bytes.start, t.bytes.end, last(&t.name), t.name.clone()));
        let by_name = tensors
            .iter()
            .enumerate()
            .map(|(i, t)| (t.name.clone(), i))
            .collect();
        Ok(Self {
            len,
            tensors,
            by_name,
        })
    }

    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.position(name).map(|i| &self.tensors[i])
    }

    /// A tensor's place among [`Header::tensors`].
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: Dtype, shape: &[u64], bytes: u64) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    #[test]
    fn data_starts_on_a_page_and_the_crate_reads_tensors_in_our_order() {
        let metadata =
            BTreeMap::from([("hook".to_string(), "blocks.0.hook_resid_post".to_string())]);
        let tensors = [
            spec("activations", Dtype::BF16, &[3, 1], 6),
            spec("sample", Dtype::I64, &[3], 24),
            spec("token", Dtype::I32, &[0], 0),
        ];
        let mut file = encode_header(&metadata, &tensors).unwrap();
        assert_eq!(file.len(), ALIGN);
        file.extend_from_slice(&[0; 30]);
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("activations").unwrap().shape(), [3, 1]);
        assert_eq!(read.tensor("token").unwrap().shape(), [0]);
        let header = Header::parse(Path::new("f"), &file).unwrap();
        assert_eq!(header.len, ALIGN);
        assert_eq!(
            header.tensor("sample").unwrap().bytes,
            ALIGN + 6..ALIGN + 30
        );
    }

    #[test]
    fn every_truncation_of_a_file_is_an_error() {
        let mut file = encode_header(
            &BTreeMap::new(),
            &[spec("activations", Dtype::F32, &[2], 8)],
        )
        .unwrap();
        file.extend_from_slice(&[0; 8]);
        for n in (0..64).chain(4000..file.len()) {
            assert!(Header::parse(Path::new("f"), &file[..n]).is_err(), "{n}");
        }
        assert!(Header::parse(Path::new("f"), &file).is_ok());
    }

    #[test]
    fn headers_that_lie_are_errors() {
        for json in [
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
            "[]",
            "{",
        ] {
            let mut file = (json.len() as u64).to_le_bytes().to_vec();
            file.extend_from_slice(json.as_bytes());
            file.extend_from_slice(&[0; 8]);
            assert!(Header::parse(Path::new("f"), &file).is_err(), "{json}");
        }
        let huge = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
        assert!(Header::parse(Path::new("f"), &huge).is_err());
    }
}
