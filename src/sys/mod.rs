//! The operating system behind safe faces: mappings, locks, signals.
