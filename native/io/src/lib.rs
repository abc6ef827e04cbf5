//! The io queue and the payload arena.
