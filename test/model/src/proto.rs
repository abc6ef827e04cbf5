//! Several slots, one disk per node. Rule numbers are those of protocol.md.
use std::hash::Hash;
pub const N: usize = 3;
pub const X: usize = 2; // slots (Cfg.slots of them are used)
pub const B: usize = 2; // blocks of a slot, one page each; block number B means "no block": a Cancel's empty record
pub const C: usize = 2; // channels
const ORDER: [[usize; N]; X] = [[0, 1, 2], [1, 2, 0]]; // member order of each slot

// ---- mutations: each switches one rule off (or takes another reading of it); the checker must then fail --------------
macro_rules! muts { ($($id:ident),* $(,)?) => {
    #[allow(non_camel_case_types, dead_code)] #[derive(Clone, Copy, PartialEq)] pub enum Mu { $($id),* }
    pub const MUTS: &[(&str, Mu)] = &[$((stringify!($id), Mu::$id)),*];
} }
/// alternatives, not expected to fail here (drain_answers and cancel_no_lease matter only when acknowledged is not durable: LATE_ACK in main.rs)
pub const ALTS: &[&str] = &["ack_sv_only", "drain_orders", "drain_answers", "drain_two_steps", "cancel_no_lease", "cancel_same_seq"];
muts! { foreign_rows_keep_id, rows_not_cleared, rows_dropped, tie_takes_foreign, tie_keeps_own, tie_takes_not_held, rows_not_travel, only_slot_rows, refuse_not_held, no_dedupe, forward_lowers_row,
    cancel_local, cancel_same_seq, cancel_seq_reused, cancel_early, cancel_no_lease, no_cancel,
    last_from_snapshot, report_with_hole, report_at_top, no_skip_check, compare_no_rows, compare_no_skip_check, ack_without_skip, sync_acks_early, commit_not_durable, no_sync_fsync, tail_elig_stays,
    drain_behind, drain_no_confirm, drain_reads, drain_orders, drain_answers, source_last_serving, drain_not_survivor, drain_two_steps, drain_new_since, drain_new_inc, ack_sv_only }

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Id { pub cv: u8, pub sv: u8 }
pub const NONE: Id = Id { cv: 0, sv: 0 };
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct W { pub c: u8, pub seq: u8, pub blk: u8 } // names a write; it is also the data written
impl W { pub fn bit(&self, s: usize) -> u32 { 1 << ((s * C + self.c as usize) * 8 + (self.seq as usize & 7)) } }
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rec { pub id: Id, pub w: W }
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Row { pub seq: u8, pub slot: u8, pub id: Id } // newest seq seen on this disk; id NONE: not held
/// a replica: `last` of the slot and, per block, the records that made it (blk[B]: the empty ones)
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Slot { pub last: Id, pub blk: [Vec<Rec>; B + 1] }
impl Slot {
    pub fn log(&self) -> Vec<Rec> { let mut l: Vec<Rec> = self.blk.iter().flatten().copied().collect(); l.sort_by_key(|r| r.id.sv); l }
    fn has(&self, r: &Rec) -> bool { self.blk[r.w.blk as usize].contains(r) }
    fn has_id(&self, id: Id) -> bool { self.blk.iter().flatten().any(|r| r.id == id) }
    fn top(&self) -> Id { self.blk.iter().flatten().map(|r| r.id).max().unwrap_or(NONE) }
}
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Disk { pub slot: [Slot; X], pub row: [Row; C] }
impl Disk {
    /// one journal record: page, last, row
    fn put(&mut self, k: &Cfg, s: usize, r: Rec) {
        let x = &mut self.slot[s]; x.blk[r.w.blk as usize].push(r); x.last = r.id;
        let row = &mut self.row[r.w.c as usize];
        if r.w.seq >= row.seq || k.m(Mu::forward_lowers_row) { *row = Row { seq: r.w.seq, slot: s as u8, id: r.id } }
    }
    /// rows that came with slot s's resync
    fn merge(&mut self, k: &Cfg, s: usize, rows: &[Row; C]) {
        if k.m(Mu::rows_not_travel) { return }
        for (own, r) in self.row.iter_mut().zip(rows) {
            let foreign = r.slot as usize != s; // its id says nothing about this disk's replica of that slot: it travels as "not held"
            if foreign && k.m(Mu::only_slot_rows) { continue }
            let r = Row { id: if foreign && !k.m(Mu::foreign_rows_keep_id) { NONE } else { r.id }, ..*r };
            if r.seq > own.seq || r.seq == own.seq && if foreign { k.m(Mu::tie_takes_foreign) } else { (r.id > own.id || k.m(Mu::tie_takes_not_held)) && !k.m(Mu::tie_keeps_own) } { *own = r } // newest seq; of equals the held one
        }
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum St { Serving, Draining, Syncing, LastSrv, Waiting, Offline }
use St::*;
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mem { pub n: u8, pub st: St, pub since: u8, pub inc: u8 }
pub type Chain = [Mem; N];
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Msg { Fwd { cv: u8, prev: Id, r: Rec }, Ack { cv: u8, id: Id } }
impl Msg { fn cv(&self) -> u8 { match self { Msg::Fwd { cv, .. } | Msg::Ack { cv, .. } => *cv } } }
/// answer to the inventory of one block: the block (or "equal") at the source at one instant, its last id, its committed id, the rows
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Snap { pub from: u8, pub cv: u8, pub last: Id, pub com: Id, pub recs: Vec<Rec>, pub empty: Vec<Rec>, pub row: [Row; C] }
/// answer to the comparison of a whole slot (rule 21): as Snap, of all blocks at one instant, without their pages
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cmp { pub from: u8, pub last: Id, pub com: Id, pub blk: [Vec<Rec>; B], pub empty: Vec<Rec>, pub row: [Row; C] }
/// volatile state of a replica
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Vol {
    pub ver: u8, pub ss: u8,        // table; serving since, as far as it knows
    pub com: u8, pub elig: u8, pub dur: u8, // committed (SYNCING: acknowledged); may be committed once durable; durable
    pub sess: u8, pub inst: [bool; B], pub skip: [u8; B], pub upto: [u8; B], pub high: u8, // high: newest `last` of any snapshot installed
    pub snap: [Option<Box<Snap>>; B],
    pub rep: (u8, u8),              // up-to-date report under way: (since, incarnation)
    // Cfg.code: 0 nothing compared, 1 the slot differs, 2 its blocks are compared too; the answer; a copy came too late and was kept, and the
    // next one is asked for with forwards held back
    pub ph: u8, pub cmp: Option<Box<Cmp>>, pub late: [bool; B], pub hold: [bool; B],
}
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node { pub up: bool, pub inc: u8, pub lease: bool, pub disk: Vec<Disk>, pub v: [Vol; X], // disk[0] durable, the last one current
    pub pend: bool, pub wet: bool } // Cfg.code: a staged record (an installed block or copy) is not durable
impl Node { pub fn d(&self) -> &Disk { self.disk.last().unwrap() } }
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op { Idle, Write(u8, W), Cancel(u8, W, W) } // slot, (the cancel's empty record,) the write
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Client { pub seq: u8, pub left: u8, pub op: Op, pub dup: Vec<(u8, W, u8)> } // dup: old copies (slot, write, node) in a socket
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View { Down, Maybe, Up }
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Faults { pub kill: u8, pub power: u8, pub expire: u8, pub brk: u8, pub leader: u8, pub dup: u8, pub drain: u8, pub cancel: u8 }
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct S {
    pub hist: [Vec<Chain>; X], pub reg: [u8; N], pub view: [View; N],
    pub node: [Node; N], pub link: [[[Vec<Msg>; N]; N]; X], pub cl: [Client; C], pub left: Faults,
    // ghosts: committed records in order; acknowledged writes; writes reported failed; last recovery's version; power was lost somewhere
    pub g: [Vec<Rec>; X], pub acked: u32, pub dead: u32, pub rec: [u8; X], pub lossy: bool,
    pub bad: Option<String>,
}
/// one step: what happens, and to whom
#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    Begin { c: usize, s: usize, blk: u8 }, Order { n: usize, s: usize, w: W }, Answer { n: usize, s: usize, w: W },
    GiveUp { c: usize, s: usize, w: W }, OrderCancel { n: usize, s: usize, w: W, target: W }, Confirm { n: usize, s: usize, w: W, target: W },
    ConfirmLocal { n: usize, s: usize, target: W }, Fails { c: usize, target: W }, Resend { c: usize, s: usize, w: W, n: usize }, Old { n: usize, s: usize, w: W },
    Deliver { s: usize, a: usize, b: usize, m: Msg },
    Compare { s: usize, p: usize, n: usize }, Compared { s: usize, n: usize },
    Inventory { s: usize, p: usize, n: usize, b: usize }, Snapshot { s: usize, n: usize, b: usize },
    Report { s: usize, n: usize, since: u8 }, Reported { s: usize, n: usize, since: u8 },
    Learn { n: usize, s: usize, ver: u8 }, Chain { s: usize, label: String },
    Restart { n: usize }, Dead { n: usize }, Sync { n: usize }, Renew { n: usize }, Register { n: usize, inc: u8 },
    Kill { n: usize }, Power { n: usize, lost: usize }, Lease { n: usize }, Break { n: usize, b: usize }, Leader,
}
/// in words; faults are upper case
impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Act::Begin { c, s, blk } => write!(f, "c{c} writes s{s} b{blk}"),
            Act::Order { n, s, w } => write!(f, "n{n} orders {w:?} of s{s}"),
            Act::Answer { n, s, w } => write!(f, "n{n} answers {w:?} of s{s}"),
            Act::GiveUp { c, s, w } => write!(f, "CANCEL c{c} gives up {w:?} of s{s}"),
            Act::OrderCancel { n, s, target, .. } => write!(f, "n{n} orders the cancel of {target:?} of s{s}"),
            Act::Confirm { n, s, target, .. } => write!(f, "n{n} confirms the cancel of {target:?} of s{s}"),
            Act::ConfirmLocal { n, s, target } => write!(f, "n{n} confirms the cancel of {target:?} of s{s}, row raised here only"),
            Act::Fails { c, target } => write!(f, "c{c} reports failure of {target:?}"),
            Act::Resend { c, s, w, n } => write!(f, "RESEND c{c} {w:?} of s{s}: a copy to n{n} lingers"),
            Act::Old { n, s, w } => write!(f, "old copy of {w:?} of s{s} reaches n{n}"),
            Act::Deliver { s, a, b, m } => write!(f, "s{s} n{a}->n{b} {m:?}"),
            Act::Compare { s, p, n } => write!(f, "s{s} n{p} answers n{n}'s comparison"),
            Act::Compared { s, n } => write!(f, "s{s} n{n} gets the comparison"),
            Act::Inventory { s, p, n, b } => write!(f, "s{s} n{p} answers n{n}'s inventory of b{b}"),
            Act::Snapshot { s, n, b } => write!(f, "s{s} n{n} gets the snapshot of b{b}"),
            Act::Report { s, n, since } => write!(f, "s{s} n{n} syncs its journal, reports up-to-date since v{since}"),
            Act::Reported { s, n, since } => write!(f, "coordinator gets n{n}'s report for s{s} since v{since}"),
            Act::Learn { n, s, ver } => write!(f, "n{n} learns s{s} v{ver}"),
            Act::Chain { label, .. } => write!(f, "{label}"),
            Act::Restart { n } => write!(f, "n{n} restarts"),
            Act::Dead { n } => write!(f, "n{n} proven dead or its lease over"),
            Act::Sync { n } => write!(f, "n{n} syncs its journal"),
            Act::Renew { n } => write!(f, "n{n} renews"),
            Act::Register { n, inc } => write!(f, "n{n} registers incarnation {inc}"),
            Act::Kill { n } => write!(f, "KILL n{n}"),
            Act::Power { n, lost } => write!(f, "POWER LOSS n{n}, {lost} unflushed records lost"),
            Act::Lease { n } => write!(f, "LEASE of n{n} runs out (frozen, cut off)"),
            Act::Break { n, b } => write!(f, "CONNECTION n{n}-n{b} breaks"),
            Act::Leader => write!(f, "LEADER replaced"),
        }
    }
}
impl Act {
    /// how often it may happen is a budget of the run
    pub fn is_fault(&self) -> bool {
        matches!(self, Act::GiveUp { .. } | Act::Resend { .. } | Act::Kill { .. } | Act::Power { .. } | Act::Lease { .. } | Act::Break { .. } | Act::Leader) || matches!(self, Act::Chain { label, .. } if label.contains("DRAIN N"))
    }
}
#[derive(Clone)]
pub struct Cfg { pub slots: usize, pub blocks: u8, pub members: [usize; X], pub faults: Faults, pub ops: [u8; C], pub lag: bool, pub dur: bool, pub code: bool, pub mu: u64 }
impl Cfg { pub fn m(&self, m: Mu) -> bool { self.mu >> (m as u32) & 1 == 1 } }

pub fn initial(k: &Cfg) -> S {
    let chain = |s: usize| -> Chain { std::array::from_fn(|i| Mem { n: ORDER[s][i] as u8, st: if i < k.members[s] || s >= k.slots { Serving } else { Offline }, since: 1, inc: 1 }) };
    let hist: [Vec<Chain>; X] = std::array::from_fn(|s| vec![chain(s)]);
    let node = |n: usize| Node { up: true, inc: 1, lease: true, disk: vec![Disk::default()], pend: false, wet: false, v: std::array::from_fn(|s| Vol { ver: 1, ss: hist[s][0].iter().any(|m| m.n as usize == n && m.st == Serving) as u8, ..Vol::default() }) };
    S { node: std::array::from_fn(node), hist: hist.clone(), reg: [1; N], view: [View::Up; N], link: Default::default(), cl: std::array::from_fn(|c| Client { seq: 0, left: k.ops[c], op: Op::Idle, dup: vec![] }),
        left: k.faults, g: Default::default(), acked: 0, dead: 0, rec: [0; X], lossy: false, bad: None }
}
fn member(st: St) -> bool { matches!(st, Serving | Draining) } // holds everything committed, in the acknowledgement path

impl S {
    pub fn cur(&self, s: usize) -> u8 { self.hist[s].len() as u8 }
    pub fn chain(&self, s: usize) -> &Chain { self.hist[s].last().unwrap() }
    fn fail(&mut self, m: String) { if self.bad.is_none() { self.bad = Some(m) } }
    /// n's own entry in the table it knows; another incarnation's entry is not its own (rule 3)
    pub fn me(&self, n: usize, s: usize) -> Mem {
        let m = *self.hist[s][self.node[n].v[s].ver as usize - 1].iter().find(|m| m.n as usize == n).unwrap();
        if m.inc != self.node[n].inc && (member(m.st) || m.st == Syncing) { Mem { st: Offline, ..m } } else { m }
    }
    fn pos(&self, n: usize, s: usize) -> (usize, &Chain) { let c = &self.hist[s][self.node[n].v[s].ver as usize - 1]; (c.iter().position(|m| m.n as usize == n).unwrap(), c) }
    fn succ(&self, n: usize, s: usize) -> Option<usize> { let (i, c) = self.pos(n, s); c.get(i + 1).filter(|m| member(m.st) || m.st == Syncing).map(|m| m.n as usize) }
    fn pred(&self, n: usize, s: usize) -> Option<usize> { let (i, c) = self.pos(n, s); if i == 0 { None } else { Some(c[i - 1].n as usize) } }
    fn first(&self, n: usize, s: usize) -> bool { self.node[n].up && self.pos(n, s).0 == 0 }
    pub fn is_head(&self, k: &Cfg, n: usize, s: usize) -> bool { let st = self.me(n, s).st; self.first(n, s) && (st == Serving || st == Draining && k.m(Mu::drain_orders)) }
    /// source of n's resync: its predecessor
    fn source(&self, k: &Cfg, n: usize, s: usize) -> Option<usize> {
        let (i, c) = self.pos(n, s);
        if k.m(Mu::source_last_serving) { c[..i].iter().rev().find(|m| m.st == Serving).map(|m| m.n as usize) } else { self.pred(n, s) }
    }

    // ---- replica -------------------------------------------------------------------------------------------------
    fn send(&mut self, s: usize, a: usize, b: usize, m: Msg) { if self.node[b].up && self.node[b].v[s].ver <= m.cv() { self.link[s][a][b].push(m) } }
    fn ack_up(&mut self, n: usize, s: usize, id: Id) { if let Some(p) = self.pred(n, s) { let cv = self.node[n].v[s].ver; self.send(s, n, p, Msg::Ack { cv, id }) } }
    fn ghost_commit(&mut self, n: usize, s: usize, r: Rec) {
        if self.node[n].v[s].ver < self.rec[s] { return } // left behind by a recovery: what it commits nobody may see
        let gl = self.g[s].len() as u8;
        if r.id.sv <= gl { let h = self.g[s][r.id.sv as usize - 1]; if h != r { self.fail(format!("n{n} commits {r:?} in slot {s}, where {h:?} was committed")) } return }
        if r.id.sv != gl + 1 { return self.fail(format!("n{n} commits {r:?} in slot {s} out of order")) }
        if self.g[s].iter().any(|x| x.w == r.w) { return self.fail(format!("applied twice: {:?} in slot {s}", r.w)) }
        if self.dead & r.w.bit(s) != 0 { return self.fail(format!("takes effect after it was reported failed: {:?} in slot {s}", r.w)) }
        self.g[s].push(r)
    }
    /// commit, and acknowledge upstream, what may be committed and is durable (rule 12)
    fn advance(&mut self, k: &Cfg, n: usize, s: usize) {
        let v = &self.node[n].v[s]; let com = v.com;
        let e = if k.dur && !(k.m(Mu::commit_not_durable) || self.me(n, s).st == Syncing && k.m(Mu::sync_acks_early)) { v.elig.min(v.dur) } else { v.elig };
        if e <= com { return }
        let st = self.me(n, s).st; // (under drain_behind, the older rule, nobody may rely on what a DRAINING replica commits)
        if st == Serving || st == Draining && !k.m(Mu::drain_behind) { for r in self.node[n].d().slot[s].log().into_iter().filter(|r| r.id.sv > com && r.id.sv <= e) { self.ghost_commit(n, s, r) } }
        self.node[n].v[s].com = e;
        let id = self.upto(n, s, e); self.ack_up(n, s, id)
    }
    /// id of record sv here (a SYNCING replica may not have stored it: then only sv counts, it acknowledges in its predecessor's order)
    fn upto(&self, n: usize, s: usize, sv: u8) -> Id { if !member(self.me(n, s).st) { return Id { cv: 0, sv } } let x = &self.node[n].d().slot[s]; x.blk.iter().flatten().map(|r| r.id).find(|i| i.sv == sv).unwrap_or(Id { cv: 0, sv }) }
    fn reforward(&mut self, n: usize, s: usize) {
        if let Some(q) = self.succ(n, s) {
            let (log, cv, com) = (self.node[n].d().slot[s].log(), self.node[n].v[s].ver, self.node[n].v[s].com);
            let mut prev = NONE;
            for r in log { if r.id.sv > com { self.send(s, n, q, Msg::Fwd { cv, prev, r }) } prev = r.id }
        }
    }
    fn stage(&mut self, k: &Cfg, n: usize, s: usize, r: Rec) {
        let prev = self.node[n].d().slot[s].last;
        let mut d = self.node[n].d().clone(); d.put(k, s, r); self.write(k, n, d); self.node[n].pend = k.code && k.dur;
        match self.succ(n, s) {
            Some(q) => { let cv = self.node[n].v[s].ver; self.send(s, n, q, Msg::Fwd { cv, prev, r }) }
            None => { self.node[n].v[s].elig = r.id.sv; self.advance(k, n, s) }
        }
    }
    fn write(&mut self, k: &Cfg, n: usize, d: Disk) { if k.dur { self.node[n].disk.push(d) } else { self.node[n].disk = vec![d] } } // without power losses everything written stays
    fn sync(&mut self, k: &Cfg, n: usize) {
        let x = &mut self.node[n]; x.pend = false; x.wet = false; let d = &mut x.disk; d.drain(..d.len() - 1);
        for s in 0..k.slots { let x = &mut self.node[n]; let l = x.d().slot[s].last.sv; let v = &mut x.v[s]; v.dur = l; for b in 0..B { v.hold[b] |= v.late[b] } self.advance(k, n, s) }
    }
    fn on_msg(&mut self, k: &Cfg, s: usize, from: usize, n: usize, m: Msg) {
        if m.cv() < self.node[n].v[s].ver { return }
        let st = self.me(n, s).st;
        match m {
            Msg::Fwd { prev, r, .. } if st == Syncing => {
                let (last, b) = (self.node[n].d().slot[s].last, r.w.blk as usize);
                if last != NONE && r.id.sv <= last.sv { let v = &self.node[n].v[s]; if v.com >= r.id.sv { let sv = if k.code { v.com } else { r.id.sv }; let id = self.upto(n, s, sv); self.ack_up(n, s, id) } return } // seen in this session
                if last != NONE && prev != last { return }
                let have = self.node[n].d().slot[s].has(&r);
                if k.code && (b == B || self.node[n].v[s].inst[b]) && have != self.covered(n, s, &r) { let v = &self.node[n].v[s]; return self.fail(format!("n{n} takes {r:?} of s{s} for held: {}, holds it: {have} ({v:?})", !have)) }
                if b < B && !self.node[n].v[s].inst[b] || have && k.code { // acknowledged without storing; the snapshot will bring it
                    self.node[n].disk.last_mut().unwrap().slot[s].last = r.id; // volatile in truth: where the session stands in the stream
                    let v = &mut self.node[n].v[s]; v.elig = r.id.sv; if !k.m(Mu::ack_without_skip) && b < B && !v.inst[b] { v.skip[b] = v.skip[b].max(r.id.sv) }
                    if self.node[n].disk.len() == 1 || k.code && !self.node[n].pend { self.node[n].v[s].dur = r.id.sv }
                    self.advance(k, n, s)
                } else if have { let mut d = self.node[n].d().clone(); d.slot[s].last = r.id; self.write(k, n, d); self.node[n].v[s].elig = r.id.sv; self.advance(k, n, s) }
                else { self.stage(k, n, s, r) }
            }
            Msg::Fwd { prev, r, .. } if member(st) => {
                let x = &self.node[n].d().slot[s];
                if r.id.sv <= x.last.sv { // already here
                    if !x.has(&r) { let h = x.log(); return self.fail(format!("assert of rule 11: n{n} ({st:?}) holds {h:?} where {r:?} is forwarded")) }
                    let com = self.node[n].v[s].com;
                    if com >= r.id.sv { let id = self.upto(n, s, if k.code { com } else { r.id.sv }); self.ack_up(n, s, id) }
                } else if prev == x.last { self.stage(k, n, s, r) }
                else { let l = x.last; self.fail(format!("assert of rule 11: n{n} ({st:?}) is at {l:?}, prev of the forward is {prev:?}")) }
            }
            Msg::Ack { id, .. } => if self.succ(n, s) == Some(from) && member(st) {
                let x = &self.node[n].d().slot[s];
                let sv = if k.m(Mu::ack_sv_only) { id.sv.min(x.last.sv) } else { id.sv };
                if k.m(Mu::ack_sv_only) || x.has_id(id) || id.cv == 0 && sv <= x.last.sv { let v = &mut self.node[n].v[s]; v.elig = v.elig.max(sv); self.advance(k, n, s) }
                else { self.fail(format!("n{n} is acknowledged {id:?}, which it does not hold")) }
            }
            _ => {}
        }
    }
    fn learn(&mut self, k: &Cfg, n: usize, s: usize, ver: u8) {
        if ver <= self.node[n].v[s].ver { return }
        self.node[n].v[s].ver = ver;
        for a in 0..N { self.link[s][a][n].retain(|m| m.cv() >= ver) }
        { let v = &mut self.node[n].v[s]; for b in 0..B { if v.hold[b] && v.snap[b].is_none() { v.hold[b] = false; v.late[b] = false } } } // what it asks is of another version now
        let me = self.me(n, s);
        match me.st {
            Serving | Draining => {
                let (all, tail) = (self.node[n].d().slot[s].last.sv, self.succ(n, s).is_none()); let v = &mut self.node[n].v[s];
                if v.ss != me.since { v.ss = me.since; v.com = 0; v.elig = if k.dur && !tail && !k.m(Mu::tail_elig_stays) { v.dur } else { all } } // from SYNCING or LASTSRV: everything held and durable counts (rule 15)
                else if tail { v.elig = all }                                   // the tail: once durable (rule 14)
                else if !k.m(Mu::tail_elig_stays) { v.elig = v.com }            // needs this version's successor
                self.advance(k, n, s); self.reforward(n, s);
                let c = self.node[n].v[s].com; if c > 0 { let id = self.upto(n, s, c); self.ack_up(n, s, id) }
            }
            Syncing => if self.node[n].v[s].sess != me.since { // a new session: neither data nor rows of this slot count any more
                let v = &mut self.node[n].v[s]; *v = Vol { ver, sess: me.since, rep: v.rep, ..Vol::default() };
                let mut d = self.node[n].d().clone(); d.slot[s].last = NONE; d.slot[s].blk[B].clear();
                for r in &mut d.row { if r.slot as usize == s { if k.m(Mu::rows_dropped) { *r = Row::default() } else if !k.m(Mu::rows_not_cleared) { r.id = NONE } } }
                self.write(k, n, d)
            }
            LastSrv => {}
            _ => { let v = &mut self.node[n].v[s]; *v = Vol { ver, rep: v.rep, dur: v.dur, ..Vol::default() } }
        }
    }
    /// an answer is on its way to n, other than one of version ver for slot s: the code finishes a round of questions before it begins the next
    fn awaits(&self, n: usize, s: usize, ver: u8) -> bool { self.node[n].v.iter().enumerate().any(|(i, v)| v.cmp.is_some() || v.snap.iter().flatten().any(|y| i != s || y.cv != ver)) }
    /// nor before what it has installed is durable, and its journal, when a slot is complete
    fn wet(&self, k: &Cfg, n: usize) -> bool { let x = &self.node[n]; x.wet || x.disk.len() > 1 && x.v.iter().any(|v| v.ph == 2 && (0..k.blocks as usize).all(|b| v.inst[b])) }
    /// how the code tells that an installed block holds the record of a forward: by its sequence number alone
    fn covered(&self, n: usize, s: usize, r: &Rec) -> bool {
        let v = &self.node[n].v[s]; let b = r.w.blk as usize;
        r.id.sv <= v.high && if b == B { v.ph == 2 } else { v.inst[b] && r.id.sv <= v.upto[b] }
    }
    /// the comparison of the whole slot, then of its blocks: what is equal is installed, the rows come along (rules 21, 25)
    fn compared(&mut self, k: &Cfg, n: usize, s: usize) {
        let y = *self.node[n].v[s].cmp.take().unwrap();
        let mut d = self.node[n].d().clone();
        let same: Vec<bool> = (0..B).map(|b| { let (x, z) = (d.slot[s].blk[b].last(), y.blk[b].last()); x.map(|r| r.id) == z.map(|r| r.id) }).collect();
        for b in 0..B { if same[b] && d.slot[s].blk[b].last() != y.blk[b].last() { return self.fail(format!("n{n}, s{s} b{b}: one id, two contents")) } }
        if self.node[n].v[s].ph == 0 && same.contains(&false) { self.node[n].v[s].ph = 1; return }
        for b in 0..B { if same[b] && self.node[n].v[s].skip[b] <= y.last.sv { d.slot[s].blk[b] = y.blk[b].clone(); let v = &mut self.node[n].v[s]; v.inst[b] = true; v.upto[b] = y.last.sv } }
        self.node[n].v[s].ph = 2;
        d.merge(k, s, &y.row); self.installed(k, n, s, d, y.last, y.com, y.empty)
    }
    /// the end of an installation: empty records, position, durability
    fn installed(&mut self, k: &Cfg, n: usize, s: usize, mut d: Disk, last: Id, com: Id, empty: Vec<Rec>) {
        for r in empty { if !d.slot[s].blk[B].contains(&r) { d.slot[s].blk[B].push(r) } } d.slot[s].blk[B].sort_by_key(|r| r.id.sv);
        let l = if k.m(Mu::last_from_snapshot) { last } else { com }; // never the snapshot's last: other blocks may lack what is up to there
        if l.sv > d.slot[s].last.sv { d.slot[s].last = l; let v = &mut self.node[n].v[s]; v.elig = v.elig.max(l.sv) }
        let v = &mut self.node[n].v[s]; v.high = v.high.max(last.sv); self.write(k, n, d); if !k.dur { let l = self.node[n].d().slot[s].last.sv; self.node[n].v[s].dur = l }
        self.advance(k, n, s)
    }
    /// a connection is gone: answers under way in it are lost, and asked for again without holding forwards back
    fn answers_lost(&mut self, n: usize, p: usize, s: usize, asks: bool) {
        let v = &mut self.node[n].v[s];
        if v.cmp.as_ref().is_some_and(|y| y.from as usize == p) { v.cmp = None }
        for b in 0..B { let from = v.snap[b].as_ref().map(|y| y.from as usize); if from == Some(p) { v.snap[b] = None }
            if v.hold[b] && (from == Some(p) || from.is_none() && asks) { v.hold[b] = false; v.late[b] = false } }
    }
    fn install(&mut self, k: &Cfg, n: usize, s: usize, b: usize) {
        let y = *self.node[n].v[s].snap[b].take().unwrap();
        let mut d = self.node[n].d().clone();
        let equal = d.slot[s].blk[b] == y.recs;
        let (own, theirs) = (d.slot[s].blk[b].last().copied(), y.recs.last().copied());
        if own.map(|r| r.id) == theirs.map(|r| r.id) && own != theirs { return self.fail(format!("n{n}, s{s} b{b}: one id, two contents")) } // its page would not be sent
        if y.last.sv < self.node[n].v[s].skip[b] && !k.m(Mu::no_skip_check) && !(equal && k.m(Mu::compare_no_skip_check)) {
            if !k.code { return }
            // too late: its pages are kept as own data that counts for nothing; the next answer is waited for with forwards held back
            let kept = !y.recs.is_empty(); if kept { d.slot[s].blk[b] = y.recs; self.write(k, n, d) }
            self.node[n].wet |= k.dur && kept; let v = &mut self.node[n].v[s]; v.late[b] = true; v.hold[b] = !k.dur || !kept; return
        }
        d.slot[s].blk[b] = y.recs;
        if !(equal && k.m(Mu::compare_no_rows)) { d.merge(k, s, &y.row) }
        let v = &mut self.node[n].v[s]; v.inst[b] = true; v.upto[b] = y.last.sv; v.late[b] = false; v.hold[b] = false; self.node[n].wet = k.dur;
        self.installed(k, n, s, d, y.last, y.com, y.empty)
    }
    fn crash(&mut self, k: &Cfg, n: usize) {
        if k.code { for i in 0..N { for s in 0..k.slots { if i != n && self.node[i].up { let asks = self.source(k, i, s) == Some(n); self.answers_lost(i, n, s, asks) } } } }
        let x = &mut self.node[n]; x.up = false; x.lease = false; x.pend = false; x.wet = false;
        for s in 0..X { let v = &mut x.v[s]; let (ver, rep) = (v.ver, v.rep); *v = Vol { ver, rep, ..Vol::default() }; for a in 0..N { self.link[s][a][n].clear() } }
        if !k.dur { x.disk.drain(..x.disk.len() - 1); }
        for c in &mut self.cl { c.dup.retain(|d| d.2 as usize != n) }
    }

    // ---- coordinator: the transition table (rule 30) ----------------------------------------------------------------
    pub fn chain_steps(&self, k: &Cfg, s: usize) -> Vec<(String, Chain)> {
        let c = *self.chain(s); let v = self.cur(s) + 1; let mut out = vec![];
        let restarted = |m: &Mem| (member(m.st) || m.st == Syncing) && m.inc != self.reg[m.n as usize];
        let down = |m: &Mem| self.view[m.n as usize] == View::Down || restarted(m);
        let up = |m: &Mem| self.view[m.n as usize] == View::Up && !restarted(m);
        let serving_up = |but: u8| c.iter().any(|o| o.n != but && o.st == Serving && up(o));
        let mut push = |l: String, mut d: Chain, moved: Option<u8>| {
            for (m, o) in d.iter_mut().zip(c.iter()) { if m.st != o.st { let in_place = member(m.st) && member(o.st); // DRAINING and back: neither since nor incarnation changes
                if !in_place || k.m(Mu::drain_new_inc) { m.inc = self.reg[m.n as usize] } if !in_place || k.m(Mu::drain_new_since) { m.since = v } } }
            if let Some(x) = moved { let i = d.iter().position(|m| m.n == x).unwrap(); d[i..].rotate_left(1) }
            d.sort_by_key(|m| (if m.st == Draining && !k.m(Mu::drain_behind) { Serving } else { m.st }, m.st == Offline && m.since == v)); // DRAINING keeps its place among the SERVING; stable; who goes OFFLINE goes last
            out.push((format!("s{s} v{v}: {l}"), d))
        };
        for (i, m) in c.iter().enumerate() {
            let (mut d, n) = (c, m.n);
            match m.st {
                Serving if down(m) => {
                    let draining = c.iter().position(|o| o.st == Draining);
                    if serving_up(n) { d[i].st = Offline; push(format!("n{n} -> OFFLINE"), d, Some(n)) }
                    else if c.iter().all(|o| o.st != Serving || down(o)) {
                        let rescue = draining.filter(|_| !k.m(Mu::drain_not_survivor));
                        if let (Some(j), true) = (rescue, rescue.map_or(false, |j| up(&c[j]))) {
                            d[j].st = Serving; // a DRAINING replica is alive and holds everything: it serves again, in the same step in which the others go
                            if !k.m(Mu::drain_two_steps) { for o in &mut d { if o.n != c[j].n && o.st == Serving { o.st = Offline } } }
                            push(format!("n{} DRAINING -> SERVING, all SERVING -> OFFLINE", c[j].n), d, None)
                        } else if rescue.map_or(true, |j| down(&c[j])) {
                            for o in &mut d { if o.st == Serving || o.st == Draining && rescue.is_some() { o.st = LastSrv } else if o.st == Syncing { o.st = Waiting } }
                            push("all SERVING and DRAINING -> LASTSRV".into(), d, None)
                        }
                    }
                }
                Draining if (down(m) || k.m(Mu::drain_no_confirm) || self.confirmed(n as usize, s)) && (serving_up(n) || k.m(Mu::drain_not_survivor)) => { d[i].st = Offline; push(format!("n{n} DRAINING -> OFFLINE"), d, Some(n)) }
                Syncing | Waiting if down(m) => { d[i].st = Offline; push(format!("n{n} -> OFFLINE"), d, Some(n)) }
                Waiting if up(m) && c.iter().any(|o| o.st == Serving) && !c.iter().any(|o| o.st == Syncing) => { d[i].st = Syncing; push(format!("n{n} -> SYNCING"), d, None) }
                Offline if up(m) => { d[i].st = Waiting; push(format!("n{n} -> WAITING"), d, None) }
                LastSrv if !c.iter().any(|o| o.st == Serving) && up(m) => {
                    let id = |o: &Mem| self.node[o.n as usize].d().slot[s].last;
                    let all = c.iter().all(|o| o.st != LastSrv || up(o) && (!k.code || self.node[o.n as usize].v[s].ver >= o.since));
                    let best = c.iter().all(|o| o.st != LastSrv || id(o) <= id(m) || o.n == n);
                    if all && best && !c[..i].iter().any(|o| o.st == LastSrv && id(o) == id(m)) {
                        for o in &mut d { if o.st == LastSrv { o.st = if o.n == n { Serving } else { Waiting } } }
                        push(format!("n{n} holds {:?}: LASTSRV -> SERVING", id(m)), d, None)
                    }
                }
                _ => {}
            }
        }
        if self.left.drain > 0 && !c.iter().any(|o| o.st == Draining) { for (i, m) in c.iter().enumerate() { if m.st == Serving && serving_up(m.n) && !down(m) {
            let mut d = c; d[i].st = Draining; push(format!("DRAIN n{}", m.n), d, None) } } }
        out
    }
    /// n told the leader that it knows the table in which it is DRAINING
    fn confirmed(&self, n: usize, s: usize) -> bool {
        let since = self.hist[s].iter().rposition(|c| c.iter().any(|m| m.n as usize == n && m.st != Draining)).map_or(1, |i| i + 2);
        self.node[n].up && self.node[n].inc == self.reg[n] && self.node[n].v[s].ver as usize >= since
    }
    fn set_chain(&mut self, s: usize, d: Chain) {
        let old = *self.chain(s); self.hist[s].push(d);
        if old.iter().any(|m| m.st == Serving) || !d.iter().any(|m| m.st == Serving) { return }
        self.rec[s] = self.hist[s].len() as u8; // a recovery: what survived becomes the history
        let w = d.iter().find(|m| m.st == Serving).unwrap();
        let log = self.node[w.n as usize].d().slot[s].log();
        if !log.starts_with(&self.g[s]) {
            let have = log.iter().fold(0, |a, r| a | r.w.bit(s));
            let slot: u32 = 0xffff << (s * 16);
            if !self.lossy || self.acked & slot & !have != 0 { let g = self.g[s].clone(); self.fail(format!("committed writes lost in slot {s}: {g:?} restored {log:?}")) }
            self.g[s] = log // an unacknowledged write may be gone with the power
        }
    }

    // ---- all steps; faults are upper case ----------------------------------------------------------------------------
    pub fn steps(&self, k: &Cfg, faults: bool) -> Vec<(Act, S)> {
        let mut out: Vec<(Act, S)> = vec![];
        macro_rules! step { ($l:expr, $f:expr) => {{ let mut t = self.clone(); #[allow(clippy::redundant_closure_call)] ($f)(&mut t); out.push(($l, t)) }} }
        let f = self.left;
        for c in 0..C {
            let cl = &self.cl[c];
            match cl.op {
                Op::Idle => if cl.left > 0 && faults { for s in 0..k.slots { for blk in 0..k.blocks {
                    step!(Act::Begin { c, s, blk }, |t: &mut S| { let x = &mut t.cl[c]; x.left -= 1; x.seq += 1; x.op = Op::Write(s as u8, W { c: c as u8, seq: x.seq, blk }) }) } } },
                Op::Write(s, w) => {
                    let s = s as usize;
                    for n in 0..N { if self.node[n].up {
                        if let Some(t) = self.order(k, n, s, w) { out.push((Act::Order { n, s, w }, t)) }
                        if self.answerable(k, n, s, w) { step!(Act::Answer { n, s, w }, |t: &mut S| {
                            if !t.g[s].iter().any(|r| r.w == w) { t.fail(format!("acknowledged but not applied: {w:?}")) }
                            t.acked |= w.bit(s); t.cl[c].op = Op::Idle }) }
                    } }
                    if faults && f.cancel > 0 { step!(Act::GiveUp { c, s: s as usize, w }, |t: &mut S| { t.left.cancel -= 1; let x = &mut t.cl[c];
                        let seq = if k.m(Mu::cancel_same_seq) { w.seq } else { w.seq + 1 }; // the cancel is an update of its own, with the next seq
                        if !k.m(Mu::cancel_seq_reused) { x.seq = seq }
                        x.op = Op::Cancel(s as u8, W { seq, blk: B as u8, ..w }, w) }) }
                }
                Op::Cancel(s, w, target) => {
                    let s = s as usize;
                    let done = |t: &mut S| { if !t.g[s].iter().any(|r| r.w == target) { t.dead |= target.bit(s) } t.cl[c].op = Op::Idle };
                    for n in 0..N { if self.node[n].up {
                        if k.m(Mu::cancel_local) { if self.is_head(k, n, s) { step!(Act::ConfirmLocal { n, s, target }, |t: &mut S| {
                            let mut d = t.node[n].d().clone(); let r = &mut d.row[c]; if r.seq < w.seq { *r = Row { seq: w.seq, slot: s as u8, id: NONE } } t.write(k, n, d);
                            if !t.node[n].d().slot[s].log().iter().any(|r| r.w == target) { done(t) } else { t.cl[c].op = Op::Idle } }) } continue }
                        if let Some(t) = self.order(k, n, s, w) { out.push((Act::OrderCancel { n, s, w, target }, t)) }
                        if self.answerable(k, n, s, w) || k.m(Mu::cancel_early) && self.is_head(k, n, s) && self.node[n].d().row[c].seq == w.seq { step!(Act::Confirm { n, s, w, target }, done) }
                    } }
                    if k.m(Mu::no_cancel) { step!(Act::Fails { c, target }, done) }
                }
            }
            for (i, &(s, w, n)) in cl.dup.iter().enumerate() { step!(Act::Old { n: n as usize, s: s as usize, w }, |t: &mut S| { t.cl[c].dup.remove(i); if let Some(u) = t.order(k, n as usize, s as usize, w) { *t = u } }) }
        }
        for s in 0..k.slots {
            for a in 0..N { for b in 0..N { if let Some(&m) = self.link[s][a][b].first() { if self.node[b].up && m.cv() <= self.node[b].v[s].ver && !(matches!(m, Msg::Fwd { .. }) && self.node[b].v[s].hold.contains(&true)) {
                step!(Act::Deliver { s, a, b, m }, |t: &mut S| { t.link[s][a][b].remove(0); t.on_msg(k, s, a, b, m) }) } } } }
            for n in 0..N {
                let nd = &self.node[n]; if !nd.up { continue }
                let (me, v) = (self.me(n, s), &nd.v[s]);
                if me.st == Syncing && v.sess == me.since {
                    if k.code && v.ph < 2 {
                        if let Some(p) = self.source(k, n, s) { if v.cmp.is_none() && !self.awaits(n, s, 0) && !self.wet(k, n) && self.node[p].up && self.node[p].v[s].ver == v.ver && member(self.me(p, s).st) { step!(Act::Compare { s, p, n }, |t: &mut S| {
                            let (x, com) = (&t.node[p].d().slot[s], t.node[p].v[s].com);
                            let com = x.blk.iter().flatten().map(|r| r.id).find(|i| i.sv == com).unwrap_or(NONE);
                            let y = Cmp { from: p as u8, last: x.last, com, blk: std::array::from_fn(|b| x.blk[b].clone()), empty: x.blk[B].clone(), row: t.node[p].d().row };
                            t.node[n].v[s].cmp = Some(Box::new(y)) }) } }
                        if v.cmp.is_some() { step!(Act::Compared { s, n }, |t: &mut S| t.compared(k, n, s)) }
                    }
                    if let Some(p) = self.source(k, n, s) { for b in 0..k.blocks as usize { if !v.inst[b] && v.snap[b].is_none() && (!k.code || v.ph == 2 && v.late[b] == v.hold[b] && !self.awaits(n, s, v.ver) && !self.wet(k, n)) {
                        if self.node[p].up && self.node[p].v[s].ver == v.ver && member(self.me(p, s).st) { step!(Act::Inventory { s, p, n, b }, |t: &mut S| {
                            let (x, com) = (&t.node[p].d().slot[s], t.node[p].v[s].com);
                            let com = x.blk.iter().flatten().map(|r| r.id).find(|i| i.sv == com).unwrap_or(NONE);
                            let y = Snap { from: p as u8, cv: v.ver, last: x.last, com, recs: x.blk[b].clone(), empty: x.blk[B].clone(), row: t.node[p].d().row };
                            t.node[n].v[s].snap[b] = Some(Box::new(y)) }) } } } }
                    for b in 0..k.blocks as usize { if v.snap[b].is_some() { step!(Act::Snapshot { s, n, b }, |t: &mut S| t.install(k, n, s, b)) } }
                    let x = &nd.d().slot[s];
                    if (0..k.blocks as usize).all(|b| v.inst[b]) && (!k.code || v.ph == 2 && !self.awaits(n, X, 0)) && (x.last.sv >= if k.m(Mu::report_at_top) { x.top().sv } else { v.high } || k.m(Mu::report_with_hole)) && v.rep == (0, 0) {
                        step!(Act::Report { s, n, since: v.sess }, |t: &mut S| {
                            if k.m(Mu::report_with_hole) { let mut d = t.node[n].d().clone(); d.slot[s].last = x.top().max(x.last); t.write(k, n, d) }
                            if !k.m(Mu::no_sync_fsync) { t.sync(k, n) } let x = &mut t.node[n]; x.v[s].rep = (x.v[s].sess, x.inc) }) }
                }
                for ver in if k.lag { v.ver + 1 } else { self.cur(s).max(v.ver + 1) }..=self.cur(s) { step!(Act::Learn { n, s, ver }, |t: &mut S| t.learn(k, n, s, ver)) }
            }
            for n in 0..N { let (since, inc) = self.node[n].v[s].rep; if since > 0 { step!(Act::Reported { s, n, since }, |t: &mut S| {
                t.node[n].v[s].rep = (0, 0);
                let mut d = *t.chain(s); let i = d.iter().position(|m| m.n as usize == n).unwrap();
                if d[i].st == Syncing && t.view[n] == View::Up && d[i].since == since && d[i].inc == inc && t.reg[n] == inc {
                    d[i].st = Serving; d[i].since = self.cur(s) + 1; d.sort_by_key(|m| if m.st == Draining && !k.m(Mu::drain_behind) { Serving } else { m.st }); t.set_chain(s, d) } }) } }
            for (l, d) in self.chain_steps(k, s) { let drain = l.contains("DRAIN n"); if drain && !faults { continue }
                step!(Act::Chain { s, label: if drain { l.to_uppercase() } else { l.clone() } }, |t: &mut S| { if drain { t.left.drain -= 1 } t.set_chain(s, d) }) }
        }
        for n in 0..N {
            let nd = &self.node[n];
            if !nd.up {
                step!(Act::Restart { n }, |t: &mut S| { let x = &mut t.node[n]; x.up = true; x.inc += 1; if k.code { let l = x.disk.len(); x.disk.drain(..l - 1); } for s in 0..X { x.v[s].dur = if k.dur { x.disk[0].slot[s].last.sv } else { u8::MAX }; for b in 0..N { t.link[s][n][b].clear() } } });
                if self.view[n] != View::Down { step!(Act::Dead { n }, |t: &mut S| t.doubt(n)) }
                continue
            }
            if nd.disk.len() > 1 { step!(Act::Sync { n }, |t: &mut S| t.sync(k, n)) }
            if nd.inc == self.reg[n] {
                if self.view[n] != View::Up || !nd.lease || (0..k.slots).any(|s| nd.v[s].ver < self.cur(s)) { step!(Act::Renew { n }, |t: &mut S| {
                    for s in 0..k.slots { t.learn(k, n, s, self.cur(s)) } t.view[n] = View::Up; t.node[n].lease = true }) }
            } else { step!(Act::Register { n, inc: nd.inc }, |t: &mut S| { t.reg[n] = t.node[n].inc; t.doubt(n) }) }
        }
        if !faults { for o in &mut out { o.1.check(k) } return out }
        for n in 0..N {
            let nd = &self.node[n];
            if nd.up && f.kill > 0 { step!(Act::Kill { n }, |t: &mut S| { t.left.kill -= 1; t.crash(k, n) }) }
            if f.power > 0 { for keep in 1..=nd.disk.len() { if nd.up || nd.disk.len() > 1 && !k.code { step!(Act::Power { n, lost: nd.disk.len() - keep }, |t: &mut S| {
                t.left.power -= 1; t.crash(k, n); for s in 0..X { for b in 0..N { t.link[s][n][b].clear() } }
                t.node[n].disk.truncate(keep); t.node[n].disk.drain(..keep - 1); t.lossy = true }) } } }
            if nd.up && f.expire > 0 && self.view[n] != View::Down { step!(Act::Lease { n }, |t: &mut S| {
                t.left.expire -= 1; t.node[n].lease = false; t.doubt(n) }) }
            for b in n + 1..N { if f.brk > 0 && nd.up && self.node[b].up && (0..X).any(|s| !self.link[s][n][b].is_empty() || !self.link[s][b][n].is_empty()) {
                step!(Act::Break { n, b }, |t: &mut S| { t.left.brk -= 1; for s in 0..k.slots { t.link[s][n][b].clear(); t.link[s][b][n].clear();
                    if k.code { for (x, y) in [(n, b), (b, n)] { let asks = t.source(k, x, s) == Some(y); t.answers_lost(x, y, s, asks) } }
                    for (x, y) in [(n, b), (b, n)] { if member(t.me(x, s).st) && t.succ(x, s) == Some(y) { t.reforward(x, s) } } } }) } }
        }
        if f.leader > 0 { step!(Act::Leader, |t: &mut S| { t.left.leader -= 1; for v in &mut t.view { *v = View::Maybe } }) }
        if f.dup > 0 { for c in 0..C { if let Op::Write(s, w) = self.cl[c].op { if self.cl[c].dup.len() < 2 { for n in 0..N { if self.node[n].up {
            step!(Act::Resend { c, s: s as usize, w, n }, |t: &mut S| { t.left.dup -= 1; t.cl[c].dup.push((s, w, n as u8)) }) } } } } } }
        for o in &mut out { o.1.check(k) }
        out
    }
    fn doubt(&mut self, n: usize) { for i in 0..N { if i == n { self.view[i] = View::Down } else if self.view[i] == View::Up { self.view[i] = View::Maybe } } }
    /// rule 9: order a write (or a cancel's empty record), stage, forward
    fn order(&self, k: &Cfg, n: usize, s: usize, w: W) -> Option<S> {
        if !self.is_head(k, n, s) || k.code && !self.node[n].lease { return None }
        let (d, nd) = (self.node[n].d(), &self.node[n]); let row = d.row[w.c as usize];
        let held = row.slot as usize == s && row.id != NONE && row.id <= d.slot[s].last;
        if !k.m(Mu::no_dedupe) && (row.seq > w.seq || row.seq == w.seq && (held || k.m(Mu::refuse_not_held))) { return None }
        if k.m(Mu::cancel_same_seq) && d.slot[s].log().iter().any(|r| r.w == w) { return None }
        if d.slot[s].last.sv > 14 { return None }
        let id = Id { cv: nd.v[s].ver, sv: d.slot[s].last.sv + 1 };
        let mut t = self.clone(); t.stage(k, n, s, Rec { id, w }); Some(t)
    }
    fn answerable(&self, k: &Cfg, n: usize, s: usize, w: W) -> bool {
        let nd = &self.node[n]; let row = nd.d().row[w.c as usize];
        let head = self.is_head(k, n, s) || self.first(n, s) && self.me(n, s).st == Draining && k.m(Mu::drain_answers);
        head && row.seq == w.seq && row.slot as usize == s && row.id != NONE && row.id.sv <= nd.v[s].com && (nd.lease || w.blk as usize == B && k.m(Mu::cancel_no_lease))
    }

    // ---- invariants ----------------------------------------------------------------------------------------------
    pub fn check(&mut self, k: &Cfg) {
        if self.bad.is_some() { return }
        let mut bad = None;
        for s in 0..k.slots {
            for m in self.chain(s) {
                let nd = &self.node[m.n as usize]; let d = nd.d();
                if !(member(m.st) && nd.up && nd.inc == m.inc) || m.st == Draining && k.m(Mu::drain_behind) { continue }
                let log = d.slot[s].log(); // holds all that is committed, block by block, in order
                if !log.starts_with(&self.g[s]) { bad = Some(format!("{:?} n{} lacks committed writes of s{s}: has {log:?}, committed {:?}", m.st, m.n, self.g[s])) }
                if log.iter().enumerate().any(|(i, r)| r.id.sv as usize != i + 1) { bad = Some(format!("{:?} n{} has a hole in s{s}: {log:?}", m.st, m.n)) }
                for r in &log { let row = d.row[r.w.c as usize];
                    if row.seq < r.w.seq || row.seq == r.w.seq && !k.m(Mu::cancel_same_seq) && (row.slot as usize != s || row.id != r.id) { bad = Some(format!("n{}: row {row:?} does not cover {r:?} of s{s}", m.n)) } }
            }
            for n in 0..N { // whoever serves reads now, by its own table and lease, must have every acknowledged write
                let nd = &self.node[n]; let st = self.me(n, s).st;
                if !(nd.up && nd.lease && (st == Serving || st == Draining && k.m(Mu::drain_reads))) { continue }
                let have = nd.d().slot[s].log().iter().fold(0, |a, r| a | r.w.bit(s));
                let slot: u32 = 0xffff << (s * 16);
                if self.acked & slot & !have != 0 { bad = Some(format!("n{n} may serve reads of s{s} (v{}), lacks acknowledged writes: {:?}, committed {:?}", nd.v[s].ver, nd.d().slot[s].log(), self.g[s])) }
            }
        }
        if let Some(b) = bad { self.fail(b) }
    }
    /// n may stay away for good: in each slot somebody else alive holds everything, or n is not needed
    pub fn dispensable(&self, k: &Cfg, n: usize) -> bool { (0..k.slots).all(|s| self.chain(s).iter().any(|m| m.n as usize != n && member(m.st) && self.node[m.n as usize].up && self.node[m.n as usize].inc == m.inc)) }
    pub fn quiet(&self, k: &Cfg, gone: usize) -> bool {
        (0..k.slots).all(|s| self.chain(s).iter().all(|m| m.n as usize == gone || m.st == Serving && m.inc == self.node[m.n as usize].inc)
            && self.node.iter().enumerate().all(|(i, n)| i == gone || n.up && n.lease && n.v[s].ver == self.cur(s) && n.v[s].com == n.d().slot[s].last.sv) && self.link[s].iter().flatten().all(|l| l.is_empty()))
            && self.cl.iter().all(|c| c.op == Op::Idle && c.dup.is_empty())
    }
    pub fn equal(&self, k: &Cfg, gone: usize) -> bool { (0..k.slots).all(|s| { let h = self.chain(s)[0].n as usize; (0..N).all(|n| n == gone || self.node[n].d().slot[s] == self.node[h].d().slot[s]) }) }
}
