//! The Raft core of TiKV behind a narrow interface.
