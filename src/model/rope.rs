//! Rotary position embedding: the frequencies, as Hugging Face computes them.
//!
//! `inv_freq[i] = 1 / theta^(2i / head_dim)`, every step rounded to f32 as `transformers` does: they are part of the
//! model's definition, so they are not "improved" by more precision. The power alone is not settled by that: PyTorch's
//! scalar kernel (glibc's `powf`) rounds it correctly, its AVX2 and AVX-512 kernels are one ulp off in 4 of the 736
//! powers behind `tests/fixtures/rope_inv_freq.json`, which lists them. We round correctly (f64 `pow`, rounded once), so
//! our table is the same on every machine and equal to PyTorch's scalar one bit for bit.

use std::f64::consts::PI;

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// How the frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// A change of the frequencies for contexts longer than the pretraining's.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// ≥ 1 in practice.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between.
    Llama3 {
        /// Divides the frequencies of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context of the pretraining, in tokens.
        original_max_position_embeddings: f64,
    },
}

impl Rope {
    /// The inverse frequencies [head_dim / 2], in radians per position.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let theta = self.theta as f32;
        let dim = head_dim as f32;
        let base = (0..head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / dim;
            1.0 / f64::from(theta).powf(f64::from(exponent)) as f32
        });
        match self.scaling {
            RopeScaling::Default => base.collect(),
            RopeScaling::Linear { factor } => base.map(|f| f / factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context,
            } => {
                // Python computes these in f64; PyTorch rounds a Python scalar to the tensor's f32 where they meet.
                let long = (context / low_freq_factor) as f32;
                let short = (context / high_freq_factor) as f32;
                let (low, span) = (
                    low_freq_factor as f32,
                    (high_freq_factor - low_freq_factor) as f32,
                );
                base.map(|f| {
                    let wavelength = (2.0 * PI) as f32 * (1.0 / f);
                    if wavelength > long {
                        f / factor as f32
                    } else if wavelength < short {
                        f
                    } else {
                        let keep = (context as f32 * (1.0 / wavelength) - low) / span;
                        (1.0 - keep) * f / factor as f32 + keep * f
                    }
                })
                .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn table() -> Value {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/rope_inv_freq.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn rope(case: &Value) -> Rope {
        let number = |key: &str| case["rope_parameters"][key].as_f64().unwrap();
        let scaling = match case["rope_parameters"]["rope_type"].as_str().unwrap() {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: number("factor"),
            },
            _ => RopeScaling::Llama3 {
                factor: number("factor"),
                low_freq_factor: number("low_freq_factor"),
                high_freq_factor: number("high_freq_factor"),
                original_max_position_embeddings: number("original_max_position_embeddings"),
            },
        };
        Rope {
            theta: number("rope_theta"),
            scaling,
        }
    }

    fn hex(values: &Value) -> Vec<u32> {
        let words = values.as_str().unwrap().split(' ');
        words.map(|w| u32::from_str_radix(w, 16).unwrap()).collect()
    }

    #[test]
    fn inverse_frequencies_are_pytorchs_bit_for_bit() {
        let table = table();
        let cases = table["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 48);
        for case in cases {
            let head_dim = case["head_dim"].as_u64().unwrap() as usize;
            let ours: Vec<u32> = rope(case)
                .inv_freq(head_dim)
                .iter()
                .map(|f| f.to_bits())
                .collect();
            assert_eq!(
                ours,
                hex(&case["inv_freq"]),
                "{} head_dim {head_dim}",
                case["rope_parameters"]
            );
        }
    }

    #[test]
    fn pytorchs_vector_kernels_are_rarely_and_barely_off_the_correctly_rounded_power() {
        let table = table();
        let mut entries = 0;
        for case in table["cases"].as_array().unwrap() {
            let head_dim = case["head_dim"].as_u64().unwrap() as usize;
            let ours = rope(case).inv_freq(head_dim);
            // A division after the power can turn its one ulp into two.
            let divided = case["rope_parameters"]["rope_type"] != "default";
            for (i, bits) in case["avx"].as_object().unwrap() {
                let theirs = u32::from_str_radix(bits.as_str().unwrap(), 16).unwrap();
                let apart = ours[i.parse::<usize>().unwrap()].to_bits().abs_diff(theirs);
                assert!(apart >= 1);
                assert!(apart <= if divided { 2 } else { 1 });
                entries += 1;
            }
        }
        assert_eq!(entries, 12);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = Rope {
            theta: 1e4,
            scaling: RopeScaling::Default,
        };
        let scaled = Rope {
            theta: 1e4,
            scaling: RopeScaling::Linear { factor: 4.0 },
        };
        let pairs = plain.inv_freq(64).into_iter().zip(scaled.inv_freq(64));
        assert!(pairs.into_iter().all(|(a, b)| a / 4.0 == b));
    }
}
