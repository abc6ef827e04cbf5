/**
 * Bugs planted by name, from outside: each replaces one method by one that breaks one promise. The simulator has to find each within a
 * stated number of seeds, which is itself a test: so the checkers cannot rot. They change the classes of this process until undone.
 */
import { ChainTable } from '../../src/chain/table.ts'
import { SimFile } from '../../src/env/sim/disk.ts'
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

/** Replaces a property of a prototype until undone. */
function replace<T extends object, K extends keyof T>(target: T, key: K, make: (original: T[K]) => T[K]): () => void {
  const descriptor = Object.getOwnPropertyDescriptor(target, key)
  if (!descriptor || typeof descriptor.value !== 'function') throw new Error(`canary: there is no method ${String(key)} to replace`)
  Object.defineProperty(target, key, { ...descriptor, value: make(descriptor.value as T[K]) })
  return () => {
    Object.defineProperty(target, key, descriptor)
  }
}

export const CANARIES: readonly Canary[] = [
  {
    name: 'no-lease-check',
    bug: 'a node that is cut off or was frozen goes on answering after its lease has ended',
    seedsMax: 40,
    profile: 'brutal',
    plant: () => replace(ChainTable.prototype, 'leaseValid', () => () => true),
  },
  {
    name: 'flush-does-nothing',
    bug: 'the disk says that it flushed and did not: acknowledged writes vanish with the power',
    seedsMax: 20,
    profile: 'brutal',
    plant: () => replace(SimFile.prototype, 'flushed', () => () => undefined),
  },
]

export function canaryOf(name: string): Canary | undefined {
  return CANARIES.find((canary) => canary.name === name)
}
