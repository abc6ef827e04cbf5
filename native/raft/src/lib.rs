//! The Raft core of TiKV behind a narrow interface: mechanism only. No I/O, no clock, no randomness of its own, no JavaScript.
//!
//! Rules (the TypeScript side states them too, `src/env/raft-core.ts`):
//! - `ready` -> store -> `advance` -> `advance_apply`; in between only `apply_members`. A wrong order is an error, never a corruption.
//! - The election timeout the crate draws from `thread_rng` is replaced after every call that may draw it, by one made from the
//!   caller's `random`. The crate draws in `reset`, which always changes term or role (or is called by us): so the replacement is a
//!   function of the inputs alone.
//! - A panic of the crate leaves its state unknown: it becomes `Error::Broken`, and so does every later call.
//!
//! Bytes of records and of messages: crc32c (u32, little endian) of the rest | prost encoding of `Entry` / `Message`.

mod log;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType,
    Snapshot,
};
use raft::{Config, RawNode, Ready, SnapshotStatus, StateRole, Storage};

use log::Log;

#[derive(Debug)]
pub enum Error {
    /// Bytes that are no message for this node: the sender's fault.
    Refused(String),
    /// What was stored cannot be a log of this node.
    Damaged(String),
    /// The caller broke a rule.
    Misuse(String),
    /// The crate panicked.
    Broken(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Refused(text) => write!(f, "raft message refused: {text}"),
            Error::Damaged(text) => write!(f, "raft log damaged: {text}"),
            Error::Misuse(text) => write!(f, "raft core misused: {text}"),
            Error::Broken(text) => write!(f, "raft core broken: {text}"),
        }
    }
}

impl std::error::Error for Error {}

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub voters_outgoing: Vec<u64>,
    pub learners_next: Vec<u64>,
    pub auto_leave: bool,
}

impl From<&ConfState> for Members {
    fn from(state: &ConfState) -> Members {
        let sorted = |list: &[u64]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list
        };
        Members {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            voters_outgoing: sorted(&state.voters_outgoing),
            learners_next: sorted(&state.learners_next),
            auto_leave: state.auto_leave,
        }
    }
}

impl From<&Members> for ConfState {
    fn from(members: &Members) -> ConfState {
        ConfState {
            voters: members.voters.clone(),
            learners: members.learners.clone(),
            voters_outgoing: members.voters_outgoing.clone(),
            learners_next: members.learners_next.clone(),
            auto_leave: members.auto_leave,
        }
    }
}

pub struct Options {
    pub id: u64,
    pub election_ticks_min: usize,
    pub election_ticks_max: usize,
    pub heartbeat_ticks: usize,
    pub random: u32,
    pub applied: u64,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    pub members: Members,
    pub truncated_index: u64,
    pub truncated_term: u64,
    pub records: Vec<Vec<u8>>,
    pub message_bytes_max: u64,
    pub inflight_messages_max: usize,
    pub uncommitted_bytes_max: u64,
    pub committed_bytes_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Voter,
    Learner,
    Remove,
}

pub struct LogRecord {
    pub index: u64,
    pub term: u64,
    pub record: Vec<u8>,
}

pub struct CommittedEntry {
    pub index: u64,
    pub term: u64,
    pub is_members: bool,
    pub data: Vec<u8>,
}

pub struct Outgoing {
    pub to: u64,
    pub bytes: Vec<u8>,
    pub is_snapshot: bool,
}

pub struct SnapshotIn {
    pub index: u64,
    pub term: u64,
    pub members: Members,
    pub data: Vec<u8>,
}

/// What has to be done, in this order: send `messages` | store | send `persisted_messages` | `advance`; apply in order.
#[derive(Default)]
pub struct ReadyOut {
    pub hard_state: Option<(u64, u64, u64)>,
    pub must_sync: bool,
    /// Role (0 follower, 1 candidate, 2 leader, 3 pre-candidate) and leader.
    pub soft_state: Option<(u32, u64)>,
    pub snapshot: Option<SnapshotIn>,
    pub entries: Vec<LogRecord>,
    pub committed: Vec<CommittedEntry>,
    pub messages: Vec<Outgoing>,
    pub persisted_messages: Vec<Outgoing>,
    pub read_states: Vec<(u64, Vec<u8>)>,
}

#[derive(Default)]
pub struct LightReadyOut {
    pub commit: Option<u64>,
    pub messages: Vec<Outgoing>,
    pub committed: Vec<CommittedEntry>,
}

pub struct Progress {
    pub node: u64,
    pub matched: u64,
    /// 0 probe, 1 replicate, 2 snapshot.
    pub state: u32,
    pub active: bool,
}

pub struct Status {
    pub id: u64,
    pub role: u32,
    pub term: u64,
    pub leader: u64,
    pub commit: u64,
    pub applied: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub committed_in_term: bool,
    pub members_pending: bool,
    pub transferee: u64,
    pub progress: Vec<Progress>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Idle,
    /// A ready was given out.
    Ready,
    /// It was stored; its light ready was given out.
    Light,
}

pub struct RaftCore {
    raw: RawNode<Log>,
    id: u64,
    ready: Option<Ready>,
    stage: Stage,
    election_ticks_min: usize,
    election_ticks_max: usize,
    broken: Option<String>,
}

const CRC_BYTES: usize = 4;

/// crc32c of the protobuf bytes, then these.
fn seal(message: &impl prost::Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CRC_BYTES + message.encoded_len());
    bytes.extend_from_slice(&[0; CRC_BYTES]);
    message.encode(&mut bytes).expect("a Vec grows");
    let crc = crc32c::crc32c(&bytes[CRC_BYTES..]);
    bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn unseal<M: prost::Message + Default>(bytes: &[u8]) -> std::result::Result<M, String> {
    let Some((crc, body)) = bytes.split_first_chunk::<CRC_BYTES>() else {
        return Err(format!("{} bytes are too few", bytes.len()));
    };
    let (want, have) = (u32::from_le_bytes(*crc), crc32c::crc32c(body));
    if want != have {
        return Err(format!("checksum {have:08x}, expected {want:08x}"));
    }
    M::decode(body).map_err(|error| error.to_string())
}

fn role_number(role: StateRole) -> u32 {
    match role {
        StateRole::Follower => 0,
        StateRole::Candidate => 1,
        StateRole::Leader => 2,
        StateRole::PreCandidate => 3,
    }
}

fn outgoing(messages: &[Message]) -> Vec<Outgoing> {
    messages
        .iter()
        .map(|message| Outgoing { to: message.to, bytes: seal(message), is_snapshot: message.get_msg_type() == MessageType::MsgSnapshot })
        .collect()
}

fn committed(entries: &[Entry]) -> Vec<CommittedEntry> {
    entries
        .iter()
        .map(|entry| CommittedEntry {
            index: entry.index,
            term: entry.term,
            is_members: entry.get_entry_type() != EntryType::EntryNormal,
            data: entry.data.clone(),
        })
        .collect()
}

/// The stored log, checked: every record whole, indexes without gaps, terms that never fall.
fn load_log(options: &Options) -> Result<Log> {
    let mut entries = Vec::with_capacity(options.records.len());
    let mut term = options.truncated_term;
    for (i, record) in options.records.iter().enumerate() {
        let index = options.truncated_index + 1 + i as u64;
        let entry: Entry = unseal(record).map_err(|reason| Error::Damaged(format!("entry {index}: {reason}")))?;
        if entry.index != index {
            return Err(Error::Damaged(format!("entry {index} holds index {}", entry.index)));
        }
        if entry.term < term || entry.term > options.term {
            return Err(Error::Damaged(format!("entry {index} has term {}, outside {term}..={}", entry.term, options.term)));
        }
        term = entry.term;
        entries.push(entry);
    }
    let last = options.truncated_index + entries.len() as u64;
    if options.commit < options.truncated_index || options.commit > last {
        return Err(Error::Damaged(format!("commit index {} is outside {}..={last}", options.commit, options.truncated_index)));
    }
    if options.applied < options.truncated_index || options.applied > options.commit {
        return Err(Error::Damaged(format!(
            "applied index {} is outside {}..={}",
            options.applied, options.truncated_index, options.commit
        )));
    }
    let hard_state = HardState { term: options.term, vote: options.vote, commit: options.commit };
    Ok(Log::new(hard_state, ConfState::from(&options.members), options.truncated_index, options.truncated_term, entries))
}

fn panic_text(payload: Box<dyn std::any::Any + Send>) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a text".to_owned())
}

impl RaftCore {
    pub fn new(options: &Options) -> Result<RaftCore> {
        let log = load_log(options)?;
        let config = Config {
            id: options.id,
            election_tick: options.election_ticks_min,
            heartbeat_tick: options.heartbeat_ticks,
            applied: options.applied,
            max_size_per_msg: options.message_bytes_max,
            max_inflight_msgs: options.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: options.election_ticks_min,
            max_election_tick: options.election_ticks_max,
            max_uncommitted_size: options.uncommitted_bytes_max,
            max_committed_size_per_ready: options.committed_bytes_max,
            ..Config::default()
        };
        config.validate().map_err(|error| Error::Misuse(error.to_string()))?;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = catch_unwind(AssertUnwindSafe(|| RawNode::new(&config, log, &logger)))
            .map_err(|payload| Error::Broken(panic_text(payload)))?
            .map_err(|error| Error::Damaged(error.to_string()))?;
        let mut core = RaftCore {
            raw,
            id: options.id,
            ready: None,
            stage: Stage::Idle,
            election_ticks_min: options.election_ticks_min,
            election_ticks_max: options.election_ticks_max,
            broken: None,
        };
        core.draw(options.random);
        Ok(core)
    }

    /// Runs `f` at a moment when the core may be changed; a panic in it breaks the core for good.
    fn enter<R>(&mut self, allowed: &[Stage], f: impl FnOnce(&mut RaftCore) -> Result<R>) -> Result<R> {
        if let Some(text) = &self.broken {
            return Err(Error::Broken(text.clone()));
        }
        if !allowed.contains(&self.stage) {
            return Err(Error::Misuse(format!("not allowed in stage {:?}", self.stage)));
        }
        match catch_unwind(AssertUnwindSafe(|| f(self))) {
            Ok(result) => result,
            Err(payload) => {
                let text = panic_text(payload);
                self.broken = Some(text.clone());
                Err(Error::Broken(text))
            }
        }
    }

    /// As `enter`, for calls in which the crate may draw an election timeout.
    fn enter_random<R>(&mut self, random: u32, f: impl FnOnce(&mut RaftCore) -> Result<R>) -> Result<R> {
        self.enter(&[Stage::Idle], |core| {
            let before = (core.raw.raft.term, core.raw.raft.state);
            let timeout = core.raw.raft.randomized_election_timeout();
            let result = f(core);
            if (core.raw.raft.term, core.raw.raft.state) == before {
                core.raw.raft.set_randomized_election_timeout(timeout);
            } else {
                core.draw(random);
            }
            result
        })
    }

    fn draw(&mut self, random: u32) {
        let span = (self.election_ticks_max - self.election_ticks_min) as u64;
        let extra = (u64::from(random) * span) >> 32;
        self.raw.raft.set_randomized_election_timeout(self.election_ticks_min + extra as usize);
    }

    pub fn tick(&mut self, random: u32) -> Result<()> {
        self.enter_random(random, |core| {
            core.raw.tick();
            Ok(())
        })
    }

    pub fn step(&mut self, from: u64, bytes: &[u8], random: u32) -> Result<()> {
        let message: Message = unseal(bytes).map_err(Error::Refused)?;
        let reason = if message.from != from {
            Some(format!("it is of node {}", message.from))
        } else if message.to != self.id {
            Some(format!("it is for node {}", message.to))
        } else {
            invalid(&message)
        };
        if let Some(reason) = reason {
            return Err(Error::Refused(reason));
        }
        self.enter_random(random, |core| {
            // What it returns are reasons to drop the message: an unknown peer, no leader to forward to.
            let _ = core.raw.step(message);
            Ok(())
        })
    }

    fn propose_entry(&mut self, entry_type: EntryType, data: Vec<u8>) -> Result<Option<Position>> {
        self.enter(&[Stage::Idle], |core| {
            if core.raw.raft.state != StateRole::Leader {
                return Ok(None);
            }
            let mut entry = Entry { data, ..Entry::default() };
            entry.set_entry_type(entry_type);
            let mut message = Message { from: core.id, entries: vec![entry], ..Message::default() };
            message.set_msg_type(MessageType::MsgPropose);
            match core.raw.raft.step(message) {
                Ok(()) => Ok(Some(Position { index: core.raw.raft.raft_log.last_index(), term: core.raw.raft.term })),
                Err(raft::Error::ProposalDropped) => Ok(None),
                Err(error) => Err(Error::Misuse(error.to_string())),
            }
        })
    }

    pub fn propose(&mut self, data: Vec<u8>) -> Result<Option<Position>> {
        if data.is_empty() {
            return Err(Error::Misuse("an empty command cannot be told from the start of a term".to_owned()));
        }
        self.propose_entry(EntryType::EntryNormal, data)
    }

    pub fn propose_members(&mut self, changes: &[(ChangeKind, u64)]) -> Result<Option<Position>> {
        let mut change = ConfChangeV2::default();
        for &(kind, node) in changes {
            let mut single = ConfChangeSingle { node_id: node, ..ConfChangeSingle::default() };
            single.set_change_type(match kind {
                ChangeKind::Voter => ConfChangeType::AddNode,
                ChangeKind::Learner => ConfChangeType::AddLearnerNode,
                ChangeKind::Remove => ConfChangeType::RemoveNode,
            });
            change.changes.push(single);
        }
        let voters = &self.raw.raft.prs().conf().to_conf_state().voters;
        let plain = match changes {
            [] => true,
            [(ChangeKind::Learner, node)] => !voters.contains(node),
            _ => false,
        };
        change.set_transition(if plain { ConfChangeTransition::Auto } else { ConfChangeTransition::Implicit });
        let data = change.encode_to_vec();
        self.propose_entry(EntryType::EntryConfChangeV2, data)
    }

    /// A change the crate finds impossible is dropped: on every node alike, since all have the same configuration at that index.
    pub fn apply_members(&mut self, data: &[u8]) -> Result<Members> {
        self.enter(&[Stage::Ready, Stage::Light], |core| {
            let change = ConfChangeV2::decode(data).map_err(|error| Error::Damaged(format!("change of members: {error}")))?;
            let state = match core.raw.apply_conf_change(&change) {
                Ok(state) => state,
                Err(_) => core.raw.raft.prs().conf().to_conf_state(),
            };
            Ok(Members::from(&state))
        })
    }

    pub fn read_index(&mut self, context: Vec<u8>) -> Result<()> {
        self.enter(&[Stage::Idle], |core| {
            core.raw.read_index(context);
            Ok(())
        })
    }

    pub fn campaign(&mut self, random: u32) -> Result<()> {
        self.enter_random(random, |core| {
            if core.raw.raft.promotable() {
                let _ = core.raw.campaign();
            }
            Ok(())
        })
    }

    pub fn transfer_leader(&mut self, to: u64) -> Result<()> {
        self.enter(&[Stage::Idle], |core| {
            if core.raw.raft.state == StateRole::Leader {
                core.raw.transfer_leader(to);
            }
            Ok(())
        })
    }

    pub fn drop_leader(&mut self, random: u32) -> Result<()> {
        self.enter(&[Stage::Idle], |core| {
            let term = core.raw.raft.term;
            core.raw.raft.become_follower(term, 0);
            core.draw(random);
            Ok(())
        })
    }

    pub fn report_unreachable(&mut self, node: u64) -> Result<()> {
        self.enter(&[Stage::Idle], |core| {
            core.raw.report_unreachable(node);
            Ok(())
        })
    }

    pub fn report_snapshot(&mut self, node: u64, received: bool) -> Result<()> {
        self.enter(&[Stage::Idle], |core| {
            core.raw.report_snapshot(node, if received { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
            Ok(())
        })
    }

    pub fn has_ready(&mut self) -> Result<bool> {
        self.enter(&[Stage::Idle], |core| Ok(core.raw.has_ready()))
    }

    pub fn ready(&mut self) -> Result<ReadyOut> {
        self.enter(&[Stage::Idle], |core| {
            let ready = core.raw.ready();
            let snapshot = ready.snapshot();
            let out = ReadyOut {
                hard_state: ready.hs().map(|hs| (hs.term, hs.vote, hs.commit)),
                must_sync: ready.must_sync(),
                soft_state: ready.ss().map(|ss| (role_number(ss.raft_state), ss.leader_id)),
                snapshot: (!snapshot.is_empty()).then(|| SnapshotIn {
                    index: snapshot.get_metadata().index,
                    term: snapshot.get_metadata().term,
                    members: Members::from(snapshot.get_metadata().get_conf_state()),
                    data: snapshot.data.clone(),
                }),
                entries: ready
                    .entries()
                    .iter()
                    .map(|entry| LogRecord { index: entry.index, term: entry.term, record: seal(entry) })
                    .collect(),
                committed: committed(ready.committed_entries()),
                messages: outgoing(ready.messages()),
                persisted_messages: outgoing(ready.persisted_messages()),
                read_states: ready.read_states().iter().map(|state| (state.index, state.request_ctx.clone())).collect(),
            };
            core.ready = Some(ready);
            core.stage = Stage::Ready;
            Ok(out)
        })
    }

    /// What the last ready held is on stable storage.
    pub fn advance(&mut self) -> Result<LightReadyOut> {
        self.enter(&[Stage::Ready], |core| {
            let ready = core.ready.take().expect("stage Ready holds one");
            let log = core.raw.mut_store();
            if !ready.snapshot().is_empty() {
                log.restore(ready.snapshot().get_metadata());
            }
            log.append(ready.entries());
            if let Some(hard_state) = ready.hs() {
                log.hard_state = hard_state.clone();
            }
            let light = core.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                core.raw.mut_store().hard_state.commit = commit;
            }
            core.stage = Stage::Light;
            Ok(LightReadyOut {
                commit: light.commit_index(),
                messages: outgoing(light.messages()),
                committed: committed(light.committed_entries()),
            })
        })
    }

    /// All committed entries given out are applied.
    pub fn advance_apply(&mut self) -> Result<()> {
        self.enter(&[Stage::Light], |core| {
            core.raw.advance_apply();
            core.stage = Stage::Idle;
            Ok(())
        })
    }

    /// Forgets the entries up to `index` (at most the applied one). Returns the position truncated at.
    pub fn compact(&mut self, index: u64) -> Result<Position> {
        self.enter(&[Stage::Idle], |core| {
            let applied = core.raw.raft.raft_log.applied;
            if index > applied {
                return Err(Error::Misuse(format!("compact {index} beyond the applied index {applied}")));
            }
            let (index, term) = core.raw.mut_store().compact(index);
            Ok(Position { index, term })
        })
    }

    /// Bytes of commands in the log.
    pub fn log_bytes(&self) -> u64 {
        self.raw.store().bytes()
    }

    pub fn snapshot_wanted(&self) -> bool {
        self.raw.store().snapshot_wanted()
    }

    pub fn provide_snapshot(&mut self, index: u64, members: &Members, data: Vec<u8>) -> Result<()> {
        self.enter(&[Stage::Idle], |core| {
            let applied = core.raw.raft.raft_log.applied;
            if index > applied {
                return Err(Error::Misuse(format!("snapshot at {index} beyond the applied index {applied}")));
            }
            let term = core.raw.store().term(index).map_err(|error| Error::Misuse(format!("snapshot at {index}: {error}")))?;
            let mut snapshot = Snapshot { data, ..Snapshot::default() };
            let meta = snapshot.mut_metadata();
            meta.index = index;
            meta.term = term;
            meta.set_conf_state(ConfState::from(members));
            core.raw.mut_store().provide_snapshot(snapshot);
            Ok(())
        })
    }

    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let mut progress: Vec<Progress> = Vec::new();
        if raft.state == StateRole::Leader {
            for (&node, pr) in raft.prs().iter().filter(|(node, _)| **node != self.id) {
                let state = match pr.state {
                    raft::ProgressState::Probe => 0,
                    raft::ProgressState::Replicate => 1,
                    raft::ProgressState::Snapshot => 2,
                };
                progress.push(Progress { node, matched: pr.matched, state, active: pr.recent_active });
            }
            progress.sort_unstable_by_key(|pr| pr.node);
        }
        Status {
            id: self.id,
            role: role_number(raft.state),
            term: raft.term,
            leader: raft.leader_id,
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            first_index: self.raw.store().first(),
            last_index: raft.raft_log.last_index(),
            committed_in_term: raft.commit_to_current_term(),
            members_pending: raft.has_pending_conf(),
            transferee: raft.lead_transferee.unwrap_or(0),
            progress,
        }
    }
}

/// Why the crate must not see this message (it would panic, or take it for one of its own), or None.
fn invalid(message: &Message) -> Option<String> {
    let Some(kind) = MessageType::from_i32(message.msg_type) else {
        return Some(format!("message type {} is unknown", message.msg_type));
    };
    // Term 0 means "of this node itself" to the crate, which then compares no terms. Followers send one kind so, and it is read only.
    if (message.term == 0) != (kind == MessageType::MsgReadIndex) {
        return Some(format!("{kind:?} of term {}", message.term));
    }
    match kind {
        MessageType::MsgAppend => invalid_entries(message),
        MessageType::MsgSnapshot => {
            let position = message.get_snapshot().get_metadata();
            if position.index == 0 {
                return Some("a snapshot at index 0".to_owned());
            }
            (position.term == 0 || position.term > message.term)
                .then(|| format!("a snapshot of term {} in term {}", position.term, message.term))
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            (message.entries.len() != 1).then(|| format!("a read index of {} contexts", message.entries.len()))
        }
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => None,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => Some(format!("{kind:?} does not come over the network")),
    }
}

/// A log has no gaps, its terms never fall, and none is above that of the leader which sends it: `load_log` would refuse to start with another.
fn invalid_entries(message: &Message) -> Option<String> {
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        let Some(next) = index.checked_add(1) else {
            return Some("an entry beyond the last index".to_owned());
        };
        index = next;
        if entry.index != index {
            return Some(format!("entry {index} holds index {}", entry.index));
        }
        if entry.term < term || entry.term > message.term {
            return Some(format!("entry {index} has term {}, outside {term}..={}", entry.term, message.term));
        }
        term = entry.term;
    }
    None
}
