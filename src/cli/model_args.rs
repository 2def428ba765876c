//! The flags that say which model a job runs, where and in what arithmetic, and what is told of it.

use clap::{Args, ValueEnum};

use super::{Failure, format};
use crate::backend::cuda::{Dtype, GemmChoice};
use crate::engine::{Compute, Device, Job, Opened, Place, Prepared};
use crate::model::{Model, resolve};

/// The part of `--help` that the flags of a device stand in.
const WHERE: &str = "Where it runs";

/// Which model, where to run it, and in what.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model: a directory in Hugging Face layout, or a hub id (ORG/NAME, ORG/NAME@REVISION).
    #[arg(long, value_name = "M")]
    pub model: String,
    /// Where to run: auto, cpu, cuda or cuda:N. `auto` is the first GPU that can run the model, else the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = WHERE)]
    pub device: Device,
    /// Compute dtype [default: f32 on the CPU, which also has bf16; the checkpoint's on a GPU].
    #[arg(long, value_enum, help_heading = WHERE)]
    pub dtype: Option<DtypeArg>,
    /// Dtype that the residual stream is kept in; `same` is the compute dtype. With f32 beside 16 bits the error halves, and
    /// activations are not those of Hugging Face in 16 bits.
    #[arg(long, value_enum, default_value = "same", help_heading = WHERE)]
    pub residual: ResidualArg,
    /// Matrix products of a GPU: cuBLASLt where it is found (auto), cuBLASLt or an error, or this project's own kernels.
    #[arg(long, value_enum, default_value = "auto", help_heading = WHERE)]
    pub gemm: GemmArg,
    /// Set by the commands that have the flag.
    #[arg(skip)]
    pub fused_swiglu: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    F32,
    Bf16,
    F16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResidualArg {
    Same,
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GemmArg {
    Auto,
    Cublaslt,
    Own,
}

impl From<DtypeArg> for Dtype {
    fn from(arg: DtypeArg) -> Self {
        match arg {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::Bf16 => Dtype::BF16,
            DtypeArg::F16 => Dtype::F16,
        }
    }
}

impl From<GemmArg> for GemmChoice {
    fn from(arg: GemmArg) -> Self {
        match arg {
            GemmArg::Auto => GemmChoice::Auto,
            GemmArg::Cublaslt => GemmChoice::CublasLt,
            GemmArg::Own => GemmChoice::Own,
        }
    }
}

impl ModelArgs {
    /// Where a job of generation runs, and the job opened for it.
    ///
    /// # Errors
    /// As [`Place::of`] and [`Prepared::for_generation`].
    pub fn open_for_generation(&self, job: Job) -> Result<(Prepared, Place), Failure> {
        let (job, model, place) = self.settle(job)?;
        Ok((Prepared::for_generation_with(job, model)?, place))
    }

    /// Where a job of texts that are given runs, and the job opened for it.
    ///
    /// # Errors
    /// As [`Place::of`] and [`Prepared::open`].
    pub fn open(&self, job: Job) -> Result<(Prepared, Place), Failure> {
        let (job, model, place) = self.settle(job)?;
        Ok((Prepared::with_model(job, model)?, place))
    }

    /// The job with the arithmetic of where it runs, its model, and where that is.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Place::of`].
    pub fn settle(&self, job: Job) -> Result<(Job, Model, Place), Failure> {
        let model = Model::open(&resolve(&job.model)?)?;
        let place = Place::of(&self.compute(), &model)?;
        let job = Job {
            dtype: place.dtype,
            f32_resid: place.f32_resid,
            ..job
        };
        Ok((job, model, place))
    }

    /// What these flags ask for.
    pub fn compute(&self) -> Compute {
        Compute {
            device: self.device,
            dtype: self.dtype.map(Into::into),
            f32_resid: self.residual == ResidualArg::F32,
            gemm: self.gemm.into(),
            fused_swiglu: self.fused_swiglu,
        }
    }
}

/// Tells of the device that the weights went to, unless `quiet`; nothing of the CPU.
pub fn tell_of_upload(place: &Place, opened: &Opened<'_>, quiet: bool) {
    if let Some(line) = told(place, opened).filter(|_| !quiet && opened.upload.is_some()) {
        eprintln!("{line}");
    }
}

/// Where it runs, in a line: why not on a GPU, or how fast the weights went there.
pub fn told(place: &Place, opened: &Opened<'_>) -> Option<String> {
    let identity = opened.machine.identity();
    match (&place.why_cpu, opened.upload) {
        (Some(why), _) => Some(format!("running on the CPU: {why}")),
        (None, None) => None,
        (None, Some(upload)) => {
            let library = &identity.numeric_record["gemm"]["library"];
            Some(format!(
                "running on {} in {}, products by {}; {} of weights uploaded in {} ({}/s)",
                identity.device,
                identity.compute_dtype,
                library.as_str().unwrap_or("its own kernels"),
                format::bytes(upload.bytes),
                format::duration(upload.time.as_secs_f64()),
                format::bytes(upload.bytes_per_s() as u64),
            ))
        }
    }
}
