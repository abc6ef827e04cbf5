/**
 * The reactor's own copy of the replicated table: chains in typed arrays, nodes, disks, volumes; and its lease.
 * Changed between turns by messages of the control plane, read by every operation. Knows nothing of what a change means: `replica.ts` does.
 *
 * Invariants: a slot's version never goes back; a lease is used only once the table is at the revision its grant named (protocol 28).
 */
import { assert } from '../base/assert.ts'
import type { DiskNumber, Incarnation, NodeNumber, TableRevision, VolumeNumber } from '../base/ids.ts'
import { BLOCK_BYTES, CLOCK_DRIFT_MAX } from '../base/units.ts'
import { CHAIN_ENTRIES_MAX, inWritePath, isMember, ReplicaState } from '../placement/chain.ts'
import type { TableMessage, TableNode, TableVolume } from '../placement/messages.ts'

/** `ownStore` of a slot without a replica here. */
export const NO_STORE = 255
const PACKED_CHAIN = 3
const PACKED_ENTRY = 5

export interface Identity {
  readonly clusterId: string
  readonly node: NodeNumber
  readonly incarnation: Incarnation
  readonly reactor: number
}

export class ChainTable {
  readonly identity: Identity
  /** Disks of this reactor, by store index. */
  readonly ownDisks: readonly DiskNumber[]
  /** 0: no table yet. */
  revision = 0 as TableRevision
  slotCount = 0
  nodes = new Map<number, TableNode>()
  volumes = new Map<number, TableVolume>()
  /** Volumes that are larger than other nodes may know: how large those know them to be, at least, and until when. */
  #grown = new Map<number, { readonly knownBytes: number; readonly untilMs: number }>()
  /** Highest number ever given, as far as the tables so far tell: numbers rise and are never used again. */
  #newestVolume = 0
  #volumesByName = new Map<string, TableVolume>()
  #diskNodes = new Map<number, NodeNumber>()

  // per slot
  /** 0: unknown. */
  version = new Int32Array(0)
  /** Index of the disk whose entry is this reactor's, or NO_STORE. */
  ownStore = new Uint8Array(0)
  /** State of the own entry as rule 3 has it; OFFLINE without one. */
  ownState = new Uint8Array(0)
  ownSince = new Int32Array(0)
  /** Position in the chain: the hop number of what is forwarded to it. */
  ownPosition = new Uint8Array(0)
  /** Node numbers and disks; 0: none. The head may be DRAINING. */
  headNode = new Int32Array(0)
  headState = new Uint8Array(0)
  /** Replicas that hold everything acknowledged. */
  copies = new Uint8Array(0)
  successorNode = new Int32Array(0)
  successorDisk = new Int32Array(0)
  predecessorNode = new Int32Array(0)
  predecessorDisk = new Int32Array(0)
  entryCount = new Uint8Array(0)
  /** Entry i of slot s at s * CHAIN_ENTRIES_MAX + i. */
  entryNode = new Int32Array(0)
  entryDisk = new Int32Array(0)
  entryState = new Uint8Array(0)
  /** 1: the chain counts on an earlier process of this node. */
  namesEarlier = new Uint8Array(0)

  #leaseUntilMs = -1
  #leaseEnded = false
  #grantUntilMs = -1
  #grantRevision = 0

  constructor(identity: Identity, ownDisks: readonly DiskNumber[]) {
    this.identity = identity
    this.ownDisks = ownDisks
  }

  /** Takes over everything newer; `changed` gets the slots whose version rose. `nowMs`: the clock, not before the message was there. */
  apply(message: TableMessage, changed: number[], nowMs: number): void {
    if (this.slotCount === 0) this.#size(message.slotCount)
    assert(message.slotCount === this.slotCount, `table with ${message.slotCount} slots, this reactor has ${this.slotCount}`)
    if (message.nodes) this.nodes = new Map(message.nodes.map((node) => [node.node, node]))
    if (message.disks) this.#diskNodes = new Map(message.disks.map((disk) => [disk.disk, disk.node]))
    if (message.volumes) {
      this.#noteGrown(message.volumes, message.leaseMsMax ?? 0, nowMs)
      this.volumes = new Map(message.volumes.map((volume) => [volume.volume, volume]))
      this.#volumesByName = new Map(message.volumes.map((volume) => [volume.name, volume]))
      this.#newestVolume = Math.max(this.#newestVolume, (message.nextVolume ?? 1) - 1, ...this.volumes.keys())
    }
    const packed = message.chains
    let at = 0
    while (at < packed.length) {
      const slot = packed[at]!
      const version = packed[at + 1]!
      const count = packed[at + 2]!
      const end = at + PACKED_CHAIN + count * PACKED_ENTRY
      assert(
        slot >= 0 && slot < this.slotCount && count >= 0 && count <= CHAIN_ENTRIES_MAX && end <= packed.length,
        `table: chain of slot ${slot} is malformed`,
      )
      if (version > this.version[slot]!) {
        this.#setChain(slot, version, count, packed, at + PACKED_CHAIN)
        changed.push(slot)
      }
      at = end
    }
    if (message.revision > this.revision) this.revision = message.revision
    if (this.#grantRevision <= this.revision && this.#grantUntilMs > this.#leaseUntilMs) this.#leaseUntilMs = this.#grantUntilMs
  }

  /** No node can have missed this table for longer than its lease (protocol 28). One that is not known here is new, or this process is. */
  #noteGrown(volumes: readonly TableVolume[], leaseMsMax: number, nowMs: number): void {
    const before = this.#grown
    this.#grown = new Map()
    for (const { volume, sizeBytes } of volumes) {
      const ownBytes = this.volumes.get(volume)?.sizeBytes ?? 0
      const earlier = before.get(volume)
      const isDoubted = earlier !== undefined && nowMs < earlier.untilMs
      if (sizeBytes > ownBytes) {
        const knownBytes = isDoubted ? earlier.knownBytes : ownBytes
        this.#grown.set(volume, { knownBytes, untilMs: nowMs + leaseMsMax * (1 + CLOCK_DRIFT_MAX) })
      } else if (isDoubted) this.#grown.set(volume, earlier)
    }
  }

  /** Whether each node that holds a lease knows that the volume, which is in this table, has that block. */
  isKnownToAll(volume: VolumeNumber, index: number, nowMs: number): boolean {
    const grown = this.#grown.get(volume)
    return grown === undefined || nowMs >= grown.untilMs || index < Math.ceil(grown.knownBytes / BLOCK_BYTES)
  }

  /** This process serves nothing any more, whatever is granted: the coordinator goes on without it as soon as it is told. */
  endLease(): void {
    this.#leaseUntilMs = 0
    this.#grantUntilMs = 0
    this.#leaseEnded = true
  }

  grantLease(untilMs: number, revision: number): void {
    if (this.#leaseEnded) return
    if (revision <= this.revision) {
      this.#leaseUntilMs = Math.max(this.#leaseUntilMs, untilMs)
    } else {
      this.#grantUntilMs = untilMs
      this.#grantRevision = revision
    }
  }

  leaseValid(nowMs: number): boolean {
    return nowMs < this.#leaseUntilMs
  }

  get leaseUntilMs(): number {
    return this.#leaseUntilMs
  }

  volumeByName(name: string): TableVolume | undefined {
    return this.#volumesByName.get(name)
  }

  volumeNames(): string[] {
    return [...this.#volumesByName.keys()]
  }

  isSyncWhenWrite(volume: VolumeNumber | number): boolean {
    return this.volumes.get(volume)?.syncWhenWrite ?? true
  }

  /** There was a volume of that number. What is unknown and not deleted is newer than this table. */
  isDeleted(volume: number): boolean {
    return volume <= this.#newestVolume && !this.volumes.has(volume)
  }

  nodeOfDisk(disk: number): NodeNumber | undefined {
    return this.#diskNodes.get(disk)
  }

  isHead(slot: number): boolean {
    return this.ownState[slot] === ReplicaState.SERVING && this.ownPosition[slot] === 0
  }

  isOwnMember(slot: number): boolean {
    return this.ownState[slot]! <= ReplicaState.DRAINING
  }

  /** State of the disk's entry in the chain, whoever's process it means; undefined: it has none. */
  stateOf(slot: number, disk: number): ReplicaState | undefined {
    const base = slot * CHAIN_ENTRIES_MAX
    for (let e = base; e < base + this.entryCount[slot]!; e++) if (this.entryDisk[e] === disk) return this.entryState[e] as ReplicaState
    return undefined
  }

  /** Whether the chain names a replica on the node, in whatever state. */
  hasEntry(slot: number, node: number): boolean {
    for (let i = 0; i < this.entryCount[slot]!; i++) if (this.entryNode[slot * CHAIN_ENTRIES_MAX + i] === node) return true
    return false
  }

  /** Whether the node has a SERVING or DRAINING replica of the slot. */
  hasMember(slot: number, node: number): boolean {
    for (let i = 0; i < this.entryCount[slot]!; i++) {
      const e = slot * CHAIN_ENTRIES_MAX + i
      if (this.entryNode[e] === node && isMember(this.entryState[e] as ReplicaState)) return true
    }
    return false
  }

  #size(slotCount: number): void {
    assert(slotCount > 0 && slotCount <= 1 << 20 && (slotCount & (slotCount - 1)) === 0, `${slotCount} slots`)
    this.slotCount = slotCount
    this.version = new Int32Array(slotCount)
    this.ownStore = new Uint8Array(slotCount).fill(NO_STORE)
    this.ownState = new Uint8Array(slotCount).fill(ReplicaState.OFFLINE)
    this.ownSince = new Int32Array(slotCount)
    this.ownPosition = new Uint8Array(slotCount)
    this.headNode = new Int32Array(slotCount)
    this.headState = new Uint8Array(slotCount)
    this.copies = new Uint8Array(slotCount)
    this.successorNode = new Int32Array(slotCount)
    this.successorDisk = new Int32Array(slotCount)
    this.predecessorNode = new Int32Array(slotCount)
    this.predecessorDisk = new Int32Array(slotCount)
    this.entryCount = new Uint8Array(slotCount)
    this.entryNode = new Int32Array(slotCount * CHAIN_ENTRIES_MAX)
    this.entryDisk = new Int32Array(slotCount * CHAIN_ENTRIES_MAX)
    this.entryState = new Uint8Array(slotCount * CHAIN_ENTRIES_MAX)
    this.namesEarlier = new Uint8Array(slotCount)
  }

  #setChain(slot: number, version: number, count: number, packed: Int32Array, at: number): void {
    const base = slot * CHAIN_ENTRIES_MAX
    let own = -1
    let copies = 0
    this.namesEarlier[slot] = 0
    for (let i = 0; i < count; i++) {
      const e = at + i * PACKED_ENTRY
      const isOwnNode = packed[e + 1] === this.identity.node
      if (isOwnNode && inWritePath(packed[e + 2] as ReplicaState) && packed[e + 4]! >>> 0 !== this.identity.incarnation) this.namesEarlier[slot] = 1
      this.entryDisk[base + i] = packed[e]!
      this.entryNode[base + i] = packed[e + 1]!
      this.entryState[base + i] = packed[e + 2]!
      if (isMember(packed[e + 2] as ReplicaState)) copies++
      if (own < 0 && isOwnNode && this.ownDisks.includes(packed[e]! as DiskNumber)) own = i
    }
    this.version[slot] = version
    this.entryCount[slot] = count
    this.copies[slot] = copies
    const first = count > 0 ? (packed[at + 2]! as ReplicaState) : ReplicaState.OFFLINE
    this.headNode[slot] = count > 0 && isMember(first) ? packed[at + 1]! : 0
    this.headState[slot] = first
    this.ownStore[slot] = own < 0 ? NO_STORE : this.ownDisks.indexOf(packed[at + own * PACKED_ENTRY]! as DiskNumber)
    this.ownPosition[slot] = Math.max(own, 0)
    this.successorNode[slot] = this.successorDisk[slot] = this.predecessorNode[slot] = this.predecessorDisk[slot] = 0
    if (own < 0) {
      this.ownState[slot] = ReplicaState.OFFLINE
      this.ownSince[slot] = 0
      return
    }
    const e = at + own * PACKED_ENTRY
    const state = packed[e + 2]! as ReplicaState
    const isOurs = !inWritePath(state) || packed[e + 4]! >>> 0 === this.identity.incarnation
    this.ownState[slot] = isOurs ? state : ReplicaState.OFFLINE
    this.ownSince[slot] = packed[e + 3]!
    if (!inWritePath(this.ownState[slot] as ReplicaState)) return
    if (own > 0) {
      this.predecessorDisk[slot] = packed[e - PACKED_ENTRY]!
      this.predecessorNode[slot] = packed[e - PACKED_ENTRY + 1]!
    }
    if (own + 1 < count && inWritePath(packed[e + PACKED_ENTRY + 2]! as ReplicaState)) {
      this.successorDisk[slot] = packed[e + PACKED_ENTRY]!
      this.successorNode[slot] = packed[e + PACKED_ENTRY + 1]!
    }
  }
}
