//! The log as the crate reads it: entries in memory, between the truncated position and the last entry.
//! Durability is the driver's: it stores the records of a ready before `RaftCore::advance` appends them here.

use std::cell::Cell;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::util::limit_size;
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

pub(crate) struct Log {
    pub(crate) hard_state: HardState,
    /// The configuration as of the applied index at creation, then of the last snapshot: the crate reads it at creation only.
    pub(crate) members: ConfState,
    truncated_index: u64,
    truncated_term: u64,
    /// entries[i].index == truncated_index + 1 + i
    entries: Vec<Entry>,
    /// Bytes of data in `entries`.
    bytes: u64,
    snapshot: Option<Snapshot>,
    snapshot_wanted: Cell<bool>,
}

impl Log {
    pub(crate) fn new(hard_state: HardState, members: ConfState, truncated_index: u64, truncated_term: u64, entries: Vec<Entry>) -> Log {
        let bytes = data_bytes(&entries);
        Log { hard_state, members, truncated_index, truncated_term, entries, bytes, snapshot: None, snapshot_wanted: Cell::new(false) }
    }

    pub(crate) fn first(&self) -> u64 {
        self.truncated_index + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.truncated_index + self.entries.len() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.get()
    }

    pub(crate) fn provide_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = Some(snapshot);
        self.snapshot_wanted.set(false);
    }

    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(head) = entries.first() else { return };
        assert!(
            head.index > self.truncated_index && head.index <= self.last() + 1,
            "append at {} to a log of {}..={}",
            head.index,
            self.first(),
            self.last()
        );
        let keep = (head.index - self.first()) as usize;
        self.bytes -= data_bytes(&self.entries[keep..]);
        self.entries.truncate(keep);
        self.bytes += data_bytes(entries);
        self.entries.extend_from_slice(entries);
    }

    pub(crate) fn restore(&mut self, meta: &SnapshotMetadata) {
        self.truncated_index = meta.index;
        self.truncated_term = meta.term;
        self.entries.clear();
        self.bytes = 0;
        self.members = meta.conf_state.clone().unwrap_or_default();
        self.snapshot = None;
    }

    /// Forgets the entries up to `index`, which must be in the log. Returns the truncated index and term.
    pub(crate) fn compact(&mut self, index: u64) -> (u64, u64) {
        assert!(index <= self.last(), "compact {} of a log that ends at {}", index, self.last());
        if index <= self.truncated_index {
            return (self.truncated_index, self.truncated_term);
        }
        let count = (index - self.truncated_index) as usize;
        self.truncated_term = self.entries[count - 1].term;
        self.truncated_index = index;
        self.bytes -= data_bytes(&self.entries[..count]);
        self.entries.drain(..count);
        self.snapshot = None;
        (self.truncated_index, self.truncated_term)
    }
}

fn data_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.data.len() as u64).sum()
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.clone()))
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _context: GetEntriesContext) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {} of a log that ends at {}", high, self.last());
        let (from, to) = ((low - self.first()) as usize, (high - self.first()) as usize);
        let mut entries = self.entries[from..to].to_vec();
        limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.truncated_index {
            return Ok(self.truncated_term);
        }
        if index < self.truncated_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        match self.entries.get((index - self.first()) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        if let Some(snapshot) = &self.snapshot {
            let meta = snapshot.get_metadata();
            let members = meta.get_conf_state();
            // A node ignores a snapshot from before it was a member.
            let knows = [&members.voters, &members.learners, &members.voters_outgoing].iter().any(|list| list.contains(&to));
            if knows && meta.index >= request_index.max(self.truncated_index) {
                return Ok(snapshot.clone());
            }
        }
        self.snapshot_wanted.set(true);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
