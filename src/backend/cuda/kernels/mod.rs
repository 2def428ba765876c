//! Kernel handles: one module per `.cu`, same stem. Each has the argument struct, mirrored field by field, and the grid rule.

pub mod attention;
pub mod attention_scores;
