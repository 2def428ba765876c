use std::path::PathBuf;
pub fn fixtures() -> PathBuf { PathBuf::from("/work/w-page/tests/fixtures") }
pub fn smollm2() -> PathBuf { PathBuf::from("/work/w-page/.models/SmolLM2-135M-Instruct") }
