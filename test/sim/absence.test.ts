/** A node that was away for longer than the others' log reaches back: it gets the state as a snapshot, and serves again. */
import assert from 'node:assert/strict'
import { scenario } from './scenario.ts'

/** More than the log holds before it is cut (src/raft/driver.ts). */
const COMMANDS = 10_500
/** Fewer than a node may propose at one time. */
const BATCH = 50

scenario('a node that is away while the log is cut past it comes back by a snapshot, resyncs, and serves', async (t, volume) => {
  t.load(volume, { on: [1, 2], ops: 150 })
  const absent = [3, 2].find((number) => number !== t.leader)!
  await t.seconds(0.5)
  t.node(absent).crash({ losing: 'unflushed' })
  await t.until('it is out of the chains', () => {
    const { state } = t.node(t.leader || 1).control!.member!
    return state.chains.every((chain) => chain.entries.every((entry) => entry.node !== absent || entry.state === 5))
  })
  const raft = () => t.node(t.leader).control!.member!.raft!
  const lastSeen = raft().status().lastIndex
  // what happens meanwhile: settings by the thousand, volumes that come and go, one that stays
  const stays = await t.createVolume('later', { sizeBytes: 4 * 1024 * 1024 })
  await t.settle(t.insist('xsan.v1.Volume/Create', { name: 'gone', sizeBytes: 8 * 1024 * 1024 }))
  for (let from = 0; from < COMMANDS; from += BATCH) {
    const { coordinator } = t.node(t.leader).control!.member!
    const set = (i: number) => coordinator!.propose('settings.set', { key: 'storage.read_only', value: i % 2 === 1 ? null : false })
    await t.settle(Promise.all(Array.from({ length: BATCH }, (_, i) => set(from + i))), 60_000)
  }
  await t.settle(t.insist('xsan.v1.Volume/Delete', { volume: 'gone' }))
  await t.until('the log is cut past it', () => t.leader !== 0 && raft().status().firstIndex > lastSeen)
  await t.clientsDone()
  t.load(stays, { on: [1, 2, 3].filter((number) => number !== absent), ops: 60 })
  await t.seconds(0.5)
  const restartedMs = t.world.nowMs
  t.node(absent).restart()
  await t.healthy()
  const isSnapshot = (line: string) => line.includes(`node-${absent} `) && line.includes('taken from a snapshot') && Number.parseFloat(line) >= restartedMs
  assert.ok(t.logLines.some(isSnapshot), 'the premise: a snapshot')
  await t.clientsDone()
  const { state } = t.node(absent).control!.member!
  assert.deepEqual([...state.volumes.values()].map(({ name }) => name).sort(), ['db', 'later'], 'what it missed it knows')
  // it serves: its clients write and read, and it holds its chains alone with one other
  t.load(stays, { on: [absent], ops: 60 })
  const other = [1, 2, 3].find((number) => number !== absent && number !== t.leader)!
  t.node(other).crash({ losing: 'nothing' })
  await t.clientsDone()
  t.node(other).restart()
  t.assertNoErrors()
  await t.allIsWell()
})
