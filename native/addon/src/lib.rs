//! The thin JavaScript skin over `xsan-io` and `xsan-raft`: argument checks and nothing else.

// Without JavaScript (cargo's test build) nobody calls what is exported.
#![cfg_attr(test, allow(dead_code))]

mod io;
mod notify;
mod per_turn;
mod raft;
