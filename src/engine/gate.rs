//! How far rows may be from each other that were not computed alike, and what it is that was not.

use serde_json::Value;

use crate::backend::cuda::Dtype;
use crate::store::StoreDtype;

/// The error that is let pass between two computations of one model's rows, relative in L2 over a tap's rows of one sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    /// What the less exact of the two computed in.
    compute: Dtype,
}

impl Gate {
    /// Of a store that was computed in `compute`, against the same or f32.
    pub fn of(compute: Dtype) -> Self {
        Gate { compute }
    }

    /// In f32 1e-5, the fidelity gate. In 16 bits 2.5 times what Hugging Face's own pass is off by at the end of 32 layers,
    /// 2 % in bf16; f16 has three bits more.
    fn of_compute(self) -> f64 {
        match self.compute {
            Dtype::F32 => 1e-5,
            Dtype::BF16 => 2.5 * 2e-2,
            Dtype::F16 => 2.5 * 2e-2 / 8.0,
        }
    }

    /// One rounding of what is stored comes on top.
    pub fn limit(self, stored: StoreDtype) -> f64 {
        self.of_compute().max(match stored {
            StoreDtype::F32 => 0.0,
            StoreDtype::F16 => 1e-3,
            StoreDtype::BF16 => 8e-3,
            // A step of three bits of mantissa; of 127 steps, each number of a group as large as its largest.
            StoreDtype::F8E4M3 => 1.25e-1,
            StoreDtype::Int8 => 6.3e-2,
        })
    }

    /// The gate in words.
    pub fn words(self) -> String {
        let of = match self.compute {
            Dtype::F32 => "the fidelity gate of f32",
            _ => "2.5 times what Hugging Face is off by in this dtype after 32 layers",
        };
        format!(
            "relative L2 error of a tap's rows of one sample at most {:.1e} ({of}), or one rounding of the stored dtype",
            self.of_compute()
        )
    }
}

/// In what two numeric records differ; empty where bits can be compared.
pub(super) fn differences(store: &Value, here: &Value) -> String {
    let none = serde_json::Map::new();
    let (theirs, ours) = (
        store.as_object().unwrap_or(&none),
        here.as_object().unwrap_or(&none),
    );
    let mut keys: Vec<&String> = theirs.keys().chain(ours.keys()).collect();
    keys.sort();
    keys.dedup();
    if theirs.get("backend") != ours.get("backend") {
        keys.retain(|key| matches!(key.as_str(), "backend" | "compute"));
    }
    let told = keys
        .into_iter()
        .filter(|key| theirs.get(*key) != ours.get(*key))
        .map(|key| {
            let told = |record: &serde_json::Map<String, Value>| in_words(record.get(key));
            format!("{key} {} there and {} here", told(theirs), told(ours))
        });
    let told: Vec<String> = told.collect();
    if told.is_empty() && store != here {
        return "the store's numeric record is no object".into();
    }
    told.join(", ")
}

/// A field as a line may hold it: products by their library, algorithms left out.
fn in_words(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not said".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(gemm)) if gemm.contains_key("library") => {
            let library = gemm["library"].as_str().unwrap_or_default();
            format!(
                "{library} in chunks of {}",
                gemm.get("chunk").unwrap_or(&Value::Null)
            )
        }
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn records_that_are_equal_differ_in_nothing_and_others_say_in_what() {
        let one = json!({ "backend": "cpu", "isa": "AVX2", "compute": "f32" });
        assert_eq!(differences(&one, &one), "");
        let two = json!({ "backend": "cpu", "isa": "AVX-512", "compute": "f32" });
        assert_eq!(differences(&one, &two), "isa AVX2 there and AVX-512 here");
        let other = json!({ "backend": "cuda", "compute": "bf16", "gemm": { "library": "own" } });
        assert_eq!(
            differences(&other, &one),
            "backend cuda there and cpu here, compute bf16 there and f32 here"
        );
        assert_ne!(differences(&Value::Null, &Value::from(3)), "");
        assert_ne!(differences(&Value::Null, &one), "");
    }

    #[test]
    fn sixteen_bits_may_differ_by_more_and_a_stored_rounding_always_counts() {
        let limit = |compute, stored| Gate::of(compute).limit(stored);
        assert_eq!(limit(Dtype::F32, StoreDtype::F32), 1e-5);
        assert_eq!(limit(Dtype::F32, StoreDtype::BF16), 8e-3);
        assert!(limit(Dtype::BF16, StoreDtype::F32) > limit(Dtype::F16, StoreDtype::F32));
    }
}
