//! What a run is made from, for the manifest.

use std::path::Path;

use serde_json::json;

use super::{Identity, Prepared};
use crate::store::{DatasetInfo, ModelInfo, Provenance};

/// Everything that is known before the first row.
pub(super) fn provenance(prepared: &Prepared, machine: Identity) -> Provenance {
    let Prepared {
        job,
        model,
        tokenising,
        ..
    } = prepared;
    Provenance {
        engine_version: env!("CARGO_PKG_VERSION").into(),
        model: ModelInfo {
            id: job.model.clone(),
            path: absolute(&model.dir),
            fingerprint: model.fingerprint.clone(),
        },
        tokenizer_fingerprint: tokenising.tokenizer.as_ref().map(|t| t.fingerprint()),
        dataset: dataset_info(prepared, None, None, 0),
        chat_template: (prepared.may_be_chat())
            .then(|| tokenising.template.as_ref().map(|t| t.source().to_owned()))
            .flatten(),
        compute_dtype: machine.compute_dtype,
        store_dtype: job.stored().to_string(),
        backend: machine.backend,
        device: machine.device,
        kernel_build: machine.kernel_build,
        batch_tokens: job.batch_tokens as u64,
        job: json!(job),
        directions: prepared.directions(),
        edits: prepared.edits.iter().map(|e| e.record()).collect(),
        numeric_record: machine.numeric_record,
        ..Provenance::default()
    }
}

pub(super) fn dataset_info(
    prepared: &Prepared,
    fingerprint: Option<String>,
    samples: Option<u64>,
    skipped: u64,
) -> DatasetInfo {
    let job = &prepared.job;
    let mut fields = json!({ "input": job.input_field, "keep": job.keep });
    if job.pack_context.is_some() {
        fields["separator"] = json!(prepared.tokenising.separator);
    }
    DatasetInfo {
        paths: job.data.iter().map(|p| absolute(Path::new(p))).collect(),
        fields,
        fingerprint,
        samples,
        skipped,
    }
}

fn absolute(path: &Path) -> String {
    if path == Path::new("-") {
        return "-".into();
    }
    std::path::absolute(path)
        .unwrap_or_else(|_| path.into())
        .display()
        .to_string()
}
