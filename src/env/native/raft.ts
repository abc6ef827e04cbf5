/** Loads the Raft core of the addon (native/raft) as a {@link RaftCoreFactory}. Shared by the real and the simulated environment: it does no I/O. */

import { messageOf } from '../../base/errors.ts'
import type { NodeNumber } from '../../base/ids.ts'
import type { LogPosition, MemberChange, Members, RaftCore, RaftCoreFactory, RaftCoreOptions, RaftLightReady, RaftReady, RaftStatus } from '../raft-core.ts'
import { RaftRefused, RaftWentBack } from '../raft-core.ts'
import { loadAddon } from './addon.ts'

/** The class as napi gives it: an absent value is null, refused messages are a returned reason. */
interface NativeRaftCore extends Omit<RaftCore, 'step' | 'propose' | 'proposeMembers'> {
  step(from: number, message: Uint8Array, random: number): string | null
  propose(data: Uint8Array): LogPosition | null
  proposeMembers(changes: readonly MemberChange[]): LogPosition | null
}
type NativeRaft = { readonly RaftCore: new (options: RaftCoreOptions) => NativeRaftCore }

/** The crate's panic at a heartbeat: a leader names no commit index beyond what the follower has acknowledged to it. */
const WENT_BACK = /to_commit (\d+) is out of range \[last_index (\d+)\]/

class LoadedRaftCore implements RaftCore {
  readonly #native: NativeRaftCore

  constructor(native: NativeRaftCore) {
    this.#native = native
  }

  tick(random: number): void {
    this.#native.tick(random)
  }

  step(from: NodeNumber, message: Uint8Array, random: number): void {
    const refused = this.#step(from, message, random)
    if (refused !== null) throw new RaftRefused(refused)
  }

  #step(from: NodeNumber, message: Uint8Array, random: number): string | null {
    try {
      return this.#native.step(from, message, random)
    } catch (error) {
      const [, acknowledged, last] = WENT_BACK.exec(messageOf(error)) ?? []
      if (last === undefined) throw error
      throw new RaftWentBack(`the log ends at entry ${last}, and up to ${acknowledged} this node has acknowledged`, { cause: error })
    }
  }

  propose(data: Uint8Array): LogPosition | undefined {
    return this.#native.propose(data) ?? undefined
  }

  proposeMembers(changes: readonly MemberChange[]): LogPosition | undefined {
    return this.#native.proposeMembers(changes) ?? undefined
  }

  applyMembers(data: Uint8Array): Members {
    return this.#native.applyMembers(data)
  }

  readIndex(context: Uint8Array): void {
    this.#native.readIndex(context)
  }

  campaign(random: number): void {
    this.#native.campaign(random)
  }

  transferLeader(to: NodeNumber): void {
    this.#native.transferLeader(to)
  }

  dropLeader(random: number): void {
    this.#native.dropLeader(random)
  }

  reportUnreachable(node: NodeNumber): void {
    this.#native.reportUnreachable(node)
  }

  reportSnapshot(node: NodeNumber, received: boolean): void {
    this.#native.reportSnapshot(node, received)
  }

  hasReady(): boolean {
    return this.#native.hasReady()
  }

  ready(): RaftReady {
    return this.#native.ready()
  }

  advance(): RaftLightReady {
    return this.#native.advance()
  }

  advanceApply(): void {
    this.#native.advanceApply()
  }

  compact(index: number): LogPosition {
    return this.#native.compact(index)
  }

  get logBytes(): number {
    return this.#native.logBytes
  }

  get snapshotWanted(): boolean {
    return this.#native.snapshotWanted
  }

  provideSnapshot(snapshot: { index: number; members: Members; data: Uint8Array }): void {
    this.#native.provideSnapshot(snapshot)
  }

  status(): RaftStatus {
    return this.#native.status()
  }

  close(): void {
    this.#native.close()
  }
}

export const createRaftCore: RaftCoreFactory = (options) => new LoadedRaftCore(new (loadAddon() as unknown as NativeRaft).RaftCore(options))
