/**
 * Bugs planted by name, from outside: each replaces one method by one that breaks one promise. The simulator has to find each within a
 * stated number of seeds, which is itself a test: so the checkers cannot rot. They change the classes of this process until undone.
 */
import { WriteFlag } from '../../src/base/request.ts'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { Calls } from '../../src/chain/calls.ts'
import { Client } from '../../src/chain/client.ts'
import { Credits, HOPS } from '../../src/chain/credits.ts'
import { DataPlane } from '../../src/chain/data-plane.ts'
import { Flushes } from '../../src/chain/flush.ts'
import { Peers } from '../../src/chain/peers.ts'
import { Reads } from '../../src/chain/read.ts'
import { NONE } from '../../src/chain/records.ts'
import { Replicas } from '../../src/chain/replica.ts'
import { BLOCK_ARGS_WORDS, HAS_IDS_WORD } from '../../src/chain/resync-calls.ts'
import { SyncSession } from '../../src/chain/session.ts'
import { ChainTable } from '../../src/chain/table.ts'
import { Writes } from '../../src/chain/write.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import { SimFile } from '../../src/env/sim/disk.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { LogStore } from '../../src/raft/log-store.ts'
import { ChannelRows } from '../../src/store/channel-rows.ts'
import { DigestSum } from '../../src/store/digest.ts'
import { DiskStore } from '../../src/store/disk-store.ts'
import { Journal } from '../../src/store/journal.ts'
import { SUPERBLOCK_MAGIC, Superblock } from '../../src/store/layout.ts'
import { Reader } from '../../src/store/read.ts'
import { type BlockInstall, RecordKind } from '../../src/store/store.ts'
import { VolumeLayer } from '../../src/volume/volume.ts'
import { CallKind } from '../../src/wire/peer.ts'
import type { Plan } from './run.ts'

export interface Canary {
  readonly name: string
  /** What is broken. */
  readonly bug: string
  /** It is found within so many seeds of these, from seed 1. */
  readonly seedsMax: number
  readonly plan: Plan
  /** Plants it; returns what removes it. */
  plant(): () => void
}

type Method = (...args: never[]) => unknown

/** Replaces a method (or getter) of a prototype until undone. */
export function replace<T extends object>(target: T, key: keyof T, make: (original: Method) => Method): () => void {
  const descriptor = Object.getOwnPropertyDescriptor(target, key)
  const original = (descriptor?.get ?? descriptor?.value) as Method | undefined
  if (!descriptor || typeof original !== 'function') throw new Error(`canary: there is no method ${String(key)} to replace`)
  const replaced = make(original)
  Object.defineProperty(target, key, descriptor.get ? { ...descriptor, get: replaced as () => unknown } : { ...descriptor, value: replaced })
  return () => {
    Object.defineProperty(target, key, descriptor)
  }
}

/** Replaces several methods at one time. */
function all(...undo: Array<() => void>): () => void {
  return () => {
    for (const each of undo.reverse()) each()
  }
}

/** As `replace`, for a method with this type of its instance and arguments. */
export function method<T extends object, A extends unknown[], R>(
  target: T,
  key: keyof T,
  make: (original: (this: T, ...args: A) => R) => (this: T, ...args: A) => R,
): () => void {
  return replace(target, key, make as unknown as (original: Method) => Method)
}

/** Does something more at the beginning of a method. */
function before<T extends object, A extends unknown[]>(target: T, key: keyof T, more: (this: T, ...args: A) => void): () => void {
  return method<T, A, unknown>(
    target,
    key,
    (original) =>
      function (...args) {
        more.apply(this, args)
        return original.apply(this, args)
      },
  )
}

/** Records that come in by these methods are acknowledged from memory: neither they nor the table say any more that their volume does not do that. */
function acknowledgedFromMemory(
  keys: ReadonlyArray<'receive' | 'admitUpdate'>,
  isMeant: (replicas: Replicas, row: number) => boolean = () => true,
): () => void {
  return all(
    ...keys.map((key) =>
      before<Replicas, [number]>(Replicas.prototype, key, function (row) {
        if (isMeant(this, row)) this.records.durable[row] = 0
      }),
    ),
    replace(ChainTable.prototype, 'isSyncWhenWrite', () => () => false),
  )
}

/** Writes go on with other flags than they were asked for. */
function writesWith(flagsOf: (flags: number, fromBytes: number, toBytes: number) => number): () => void {
  return method<VolumeLayer, Parameters<VolumeLayer['write']>, void>(
    VolumeLayer.prototype,
    'write',
    (original) =>
      function (volume, offsetBytes, lengthBytes, page, flags, done, row) {
        original.call(this, volume, offsetBytes, lengthBytes, page, flagsOf(flags, offsetBytes, offsetBytes + lengthBytes), done, row)
      },
  )
}

/** A flush does not ask those other nodes: given the states of all copies on each. */
function flushLeavesOut(isLeftOut: (states: readonly number[]) => boolean): () => void {
  const planes = new WeakMap<Calls, DataPlane>()
  return all(
    before<DataPlane, []>(DataPlane.prototype, 'start', function () {
      planes.set(this.calls, this)
    }),
    method<Calls, [number, number, Uint8Array, number, number], Promise<{ status: number; lengthBytes: number }>>(
      Calls.prototype,
      'call',
      (original) =>
        function (peer, kind, args, page, capacityBytes) {
          const { table, peers } = planes.get(this)!
          const states = [...table.entryState].filter((_, e) => table.entryNode[e] === peers.peers[peer]!.node)
          if (kind === CallKind.FLUSH && isLeftOut(states)) return Promise.resolve({ status: Status.SUCCESS, lengthBytes: 0 })
          return original.call(this, peer, kind, args, page, capacityBytes)
        },
    ),
  )
}

export const CANARIES: readonly Canary[] = [
  {
    name: 'no-lease-check',
    bug: 'a node that is cut off or was frozen goes on answering after its lease has ended',
    seedsMax: 15,
    plan: { focus: 'leases' },
    plant: () => replace(ChainTable.prototype, 'leaseValid', () => () => true),
  },
  {
    name: 'flush-does-nothing',
    bug: 'the disk says that it flushed and did not: acknowledged writes vanish with the power',
    seedsMax: 5,
    plan: { focus: 'blackouts' },
    plant: () =>
      all(
        replace(SimFile.prototype, 'flushed', () => () => undefined),
        replace(SimFile.prototype, 'persisted', () => () => undefined),
      ),
  },
  {
    name: 'checkpoint-without-flush',
    bug: 'the background work of the store does not wait for its flushes before it frees journal segments, and a mount not at all',
    seedsMax: 60,
    plan: { focus: 'destage' },
    plant: () => replace(AsyncIo.prototype, 'fdatasync', () => () => Promise.resolve(0)),
  },
  {
    name: 'checksum-not-verified',
    bug: 'pages come from the disk as they are: rotten bits are shown, merged and copied',
    seedsMax: 10,
    plan: { focus: 'rot' },
    plant: () => replace(Reader.prototype, 'verify', () => () => undefined),
  },
  {
    name: 'flush-not-sent',
    bug: 'a flush of a volume with sync_when_write off answers without asking any replica',
    seedsMax: 5,
    plan: { focus: 'blackouts-relaxed' },
    plant: () => replace(Flushes.prototype, 'flush', () => (_volume: number, _deadlineMs: number, done: (status: number) => boolean) => done(Status.SUCCESS)),
  },
  {
    name: 'flush-not-forwarded',
    bug: "a flush makes only the client's own node durable",
    seedsMax: 40,
    plan: { focus: 'blackouts-relaxed' },
    plant: () =>
      method<Calls, [number, number, Uint8Array, number, number], Promise<{ status: number; lengthBytes: number }>>(
        Calls.prototype,
        'call',
        (original) =>
          function (peer, kind, args, page, capacityBytes) {
            return kind === CallKind.FLUSH
              ? Promise.resolve({ status: Status.SUCCESS, lengthBytes: 0 })
              : original.call(this, peer, kind, args, page, capacityBytes)
          },
      ),
  },
  {
    name: 'flush-joins-one-under-way',
    bug: 'a flush is answered with one that had begun before it, and knows nothing of what was acknowledged in between',
    seedsMax: 80,
    plan: { focus: 'flushes' },
    plant: () => {
      const underWay = new WeakMap<Flushes, Map<number, Array<(status: number) => boolean>>>()
      return method<Flushes, [number, number, (status: number) => boolean], void>(
        Flushes.prototype,
        'flush',
        (original) =>
          function (volume, deadlineMs, done) {
            const volumes = underWay.get(this) ?? new Map<number, Array<(status: number) => boolean>>()
            underWay.set(this, volumes)
            const first = volumes.get(volume)
            if (first !== undefined) {
              first.push(done)
              return
            }
            const all = [done]
            volumes.set(volume, all)
            original.call(this, volume, deadlineMs, (status) => {
              volumes.delete(volume)
              return all.filter((each) => each(status)).length > 0
            })
          },
      )
    },
  },
  {
    name: 'acknowledged-before-durable',
    bug: 'every replica acknowledges what its kernel holds, also where acknowledged means durable',
    seedsMax: 12,
    plan: { focus: 'blackouts' },
    plant: () => acknowledgedFromMemory(['receive', 'admitUpdate']),
  },
  {
    name: 'synced-write-not-synced',
    bug: 'what is written to the journal as one synced write stays in the cache of the drive',
    seedsMax: 12,
    plan: { focus: 'blackouts' },
    plant: () => replace(SimFile.prototype, 'persisted', () => () => undefined),
  },
  {
    name: 'ack-before-tail',
    bug: 'a replica commits and acknowledges what it holds without waiting for those behind it',
    seedsMax: 5,
    plan: { focus: 'churn' },
    plant: () =>
      method<Replicas, [number], void>(
        Replicas.prototype,
        'stage',
        (original) =>
          function (row) {
            const slot = this.records.slot[row]!
            const sv = this.records.sv[row]!
            original.call(this, row)
            this.raiseEligible(slot, sv)
          },
      ),
  },
  {
    name: 'staged-data-readable',
    bug: 'a read shows what is staged and not committed',
    seedsMax: 15,
    plan: { focus: 'churn' },
    plant: () => replace(Reads.prototype, 'isCommitted', () => () => true),
  },
  {
    name: 'removed-before-committed',
    bug: 'a read shows a block as removed whose removal is staged and not committed',
    seedsMax: 15,
    plan: { focus: 'removals' },
    plant: () => replace(Replicas.prototype, 'isBeingRemoved', () => () => false),
  },
  {
    name: 'merge-over-older',
    bug: 'a write of a part of a page is merged over what the page held when the merge began',
    seedsMax: 10,
    plan: { focus: 'churn' },
    plant: () => replace(Writes.prototype, 'isMergeCurrent', () => () => true),
  },
  {
    name: 'dedupe-off',
    bug: 'channel rows are not looked at: a write that is asked for again is ordered again',
    seedsMax: 40,
    plan: { focus: 'contention' },
    plant: () => replace(ChannelRows.prototype, 'lookup', () => () => -1),
  },
  {
    name: 'no-reforward',
    bug: 'a new chain version does not forward again what is staged and uncommitted',
    seedsMax: 15,
    plan: { focus: 'churn' },
    plant: () => replace(Replicas.prototype, 'reforward', () => () => undefined),
  },
  {
    name: 'up-to-date-too-early',
    bug: 'a returning replica reports that it is up to date before its blocks are installed',
    seedsMax: 5,
    plan: { focus: 'churn' },
    plant: () => replace(SyncSession.prototype, 'allInstalled', () => () => true),
  },
  {
    name: 'snapshot-older-than-skip',
    bug: 'a block is installed although its source had not yet what was acknowledged here without storing',
    seedsMax: 20,
    plan: { focus: 'churn' },
    plant: () =>
      all(
        replace(SyncSession.prototype, 'skipOf', () => () => 0),
        replace(SyncSession.prototype, 'skipped', () => () => undefined),
      ),
  },
  {
    name: 'rows-of-other-slots-held',
    bug: "channel rows that come along with another slot's resync count as held: a write asked for again is answered, and was never applied here",
    seedsMax: 5,
    plan: { focus: 'churn' },
    plant: () =>
      method<ChannelRows, [number, Uint32Array], void>(
        ChannelRows.prototype,
        'merge',
        (original) =>
          function (_slot, packed) {
            original.call(this, -1, packed)
          },
      ),
  },
  {
    name: 'syncing-acknowledges-unflushed',
    bug: 'a SYNCING member acknowledges what its kernel holds and its disk does not',
    seedsMax: 30,
    plan: { focus: 'handovers' },
    plant: () => acknowledgedFromMemory(['receive'], (replicas, row) => replicas.table.ownState[replicas.records.slot[row]!] === ReplicaState.SYNCING),
  },
  {
    name: 'report-before-the-stream',
    bug: 'a returning replica reports as soon as its blocks are installed, though the stream has not passed what their answers held',
    seedsMax: 30,
    plan: { focus: 'reports' },
    plant: () =>
      method<Replicas, [number], number>(
        Replicas.prototype,
        'lastSv',
        (original) =>
          function (slot) {
            const session = this.sessions.get(slot)
            return session?.allInstalled ? Math.max(original.call(this, slot), session.high) : original.call(this, slot)
          },
      ),
  },
  {
    name: 'cancel-confirmed-when-ordered',
    bug: 'a cancel is confirmed when its head has ordered it, and the write it cancels takes effect afterwards',
    seedsMax: 30,
    plan: { focus: 'cancels' },
    plant: () => {
      const ordered: Array<{ readonly replicas: Replicas; readonly row: number }> = []
      return all(
        before<Replicas, [number]>(Replicas.prototype, 'stage', function (row) {
          if (this.records.hop[row] === 0 && this.records.kind[row] === RecordKind.EMPTY) ordered.push({ replicas: this, row })
        }),
        method<Writes, [number], void>(
          Writes.prototype,
          'submit',
          (original) =>
            function (u) {
              original.call(this, u)
              for (const { replicas, row } of ordered.splice(0)) {
                if (replicas.records.update[row] !== u) continue
                replicas.records.update[row] = NONE
                this.committed(u)
              }
            },
        ),
      )
    },
  },
  {
    name: 'life-not-looked-at',
    bug: 'a head orders what waited there for longer than its life, over what its client wrote since by another node',
    seedsMax: 30,
    plan: { focus: 'starved' },
    plant: () =>
      before<Writes, [number]>(Writes.prototype, 'submit', function (u) {
        this.updates.deadlineMs[u] = Number.POSITIVE_INFINITY
      }),
  },
  {
    name: 'life-from-arrival',
    bug: 'a head counts the life of an update from its arrival: what the way takes is not seen',
    seedsMax: 40,
    plan: { focus: 'slow-ways' },
    plant: () =>
      before<Writes, [number]>(Writes.prototype, 'submit', function (u) {
        if (this.updates.peer[u] !== NONE) this.updates.deadlineMs[u] = this.updates.receivedMs[u]! + 4000
      }),
  },
  {
    name: 'dropped-not-told',
    bug: 'a disk that had failed, and is tried again, says that it has lost nothing',
    seedsMax: 30,
    plan: { focus: 'retries' },
    plant: () => replace(DiskStore.prototype, 'lostPower', () => () => false),
  },
  {
    name: 'gone-clients-not-told',
    bug: 'an exporter goes on with the writes of a client that has left, for as long as if it were there',
    seedsMax: 15,
    plan: { focus: 'abandoned' },
    plant: () => replace(Client.prototype, 'orphan', () => () => undefined),
  },
  {
    name: 'resync-sends-everything',
    bug: 'a returning replica asks for whole blocks, whatever it holds of them',
    seedsMax: 5,
    plan: { focus: 'churn' },
    plant: () =>
      method<Calls, [number, number, Uint8Array, number, number], Promise<{ status: number; lengthBytes: number }>>(
        Calls.prototype,
        'call',
        (original) =>
          function (peer, kind, args, page, capacityBytes) {
            if (kind !== CallKind.BLOCK || args.length === BLOCK_ARGS_WORDS * 4) return original.call(this, peer, kind, args, page, capacityBytes)
            const without = new Uint32Array(args.slice(0, BLOCK_ARGS_WORDS * 4).buffer)
            without[HAS_IDS_WORD] = 0
            return original.call(this, peer, kind, new Uint8Array(without.buffer), page, capacityBytes)
          },
      ),
  },
  {
    name: 'rows-expire-too-early',
    bug: 'channel rows of a client go though Raft has not fenced it: what it asks for again is ordered again',
    seedsMax: 5,
    plan: { focus: 'contention' },
    plant: () =>
      method<ChannelRows, [number, number], void>(
        ChannelRows.prototype,
        'expire',
        (original) =>
          function (clientHigh, below) {
            original.call(this, clientHigh, below + 1)
          },
      ),
  },
  {
    name: 'digests-tell-nothing',
    bug: 'the digests of two copies are the same whatever their pages hold: a returning replica takes what it has for what its source has',
    seedsMax: 5,
    plan: { focus: 'churn' },
    plant: () =>
      method<DigestSum, [number, number, number, number, number], void>(
        DigestSum.prototype,
        'page',
        (original) =>
          function (page, _idHigh, _idLow, _crc, flag) {
            original.call(this, page, 0, 0, 0, flag)
          },
      ),
  },
  {
    name: 'connections-of-the-dropped-kept',
    bug: 'who was dropped from the chains as DOWN keeps its connections with the others',
    seedsMax: 15,
    plan: { focus: 'cuts' },
    plant: () => replace(Peers.prototype, 'peerDown', () => () => undefined),
  },
  {
    name: 'lease-counted-too-long',
    bug: 'a node counts its lease from too late a moment, and believes in it for a second too long',
    seedsMax: 5,
    plan: { focus: 'leases' },
    plant: () =>
      method<ChainTable, [number, number], void>(
        ChainTable.prototype,
        'grantLease',
        (original) =>
          function (untilMs, revision) {
            original.call(this, untilMs + 1000, revision)
          },
      ),
  },
  {
    name: 'flush-leaves-out-syncing',
    bug: 'a flush does not ask nodes all of whose copies are SYNCING, which have acknowledged what it promises to be durable',
    seedsMax: 15,
    plan: { focus: 'flushes-returning' },
    plant: () => flushLeavesOut((states) => !states.includes(ReplicaState.SERVING)),
  },
  {
    name: 'flush-leaves-out-draining',
    bug: 'a flush does not ask nodes that are about to leave a chain, which have acknowledged what it promises to be durable',
    seedsMax: 15,
    plan: { focus: 'flushes-draining' },
    plant: () => flushLeavesOut((states) => states.includes(ReplicaState.DRAINING)),
  },
  {
    name: 'fua-ignored',
    bug: 'a write with FUA is acknowledged from memory where the volume allows that',
    seedsMax: 10,
    plan: { focus: 'fua' },
    plant: () => writesWith(() => WriteFlag.NONE),
  },
  {
    name: 'fua-lost-where-split',
    bug: 'a write over the border of two blocks goes on without its FUA',
    seedsMax: 5,
    plan: { focus: 'fua' },
    plant: () =>
      writesWith((flags, fromBytes, toBytes) => (Math.floor(fromBytes / BLOCK_BYTES) < Math.floor((toBytes - 1) / BLOCK_BYTES) ? WriteFlag.NONE : flags)),
  },
  {
    name: 'flush-of-a-disk-at-once',
    bug: 'a disk answers a flush, of a volume or at the end of a resync, before its journal is durable',
    seedsMax: 5,
    plan: { profile: 'swarm' },
    plant: () =>
      method<DiskStore, [(row: number, status: number, extra: number) => void, number], void>(
        DiskStore.prototype,
        'flush',
        () => (done, row) => void Promise.resolve().then(() => done(row, Status.SUCCESS, 0)),
      ),
  },
  {
    name: 'replayed-rows-held',
    bug: 'a replay over the beginning of a resync keeps the channel rows of its slot as held',
    seedsMax: 5,
    plan: { profile: 'swarm' },
    plant: () => {
      let isLive = false
      return all(
        method<DiskStore, [number], number>(
          DiskStore.prototype,
          'startSession',
          (original) =>
            function (slot) {
              isLive = true
              try {
                return original.call(this, slot)
              } finally {
                isLive = false
              }
            },
        ),
        method<ChannelRows, [number], void>(
          ChannelRows.prototype,
          'clearHeld',
          (original) =>
            function (slot) {
              if (isLive) original.call(this, slot)
            },
        ),
      )
    },
  },
  {
    name: 'given-up-copy-counts',
    bug: 'a disk gives back blocks of a slot that has moved elsewhere, and says later that its copy is whole',
    seedsMax: 15,
    plan: { focus: 'members' },
    plant: () => {
      let isSweeping = false
      return all(
        method<DiskStore, [(volume: number, slot: number) => boolean], Promise<number>>(
          DiskStore.prototype,
          'sweep',
          (original) =>
            function (isGarbage) {
              return original.call(this, (volume, slot) => {
                isSweeping = true
                try {
                  return isGarbage(volume, slot)
                } finally {
                  isSweeping = false
                }
              })
            },
        ),
        method<DiskStore, [number], number>(
          DiskStore.prototype,
          'startSession',
          (original) =>
            function (slot) {
              return isSweeping ? 0 : original.call(this, slot)
            },
        ),
      )
    },
  },
  {
    name: 'draining-head-orders',
    bug: 'a DRAINING head goes on as if it were SERVING, and its clients ask it',
    seedsMax: 15,
    plan: { focus: 'drains' },
    plant: () =>
      method<ChainTable, Parameters<ChainTable['apply']>, void>(
        ChainTable.prototype,
        'apply',
        (original) =>
          function (...table) {
            original.apply(this, table)
            for (let slot = 0; slot < this.slotCount; slot++) {
              if (this.headState[slot] === ReplicaState.DRAINING) this.headState[slot] = ReplicaState.SERVING
              if (this.ownState[slot] === ReplicaState.DRAINING && this.ownPosition[slot] === 0) this.ownState[slot] = ReplicaState.SERVING
            }
          },
      ),
  },
  {
    name: 'said-before-stored',
    bug: 'a node votes, and acknowledges entries, before its metadata holds them',
    seedsMax: 3,
    plan: { focus: 'members' },
    plant: () =>
      method<LogStore, [], Promise<void>>(
        LogStore.prototype,
        'flush',
        (original) =>
          function () {
            void original.call(this)
            return Promise.resolve()
          },
      ),
  },
  {
    name: 'superblock-not-flushed',
    bug: 'a segment of the journal is used again though the superblock that frees it is in the cache of the drive',
    seedsMax: 5,
    plan: { profile: 'swarm' },
    plant: () => {
      const tails = new WeakMap<AsyncIo, number>()
      const skips = new WeakMap<AsyncIo, number>()
      return all(
        before<AsyncIo, [file: number, offsetBytes: number, page: number]>(AsyncIo.prototype, 'write', function (_file, _offset, page) {
          const { view } = this.queue.arena
          if (Superblock.get.magicHi(view, page * PAGE_BYTES) !== SUPERBLOCK_MAGIC.hi) return
          const tail = Superblock.get.tailSegment(view, page * PAGE_BYTES)
          // its own flush, and that of the round of the destage
          if (tail > (tails.get(this) ?? tail)) skips.set(this, 2)
          tails.set(this, tail)
        }),
        method<AsyncIo, [number], Promise<number>>(
          AsyncIo.prototype,
          'fdatasync',
          (original) =>
            function (file) {
              const left = skips.get(this) ?? 0
              if (left === 0) return original.call(this, file)
              skips.set(this, left - 1)
              return Promise.resolve(0)
            },
        ),
      )
    },
  },
  {
    name: 'tables-before-journal',
    bug: 'tables are written of what the journal does not yet hold on stable storage',
    seedsMax: 40,
    plan: { focus: 'destage' },
    plant: () =>
      method<Journal, [], Promise<boolean>>(
        Journal.prototype,
        'durable',
        (original) =>
          function () {
            return this.stagedSegment > this.tailSegment ? Promise.resolve(true) : original.call(this)
          },
      ),
  },
  {
    name: 'freed-under-capture',
    bug: 'a segment of the journal is freed while the source of a resync reads in it',
    seedsMax: 20,
    plan: { focus: 'captures' },
    plant: () => replace(DiskStore.prototype, 'capturesReleased', () => () => Promise.resolve()),
  },
  {
    name: 'freed-under-read',
    bug: 'segments are freed, and extents written over, while reads of them are under way',
    seedsMax: 20,
    plan: { focus: 'captures' },
    plant: () => replace(Reader.prototype, 'quiesce', () => () => Promise.resolve()),
  },
  {
    name: 'removed-block-stays',
    bug: 'a returning replica keeps blocks that were removed while it was away',
    seedsMax: 10,
    plan: { focus: 'removals-away' },
    plant: () =>
      method<DiskStore, [BlockInstall], number>(
        DiskStore.prototype,
        'install',
        (original) =>
          function (given) {
            return original.call(this, given.remove && given.pages.length === 0 ? { ...given, remove: false } : given)
          },
      ),
  },
  {
    name: 'read-of-another-version',
    bug: 'a read is answered in whatever version its chain has by then',
    seedsMax: 10,
    plan: { focus: 'churn' },
    plant: () => {
      const planes = new WeakMap<object, DataPlane>()
      return all(
        before<DataPlane, []>(DataPlane.prototype, 'start', function () {
          for (const store of this.replicas.stores) planes.set(store, this)
        }),
        method<DiskStore, [number, number, number, number, (row: number, status: number, extra: number) => void, number], void>(
          DiskStore.prototype,
          'read',
          (original) =>
            function (block, firstPage, pageCount, bufferPage, done, row) {
              const plane = planes.get(this)
              const later: typeof done = (...answer) => {
                const reads = plane?.reads.reads
                if (plane && reads?.isUsed(row) && reads.phase[row] === 1) {
                  const slot = reads.slot[row]!
                  if (plane.table.ownState[slot] === ReplicaState.SERVING) reads.chainVersion[row] = plane.table.version[slot]!
                }
                done(...answer)
              }
              original.call(this, block, firstPage, pageCount, bufferPage, later, row)
            },
        ),
      )
    },
  },
  {
    name: 'granted-though-held',
    bug: 'a new session of a peer is granted all rows, whatever it holds from earlier ones',
    seedsMax: 15,
    plan: { profile: 'swarm' },
    plant: () => {
      const held = new WeakMap<Credits, Float64Array>()
      const count = (credits: Credits, peer: number, hop: number, change: number) => {
        const rows = held.get(credits) ?? new Float64Array(4096)
        rows[peer * HOPS + hop]! += change
        held.set(credits, rows)
      }
      return all(
        method<Credits, [number, number, number], boolean>(
          Credits.prototype,
          'receive',
          (original) =>
            function (peer, hop, bytes) {
              const isTaken = original.call(this, peer, hop, bytes)
              if (isTaken) count(this, peer, hop, 1)
              return isTaken
            },
        ),
        before<Credits, [number, number, number]>(Credits.prototype, 'release', function (peer, hop) {
          count(this, peer, hop, -1)
        }),
        method<Credits, [number, number], number>(
          Credits.prototype,
          'grantRows',
          (original) =>
            function (peer, hop) {
              return original.call(this, peer, hop) + (held.get(this)?.[peer * HOPS + hop] ?? 0)
            },
        ),
      )
    },
  },
]

export function canaryOf(name: string): Canary | undefined {
  return CANARIES.find((canary) => canary.name === name)
}
