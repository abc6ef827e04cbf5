//! JavaScript skin of xsan-raft: the shapes of `src/env/raft-core.ts`. Numbers are u53; an error's message starts with its kind.

use napi::bindgen_prelude::{Error, Result, Uint8Array};
use napi_derive::napi;
use xsan_raft::{ChangeKind, RaftCore as Core};

fn fail(error: xsan_raft::Error) -> Error {
    Error::from_reason(error.to_string())
}

fn misuse(text: &str) -> Error {
    fail(xsan_raft::Error::Misuse(text.to_owned()))
}

/// A u53 from JavaScript.
fn number(value: f64, name: &str) -> Result<u64> {
    if value >= 0.0 && value <= 9_007_199_254_740_991.0 && value.fract() == 0.0 {
        Ok(value as u64)
    } else {
        Err(misuse(&format!("{name} is {value}, not a whole number of 0..2^53")))
    }
}

fn numbers(values: &[f64], name: &str) -> Result<Vec<u64>> {
    values.iter().map(|&value| number(value, name)).collect()
}

fn floats(values: &[u64]) -> Vec<f64> {
    values.iter().map(|&value| value as f64).collect()
}

#[napi(object)]
pub struct RaftMembers {
    pub voters: Vec<f64>,
    pub learners: Vec<f64>,
    pub voters_outgoing: Vec<f64>,
    pub learners_next: Vec<f64>,
    pub auto_leave: bool,
}

impl RaftMembers {
    fn to_core(&self) -> Result<xsan_raft::Members> {
        Ok(xsan_raft::Members {
            voters: numbers(&self.voters, "voter")?,
            learners: numbers(&self.learners, "learner")?,
            voters_outgoing: numbers(&self.voters_outgoing, "outgoing voter")?,
            learners_next: numbers(&self.learners_next, "next learner")?,
            auto_leave: self.auto_leave,
        })
    }
}

impl From<xsan_raft::Members> for RaftMembers {
    fn from(members: xsan_raft::Members) -> RaftMembers {
        RaftMembers {
            voters: floats(&members.voters),
            learners: floats(&members.learners),
            voters_outgoing: floats(&members.voters_outgoing),
            learners_next: floats(&members.learners_next),
            auto_leave: members.auto_leave,
        }
    }
}

#[napi(object)]
pub struct RaftHardState {
    pub term: f64,
    pub vote: f64,
    pub commit: f64,
}

#[napi(object)]
pub struct RaftPosition {
    pub index: f64,
    pub term: f64,
}

impl From<xsan_raft::Position> for RaftPosition {
    fn from(position: xsan_raft::Position) -> RaftPosition {
        RaftPosition { index: position.index as f64, term: position.term as f64 }
    }
}

#[napi(object, object_to_js = false)]
pub struct RaftOptions {
    pub id: f64,
    pub election_ticks_min: u32,
    pub election_ticks_max: u32,
    pub heartbeat_ticks: u32,
    pub random: u32,
    pub applied: f64,
    pub hard_state: RaftHardState,
    pub members: RaftMembers,
    pub truncated: RaftPosition,
    pub records: Vec<Uint8Array>,
    pub message_bytes_max: f64,
    pub inflight_messages_max: u32,
    pub uncommitted_bytes_max: f64,
    pub committed_bytes_max: f64,
}

#[napi(object, object_from_js = false)]
pub struct RaftSoftState {
    pub role: u32,
    pub leader: f64,
}

#[napi(object, object_from_js = false)]
pub struct RaftSnapshot {
    pub index: f64,
    pub term: f64,
    pub members: RaftMembers,
    pub data: Uint8Array,
}

#[napi(object, object_from_js = false)]
pub struct RaftLogRecord {
    pub index: f64,
    pub term: f64,
    pub record: Uint8Array,
}

#[napi(object, object_from_js = false)]
pub struct RaftCommittedEntry {
    pub index: f64,
    pub term: f64,
    /// 0 command, 1 members.
    pub kind: u32,
    pub data: Uint8Array,
}

#[napi(object, object_from_js = false)]
pub struct RaftOutgoing {
    pub to: f64,
    pub bytes: Uint8Array,
    pub is_snapshot: bool,
}

#[napi(object, object_from_js = false)]
pub struct RaftReadState {
    pub index: f64,
    pub context: Uint8Array,
}

#[napi(object, object_from_js = false)]
pub struct RaftReady {
    pub hard_state: Option<RaftHardState>,
    pub must_sync: bool,
    pub soft_state: Option<RaftSoftState>,
    pub snapshot: Option<RaftSnapshot>,
    pub entries: Vec<RaftLogRecord>,
    pub committed_entries: Vec<RaftCommittedEntry>,
    pub messages: Vec<RaftOutgoing>,
    pub persisted_messages: Vec<RaftOutgoing>,
    pub read_states: Vec<RaftReadState>,
}

#[napi(object, object_from_js = false)]
pub struct RaftLightReady {
    pub commit: Option<f64>,
    pub messages: Vec<RaftOutgoing>,
    pub committed_entries: Vec<RaftCommittedEntry>,
}

#[napi(object, object_to_js = false)]
pub struct RaftMemberChange {
    pub kind: String,
    pub node: f64,
}

#[napi(object, object_to_js = false)]
pub struct RaftProvidedSnapshot {
    pub index: f64,
    pub members: RaftMembers,
    pub data: Uint8Array,
}

#[napi(object, object_from_js = false)]
pub struct RaftProgress {
    pub node: f64,
    pub matched: f64,
    pub state: u32,
    pub active: bool,
}

#[napi(object, object_from_js = false)]
pub struct RaftStatus {
    pub id: f64,
    pub role: u32,
    pub term: f64,
    pub leader: f64,
    pub commit: f64,
    pub applied: f64,
    pub first_index: f64,
    pub last_index: f64,
    pub committed_in_term: bool,
    pub members_pending: bool,
    pub transferee: f64,
    pub progress: Vec<RaftProgress>,
}

fn outgoing(messages: Vec<xsan_raft::Outgoing>) -> Vec<RaftOutgoing> {
    messages.into_iter().map(|m| RaftOutgoing { to: m.to as f64, bytes: m.bytes.into(), is_snapshot: m.is_snapshot }).collect()
}

fn committed(entries: Vec<xsan_raft::CommittedEntry>) -> Vec<RaftCommittedEntry> {
    entries
        .into_iter()
        .map(|e| RaftCommittedEntry { index: e.index as f64, term: e.term as f64, kind: u32::from(e.is_members), data: e.data.into() })
        .collect()
}

/// One Raft node's core; see `RaftCore` of src/env/raft-core.ts.
#[napi]
pub struct RaftCore {
    /// None once closed.
    core: Option<Core>,
}

impl RaftCore {
    fn open(&mut self) -> Result<&mut Core> {
        self.core.as_mut().ok_or_else(|| misuse("it is closed"))
    }
}

#[napi]
impl RaftCore {
    #[napi(constructor)]
    pub fn new(options: RaftOptions) -> Result<RaftCore> {
        let core = Core::new(&xsan_raft::Options {
            id: number(options.id, "id")?,
            election_ticks_min: options.election_ticks_min as usize,
            election_ticks_max: options.election_ticks_max as usize,
            heartbeat_ticks: options.heartbeat_ticks as usize,
            random: options.random,
            applied: number(options.applied, "applied")?,
            term: number(options.hard_state.term, "term")?,
            vote: number(options.hard_state.vote, "vote")?,
            commit: number(options.hard_state.commit, "commit")?,
            members: options.members.to_core()?,
            truncated_index: number(options.truncated.index, "truncated index")?,
            truncated_term: number(options.truncated.term, "truncated term")?,
            records: options.records.iter().map(|record| record.to_vec()).collect(),
            message_bytes_max: number(options.message_bytes_max, "messageBytesMax")?,
            inflight_messages_max: options.inflight_messages_max as usize,
            uncommitted_bytes_max: number(options.uncommitted_bytes_max, "uncommittedBytesMax")?,
            committed_bytes_max: number(options.committed_bytes_max, "committedBytesMax")?,
        })
        .map_err(fail)?;
        Ok(RaftCore { core: Some(core) })
    }

    #[napi]
    pub fn tick(&mut self, random: u32) -> Result<()> {
        self.open()?.tick(random).map_err(fail)
    }

    /// Undefined, or why the message was refused.
    #[napi]
    pub fn step(&mut self, from: f64, message: Uint8Array, random: u32) -> Result<Option<String>> {
        let from = number(from, "from")?;
        match self.open()?.step(from, &message, random) {
            Ok(()) => Ok(None),
            Err(xsan_raft::Error::Refused(reason)) => Ok(Some(reason)),
            Err(error) => Err(fail(error)),
        }
    }

    #[napi]
    pub fn propose(&mut self, data: Uint8Array) -> Result<Option<RaftPosition>> {
        Ok(self.open()?.propose(data.to_vec()).map_err(fail)?.map(RaftPosition::from))
    }

    #[napi]
    pub fn propose_members(&mut self, changes: Vec<RaftMemberChange>) -> Result<Option<RaftPosition>> {
        let mut list = Vec::with_capacity(changes.len());
        for change in &changes {
            let kind = match change.kind.as_str() {
                "voter" => ChangeKind::Voter,
                "learner" => ChangeKind::Learner,
                "remove" => ChangeKind::Remove,
                other => return Err(misuse(&format!("unknown change of members: {other}"))),
            };
            list.push((kind, number(change.node, "node")?));
        }
        Ok(self.open()?.propose_members(&list).map_err(fail)?.map(RaftPosition::from))
    }

    #[napi]
    pub fn apply_members(&mut self, data: Uint8Array) -> Result<RaftMembers> {
        Ok(self.open()?.apply_members(&data).map_err(fail)?.into())
    }

    #[napi]
    pub fn read_index(&mut self, context: Uint8Array) -> Result<()> {
        self.open()?.read_index(context.to_vec()).map_err(fail)
    }

    #[napi]
    pub fn campaign(&mut self, random: u32) -> Result<()> {
        self.open()?.campaign(random).map_err(fail)
    }

    #[napi]
    pub fn transfer_leader(&mut self, to: f64) -> Result<()> {
        let to = number(to, "node")?;
        self.open()?.transfer_leader(to).map_err(fail)
    }

    #[napi]
    pub fn drop_leader(&mut self, random: u32) -> Result<()> {
        self.open()?.drop_leader(random).map_err(fail)
    }

    #[napi]
    pub fn report_unreachable(&mut self, node: f64) -> Result<()> {
        let node = number(node, "node")?;
        self.open()?.report_unreachable(node).map_err(fail)
    }

    #[napi]
    pub fn report_snapshot(&mut self, node: f64, received: bool) -> Result<()> {
        let node = number(node, "node")?;
        self.open()?.report_snapshot(node, received).map_err(fail)
    }

    #[napi]
    pub fn has_ready(&mut self) -> Result<bool> {
        self.open()?.has_ready().map_err(fail)
    }

    #[napi]
    pub fn ready(&mut self) -> Result<RaftReady> {
        let ready = self.open()?.ready().map_err(fail)?;
        Ok(RaftReady {
            hard_state: ready.hard_state.map(|(term, vote, commit)| RaftHardState {
                term: term as f64,
                vote: vote as f64,
                commit: commit as f64,
            }),
            must_sync: ready.must_sync,
            soft_state: ready.soft_state.map(|(role, leader)| RaftSoftState { role, leader: leader as f64 }),
            snapshot: ready.snapshot.map(|s| RaftSnapshot {
                index: s.index as f64,
                term: s.term as f64,
                members: s.members.into(),
                data: s.data.into(),
            }),
            entries: ready
                .entries
                .into_iter()
                .map(|e| RaftLogRecord { index: e.index as f64, term: e.term as f64, record: e.record.into() })
                .collect(),
            committed_entries: committed(ready.committed),
            messages: outgoing(ready.messages),
            persisted_messages: outgoing(ready.persisted_messages),
            read_states: ready
                .read_states
                .into_iter()
                .map(|(index, context)| RaftReadState { index: index as f64, context: context.into() })
                .collect(),
        })
    }

    #[napi]
    pub fn advance(&mut self) -> Result<RaftLightReady> {
        let light = self.open()?.advance().map_err(fail)?;
        Ok(RaftLightReady {
            commit: light.commit.map(|commit| commit as f64),
            messages: outgoing(light.messages),
            committed_entries: committed(light.committed),
        })
    }

    #[napi]
    pub fn advance_apply(&mut self) -> Result<()> {
        self.open()?.advance_apply().map_err(fail)
    }

    #[napi]
    pub fn compact(&mut self, index: f64) -> Result<RaftPosition> {
        let index = number(index, "index")?;
        Ok(self.open()?.compact(index).map_err(fail)?.into())
    }

    #[napi(getter)]
    pub fn log_bytes(&mut self) -> Result<f64> {
        Ok(self.open()?.log_bytes() as f64)
    }

    #[napi(getter)]
    pub fn snapshot_wanted(&mut self) -> Result<bool> {
        Ok(self.open()?.snapshot_wanted())
    }

    #[napi]
    pub fn provide_snapshot(&mut self, snapshot: RaftProvidedSnapshot) -> Result<()> {
        let index = number(snapshot.index, "index")?;
        let members = snapshot.members.to_core()?;
        self.open()?.provide_snapshot(index, &members, snapshot.data.to_vec()).map_err(fail)
    }

    #[napi]
    pub fn status(&mut self) -> Result<RaftStatus> {
        let status = self.open()?.status();
        Ok(RaftStatus {
            id: status.id as f64,
            role: status.role,
            term: status.term as f64,
            leader: status.leader as f64,
            commit: status.commit as f64,
            applied: status.applied as f64,
            first_index: status.first_index as f64,
            last_index: status.last_index as f64,
            committed_in_term: status.committed_in_term,
            members_pending: status.members_pending,
            transferee: status.transferee as f64,
            progress: status
                .progress
                .into_iter()
                .map(|p| RaftProgress { node: p.node as f64, matched: p.matched as f64, state: p.state, active: p.active })
                .collect(),
        })
    }

    #[napi]
    pub fn close(&mut self) {
        self.core = None;
    }
}
