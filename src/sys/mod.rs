//! The operating system behind safe faces: mappings, locks, signals.

pub mod map;
