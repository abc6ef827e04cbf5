/**
 * Short, aimed runs: the same faults and clients as in the profiles, from random seeds, but of the kinds, at the rates and on the few pages
 * where one sort of promise breaks if it breaks. Planted bugs are looked for with them (canaries.ts), cheaply.
 */
import type { Prng } from '../../src/base/prng.ts'
import type { Seed } from '../../src/env/sim/world.ts'
import { AIMED_KINDS, amountOf, DESTRUCTIVE, FAULT_KINDS, type Fault, type FaultKind, type FocusName, SCHEDULE_FORMAT, type Schedule } from './faults.ts'
import type { Shape } from './shape.ts'

interface Focus {
  /** 3 unless given. */
  readonly nodes?: number
  readonly durationMs: number
  /** Clients, at least and at most. */
  readonly clients: readonly [number, number]
  readonly opsPerSecond: number
  /** Faults of a kind per second. */
  readonly rates: Partial<Readonly<Record<FaultKind, number>>>
  /** How long a fault lasts, at least and at most. */
  readonly lastsMs: readonly [number, number]
  /** For some kinds another span. */
  readonly lasts?: Partial<Readonly<Record<FaultKind, readonly [number, number]>>>
  /** For some kinds another span of amounts than the profiles'. */
  readonly amounts?: Partial<Readonly<Record<FaultKind, readonly [number, number]>>>
  readonly unflushed: readonly Fault['unflushed'][]
  /** Size of each volume, in blocks; 3 unless given. */
  readonly volumeBlocks?: number
  /** What differs from the plain shape. */
  readonly shape?: Partial<Shape>
  /** Settings of the cluster, by key, as JSON. */
  readonly settings?: Readonly<Record<string, string>>
  /** Time for an operation in all, as forward.retry_total_time. */
  readonly retryTotalMs?: number
  readonly mix: Mix
}

/** What the clients of a run do. */
export interface Mix {
  /** The volumes they use. */
  readonly volumes: 'safe' | 'relaxed' | 'any'
  /** Most operations meet on so many pages. */
  readonly hotPages: number
  /** Shares of reads; each client draws one. */
  readonly readShares: readonly number[]
  /** Chance that a client sits down on its own node rather than on any. */
  readonly home: number
  /** Share of operations on hundreds of KiB, so that the journal comes round. */
  readonly largeShare?: number
  /** Share of operations on exactly one page: nothing of them has to be read and merged. */
  readonly wholeShare?: number
  /** Share of the operations that zero which take a whole block. */
  readonly removeShare?: number
  /** Of what does not read, the share that flushes; an eighth unless given. */
  readonly flushShare?: number
  /** Share of the writes with FUA; a tenth unless given. */
  readonly fuaShare?: number
  /** Mean time of a flush; each run draws one. */
  readonly flushMs: readonly number[]
  /** Operations that a client has under way at one time, at least and at most; 1 to 4 unless given. */
  readonly depth?: readonly [number, number]
  /** Where something takes longer, a client goes on by another node; each draws one. */
  readonly patienceMs?: readonly [number, number]
}

const FOCUSES: Readonly<Record<FocusName, Focus>> = {
  /** The power goes, everywhere, again and again, while all disks are busy. */
  blackouts: {
    durationMs: 4000,
    clients: [2, 4],
    opsPerSecond: 80,
    rates: { 'power-all': 1.2, power: 0.3, 'disk-slow': 0.7 },
    lastsMs: [20, 300],
    lasts: { 'disk-slow': [500, 3000] },
    unflushed: ['lose', 'lose', 'random'],
    mix: { volumes: 'safe', hotPages: 4, readShares: [0.2, 0.5], home: 0.7, flushMs: [3, 10, 30] },
  },
  /** The same where acknowledged is not durable until flushed. */
  'blackouts-relaxed': {
    nodes: 4,
    durationMs: 4000,
    clients: [2, 3],
    opsPerSecond: 60,
    rates: { 'power-all': 1.0, power: 0.3, kill: 0.5 },
    lastsMs: [20, 300],
    unflushed: ['lose', 'lose', 'random'],
    mix: { volumes: 'relaxed', hotPages: 3, readShares: [0.2, 0.4], home: 0.7, flushMs: [0, 5] },
  },
  /** Flushes that meet others under way, slow disks, and the power going everywhere soon after. */
  flushes: {
    durationMs: 3000,
    clients: [3, 4],
    opsPerSecond: 100,
    rates: { 'power-all': 1.5 },
    lastsMs: [20, 200],
    unflushed: ['lose'],
    mix: { volumes: 'relaxed', hotPages: 4, readShares: [0.1, 0.2], home: 0, flushShare: 0.35, flushMs: [10, 20], depth: [6, 10], wholeShare: 0.8 },
  },
  /** The power goes while much is written, and the journal is emptied and used again. */
  destage: {
    durationMs: 4000,
    clients: [2, 3],
    opsPerSecond: 50,
    rates: { 'power-all': 0.8, power: 0.4 },
    lastsMs: [20, 200],
    unflushed: ['lose', 'random'],
    mix: { volumes: 'any', hotPages: 4, readShares: [0.2], home: 0.7, largeShare: 0.3, removeShare: 0.4, flushMs: [0, 5] },
  },
  /** Blocks are removed while a copy is away, and some stay so. */
  'removals-away': {
    durationMs: 5000,
    clients: [3, 4],
    opsPerSecond: 50,
    rates: { kill: 1 },
    lastsMs: [300, 1200],
    unflushed: ['random'],
    volumeBlocks: 8,
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 24, readShares: [0.3], home: 0.6, removeShare: 1, flushMs: [0, 5] },
  },
  /** Copies are made from slow disks while much is written: what a source reads for them is moved out of its journal meanwhile. */
  captures: {
    durationMs: 5000,
    clients: [3, 4],
    opsPerSecond: 90,
    rates: { kill: 1, 'slow-reads': 1.2 },
    lastsMs: [50, 400],
    lasts: { 'slow-reads': [2000, 4000] },
    amounts: { 'slow-reads': [10, 60] },
    unflushed: ['random'],
    shape: { slotCount: 2 },
    mix: { volumes: 'safe', hotPages: 12, readShares: [0.2], home: 0.5, largeShare: 0.5, flushMs: [0, 5], depth: [3, 6] },
  },
  /** Nobody flushes: what is written with FUA, mostly through NBD, is there when the power is back. */
  fua: {
    durationMs: 3000,
    clients: [3, 4],
    opsPerSecond: 60,
    rates: { 'power-all': 1.3 },
    lastsMs: [20, 200],
    unflushed: ['lose'],
    shape: { nbd: true, slotCount: 4 },
    mix: { volumes: 'relaxed', hotPages: 6, readShares: [0.2], home: 0.7, flushShare: 0, fuaShare: 0.4, flushMs: [5, 15] },
  },
  /** Flushes while all copies on a node are SYNCING: it takes writes and acknowledges them, and serves nothing that would bring it a flush. */
  'flushes-returning': {
    durationMs: 5000,
    clients: [3, 4],
    opsPerSecond: 90,
    rates: { kill: 0.9, 'slow-link': 1.5 },
    lastsMs: [20, 300],
    lasts: { 'slow-link': [500, 2000] },
    amounts: { 'slow-link': [20, 80] },
    unflushed: ['lose'],
    shape: { slotCount: 2 },
    mix: { volumes: 'relaxed', hotPages: 6, readShares: [0.1, 0.2], home: 0.2, flushShare: 0.3, flushMs: [5, 15], depth: [4, 8], wholeShare: 0.5 },
  },
  /** Flushes while copies on a node are DRAINING, one after the other, each for as long as the leader does not hear from it. */
  'flushes-draining': {
    nodes: 4,
    durationMs: 6000,
    clients: [3, 4],
    opsPerSecond: 80,
    rates: { 'remove-late': 0.5, 'node-add': 0.2 },
    lastsMs: [4000, 6000],
    unflushed: ['lose'],
    shape: { slotCount: 4 },
    mix: { volumes: 'relaxed', hotPages: 6, readShares: [0.1, 0.2], home: 0.2, flushShare: 0.35, flushMs: [10, 25], depth: [3, 6], wholeShare: 0.6 },
  },
  /** Processes come and go faster than they can be rebuilt. */
  churn: {
    durationMs: 5000,
    clients: [3, 5],
    opsPerSecond: 80,
    rates: { kill: 1.5, freeze: 0.2, pauses: 0.3, 'slow-link': 0.5, 'disk-slow': 0.4 },
    lastsMs: [10, 600],
    lasts: { 'slow-link': [200, 1500], 'disk-slow': [200, 1500] },
    unflushed: ['random'],
    mix: { volumes: 'safe', hotPages: 4, readShares: [0.3, 0.5], home: 0.6, flushMs: [0, 5, 15] },
  },
  /** Whole blocks are trimmed and written anew while chains change and disks are slow. */
  removals: {
    durationMs: 5000,
    clients: [5, 7],
    opsPerSecond: 140,
    rates: { kill: 0.8, power: 0.1, 'slow-link': 2.5, 'disk-slow': 1 },
    lastsMs: [10, 600],
    lasts: { 'slow-link': [500, 2500], 'disk-slow': [300, 2000] },
    unflushed: ['random'],
    mix: { volumes: 'safe', hotPages: 2, readShares: [0.3, 0.8], home: 0.6, removeShare: 1, flushMs: [0, 5, 15] },
  },
  /** Many clients write the same two pages while heads die: what is asked for again meets what came after it. */
  contention: {
    durationMs: 4000,
    clients: [4, 6],
    opsPerSecond: 70,
    rates: { kill: 1.5, 'slow-link': 0.7 },
    lastsMs: [10, 400],
    lasts: { 'slow-link': [300, 1500] },
    unflushed: ['random'],
    mix: { volumes: 'safe', hotPages: 2, readShares: [0.2, 0.6], home: 0.5, flushMs: [0, 1] },
  },
  /** Nodes die in turn, with and without their memory, on slow disks: the one left had just returned. */
  'last-copies': {
    durationMs: 6000,
    clients: [2, 3],
    opsPerSecond: 40,
    rates: { kill: 1, power: 1.2 },
    lastsMs: [20, 500],
    unflushed: ['lose', 'lose', 'random'],
    mix: { volumes: 'safe', hotPages: 4, readShares: [0.3], home: 0.5, flushMs: [30, 100] },
  },
  /** All go down together, again and again, and those that are back first do not wait for the others for long. */
  recoveries: {
    durationMs: 11_000,
    clients: [2, 3],
    opsPerSecond: 40,
    rates: { straggler: 0.22, pauses: 0.1 },
    lastsMs: [50, 400],
    unflushed: ['lose', 'random'],
    settings: { 'failover.recover_wait': '300' },
    shape: { slotCount: 8 },
    mix: { volumes: 'safe', hotPages: 5, readShares: [0.3, 0.5], home: 0.5, flushMs: [0, 10] },
  },
  /** Clocks that are off by more than the bound, either way: what is answered meanwhile may be stale, and nothing else may break. */
  clocks: {
    durationMs: 12_000,
    clients: [2, 4],
    opsPerSecond: 30,
    rates: { 'clock-fast': 0.12, 'drift-beyond': 0.12, isolate: 0.3, kill: 0.2, freeze: 0.1 },
    lastsMs: [300, 3000],
    unflushed: ['random'],
    shape: { slotCount: 8 },
    mix: { volumes: 'safe', hotPages: 4, readShares: [0.4, 0.9], home: 0.8, flushMs: [0, 5] },
  },
  /** A copy has just returned, and is the only one: what it took and reported while it was SYNCING is all there is. */
  handovers: {
    durationMs: 6000,
    clients: [3, 5],
    opsPerSecond: 120,
    rates: { 'last-copy': 0.5 },
    lastsMs: [50, 600],
    unflushed: ['keep', 'lose'],
    shape: { slotCount: 4, limits: { creditRows: 4 } },
    mix: { volumes: 'safe', hotPages: 6, readShares: [0.2, 0.4], home: 0.3, flushMs: [10, 30], depth: [3, 8] },
  },
  /** The same while many blocks are copied from slow disks, and the stream comes later than their answers. */
  reports: {
    durationMs: 6000,
    clients: [3, 5],
    opsPerSecond: 120,
    rates: { 'late-stream': 0.7, 'disk-slow': 2 },
    lastsMs: [50, 600],
    lasts: { 'disk-slow': [1000, 3000] },
    amounts: { 'disk-slow': [20, 120] },
    unflushed: ['keep'],
    volumeBlocks: 10,
    shape: { slotCount: 2 },
    mix: { volumes: 'safe', hotPages: 30, readShares: [0.1, 0.2], home: 0.3, flushMs: [0, 5], depth: [3, 8] },
  },
  /** Copies are slow to reach and connections break: what was given up is cancelled through the log, while reads go on everywhere. */
  cancels: {
    durationMs: 6000,
    clients: [3, 5],
    opsPerSecond: 40,
    rates: { 'slow-link': 1.2, 'bad-wire': 1 },
    lastsMs: [300, 2500],
    amounts: { 'slow-link': [300, 1200], 'bad-wire': [0.02, 0.15] },
    unflushed: ['random'],
    shape: { slotCount: 4 },
    retryTotalMs: 300,
    mix: { volumes: 'safe', hotPages: 4, readShares: [0.4, 0.7], home: 0.8, flushMs: [0] },
  },
  /** Clients that give up and go on by another node: what they leave behind ends within its life, or never takes effect. */
  abandoned: {
    durationMs: 9000,
    clients: [3, 4],
    opsPerSecond: 40,
    rates: { cut: 0.4, freeze: 0.1, kill: 0.1 },
    lastsMs: [500, 2000],
    lasts: { cut: [5000, 8000] },
    unflushed: ['random'],
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 2, readShares: [0.1, 0.3], home: 0.3, flushMs: [0], depth: [2, 4], patienceMs: [150, 1200] },
  },
  /** The same where writes of a part of a page wait at the head: reads are slow, and newer writes of the page make them begin anew. */
  starved: {
    durationMs: 9000,
    clients: [4, 5],
    opsPerSecond: 80,
    rates: { 'slow-reads': 1.2 },
    lastsMs: [8000, 9000],
    amounts: { 'slow-reads': [400, 650] },
    unflushed: ['random'],
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 1, readShares: [0.05, 0.1], home: 0.3, flushMs: [0], depth: [6, 12], wholeShare: 0.85, patienceMs: [100, 400] },
  },
  /** The same where ways become slow bit by bit, so that no session ends: what was sent is on its way for longer than it lives. */
  'slow-ways': {
    // exporters that are in few of the chains: these go on meanwhile
    nodes: 4,
    durationMs: 10_000,
    clients: [6, 8],
    opsPerSecond: 60,
    rates: { 'slowing-link': 1.2 },
    lastsMs: [6000, 9000],
    amounts: { 'slowing-link': [1000, 1500] },
    unflushed: ['random'],
    shape: { slotCount: 4, replicas: 2 },
    mix: { volumes: 'safe', hotPages: 2, readShares: [0.8, 0.9], home: 0, flushMs: [0], depth: [4, 8], wholeShare: 0.9, patienceMs: [50, 300] },
  },
  /** Nodes are cut off or stand still for longer than a lease, and clients on them read on. */
  leases: {
    durationMs: 9000,
    clients: [4, 6],
    opsPerSecond: 50,
    rates: { isolate: 0.4, freeze: 0.35, cut: 0.2, pauses: 0.1, drift: 0.2 },
    lastsMs: [1500, 5000],
    unflushed: ['random'],
    mix: { volumes: 'safe', hotPages: 3, readShares: [0.98, 0.3], home: 0.95, flushMs: [0] },
  },
  /** Two nodes do not reach each other in one direction, or both; the third reaches both. */
  cuts: {
    durationMs: 9000,
    clients: [2, 3],
    opsPerSecond: 25,
    rates: { cut: 0.5 },
    lastsMs: [3000, 6000],
    unflushed: ['random'],
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 3, readShares: [0.5], home: 0.8, flushMs: [0] },
  },
  /** Bits rot on one node while it is read. */
  rot: {
    durationMs: 4000,
    clients: [2, 3],
    opsPerSecond: 50,
    rates: { 'bit-rot': 4 },
    lastsMs: [10, 500],
    unflushed: ['random'],
    mix: { volumes: 'safe', hotPages: 8, readShares: [0.3, 0.9], home: 0.9, largeShare: 0.3, flushMs: [0] },
  },
  /** Nodes are removed in the middle of something. */
  leavers: {
    nodes: 4,
    durationMs: 9000,
    clients: [1, 3],
    opsPerSecond: 30,
    rates: { 'remove-syncing': 0.2, 'remove-returning': 0.2, 'remove-draining': 0.12, 'node-add': 0.2 },
    lastsMs: [50, 1500],
    unflushed: ['random'],
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 6, readShares: [0.3], home: 0.5, flushMs: [0, 5] },
  },
  /** Nodes are removed under load, and the leader hears late from those that are to leave. */
  drains: {
    nodes: 4,
    durationMs: 8000,
    clients: [4, 6],
    opsPerSecond: 60,
    rates: { 'node-remove': 0.3, 'node-add': 0.3, 'slow-link': 1.5, kill: 0.1 },
    lastsMs: [100, 1500],
    lasts: { 'slow-link': [500, 3000] },
    amounts: { 'slow-link': [20, 200] },
    unflushed: ['random'],
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 6, readShares: [0.2], home: 0.6, flushMs: [0, 5], depth: [2, 6] },
  },
  /** People change settings, make, grow and delete volumes, and stop nodes. */
  operators: {
    durationMs: 7000,
    clients: [2, 3],
    opsPerSecond: 30,
    rates: { setting: 1.5, 'volume-churn': 0.5, 'volume-grow': 0.2, stop: 0.3 },
    lastsMs: [200, 1500],
    unflushed: ['random', 'keep'],
    shape: { slotCount: 4 },
    mix: { volumes: 'any', hotPages: 6, readShares: [0.3, 0.6], home: 0.5, flushMs: [0, 5] },
  },
  /** Disks fail, fill up and are replaced, while new blocks are written. */
  disks: {
    durationMs: 6000,
    clients: [2, 4],
    opsPerSecond: 30,
    rates: { 'disk-full': 1, 'disk-gone': 0.2, 'disk-eio': 0.4, 'disk-hang': 0.1 },
    lastsMs: [300, 2500],
    unflushed: ['random'],
    volumeBlocks: 10,
    shape: { slotCount: 4 },
    mix: { volumes: 'safe', hotPages: 30, readShares: [0.2, 0.5], home: 0.5, flushMs: [0, 5] },
  },
  /** Disks fail everywhere, forget what was not flushed, and are tried again: the last one to fail has what nobody else has. */
  retries: {
    nodes: 4,
    durationMs: 7000,
    clients: [3, 5],
    opsPerSecond: 50,
    rates: { 'disk-again': 0.45, kill: 0.2 },
    lastsMs: [50, 800],
    amounts: { 'disk-again': [0.05, 0.6] },
    unflushed: ['lose', 'lose', 'keep', 'random'],
    shape: { slotCount: 4, replicas: 2 },
    mix: { volumes: 'relaxed', hotPages: 6, readShares: [0.2, 0.5], home: 0.6, flushShare: 0.25, flushMs: [0, 5, 15] },
  },
  /** The same while the journals are emptied and used again. */
  'retries-destaging': {
    nodes: 4,
    durationMs: 6000,
    clients: [2, 3],
    opsPerSecond: 60,
    rates: { 'disk-again': 0.7, kill: 0.3 },
    lastsMs: [50, 800],
    amounts: { 'disk-again': [0.005, 0.1] },
    unflushed: ['lose'],
    shape: { slotCount: 4, replicas: 2 },
    mix: { volumes: 'safe', hotPages: 6, readShares: [0.1, 0.3], home: 0.6, largeShare: 0.4, removeShare: 0.1, flushMs: [5, 15, 30] },
  },
  /** Nodes join, leave, and are away meanwhile. */
  members: {
    nodes: 4,
    durationMs: 10_000,
    clients: [1, 3],
    opsPerSecond: 20,
    rates: { 'node-add': 0.2, 'node-remove': 0.25, kill: 0.4, power: 0.1, stop: 0.15, isolate: 0.1, freeze: 0.1, upgrade: 0.05 },
    lastsMs: [20, 4000],
    unflushed: ['random', 'lose'],
    // votes go from those that stay away to those that live, and back
    settings: { 'failover.replace_voter_after': '700' },
    mix: { volumes: 'safe', hotPages: 4, readShares: [0.3], home: 0.6, flushMs: [0, 5] },
  },
}

export function focusOf(name: FocusName): Focus {
  return FOCUSES[name]
}

export function focusedSchedule(random: Prng, options: { seed: Seed; focus: FocusName }): Schedule {
  const { seed } = options
  const focus = focusOf(options.focus)
  const { nodes = 3 } = focus
  const { durationMs } = focus
  const victim = random.below(nodes)
  const faults: Fault[] = []
  for (const kind of [...FAULT_KINDS, ...AIMED_KINDS]) {
    const rate = focus.rates[kind] ?? 0
    const [shortestMs, longestMs] = focus.lasts?.[kind] ?? focus.lastsMs
    const amounts = focus.amounts?.[kind]
    let atMs = 0
    while (rate > 0) {
      atMs += (1000 / rate) * (0.2 + 1.6 * random.unit())
      if (atMs >= durationMs) break
      const node = DESTRUCTIVE.has(kind) ? victim : random.below(nodes)
      faults.push({
        kind,
        atMs: Math.round(atMs),
        durationMs: random.between(shortestMs, longestMs),
        node,
        other: (node + random.between(1, nodes - 1)) % nodes,
        amount: amounts === undefined ? amountOf(random, kind) : amounts[0] + (amounts[1] - amounts[0]) * random.unit(),
        unflushed: random.pick(focus.unflushed),
      })
    }
  }
  faults.sort((a, b) => a.atMs - b.atMs)
  return {
    format: SCHEDULE_FORMAT,
    seed,
    profile: 'brutal',
    focus: options.focus,
    nodes,
    clients: random.between(...focus.clients),
    opsPerClient: Math.round((durationMs / 1000) * focus.opsPerSecond),
    durationMs,
    faults,
  }
}
