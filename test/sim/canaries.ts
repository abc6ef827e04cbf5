/**
 * Bugs planted by name, from outside: each replaces one method by one that breaks one promise. The simulator has to find each within a
 * stated number of seeds, which is itself a test: so the checkers cannot rot. They change the classes of this process until undone.
 */
import { Status } from '../../src/base/status.ts'
import { Flushes } from '../../src/chain/flush.ts'
import { Replicas } from '../../src/chain/replica.ts'
import { SyncSession } from '../../src/chain/session.ts'
import { ChainTable } from '../../src/chain/table.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import { SimFile } from '../../src/env/sim/disk.ts'
import { ChannelRows } from '../../src/store/channel-rows.ts'
import type { Profile } from './faults.ts'

export interface Canary {
  readonly name: string
  /** What is broken. */
  readonly bug: string
  /** It is found within so many seeds of this profile, from seed 1. */
  readonly seedsMax: number
  readonly profile: Profile
  /** Plants it; returns what removes it. */
  plant(): () => void
}

type Method = (...args: never[]) => unknown

/** Replaces a method (or getter) of a prototype until undone. */
function replace<T extends object>(target: T, key: keyof T, make: (original: Method) => Method): () => void {
  const descriptor = Object.getOwnPropertyDescriptor(target, key)
  const original = (descriptor?.get ?? descriptor?.value) as Method | undefined
  if (!descriptor || typeof original !== 'function') throw new Error(`canary: there is no method ${String(key)} to replace`)
  const replaced = make(original)
  Object.defineProperty(target, key, descriptor.get ? { ...descriptor, get: replaced as () => unknown } : { ...descriptor, value: replaced })
  return () => {
    Object.defineProperty(target, key, descriptor)
  }
}

export const CANARIES: readonly Canary[] = [
  {
    name: 'no-lease-check',
    bug: 'a node that is cut off or was frozen goes on answering after its lease has ended',
    seedsMax: 60,
    profile: 'brutal',
    plant: () => replace(ChainTable.prototype, 'leaseValid', () => () => true),
  },
  {
    name: 'flush-does-nothing',
    bug: 'the disk says that it flushed and did not: acknowledged writes vanish with the power',
    seedsMax: 10,
    profile: 'brutal',
    plant: () => {
      const undo = [replace(SimFile.prototype, 'flushed', () => () => undefined), replace(SimFile.prototype, 'persisted', () => () => undefined)]
      return () => {
        for (const remove of undo) remove()
      }
    },
  },
  {
    name: 'checkpoint-without-flush',
    bug: 'the background work of the store does not wait for its flushes before it frees journal segments, and a mount not at all',
    seedsMax: 60,
    profile: 'brutal',
    plant: () => replace(AsyncIo.prototype, 'fdatasync', () => () => Promise.resolve(0)),
  },
  {
    name: 'flush-not-sent',
    bug: 'a flush of a volume with sync_when_write off answers without asking any replica',
    seedsMax: 200,
    profile: 'brutal',
    plant: () => replace(Flushes.prototype, 'flush', () => (_volume: number, _deadlineMs: number, done: (status: number) => void) => done(Status.SUCCESS)),
  },
  {
    name: 'dedupe-off',
    bug: 'channel rows are not looked at: a write that is asked for again is ordered again',
    seedsMax: 60,
    profile: 'brutal',
    plant: () => replace(ChannelRows.prototype, 'lookup', () => () => -1),
  },
  {
    name: 'no-reforward',
    bug: 'a new chain version does not forward again what is staged and uncommitted',
    seedsMax: 60,
    profile: 'brutal',
    plant: () => replace(Replicas.prototype, 'reforward', () => () => undefined),
  },
  {
    name: 'up-to-date-too-early',
    bug: 'a returning replica reports that it is up to date before its blocks are installed',
    seedsMax: 30,
    profile: 'brutal',
    plant: () => replace(SyncSession.prototype, 'allInstalled', () => () => true),
  },
]

export function canaryOf(name: string): Canary | undefined {
  return CANARIES.find((canary) => canary.name === name)
}
