//! The thin JavaScript skin over `xsan-io` and `xsan-raft`: argument checks and nothing else.

mod io;
mod raft;
