//! JavaScript skin of xsan-raft.
