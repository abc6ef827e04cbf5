//! Extended model: several slots over the same disks, channel rows per disk, DRAINING, Cancel, per-block resync.
//! (../proto.rs has what is left out here: reads in two halves, flush, two-step Raft, page diffs.)
//! N nodes with one disk each, X slots of B blocks (one page each), C channels, one coordinator. Time is abstract, as in proto.rs.
mod print;
mod proto;
use proto::*;
use std::collections::{hash_map::Entry, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Instant;

#[derive(Default, Clone, Copy)]
struct Fp(u64);
impl Hasher for Fp {
    fn finish(&self) -> u64 { let x = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8feb86659fd93); x ^ x >> 29 }
    fn write(&mut self, b: &[u8]) { for c in b.chunks(8) { let mut a = [0; 8]; a[..c.len()].copy_from_slice(c); self.write_u64(u64::from_le_bytes(a) ^ (c.len() as u64) << 56) } }
    fn write_u8(&mut self, x: u8) { self.write_u64(x as u64 + 0x1000) }
    fn write_u64(&mut self, x: u64) { self.0 = (self.0.rotate_left(25) ^ x).wrapping_mul(0x9e3779b97f4a7c15); self.0 ^= self.0 >> 31 }
    fn write_usize(&mut self, x: usize) { self.write_u64(x as u64) }
    fn write_isize(&mut self, x: isize) { self.write_u64(x as u64) }
}
#[derive(Default, Clone, Copy)]
struct Keep(u64);
impl Hasher for Keep { fn finish(&self) -> u64 { self.0 } fn write(&mut self, _: &[u8]) {} fn write_u64(&mut self, x: u64) { self.0 = x } }
type Seen = HashMap<u64, (u64, u16), BuildHasherDefault<Keep>>;
fn fp(s: &S) -> u64 { let mut h = Fp::default(); s.hash(&mut h); h.finish() }
struct Rng(u64);
impl Rng { fn below(&mut self, n: usize) -> usize { self.0 ^= self.0 << 13; self.0 ^= self.0 >> 7; self.0 ^= self.0 << 17; (self.0.wrapping_mul(0x2545F4914F6CDD1D) >> 33) as usize % n } }
type Res = Result<String, (String, Vec<String>)>;

/// no more faults: every operation must complete and all replicas become equal; sometimes a dead node never returns,
/// if in each slot another live node holds everything
fn heal(k: &Cfg, s: &S, rng: &mut Rng, trace: &mut Vec<String>) -> Result<(), String> {
    let mut s = s.clone();
    let gone = (0..N).find(|&n| !s.node[n].up && s.dispensable(k, n) && rng.below(2) == 0).unwrap_or(N);
    let never = Act::Restart { n: gone }; if gone < N { trace.push(format!("n{gone} never returns")) }
    for _ in 0..8000 {
        if s.quiet(k, gone) { return if s.equal(k, gone) { Ok(()) } else { Err(format!("quiescent replicas differ: {:?}", s.node.iter().map(|n| n.d().clone()).collect::<Vec<_>>())) } }
        let mut v = s.steps(k, false); v.retain(|x| x.0 != never);
        if v.is_empty() { return Err(format!("stuck: nothing can happen: {s:?}")) }
        let i = rng.below(v.len()); let (l, t) = v.swap_remove(i);
        trace.push(l.to_string()); s = t;
        if let Some(b) = s.bad { return Err(b) }
    }
    Err(format!("no progress after healing: {s:?}"))
}
fn bfs(k: &Cfg, max: usize, secs: u64, heal_every: u64, quiet: bool) -> Res {
    let t0 = Instant::now(); let s0 = initial(k); let f0 = fp(&s0);
    let mut seen = Seen::default(); seen.insert(f0, (0, 0));
    let mut level = vec![s0.clone()]; let mut depth = 0; let mut rng = Rng(12345); let (mut trans, mut healed) = (0u64, 0u64);
    let trace = |seen: &Seen, mut f: u64, last: Option<usize>| {
        let mut path = vec![]; while f != f0 { let (p, i) = seen[&f]; path.push(i as usize); f = p } path.reverse(); if let Some(l) = last { path.push(l) }
        let mut s = s0.clone(); let mut out = vec![];
        for i in path { let mut v = s.steps(k, true); let (l, t) = v.swap_remove(i); out.push(l.to_string()); s = t } out };
    while !level.is_empty() {
        let mut next = vec![];
        for s in &level {
            let f = fp(s);
            if heal_every > 0 && f % heal_every == 0 { healed += 1; let mut h = vec!["--- heal".into()];
                if let Err(e) = heal(k, s, &mut rng, &mut h) { let mut t = trace(&seen, f, None); h.truncate(60); t.extend(h); return Err((e, t)) } }
            for (i, (_, t)) in s.steps(k, true).into_iter().enumerate() {
                trans += 1;
                if let Some(b) = &t.bad { return Err((b.clone(), trace(&seen, f, Some(i)))) }
                if let Entry::Vacant(e) = seen.entry(fp(&t)) { e.insert((f, i as u16)); next.push(t) }
            }
            if seen.len() > max || t0.elapsed().as_secs() > secs { return Ok(format!("LIMIT at depth {depth}: {} states, {trans} transitions, {healed} healed, {:.0?}", seen.len(), t0.elapsed())) }
        }
        depth += 1; level = next;
        if !quiet && depth % 5 == 0 { eprintln!("  depth {depth}: {} states, frontier {}", seen.len(), level.len()) }
    }
    Ok(format!("COMPLETE: depth {depth}, {} states, {trans} transitions, {healed} healed, {:.0?}", seen.len(), t0.elapsed()))
}
/// random walks; faults are rarer than other steps, so that budgets last. `best`: keep walking, report the shortest trace
fn walk(k: &Cfg, secs: u64, len: usize, seed: u64, best: bool) -> Res {
    let t0 = Instant::now(); let mut rng = Rng(seed * 7919 + 1); let (mut walks, mut steps) = (0u64, 0u64); let mut found: Option<(String, Vec<String>)> = None;
    while t0.elapsed().as_secs() < secs {
        let mut s = initial(k); let mut trace = vec![]; walks += 1;
        let calm = rng.below(10);
        let (deaf, from, till) = (rng.below(N + 3), rng.below(len / 2), len / 2 + rng.below(len / 2));
                let mut err = None;
        for step in 0..found.as_ref().map_or(len, |f| f.1.len() - 1) {
            let mut v = s.steps(k, true);
            if deaf < N && step >= from && step < till { v.retain(|x| !matches!(x.0, Act::Learn { n, .. } | Act::Renew { n } if n == deaf)) }
            if v.is_empty() { break }
            let mut i = rng.below(v.len());
            for _ in 0..calm { if v[i].0.is_fault() { i = rng.below(v.len()) } else { break } }
            let (l, t) = v.swap_remove(i); trace.push(l.to_string()); s = t; steps += 1;
            if let Some(b) = s.bad.clone() { err = Some(b); break }
        }
        if err.is_none() && found.is_none() { trace.push("--- heal".into()); err = heal(k, &s, &mut rng, &mut trace).err() }
        if let Some(e) = err { if best { found = Some((e, trace)) } else { return Err((e, trace)) } }
    }
    match found { Some(f) => Err(f), None => Ok(format!("{walks} walks, {steps} steps, {:.0?}", t0.elapsed())) }
}
/// prints `count` schedules: a walk of `len` steps each, then fair steps without faults until everything is quiet
fn print(k: &Cfg, count: u64, len: usize, seed: u64) -> Res {
    for i in seed..seed + count {
        let mut rng = Rng(i.wrapping_mul(0x9e3779b97f4a7c15) | 1); for _ in 0..4 { rng.below(2); }
        let mut s = initial(k); let mut line = print::Line::new(k, i, &s);
        let calm = 1 + rng.below(6); let len = len / 2 + rng.below(len);
        let (deaf, from, till) = (rng.below(2 * N), rng.below(len / 2), len / 2 + rng.below(len / 2));
        for step in 0..8000 {
            let faults = step < len;
            if !faults && s.quiet(k, N) { break }
            let mut v = s.steps(k, faults);
            if deaf < N && step >= from && step < till && faults { v.retain(|x| !matches!(x.0, Act::Learn { n, .. } | Act::Renew { n } if n == deaf)) }
            if v.is_empty() { if faults { continue } return Err((format!("schedule {i} is stuck"), vec![])) }
            let mut at = rng.below(v.len());
            for _ in 0..calm { if v[at].0.is_fault() { at = rng.below(v.len()) } else { break } }
            let (a, t) = v.swap_remove(at);
            if let Some(b) = &t.bad { return Err((format!("schedule {i}: {b}"), vec![])) }
            line.step(k, &a, &s, &t); s = t;
        }
        if !s.quiet(k, N) { return Err((format!("schedule {i} does not come to rest"), vec![])) }
        println!("{}", line.end(&s));
    }
    Ok(String::new())
}
/// a schedule around a trace: its steps under the rules as they are, those that still exist, then fair steps until everything is quiet
fn retrace(k: &Cfg, steps: &[String], seed: u64) -> Res {
    let mut rng = Rng(seed * 7919 + 1); let mut s = initial(k); let mut line = print::Line::new(k, seed, &s); let mut taken = 0;
    for l in steps { let mut v = s.steps(k, true);
        if let Some(i) = v.iter().position(|x| x.0.to_string() == *l) { let (a, t) = v.swap_remove(i); line.step(k, &a, &s, &t); s = t; taken += 1; if let Some(b) = &s.bad { return Err((b.clone(), steps.to_vec())) } } }
    for _ in 0..8000 { if s.quiet(k, N) { break } let mut v = s.steps(k, false); let i = rng.below(v.len()); let (a, t) = v.swap_remove(i); line.step(k, &a, &s, &t); s = t; if let Some(b) = &s.bad { return Err((b.clone(), steps.to_vec())) } }
    if !s.quiet(k, N) { return Err(("no rest".into(), steps.to_vec())) }
    eprintln!("{taken} of {} steps of the trace", steps.len());
    Ok(line.end(&s) + "\n")
}
/// replay: each PREFIX of "PREFIX;PREFIX;..." takes the first step whose label starts so
fn script(k: &Cfg, steps: &str) -> Res {
    let mut s = initial(k); let mut t = vec![];
    for p in steps.split(';').map(|p| p.trim()).filter(|p| !p.is_empty()) {
        let v = s.steps(k, true);
        let Some((l, n)) = v.iter().find(|x| x.0.to_string().starts_with(p)) else { return Ok(format!("no step '{p}' after {} steps {t:#?}; there are {:#?}", t.len(), v.iter().map(|x| x.0.to_string()).collect::<Vec<_>>())) };
        t.push(l.to_string()); s = n.clone();
        if let Some(b) = s.bad.clone() { return Err((b, t)) }
    }
    Ok(format!("{} steps replayed: {t:#?}", t.len()))
}
const JOINS: &str = "c0 writes;n0 orders;n0 syncs;n0 answers;s0 v2: n1 -> WAITING;s0 v3: n1 -> SYNCING;n0 renews;n1 renews;s0 n0 answers n1;s0 n1 gets;s0 n1 syncs";
const ALONE: &str = "coordinator gets n1;LEASE of n0;n1 renews;s0 v5: n0 -> OFFLINE;POWER LOSS n1";
const BACK: &str = "n1 proven dead;s0 v6: all;n1 restarts;n1 registers;n1 renews;s0 v7: n1 holds";
fn scripts() -> [String; 2] { [format!("{JOINS};{ALONE}, 2;{BACK}"), format!("{JOINS};c0 writes;n0 orders;n0 syncs;s0 n0->n1;s0 n1->n0 Ack;s0 n1->n0 Ack;n0 answers;{ALONE}, 1;{BACK}")] }
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let get = |n: &str, d: u64| a.iter().find_map(|x| x.strip_prefix(&format!("{n}=")).and_then(|v| v.parse().ok())).unwrap_or(d);
    let g8 = |n: &str, d: u64| get(n, d) as u8;
    let mode = a.get(1).map(|s| s.as_str()).unwrap_or("walk");
    let f = Faults { kill: g8("kill", 1), power: g8("power", 0), expire: g8("expire", 0), brk: g8("brk", 0), leader: g8("leader", 0), dup: g8("dup", 0), drain: g8("drain", 0), cancel: g8("cancel", 0) };
    let mut k = Cfg { slots: get("slots", 2) as usize, blocks: g8("blocks", 1), members: [get("mx", 3) as usize, get("my", 3) as usize], faults: f, ops: [g8("ops", 2), g8("ops1", get("ops", 2))], lag: get("lag", 0) == 1, dur: get("dur", (f.power > 0) as u64) == 1, code: get("code", 0) == 1, mu: 0 };
    for x in &a { if let Some(m) = x.strip_prefix("mut=") { for m in m.split(',') { k.mu |= 1 << (MUTS.iter().find(|y| y.0 == m).unwrap_or_else(|| panic!("no mutation {m}")).1 as u32) } } }
    let res = match mode {
        "bfs" => bfs(&k, get("max", 12_000_000) as usize, get("secs", 60), get("heal", 500), false),
        "walk" => walk(&k, get("secs", 30), get("len", 150) as usize, get("seed", 1), get("best", 0) == 1),
        "muts" => { // every mutation must be found
            let secs = get("secs", 10); let mut missed = vec![];
            let only: Vec<&str> = a.iter().find_map(|x| x.strip_prefix("only=")).map_or(vec![], |x| x.split(',').collect());
            for (name, m) in MUTS {
                if !only.is_empty() && !only.contains(name) || only.is_empty() && ALTS.contains(name) { continue }
                let c = |mx, my, kill, power, expire, brk, leader, dup, drain, cancel, ops, blocks, slots| Cfg { slots, blocks, members: [mx, my], ops: [ops; C], lag: true, dur: power > 0, code: false, mu: 1 << (*m as u32),
                    faults: Faults { kill, power, expire, brk, leader, dup, drain, cancel } };
                let tries: [(&str, Cfg, usize); 10] = [
                    ("one slot of one member, joins, power", c(1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 2, 1, 1), 60),
                    ("one slot, cancel", c(3, 3, 2, 0, 0, 0, 0, 2, 0, 2, 3, 1, 1), 60), ("one slot, join, one power loss", c(2, 2, 0, 1, 1, 0, 0, 0, 0, 0, 3, 1, 1), 70), ("one slot of two members, drain", c(2, 2, 1, 0, 1, 0, 0, 0, 2, 0, 2, 1, 1), 60),
                    ("all faults", c(3, 3, 3, 0, 2, 2, 1, 2, 1, 1, 3, 2, 2), 200), ("power", c(3, 3, 2, 3, 2, 1, 1, 2, 1, 1, 3, 2, 2), 200),
                    ("one slot, drain", c(3, 3, 1, 0, 1, 1, 0, 0, 2, 0, 3, 1, 1), 90), ("one slot, join", c(2, 2, 1, 0, 1, 2, 0, 1, 1, 1, 4, 2, 1), 90),
                    ("two slots, kills", c(3, 3, 4, 0, 0, 0, 0, 1, 0, 1, 3, 1, 2), 150), ("join, power", c(2, 2, 0, 3, 1, 0, 0, 0, 0, 0, 3, 2, 1), 90)];
                let mut found = false;
                for sc in scripts() { if let (false, Err((e, t))) = (found, script(&Cfg { lag: false, ..c(1, 3, 0, 1, 1, 0, 0, 0, 0, 0, 2, 1, 1) }, &sc)) { println!("{name:22} caught (script, {} steps): {}", t.len(), &e[..e.len().min(120)]); found = true } }
                for (w, k, len) in &tries { if found { break } if let Err((e, t)) = walk(k, secs, *len, 1, false) { println!("{name:22} caught ({w}, {} steps): {}", t.len(), &e[..e.len().min(120)]); found = true; break } }
                let b = |slots, mx, kill, power, drain, cancel, dup, ops: [u8; C]| Cfg { slots, ops, blocks: 1, lag: false, ..c(mx, 3, kill, power, 0, 0, 0, dup, drain, cancel, 1, 1, 1) };
                for (w, k, heal) in [("bfs, cancel", b(1, 3, 1, 0, 0, 1, 1, [2, 0]), 0u64), ("bfs, drain", b(1, 2, 1, 0, 1, 0, 0, [1, 0]), 20), ("bfs, drain, three members", b(1, 3, 1, 0, 1, 0, 0, [1, 1]), 200)] {
                    if !found { if let Err((e, t)) = bfs(&k, 3_000_000, 3 * secs, heal, true) { println!("{name:22} caught ({w}, {} steps): {}", t.len(), &e[..e.len().min(120)]); found = true } } }
                if !found { println!("{name:22} NOT CAUGHT"); missed.push(name) }
            }
            Ok(if missed.is_empty() { "every mutation caught".into() } else { format!("not caught: {missed:?}") })
        }
        "print" => { k.code = true; print(&k, get("count", 1), get("len", 40) as usize, get("seed", 1)) }
        "retrace" => { // the trace by which a mutation is caught, under the rules as they are
            k.code = true;
            match a.iter().find_map(|x| x.strip_prefix("steps=")) {
                Some(text) => { let (mut s, mut t) = (initial(&k), vec![]);
                    for p in text.split(';').map(|p| p.trim()).filter(|p| !p.is_empty()) { let v = s.steps(&k, true); let Some((l, n)) = v.iter().find(|x| x.0.to_string().starts_with(p)) else { panic!("no step '{p}' after {t:#?}; there are {:#?}", v.iter().map(|x| x.0.to_string()).collect::<Vec<_>>()) }; t.push(l.to_string()); s = n.clone() }
                    retrace(&k, &t, get("seed", 1)) }
                None => match walk(&k, get("secs", 30), get("len", 150) as usize, get("seed", 1), get("best", 1) == 1) {
                    Err((e, t)) => { eprintln!("{}", &e[..e.len().min(150)]); k.mu = 0; retrace(&k, &t, get("seed", 1)) }
                    Ok(r) => Err((format!("the mutation is not caught: {r}"), vec![])) },
            }
        }
        "script" => script(&k, a.iter().find_map(|x| x.strip_prefix("steps=")).unwrap_or("")),
        m => panic!("unknown mode {m}"),
    };
    match res { Ok(r) if mode == "print" || mode == "retrace" => print!("{r}"), Ok(r) => println!("holds: {r}"), Err((e, t)) => { for (i, l) in t.iter().enumerate() { println!("{:3} {l}", i + 1) } println!("VIOLATION: {}", &e[..e.len().min(9000)]); std::process::exit(1) } }
}
