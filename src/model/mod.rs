//! Front door of `model`.

/// What can go wrong in this module.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
