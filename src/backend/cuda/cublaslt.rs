//! cuBLASLt, where it is found: one descriptor set and one algorithm per shape, made once.
//!
//! The library is row-blind: it sees our row-major out = x · Wᵀ as the column-major product outᵀ = W · xᵀ, with W transposed in
//! memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::path::PathBuf;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtMatmulAlgo_t};

use super::gemm::{GemmAlgorithm, GemmCall, GemmShape};
use super::launch::{DevicePtr, Dtype, LaunchError};

/// Workspace that algorithms may ask for: what cuBLAS itself takes on Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// The library's file name for CUDA 13.
const SONAME: &str = "libcublasLt.so.13";

/// Where the library was found, if it was: by its bare name, or beside a PyTorch of Python's.
pub fn find() -> Option<String> {
    if open(SONAME) {
        return Some(SONAME.to_owned());
    }
    beside_pytorch()
        .into_iter()
        .find(|path| open(&path.display().to_string()))
        .map(|path| path.display().to_string())
}

/// Opens a library for good. Once it is open, its bare name finds it wherever it lies.
fn open(name: &str) -> bool {
    let Ok(name) = CString::new(name) else {
        return false;
    };
    // SAFETY: a C string; the library's initialisers may run in any process. It is never closed.
    !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null()
}

/// `site-packages/nvidia/*/lib` of the Pythons on PATH and of the environment that is active.
fn beside_pytorch() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = std::env::var_os("VIRTUAL_ENV")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    prefixes.extend(
        std::env::split_paths(&path)
            .filter(|dir| dir.join("python3").exists())
            .filter_map(|dir| dir.parent().map(PathBuf::from)),
    );
    let mut found = Vec::new();
    for prefix in prefixes {
        for packages in ["site-packages", "dist-packages"] {
            let pattern = prefix
                .join("lib/python3*")
                .join(packages)
                .join("nvidia/*/lib")
                .join(SONAME);
            found.extend(
                glob::glob(&pattern.display().to_string())
                    .into_iter()
                    .flatten()
                    .flatten(),
            );
        }
    }
    found
}

/// An open library.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    version: usize,
    workspace: DevicePtr,
    plans: HashMap<(GemmShape, [u32; 3]), Plan>,
}

/// What the library wants to know of a product: a description, and the layouts of W, x and out.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl CublasLt {
    /// Opens the library; `workspace` has [`WORKSPACE`] bytes. Call [`find`] first: the driver crate panics where there is none.
    ///
    /// # Errors
    /// The library cannot use the current context.
    pub fn open(workspace: DevicePtr) -> Result<CublasLt, LaunchError> {
        let handle = lt::create_handle().map_err(|e| failed("opening cuBLASLt", e))?;
        Ok(CublasLt {
            handle,
            // SAFETY: a query.
            version: unsafe { sys::cublasLtGetVersion() },
            workspace,
            plans: HashMap::new(),
        })
    }

    /// As `cublasLt 13.0.2`.
    pub fn name(&self) -> String {
        let v = self.version;
        format!("cublasLt {}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }

    fn plan(&mut self, shape: &GemmShape, strides: [u32; 3]) -> Result<&Plan, LaunchError> {
        let key = (*shape, strides);
        Ok(match self.plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place
                .insert(Plan::new(shape, strides).map_err(|e| failed("describing a product", e))?),
        })
    }

    /// The library's first choice without a split over K.
    ///
    /// # Errors
    /// The library knows no algorithm for the shape.
    pub fn choose(&mut self, shape: &GemmShape) -> Result<GemmAlgorithm, LaunchError> {
        let handle = self.handle;
        let plan = self.plan(shape, [shape.k, shape.k, shape.n])?;
        let chosen = plan
            .first_choice(handle)
            .map_err(|e| failed("choosing an algorithm", e))?;
        let words = chosen.algo.data.map(|word| format!("{word:016x}"));
        Ok(GemmAlgorithm(words.join("")))
    }

    /// Multiplies on `stream`.
    ///
    /// # Errors
    /// The library refuses: an algorithm of another version, say.
    pub fn multiply(
        &mut self,
        algorithm: &GemmAlgorithm,
        shape: &GemmShape,
        call: &GemmCall,
        stream: *mut c_void,
    ) -> Result<(), LaunchError> {
        let algorithm = parse(algorithm)?;
        let (handle, workspace) = (self.handle, self.workspace);
        let plan = self.plan(shape, [call.weight_stride, call.x_stride, call.out_stride])?;
        let [weight, x, out] = plan.layouts;
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        let pointer = |at: DevicePtr| at.0 as *mut c_void;
        // SAFETY: the plan's descriptors live as long as `self`; the addresses are the caller's to answer for, as for a kernel.
        unsafe {
            lt::matmul(
                handle,
                plan.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(call.weight),
                weight,
                pointer(call.x),
                x,
                pointer(call.out),
                out,
                pointer(call.out),
                out,
                &algorithm,
                pointer(workspace),
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(|e| failed("multiplying matrices", e))
    }
}

impl Plan {
    fn new(shape: &GemmShape, strides: [u32; 3]) -> Result<Plan, CublasError> {
        let [weight_stride, x_stride, out_stride] = strides.map(i64::from);
        let (m, n, k) = (shape.m.into(), shape.n.into(), shape.k.into());
        let f32_words = sys::cudaDataType_t::CUDA_R_32F;
        let description =
            lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32_words)?;
        // CUBLAS_OP_T of cublasOperation_t, which the bindings of cuBLASLt alone do not have.
        let transposed = 1_i32;
        // SAFETY: a descriptor made above, and an attribute of this size.
        unsafe {
            lt::set_matmul_desc_attribute(
                description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )?;
        }
        let (input, output) = (data_type(shape.input), data_type(shape.output));
        Ok(Plan {
            description,
            layouts: [
                lt::create_matrix_layout(input, k, n, weight_stride)?,
                lt::create_matrix_layout(input, k, m, x_stride)?,
                lt::create_matrix_layout(output, n, m, out_stride)?,
            ],
        })
    }

    fn first_choice(
        &self,
        handle: sys::cublasLtHandle_t,
    ) -> Result<sys::cublasLtMatmulHeuristicResult_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = lt::create_matmul_pref()?;
        let [weight, x, out] = self.layouts;
        // The mask of the schemes by which splits over K may be summed: none.
        let no_split: u32 = 0;
        let workspace = WORKSPACE;
        // SAFETY: a preference made above, attributes of these sizes, and descriptors that `self` keeps.
        unsafe {
            let chosen = lt::set_matmul_pref_attribute(
                preference,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            )
            .and_then(|()| {
                lt::set_matmul_pref_attribute(
                    preference,
                    Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    (&raw const no_split).cast(),
                    size_of_val(&no_split),
                )
            })
            .and_then(|()| {
                lt::get_matmul_algo_heuristic(
                    handle,
                    self.description,
                    weight,
                    x,
                    out,
                    out,
                    preference,
                )
            });
            let _ = lt::destroy_matmul_pref(preference);
            chosen
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once. Failing leaves them to the process.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made in `open`, destroyed once.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// The opaque words, as [`CublasLt::choose`] wrote them. The library's manual allows keeping them for the same version.
fn parse(algorithm: &GemmAlgorithm) -> Result<cublasLtMatmulAlgo_t, LaunchError> {
    let text = algorithm.0.as_str();
    let mut data = [0; 8];
    let word = |i: usize| u64::from_str_radix(text.get(i * 16..(i + 1) * 16)?, 16).ok();
    for (i, slot) in data.iter_mut().enumerate() {
        *slot = word(i)
            .filter(|_| text.len() == 128)
            .ok_or_else(|| LaunchError::Device {
                what: "taking up the job's matrix products".into(),
                reason: format!("`{text}` is not an algorithm of cuBLASLt's"),
            })?;
    }
    Ok(cublasLtMatmulAlgo_t { data })
}

fn data_type(dtype: Dtype) -> sys::cudaDataType_t {
    match dtype {
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Dtype::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

fn failed(what: &str, e: CublasError) -> LaunchError {
    LaunchError::Device {
        what: what.to_owned(),
        reason: e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithms_words_survive_being_written_down() {
        let data = [1, 2, 0xfedc_ba98_7654_3210, 4, 5, 6, 7, u64::MAX];
        let text = data.map(|word: u64| format!("{word:016x}")).join("");
        assert_eq!(parse(&GemmAlgorithm(text)).unwrap().data, data);
    }

    #[test]
    fn what_is_no_algorithm_is_refused() {
        for text in [
            "",
            "own",
            &"0".repeat(127),
            &"g".repeat(128),
            &"0".repeat(129),
        ] {
            assert!(parse(&GemmAlgorithm(text.into())).is_err(), "{text}");
        }
    }
}
