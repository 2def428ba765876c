//! The header of a safetensors file, read strictly: whatever is wrong with it is said in plain words.
//!
//! A file is `u64` little-endian header length, a JSON object `{name: {dtype, shape, data_offsets}}` of that length, then
//! the tensors' bytes, end to end in some order. Nothing here trusts a number before it has been checked against the
//! length of the file. The tests hold it against the `safetensors` crate.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// Longest header taken, in bytes; the format's own reference reader has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor as its header describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorEntry {
    pub name: String,
    /// As written: `BF16`, `F32`, …
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub bytes: Range<usize>,
}

/// Reads the header of a whole file's bytes: its tensors in order of their offsets, and the length of what precedes
/// their data.
///
/// # Errors
/// What is wrong, without the file's name.
pub(super) fn parse(file: &[u8]) -> Result<(Vec<TensorEntry>, usize), String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!(
            "the file has {} bytes, too few for a header length",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!(
            "it announces a header of {length} bytes; the format allows {MAX_HEADER}"
        ));
    }
    let length = length as usize;
    let Some((json, data)) = rest.split_at_checked(length) else {
        return Err(format!(
            "it announces a header of {length} bytes, but only {} follow: truncated",
            rest.len()
        ));
    };
    let header: Header =
        serde_json::from_slice(json).map_err(|e| format!("its header can't be read: {e}"))?;
    let mut names = HashSet::new();
    if let Some((twice, _)) = header
        .0
        .iter()
        .find(|(name, _)| !names.insert(name.as_str()))
    {
        return Err(format!("tensor `{twice}` is listed twice"));
    }
    let data_start = 8 + length;
    let mut tensors = header
        .0
        .into_iter()
        .map(|(name, info)| info.check(name, data.len(), data_start))
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|t| (t.bytes.start, t.bytes.end));
    let mut end = data_start;
    for tensor in &tensors {
        let what = match tensor.bytes.start.cmp(&end) {
            std::cmp::Ordering::Less => "overlaps the tensor before it",
            std::cmp::Ordering::Greater => "leaves a hole before it",
            std::cmp::Ordering::Equal => {
                end = tensor.bytes.end;
                continue;
            }
        };
        return Err(format!("tensor `{}` {what}", tensor.name));
    }
    if end != file.len() {
        return Err(format!("{} bytes follow the last tensor", file.len() - end));
    }
    Ok((tensors, data_start))
}

/// `BF16` → 2; types that no float checkpoint of ours has are unknown here.
pub(super) fn element_size(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => 1,
        _ => return None,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Info {
    fn check(self, name: String, data: usize, data_start: usize) -> Result<TensorEntry, String> {
        let Some(size) = element_size(&self.dtype) else {
            return Err(format!(
                "tensor `{name}` has an unknown dtype `{}`",
                self.dtype
            ));
        };
        let (start, end) = self.data_offsets;
        if start > end || end > data as u64 {
            return Err(format!(
                "tensor `{name}` lies at bytes {start}..{end} of {data} bytes of data"
            ));
        }
        let needed = self
            .shape
            .iter()
            .try_fold(size as u64, |bytes, &n| bytes.checked_mul(n));
        if needed != Some(end - start) {
            return Err(format!(
                "tensor `{name}` ({} {:?}) has {} bytes of data",
                self.dtype,
                self.shape,
                end - start
            ));
        }
        // Each fits: the end is at most the file's length, and no factor of a product that fits exceeds it unless
        // another is zero.
        let shape = self
            .shape
            .iter()
            .map(|&n| usize::try_from(n))
            .collect::<Result<_, _>>()
            .map_err(|_| format!("tensor `{name}` has an impossible shape {:?}", self.shape))?;
        Ok(TensorEntry {
            name,
            dtype: self.dtype,
            shape,
            bytes: data_start + start as usize..data_start + end as usize,
        })
    }
}

/// The header's entries in file order, kept as a list so that a name given twice is seen.
struct Header(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<std::collections::HashMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn tensor(dtype: &str, shape: &str, start: u64, end: u64) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    }

    #[test]
    fn tensors_are_found_in_order_of_their_bytes() {
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"b":{},"a":{}}}   "#,
            tensor("BF16", "[2,3]", 4, 16),
            tensor("F32", "[]", 0, 4)
        );
        let bytes = file(&header, 16);
        let (tensors, start) = parse(&bytes).unwrap();
        assert_eq!(start, 8 + header.len());
        let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(tensors[1].shape, [2, 3]);
        assert_eq!(tensors[1].bytes, start + 4..start + 16);
        assert!(SafeTensors::deserialize(&bytes).is_ok());
    }

    #[test]
    fn hostile_files_are_refused_and_say_why() {
        let one = |info: String, data: usize| file(&format!(r#"{{"t":{info}}}"#), data);
        let two = |a: String, b: String, data| file(&format!(r#"{{"a":{a},"b":{b}}}"#), data);
        let good = one(tensor("F32", "[4]", 0, 16), 16);
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut longer_than_file = good.clone();
        longer_than_file[..8].copy_from_slice(&4096u64.to_le_bytes());
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "has 0 bytes"),
            (good[..7].to_vec(), "has 7 bytes"),
            (huge, "the format allows"),
            (longer_than_file, "truncated"),
            (good[..good.len() - 1].to_vec(), "lies at bytes 0..16 of 15"),
            ([good.clone(), vec![0; 3]].concat(), "3 bytes follow"),
            (file("[1, 2]", 0), "can't be read"),
            (file("{\"t\": ", 0), "can't be read"),
            (file("\u{1}\u{2}", 0), "can't be read"),
            (one(tensor("F32", "[4]", 16, 0), 16), "lies at bytes 16..0"),
            (one(tensor("F32", "[4]", 0, u64::MAX), 16), "lies at bytes"),
            (one(tensor("F32", "[5]", 0, 16), 16), "has 16 bytes of data"),
            (
                one(tensor("F32", "[4611686018427387905,4]", 0, 16), 16),
                "has 16 bytes of data",
            ),
            (
                one(tensor("Q4_K", "[4]", 0, 16), 16),
                "unknown dtype `Q4_K`",
            ),
            (one(tensor("F32", "[-4]", 0, 16), 16), "can't be read"),
            (
                one(tensor("F32", "[4]", 0, 16).replace('}', r#","x":1}"#), 16),
                "can't be read",
            ),
            (
                two(tensor("F32", "[4]", 0, 16), tensor("F32", "[4]", 8, 24), 24),
                "`b` overlaps",
            ),
            (
                two(
                    tensor("F32", "[4]", 0, 16),
                    tensor("F32", "[4]", 20, 36),
                    36,
                ),
                "`b` leaves a hole",
            ),
            (
                file(
                    &format!(
                        r#"{{"t":{},"t":{}}}"#,
                        tensor("BF16", "[8]", 0, 16),
                        tensor("F16", "[8]", 0, 16)
                    ),
                    16,
                ),
                "listed twice",
            ),
        ];
        for (bytes, expected) in cases {
            let said = parse(&bytes).unwrap_err();
            assert!(
                said.contains(expected),
                "{said:?} should contain {expected:?}"
            );
        }
    }

    fn any_header() -> impl Strategy<Value = String> {
        let number = || prop_oneof![8 => 0u64..40, 1 => any::<u64>()];
        let dtype = prop::sample::select(vec!["F32", "BF16", "U8", "F16", "??"]);
        let entry = (
            dtype,
            prop::collection::vec(number(), 0..3),
            number(),
            number(),
        )
            .prop_map(|(dtype, shape, a, b)| tensor(dtype, &format!("{shape:?}"), a, b));
        prop::collection::vec(("[ab]", entry), 0..3).prop_map(|entries| {
            let inner: Vec<_> = entries
                .iter()
                .map(|(k, v)| format!(r#""{k}":{v}"#))
                .collect();
            format!("{{{}}}", inner.join(","))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_file_makes_the_parser_panic_and_what_it_takes_the_crate_takes(
            header in any_header(), data in 0usize..48, flip in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = file(&header, data);
            for bytes in [bytes.clone(), { let i = flip.index(bytes.len()); bytes[i] = byte; bytes }] {
                if let Ok((tensors, _)) = parse(&bytes) {
                    let theirs = SafeTensors::deserialize(&bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
                    prop_assert_eq!(theirs.len(), tensors.len());
                    for t in tensors {
                        let view = theirs.tensor(&t.name).unwrap();
                        prop_assert_eq!(view.shape(), &t.shape[..]);
                        prop_assert_eq!(view.data(), &bytes[t.bytes]);
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
