/**
 * `nextChain` against the executable protocol model: `chainSteps` below is a transcription of `chain_steps` of protocol-model
 * (proto_multi.rs; a drain also asks that its replica is not offline, as the rules say), which lists every step the rules allow. One that `nextChain` takes must be among them, and it takes one whenever there is one.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { ChainVersion, DiskNumber, Incarnation, NodeNumber } from '../base/ids.ts'
import { Prng } from '../base/prng.ts'
import { type Chain, type ChainEntry, formatChain, invalidChain, nextStep, ReplicaState, type TransitionName } from './chain.ts'
import { View } from './view.ts'

const { SERVING, DRAINING, SYNCING, LASTSRV, WAITING, OFFLINE } = ReplicaState

interface World {
  chain: Chain
  /** By node - 1. */
  views: View[]
  registered: number[]
  /** Highest staged id of each replica. */
  last: number[]
  /** Nodes that confirmed the table in which they drain. */
  confirmed: boolean[]
  drainAsked: number
}

function chainSteps(world: World): Chain[] {
  const c = world.chain.entries
  const version = (world.chain.version + 1) as ChainVersion
  const out: Chain[] = []
  const member = (state: ReplicaState) => state === SERVING || state === DRAINING
  const restarted = (m: ChainEntry) => (member(m.state) || m.state === SYNCING) && m.incarnation !== world.registered[m.node - 1]
  const down = (m: ChainEntry) => world.views[m.node - 1] === View.DOWN || restarted(m)
  const up = (m: ChainEntry) => world.views[m.node - 1] === View.UP && !restarted(m)
  const servingUp = (but: NodeNumber) => c.some((o) => o.node !== but && o.state === SERVING && up(o))
  const id = (o: ChainEntry) => world.last[o.node - 1]!
  const push = (states: ReplicaState[], moved?: number) => {
    const d = c.map((old, i) => {
      const state = states[i]!
      if (state === old.state) return old
      const inPlace = member(state) && member(old.state)
      return { ...old, state, since: inPlace ? old.since : version, incarnation: (inPlace ? old.incarnation : world.registered[old.node - 1]) as Incarnation }
    })
    if (moved !== undefined) d.push(...d.splice(moved, 1))
    d.sort((a, b) => (a.state === DRAINING ? SERVING : a.state) - (b.state === DRAINING ? SERVING : b.state))
    out.push({ version, entries: d })
  }
  const now = () => c.map((m) => m.state)
  c.forEach((m, i) => {
    const states = now()
    if (m.state === SERVING && down(m)) {
      const j = c.findIndex((o) => o.state === DRAINING)
      if (servingUp(m.node)) {
        states[i] = OFFLINE
        push(states, i)
      } else if (c.every((o) => o.state !== SERVING || down(o))) {
        if (j >= 0 && up(c[j]!)) push(c.map((o, k) => (k === j ? SERVING : o.state === SERVING ? OFFLINE : o.state)))
        else if (j < 0 || down(c[j]!)) push(c.map((o) => (member(o.state) ? LASTSRV : o.state === SYNCING ? WAITING : o.state)))
      }
    } else if (m.state === DRAINING && (down(m) || world.confirmed[m.node - 1]) && servingUp(m.node)) {
      states[i] = OFFLINE
      push(states, i)
    } else if ((m.state === SYNCING || m.state === WAITING) && down(m)) {
      states[i] = OFFLINE
      push(states, i)
    } else if (m.state === WAITING && up(m) && c.some((o) => o.state === SERVING) && !c.some((o) => o.state === SYNCING)) {
      states[i] = SYNCING
      push(states)
    } else if (m.state === OFFLINE && up(m)) {
      states[i] = WAITING
      push(states)
    } else if (m.state === LASTSRV && !c.some((o) => o.state === SERVING) && up(m)) {
      const all = c.every((o) => o.state !== LASTSRV || up(o))
      const best = c.every((o) => o.state !== LASTSRV || id(o) <= id(m) || o.node === m.node)
      if (all && best && !c.slice(0, i).some((o) => o.state === LASTSRV && id(o) === id(m)))
        push(c.map((o, k) => (o.state !== LASTSRV ? o.state : k === i ? SERVING : WAITING)))
    }
  })
  if (world.drainAsked > 0 && !c.some((o) => o.state === DRAINING)) {
    c.forEach((m, i) => {
      if (m.node !== world.drainAsked || m.state !== SERVING || !servingUp(m.node) || down(m)) return
      const states = now()
      states[i] = DRAINING
      push(states)
    })
  }
  return out
}

function randomWorld(prng: Prng): World {
  for (;;) {
    const count = prng.between(1, 5)
    const version = 9 as ChainVersion
    const entries = Array.from({ length: count }, (_, i): ChainEntry => {
      const state = prng.pick([SERVING, SERVING, DRAINING, SYNCING, LASTSRV, WAITING, OFFLINE])
      return {
        disk: (i + 1) as DiskNumber,
        node: (i + 1) as NodeNumber,
        state,
        since: prng.between(1, 9) as ChainVersion,
        incarnation: prng.between(1, 2) as Incarnation,
      }
    })
    entries.sort((a, b) => (a.state === DRAINING ? SERVING : a.state) - (b.state === DRAINING ? SERVING : b.state))
    const chain = { version, entries }
    if (invalidChain(chain) !== null) continue
    const each = <T>(draw: () => T) => Array.from({ length: count }, draw)
    return {
      chain,
      views: each(() => prng.pick([View.DOWN, View.MAYBE, View.UP, View.UP])),
      registered: each(() => prng.pick([1, 2, 2])),
      last: each(() => prng.below(3)),
      confirmed: each(() => prng.chance(0.5)),
      drainAsked: prng.chance(0.3) ? prng.between(1, count) : 0,
    }
  }
}

/** Order among the OFFLINE means nothing to anybody. */
const normal = (chain: Chain) => {
  const offline = chain.entries.filter((entry) => entry.state === OFFLINE).sort((a, b) => a.disk - b.disk)
  return JSON.stringify([chain.version, ...chain.entries.filter((entry) => entry.state !== OFFLINE), ...offline])
}

test('every step is one the protocol model allows, and one is taken whenever the model has one', () => {
  const prng = new Prng(3)
  const taken = new Map<TransitionName | 'none', number>()
  for (let i = 0; i < 100_000; i++) {
    const world = randomWorld(prng)
    const draining = world.chain.entries.find((entry) => entry.state === DRAINING)
    const step = nextStep(world.chain, {
      views: { view: (node) => world.views[node - 1]!, incarnation: (node) => world.registered[node - 1] as Incarnation },
      lastIds: world.chain.entries.map((entry) => ({
        disk: entry.disk,
        incarnation: world.registered[entry.node - 1] as Incarnation,
        version: world.chain.version,
        hi: 0,
        lo: world.last[entry.node - 1]!,
      })),
      drain: world.drainAsked > 0 ? (world.drainAsked as DiskNumber) : undefined,
      drained:
        draining !== undefined && world.confirmed[draining.node - 1]
          ? { disk: draining.disk, version: world.chain.version, incarnation: draining.incarnation }
          : undefined,
    })
    const allowed = chainSteps(world)
    const told = `${formatChain(world.chain)} views ${world.views} registered ${world.registered} ids ${world.last} confirmed ${world.confirmed} drain ${world.drainAsked}`
    if (step === null) assert.equal(allowed.length, 0, `${told}: nothing happens, the model has ${allowed.map(formatChain)}`)
    else
      assert.ok(
        allowed.some((chain) => normal(chain) === normal(step.chain)),
        `${told}: ${step.transition} gives ${formatChain(step.chain)}, the model ${allowed.map(formatChain)}`,
      )
    taken.set(step?.transition ?? 'none', (taken.get(step?.transition ?? 'none') ?? 0) + 1)
  }
  for (const name of ['drop', 'rescue', 'lose', 'recover', 'stop syncing', 'stop waiting', 'drain', 'drained', 'return', 'sync', 'none'] as const) {
    assert.ok((taken.get(name) ?? 0) > 100, `${name} taken ${taken.get(name) ?? 0} times`)
  }
})
