//! The input is a samples table, whose checksum and length the manifest is made to agree with. Going on with the store widens it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use streamgauge::store::Xxh3;
use streamgauge_fuzz::{Template, allocator, plant_seeds};

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::new);
const TABLE: &str = "samples/00000.parquet";

fn manifest_of(table: &[u8]) -> Vec<u8> {
    let manifest = TEMPLATE.file("manifest.json");
    let mut manifest: Value = serde_json::from_slice(manifest).expect("the template's manifest");
    let entry = &mut manifest["shards"][0]["samples_file"];
    entry["bytes"] = json!(table.len());
    entry["xxh3"] = json!(Xxh3::of(table).to_string());
    manifest.to_string().into_bytes()
}

fn seeds() {
    // The Parquet decoder makes room for the length that a page claims, which the format bounds.
    allocator::allow(i32::MAX as usize + (1 << 20));
    plant_seeds(&[("table", TEMPLATE.file(TABLE).to_vec())]);
}

fuzz_target!(init: seeds(), |input: &[u8]| {
    TEMPLATE.plant(&[(TABLE, input), ("manifest.json", &manifest_of(input))]);
    TEMPLATE.use_store();
});
