//! The operating system behind safe faces: mappings, locks, signals.

pub mod lock;
pub mod read_map;
pub mod writable;
