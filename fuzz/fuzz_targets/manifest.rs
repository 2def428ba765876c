//! The input is `manifest.json`.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use streamgauge_fuzz::{Template, plant_seeds};

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::new);

fn seeds() {
    let manifest = String::from_utf8_lossy(TEMPLATE.file("manifest.json")).into_owned();
    let changed = |from: &str, to: &str| {
        assert!(manifest.contains(from), "the manifest has no {from}");
        manifest.replacen(from, to, 1).into_bytes()
    };
    let file = "blocks.0.hook_resid_post/00000.safetensors";
    plant_seeds(&[
        ("partial", manifest.clone().into_bytes()),
        ("complete", changed("\"partial\"", "\"complete\"")),
        ("linked", changed(file, "blocks.0.hook_resid_post/link")),
        ("linked-folder", changed(file, "link/00000.safetensors")),
        ("above", changed(file, "../outside/00000.safetensors")),
        (
            "wide",
            changed("\"row_shape\": [3]", "\"row_shape\": [3, 1000000000]"),
        ),
        ("no-shards", changed("\"index\": 0", "\"index\": 1")),
    ]);
}

fuzz_target!(init: seeds(), |input: &[u8]| {
    TEMPLATE.plant(&[("manifest.json", input)]);
    TEMPLATE.use_store();
});
