import assert from 'node:assert/strict'
import test from 'node:test'
import { ChainCluster } from '../../test/support/chain-cluster.ts'
import type { DiskNumber, Incarnation, NodeNumber, SlotIndex } from '../base/ids.ts'
import { MiB } from '../base/units.ts'
import { type Chain, packChains, ReplicaState } from '../placement/chain.ts'
import { MemoryStore } from '../store/memory-store.ts'
import { RecordKind } from '../store/store.ts'
import { PayloadPool } from './payload-pool.ts'
import { idHighOf, NONE } from './records.ts'
import { type ReplicaHooks, Replicas } from './replica.ts'
import { StoreRelay } from './store-relay.ts'
import { ChainTable } from './table.ts'

/** Two disks of node 1, and one slot, alone on one of them at a time. */
async function twoDisks() {
  const cluster = new ChainCluster({ nodes: 1, slots: 1 })
  await cluster.start()
  const { queue } = cluster.node(1)
  const stores = ([11, 12] as DiskNumber[]).map((disk) => {
    const relay = new StoreRelay()
    return { store: new MemoryStore({ queue, disk, slotCount: 1, events: relay }), relay }
  })
  const table = new ChainTable({ clusterId: 'test', node: 1 as NodeNumber, incarnation: 1 as Incarnation, reactor: 0 }, [11, 12] as DiskNumber[])
  const nothing = () => {}
  const hooks = new Proxy({} as ReplicaHooks, { get: () => nothing })
  const replicas = new Replicas({ table, stores, pool: new PayloadPool(queue.arena, 2 * MiB), hooks, recordsMax: 64 })
  stores.forEach(({ relay }, index) => {
    relay.attach({
      onStaged: (upTo) => replicas.onStaged(index, upTo),
      onDurable: (upTo) => replicas.onDurable(index, upTo),
      onFailed: () => replicas.storeFailure(index),
    })
  })
  let revision = 0
  const learn = (version: number, entries: ReadonlyArray<readonly [disk: number, state: ReplicaState]>) => {
    const chain = {
      version,
      entries: entries.map(([disk, state]) => ({ disk, node: 1, state, since: version, incarnation: 1 })),
    } as unknown as Chain
    const isFirst = table.slotCount === 0
    const message = { type: 'table', revision: ++revision, slotCount: 1, chains: packChains([{ slot: 0 as SlotIndex, chain }]) }
    table.apply(message as never, [], 0)
    if (isFirst) replicas.resize(1)
    replicas.learn(0)
  }
  const stage = (version: number, sv: number) => {
    const { records } = replicas
    const row = records.alloc()
    const store = table.ownStore[0]!
    const last = stores[store]!.store
    Object.entries({
      slot: 0,
      kind: RecordKind.EMPTY,
      durable: 1,
      store,
      idHigh: idHighOf(version, sv),
      idLow: sv,
      sv,
      prevHigh: last.lastHigh[0]!,
      prevLow: last.lastLow[0]!,
      payloadPage: 0,
      owned: 0,
      channel: 0,
      clientHigh: 0,
      clientLow: 0,
      seq: 0,
      peer: NONE,
      hop: 1,
      update: NONE,
      pinned: NONE,
      sends: 0,
    }).forEach(([column, value]) => {
      ;(records as unknown as Record<string, number[]>)[column]![row] = value
    })
    replicas.stage(row)
  }
  return { cluster, replicas, stores, learn, stage }
}

test('what one disk had made durable says nothing of the next one that serves the slot', async () => {
  const { cluster, replicas, stores, learn, stage } = await twoDisks()
  const { SERVING, WAITING, OFFLINE } = ReplicaState
  learn(2, [
    [11, SERVING],
    [12, WAITING],
  ])
  for (let sv = 1; sv <= 5; sv++) stage(2, sv)
  await cluster.world.runFor(100)
  assert.deepEqual([replicas.committed[0], stores[0]!.store.durableSeq], [5, 5])
  // the operator gives it up and takes the other one, which holds less
  learn(3, [
    [12, SERVING],
    [11, OFFLINE],
  ])
  stage(3, 1)
  await cluster.until('the second one is in memory alone when the first one is durable', () => {
    if (stores[1]!.store.lastLow[0] === 1 && stores[1]!.store.stagedSeq === 1) stage(3, 2)
    return stores[1]!.store.durableSeq === 1
  })
  assert.equal(stores[1]!.store.lastLow[0], 2)
  assert.equal(replicas.committed[0], 1)
  await cluster.world.runFor(100)
  assert.deepEqual([replicas.committed[0], stores[1]!.store.durableSeq], [2, 2])
})
