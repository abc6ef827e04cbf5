//! Schedules for the replay against the code (test/sim/model), one per line. See ../README.md for the format.
use crate::proto::*;
use std::fmt::Write;

/// Readers refuse any other.
pub const FORMAT: &str = "xsan-schedule 1";

fn id(i: Id) -> String { format!("{}.{}", i.cv, i.sv) }
fn letter(st: St) -> char { match st { St::Serving => 'S', St::Draining => 'D', St::Syncing => 'Y', St::LastSrv => 'L', St::Waiting => 'W', St::Offline => 'O' } }

fn chain(c: &Chain) -> String { c.iter().map(|m| format!("{}/{}/{}/{}", m.n, letter(m.st), m.since, m.inc)).collect::<Vec<_>>().join(",") }

/// what the replay can see of a state, fact by fact: name and value
fn facts(k: &Cfg, s: &S) -> Vec<(String, String)> {
    let mut out = vec![];
    for n in 0..N {
        let x = &s.node[n];
        out.push((format!("n{n}"), format!("{},{},{},{}", x.up as u8, x.inc, x.lease as u8, x.disk.len())));
        for i in 0..k.slots {
            let (v, d) = (&x.v[i], &x.d().slot[i]);
            let mut t = format!("{},{},{},{},{},{}", v.ver, letter(s.me(n, i).st), v.com, id(d.last), v.sess, v.ph);
            for b in 0..k.blocks as usize { match d.blk[b].last() { Some(r) => write!(t, ",{}:{}.{}", id(r.id), r.w.c, r.w.seq).unwrap(), None => t.push_str(",-") } }
            out.push((format!("r{n}.{i}"), t));
        }
        out.push((format!("w{n}"), x.d().row.iter().map(|r| format!("{}.{}.{}", r.seq, r.slot, id(r.id))).collect::<Vec<_>>().join(",")));
    }
    for i in 0..k.slots {
        out.push((format!("c{i}"), format!("{}:{}", s.cur(i), chain(s.chain(i)))));
        out.push((format!("e{i}"), s.chain_steps(k, i).iter().filter(|(l, _)| !l.contains("DRAIN n")).map(|(_, c)| chain(c)).collect::<Vec<_>>().join("|")));
        out.push((format!("g{i}"), s.g[i].iter().map(|r| format!("{}:{}.{}.{}", id(r.id), r.w.c, r.w.seq, r.w.blk)).collect::<Vec<_>>().join(",")));
    }
    out
}
fn act(a: &Act, before: &S) -> String {
    let up = |w: &W| format!("{} {} {}", w.c, w.seq, w.blk);
    match a {
        Act::Begin { c, s, blk } => format!("begin {s} {c} {} {blk}", before.cl[*c].seq + 1),
        Act::Order { n, s, w } => format!("order {n} {s} {}", up(w)),
        Act::Answer { n, s, w } => format!("answer {n} {s} {}", up(w)),
        Act::GiveUp { s, w, .. } => format!("giveup {s} {}", up(w)),
        Act::OrderCancel { n, s, w, .. } => format!("order {n} {s} {}", up(w)),
        Act::Confirm { n, s, w, .. } => format!("answer {n} {s} {}", up(w)),
        Act::Resend { s, w, n, .. } => format!("resend {n} {s} {}", up(w)),
        Act::Old { n, s, w } => format!("old {n} {s} {}", up(w)),
        Act::Deliver { s, a, b, m: Msg::Fwd { cv, r, .. } } => format!("forward {s} {a} {b} {cv} {} {} {}", r.id.cv, r.id.sv, up(&r.w)),
        Act::Deliver { s, a, b, m: Msg::Ack { cv, id } } => format!("ack {s} {a} {b} {cv} {}", id.sv),
        Act::Compare { s, p, n } => format!("compare {s} {p} {n}"),
        Act::Compared { s, n } => format!("compared {s} {n}"),
        Act::Inventory { s, p, n, b } => format!("block {s} {p} {n} {b}"),
        Act::Snapshot { s, n, b } => format!("install {s} {n} {b}"),
        Act::Report { s, n, since } => format!("report {s} {n} {since}"),
        Act::Reported { s, n, since } => format!("reported {s} {n} {since}"),
        Act::Learn { n, s, ver } => format!("learn {n} {s} {ver}"),
        Act::Chain { s, .. } => format!("chain {s}"),
        Act::Restart { n } => format!("restart {n}"),
        Act::Dead { n } => format!("dead {n}"),
        Act::Sync { n } => format!("sync {n}"),
        Act::Renew { n } => format!("renew {n}"),
        Act::Register { n, .. } => format!("register {n}"),
        Act::Kill { n } => format!("kill {n}"),
        Act::Power { n, lost } => format!("power {n} {lost}"),
        Act::Lease { n } => format!("expire {n}"),
        Act::Break { n, b } => format!("break {n} {b}"),
        Act::Leader => "leader".into(),
        Act::ConfirmLocal { .. } | Act::Fails { .. } => panic!("steps of mutations are not printed"),
    }
}

/// a schedule while it is made
pub struct Line { text: String, known: Vec<(String, String)>, begun: Vec<(usize, W)> }
impl Line {
    pub fn new(k: &Cfg, seed: u64, s: &S) -> Line {
        let mut l = Line { text: format!("{FORMAT}\tseed={seed} slots={} blocks={} durable={}\tinit", k.slots, k.blocks, k.dur as u8), known: facts(k, s), begun: vec![] };
        for (name, value) in &l.known { write!(l.text, " {name}={value}").unwrap() }
        l
    }
    /// the step that led from one state to the next, and the facts it changed
    pub fn step(&mut self, k: &Cfg, a: &Act, before: &S, after: &S) {
        if let Act::Begin { c, s, blk } = a { self.begun.push((*s, W { c: *c as u8, seq: before.cl[*c].seq + 1, blk: *blk })) }
        write!(self.text, "\t{}", act(a, before)).unwrap();
        let now = facts(k, after);
        for (old, new) in self.known.iter().zip(&now) { if old != new { write!(self.text, " {}={}", new.0, new.1).unwrap() } }
        self.known = now;
    }
    /// the outcome of each write: a acknowledged, f failed and never applied, c given up and applied all the same
    pub fn end(mut self, s: &S) -> String {
        self.text.push_str("\tend");
        for (i, w) in &self.begun {
            let outcome = if s.acked & w.bit(*i) != 0 { 'a' } else if s.dead & w.bit(*i) != 0 { 'f' } else { 'c' };
            write!(self.text, " o{i}.{}.{}.{}={outcome}", w.c, w.seq, w.blk).unwrap();
        }
        self.text
    }
}
