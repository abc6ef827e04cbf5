/**
 * The replicated state of the cluster: what every node holds alike, changed by commands of the Raft log alone (`ops/`).
 *
 * Invariants:
 * - Numbers of nodes, disks and volumes are never used again; an incarnation only rises.
 * - `revision` is the index of the last command that changed the table that reactors see (chains, nodes, disks, volumes); per slot and per
 *   list the revision of its own last change is kept, so that a delta can be cut for anybody.
 * - An operation checks everything before it changes anything: one that throws XsanError has changed nothing.
 *
 * Stored, one Kv value each (a snapshot is the same pairs in key order):
 *   state/meta             JSON: format, feature level, revisions, next numbers, cluster
 *   state/node/<8 hex>     JSON, likewise disk, volume; state/setting/<key>, state/token/<hash>, state/away/<8 hex>
 *   state/recent/<16 hex>  JSON: the result of a command that carried an id, by order
 *   state/chains/<4 hex>   64 slots: per slot revision f64, then the chains as `packChains` writes them, little-endian i32
 */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import type { DiskNumber, Incarnation, NodeNumber, SlotIndex, TableRevision, VolumeNumber } from '../base/ids.ts'
import type { StatusName } from '../base/status.ts'
import type { KvOp } from '../env/control.ts'
import { type Chain, DiskUse, packChains, unpackChains } from '../placement/chain.ts'

export const STATE_PREFIX = 'state/'
const STATE_FORMAT = 1
/** What this program can apply; a command of a higher level halts the node. */
export const FEATURE_LEVEL = 4
const SLOTS_PER_VALUE = 64
/** Results of commands that are kept to answer a repeated one. */
const RECENT_MAX = 512
/** Removed nodes that are known by their ids. */
const REMOVED_MAX = 256

export interface ClusterRecord {
  readonly id: string
  readonly uuid: string
  /** Hex, 32 bytes: nodes prove to each other with it that they are members. */
  readonly key: string
  readonly slotCount: number
  readonly createdAtMs: number
}

export interface NodeAddresses {
  /** "host:port" each; '' where there is none. */
  readonly grpc: string
  readonly data: string
  readonly nbd: string
  readonly nbdSocket: string
  readonly admin: string
}

export interface NodeRecord extends NodeAddresses {
  readonly node: NodeNumber
  readonly id: string
  /** The registered one; 0 = no process has registered yet. */
  readonly incarnation: Incarnation
  readonly zone: string
  readonly rack: string
  /** Hex, 32 bytes: signs its heartbeats. */
  readonly key: string
  /** leaving: being drained, to be removed when no chain names its disks. */
  readonly state: 'member' | 'leaving'
  readonly version: string
  readonly dataDir: string
  readonly bootId: string
  readonly featureMax: number
  /** For so long the registered process would grant leases, if it led; absent: not known. */
  readonly leaseMs?: number
  /** The highest start of its data directory that was registered; absent: none has told. */
  readonly start?: number
}

/** For how long a node is away, by the last note of a leader (`nodes.away`). */
export interface AwayRecord {
  /** Without a lease. */
  readonly downMs: number
  /** Without an answer to Raft. */
  readonly silentMs: number
}

export interface DiskRecord {
  readonly disk: DiskNumber
  readonly node: NodeNumber
  readonly uuid: string
  readonly path: string
  readonly type: string
  /** capacity | cache */
  readonly role: string
  readonly capacityBytes: number
  readonly state: 'ok' | 'leaving' | 'failed'
  readonly reason: string
}

export interface VolumeRecord {
  readonly volume: VolumeNumber
  readonly name: string
  readonly sizeBytes: number
  readonly replicas: number
  readonly minCopies: number
  readonly syncWhenWrite: boolean
  readonly readOnly: boolean
  readonly createdAtMs: number
  /** See TableVolume. */
  readonly losses?: number
}

export interface TokenRecord {
  /** SHA-256 or the like of the secret, hex. */
  readonly hash: string
  /** '' = any node. */
  readonly nodeId: string
  /** Wall clock, ms. */
  readonly expiresAtMs: number
  /** 0 = unused. */
  readonly usedBy: NodeNumber
  /** Of the directory that used it. */
  readonly joinId?: string
}

export type SettingValue = number | boolean | string

/** What an operation answers: plain JSON either way. */
export type CommandResult =
  | { readonly value: unknown; readonly error?: undefined }
  | { readonly value?: undefined; readonly error: { readonly status: StatusName; readonly message: string; readonly nextStep: string } }

interface Meta {
  format: number
  feature: number
  revision: number
  nodesRevision: number
  disksRevision: number
  volumesRevision: number
  settingsRevision: number
  nextNode: number
  nextDisk: number
  nextVolume: number
  nextRecent: number
  /** No lease is out that was granted for longer. */
  leaseMsMax: number
  /** Ids of the nodes that were removed last, in that order, without those that a newer node has taken. */
  removedIds: readonly string[]
  cluster: ClusterRecord | null
}

const NEW_META: Meta = {
  format: STATE_FORMAT,
  feature: 1,
  revision: 0,
  nodesRevision: 0,
  disksRevision: 0,
  volumesRevision: 0,
  settingsRevision: 0,
  nextNode: 1,
  nextDisk: 1,
  nextVolume: 1,
  nextRecent: 1,
  leaseMsMax: 0,
  removedIds: [],
  cluster: null,
}

const hex = (n: number, digits: number) => n.toString(16).padStart(digits, '0')
const encoder = new TextEncoder()
const decoder = new TextDecoder()

export class ClusterState {
  /** Commands up to this feature level can be applied. */
  readonly featureMax: number
  #meta: Meta = { ...NEW_META }
  #nodes = new Map<NodeNumber, NodeRecord>()
  #disks = new Map<DiskNumber, DiskRecord>()
  #volumes = new Map<VolumeNumber, VolumeRecord>()
  #volumesByName = new Map<string, VolumeRecord>()
  #settings = new Map<string, SettingValue>()
  #away = new Map<NodeNumber, AwayRecord>()
  #tokens = new Map<string, TokenRecord>()
  #recent = new Map<string, { id: string; result: CommandResult }>()
  #recentById = new Map<string, CommandResult>()
  #chains: Chain[] = []
  #slotRevisions = new Float64Array(0)
  /** Equal chains are one object, so that what is found out about one slot (its next chain, its packed form) is known of all like it. */
  readonly #chainByKey = new Map<string, Chain>()
  /** Each of these objects, with the number of slots that have it. */
  readonly #chainUses = new Map<Chain, { readonly key: string; slots: number }>()
  /** Objects handed in by the command being applied, and what they became: a node event hands in one for many slots. */
  readonly #handedIn = new Map<Chain, Chain>()
  /** Kv keys whose value changed since `takeOps`. */
  readonly #dirty = new Set<string>()
  /** Index of the command being applied. */
  #index = 0
  /** Not stored: processes that lost replicas in commands applied since `takeDropped`, or may have in those that a snapshot stands for. */
  #dropped: Array<{ node: NodeNumber; incarnation: Incarnation }> = []

  constructor(featureMax = FEATURE_LEVEL) {
    this.featureMax = featureMax
  }

  // ---- reading ----------------------------------------------------------------------------------------------------------

  get cluster(): ClusterRecord | undefined {
    return this.#meta.cluster ?? undefined
  }

  /** The cluster; CLUSTER_NOT_READY before `cluster init`. */
  get theCluster(): ClusterRecord {
    if (this.#meta.cluster === null) {
      throw new XsanError('CLUSTER_NOT_READY', 'there is no cluster yet', 'Start one with `xsan cluster init`, or join one with `xsan cluster join TOKEN`.')
    }
    return this.#meta.cluster
  }

  get featureLevel(): number {
    return this.#meta.feature
  }

  /**
   * What a new leader takes the leases of its predecessors to be: the longest that any process of this cluster has registered with. Never falls,
   * because leases that are still held outlive the registration of a process with a shorter one. 0: nobody has registered.
   */
  get leaseMsMax(): number {
    return this.#meta.leaseMsMax
  }

  get revision(): TableRevision {
    return this.#meta.revision as TableRevision
  }

  get nodesRevision(): number {
    return this.#meta.nodesRevision
  }

  get disksRevision(): number {
    return this.#meta.disksRevision
  }

  get volumesRevision(): number {
    return this.#meta.volumesRevision
  }

  get settingsRevision(): number {
    return this.#meta.settingsRevision
  }

  get nodes(): ReadonlyMap<NodeNumber, NodeRecord> {
    return this.#nodes
  }

  get disks(): ReadonlyMap<DiskNumber, DiskRecord> {
    return this.#disks
  }

  get volumes(): ReadonlyMap<VolumeNumber, VolumeRecord> {
    return this.#volumes
  }

  get settings(): ReadonlyMap<string, SettingValue> {
    return this.#settings
  }

  /** Nodes that are away, as last noted. */
  get away(): ReadonlyMap<NodeNumber, AwayRecord> {
    return this.#away
  }

  get tokens(): ReadonlyMap<string, TokenRecord> {
    return this.#tokens
  }

  /** By slot; empty until the first disks are there. */
  get chains(): readonly Chain[] {
    return this.#chains
  }

  /** Every chain that some slot has, once: there are few, so ask these first when all slots are meant. */
  get distinctChains(): Iterable<Chain> {
    return this.#chainUses.keys()
  }

  /** Whether a volume was ever created: before that no block can have been written. */
  get everHadVolumes(): boolean {
    return this.#meta.nextVolume > 1
  }

  slotRevision(slot: SlotIndex): number {
    return this.#slotRevisions[slot]!
  }

  nodeById(id: string): NodeRecord | undefined {
    for (const node of this.#nodes.values()) if (node.id === id) return node
    return undefined
  }

  /** By name, or by number. */
  findVolume(nameOrNumber: string): VolumeRecord | undefined {
    const byName = this.#volumesByName.get(nameOrNumber)
    if (byName !== undefined) return byName
    return /^\d{1,15}$/.test(nameOrNumber) ? this.#volumes.get(Number(nameOrNumber) as VolumeNumber) : undefined
  }

  /** What the cluster wants of a disk: for `nextChain`. */
  diskUse(disk: DiskNumber): DiskUse {
    const record = this.#disks.get(disk)
    if (record === undefined) return DiskUse.LEAVING
    if (record.state === 'failed') return DiskUse.FAILED
    return record.state === 'leaving' || this.#nodes.get(record.node)?.state !== 'member' ? DiskUse.LEAVING : DiskUse.NORMAL
  }

  /** Nodes on which replicas may be placed. */
  nodesWithDisks(): Set<NodeNumber> {
    const nodes = new Set<NodeNumber>()
    for (const { disk, node, role } of this.#disks.values()) if (role === 'capacity' && this.diskUse(disk) === DiskUse.NORMAL) nodes.add(node)
    return nodes
  }

  incarnation(node: NodeNumber): Incarnation {
    return this.#nodes.get(node)?.incarnation ?? (0 as Incarnation)
  }

  recentResult(id: string): CommandResult | undefined {
    return this.#recentById.get(id)
  }

  // ---- changing (operations only) ---------------------------------------------------------------------------------------

  /** Everything that changes from here on belongs to the command at `index`. */
  begin(index: number): void {
    assert(index > this.#index, `command ${index} applied after ${this.#index}`)
    this.#index = index
    this.#handedIn.clear()
  }

  setCluster(cluster: ClusterRecord): void {
    assert(this.#meta.cluster === null, 'a second cluster')
    this.#meta.cluster = cluster
    this.#dirty.add('meta')
  }

  setFeatureLevel(level: number): void {
    assert(level >= this.#meta.feature, 'the feature level goes back')
    this.#meta.feature = level
    this.#dirty.add('meta')
  }

  noteLease(leaseMs: number): void {
    if (leaseMs <= this.#meta.leaseMsMax) return
    this.#meta.leaseMsMax = leaseMs
    this.#dirty.add('meta')
  }

  /** Undefined while it is not known of all. */
  get longestRegisteredLeaseMs(): number | undefined {
    let longestMs = 0
    for (const { leaseMs, incarnation } of this.#nodes.values()) {
      if (incarnation === 0) continue
      if (leaseMs === undefined) return undefined
      longestMs = Math.max(longestMs, leaseMs)
    }
    return longestMs === 0 ? undefined : longestMs
  }

  settleLeases(leaseMs: number): void {
    if (leaseMs >= this.#meta.leaseMsMax) return
    this.#meta.leaseMsMax = leaseMs
    this.#dirty.add('meta')
  }

  /** It was a member once, and is none any more: numbers are never given again. */
  wasRemoved(node: NodeNumber): boolean {
    return node < this.#meta.nextNode && !this.nodes.has(node)
  }

  /** A node of that id was removed, not long ago, and no other has it. */
  wasRemovedById(id: string): boolean {
    return this.#meta.removedIds.includes(id)
  }

  takeNodeNumber(): NodeNumber {
    this.#dirty.add('meta')
    return this.#meta.nextNode++ as NodeNumber
  }

  takeDiskNumber(): DiskNumber {
    this.#dirty.add('meta')
    return this.#meta.nextDisk++ as DiskNumber
  }

  get nextVolume(): number {
    return this.#meta.nextVolume
  }

  takeVolumeNumber(): VolumeNumber {
    this.#dirty.add('meta')
    return this.#meta.nextVolume++ as VolumeNumber
  }

  putNode(record: NodeRecord): void {
    if (this.#meta.removedIds.includes(record.id)) this.#meta.removedIds = this.#meta.removedIds.filter((id) => id !== record.id)
    this.#nodes.set(record.node, record)
    this.#dirty.add(`node/${hex(record.node, 8)}`)
    this.#tableChanged('nodesRevision')
  }

  removeNode(node: NodeNumber): void {
    const id = this.#nodes.get(node)?.id
    if (id !== undefined) this.#meta.removedIds = [...this.#meta.removedIds.filter((other) => other !== id), id].slice(-REMOVED_MAX)
    this.#nodes.delete(node)
    this.#dirty.add(`node/${hex(node, 8)}`)
    this.putAway(node, { downMs: 0, silentMs: 0 })
    this.#tableChanged('nodesRevision')
  }

  putDisk(record: DiskRecord): void {
    this.#disks.set(record.disk, record)
    this.#dirty.add(`disk/${hex(record.disk, 8)}`)
    this.#tableChanged('disksRevision')
  }

  removeDisk(disk: DiskNumber): void {
    this.#disks.delete(disk)
    this.#dirty.add(`disk/${hex(disk, 8)}`)
    this.#tableChanged('disksRevision')
  }

  putVolume(record: VolumeRecord): void {
    this.#volumes.set(record.volume, record)
    this.#volumesByName.set(record.name, record)
    this.#dirty.add(`volume/${hex(record.volume, 8)}`)
    this.#tableChanged('volumesRevision')
  }

  removeVolume(volume: VolumeNumber): void {
    const record = this.#volumes.get(volume)
    if (record === undefined) return
    this.#volumes.delete(volume)
    this.#volumesByName.delete(record.name)
    this.#dirty.add(`volume/${hex(volume, 8)}`)
    this.#tableChanged('volumesRevision')
  }

  setSetting(key: string, value: SettingValue | null): void {
    if (value === null) this.#settings.delete(key)
    else this.#settings.set(key, value)
    this.#dirty.add(`setting/${key}`).add('meta')
    this.#meta.settingsRevision = this.#index
  }

  putAway(node: NodeNumber, away: AwayRecord): void {
    if (away.downMs > 0 || away.silentMs > 0) this.#away.set(node, away)
    else if (!this.#away.delete(node)) return
    this.#dirty.add(`away/${hex(node, 8)}`)
  }

  putToken(token: TokenRecord): void {
    this.#tokens.set(token.hash, token)
    this.#dirty.add(`token/${token.hash}`)
  }

  removeToken(hash: string): void {
    this.#tokens.delete(hash)
    this.#dirty.add(`token/${hash}`)
  }

  /** The first chains: one per slot. */
  createChains(chains: readonly Chain[]): void {
    assert(this.#chains.length === 0 && chains.length === this.theCluster.slotCount, 'chains are created once, all of them')
    this.#chains = chains.map((chain) => this.#use(chain))
    this.#slotRevisions = new Float64Array(chains.length).fill(this.#index)
    for (let group = 0; group * SLOTS_PER_VALUE < chains.length; group++) this.#dirty.add(`chains/${hex(group, 4)}`)
    this.#tableChanged()
  }

  setChain(slot: SlotIndex, chain: Chain): void {
    const old = this.#chains[slot]
    assert(old !== undefined && chain.version > old.version, `slot ${slot}: chain version ${chain.version} after ${old?.version}`)
    this.#chains[slot] = this.#use(chain)
    this.#unuse(old)
    this.#slotRevisions[slot] = this.#index
    this.#dirty.add(`chains/${hex(Math.floor(slot / SLOTS_PER_VALUE), 4)}`)
    this.#tableChanged()
  }

  /** One slot more has this chain: the object that stands for all equal ones. */
  #use(chain: Chain): Chain {
    let shared = this.#chainUses.has(chain) ? chain : this.#handedIn.get(chain)
    if (shared === undefined) {
      const key = keyOf(chain)
      shared = this.#chainByKey.get(key)
      if (shared === undefined) {
        shared = chain
        this.#chainByKey.set(key, chain)
        this.#chainUses.set(chain, { key, slots: 0 })
      }
      this.#handedIn.set(chain, shared)
    }
    const uses = this.#chainUses.get(shared)
    // handed in, given up, and handed in again within one command
    if (uses === undefined) {
      this.#handedIn.delete(chain)
      return this.#use(chain)
    }
    uses.slots++
    return shared
  }

  #unuse(chain: Chain): void {
    const uses = this.#chainUses.get(chain)!
    if (--uses.slots > 0) return
    this.#chainUses.delete(chain)
    this.#chainByKey.delete(uses.key)
  }

  /** That process was found dead, or without a lease, and left a chain: its peers close its connections. */
  noteDropped(node: NodeNumber, incarnation: Incarnation): void {
    this.#dropped.push({ node, incarnation })
  }

  /**
   * A snapshot stands for commands that this node has not seen, and tells nobody's death: its peers' connections are closed once, as those of the dropped
   * are. Who lives dials again. (That nothing waits in a socket beyond its life does not hang on this alone: a silent session ends in half a write's life, and
   * what is sent carries the other half. See src/chain/peers.ts.)
   */
  noteUnseen(): void {
    for (const { node, incarnation } of this.#nodes.values()) if (incarnation > 0) this.noteDropped(node, incarnation)
  }

  takeDropped(): ReadonlyArray<{ readonly node: NodeNumber; readonly incarnation: Incarnation }> {
    return this.#dropped.splice(0)
  }

  remember(id: string, result: CommandResult): void {
    const order = this.#meta.nextRecent++
    const key = hex(order, 16)
    this.#recent.set(key, { id, result })
    this.#recentById.set(id, result)
    this.#dirty.add(`recent/${key}`).add('meta')
    for (const [old, entry] of this.#recent) {
      if (this.#recent.size <= RECENT_MAX) break
      this.#recent.delete(old)
      this.#recentById.delete(entry.id)
      this.#dirty.add(`recent/${old}`)
    }
  }

  #tableChanged(list?: 'nodesRevision' | 'disksRevision' | 'volumesRevision'): void {
    this.#meta.revision = this.#index
    if (list !== undefined) this.#meta[list] = this.#index
    this.#dirty.add('meta')
  }

  // ---- storing ----------------------------------------------------------------------------------------------------------

  /** What has to be written for the changes since the last call. */
  takeOps(): KvOp[] {
    const ops: KvOp[] = []
    for (const key of [...this.#dirty].sort()) {
      const value = this.#valueOf(key)
      ops.push(value === undefined ? { type: 'delete', key: STATE_PREFIX + key } : { type: 'put', key: STATE_PREFIX + key, value })
    }
    this.#dirty.clear()
    return ops
  }

  /** All pairs, in key order. */
  pairs(): Array<{ key: string; value: Uint8Array }> {
    const keys = ['meta']
    for (let group = 0; group * SLOTS_PER_VALUE < this.#chains.length; group++) keys.push(`chains/${hex(group, 4)}`)
    for (const node of this.#nodes.keys()) keys.push(`node/${hex(node, 8)}`)
    for (const disk of this.#disks.keys()) keys.push(`disk/${hex(disk, 8)}`)
    for (const volume of this.#volumes.keys()) keys.push(`volume/${hex(volume, 8)}`)
    for (const key of this.#settings.keys()) keys.push(`setting/${key}`)
    for (const hash of this.#tokens.keys()) keys.push(`token/${hash}`)
    for (const node of this.#away.keys()) keys.push(`away/${hex(node, 8)}`)
    for (const key of this.#recent.keys()) keys.push(`recent/${key}`)
    return keys.sort().map((key) => ({ key: STATE_PREFIX + key, value: this.#valueOf(key)! }))
  }

  /** Replaces everything. `pairs` as `pairs()` gives them, or nothing for a new state. */
  load(pairs: ReadonlyArray<{ readonly key: string; readonly value: Uint8Array }>): void {
    this.#meta = { ...NEW_META }
    this.#nodes = new Map()
    this.#disks = new Map()
    this.#volumes = new Map()
    this.#volumesByName = new Map()
    this.#settings = new Map()
    this.#away = new Map()
    this.#tokens = new Map()
    this.#recent = new Map()
    this.#recentById = new Map()
    this.#chains = []
    this.#chainByKey.clear()
    this.#chainUses.clear()
    this.#handedIn.clear()
    this.#slotRevisions = new Float64Array(0)
    this.#dirty.clear()
    this.#index = 0
    const meta = pairs.find(({ key }) => key === `${STATE_PREFIX}meta`)
    if (meta !== undefined) {
      this.#meta = { ...NEW_META, ...(JSON.parse(decoder.decode(meta.value)) as Meta) }
      if (this.#meta.format !== STATE_FORMAT) {
        throw new XsanError(
          'DISK_INCOMPATIBLE',
          `the metadata has format ${this.#meta.format}, this program reads ${STATE_FORMAT}`,
          'Use the version that wrote it.',
        )
      }
      if (this.#meta.feature > this.featureMax) {
        throw new XsanError(
          'DISK_INCOMPATIBLE',
          `the cluster is at feature level ${this.#meta.feature}, this program knows ${this.featureMax}`,
          'Install a newer version.',
        )
      }
    }
    const slots: Array<{ slot: SlotIndex; chain: Chain; revision: number }> = []
    for (const { key, value } of [...pairs].sort((a, b) => (a.key < b.key ? -1 : 1))) {
      const [kind, name] = split(key.slice(STATE_PREFIX.length))
      if (kind === 'chains') slots.push(...decodeChains(value))
      else if (kind !== 'meta') this.#loadJson(kind, name, JSON.parse(decoder.decode(value)))
    }
    this.#chains = slots.map(({ chain }) => this.#use(chain))
    this.#handedIn.clear()
    this.#slotRevisions = Float64Array.from(slots, ({ revision }) => revision)
    slots.forEach(({ slot }, at) => {
      assert(slot === at, `stored chains: slot ${slot} at place ${at}`)
    })
  }

  #loadJson(kind: string, name: string, json: unknown): void {
    switch (kind) {
      case 'node': {
        const node = json as NodeRecord
        this.#nodes.set(node.node, node)
        return
      }
      case 'disk': {
        const disk = json as DiskRecord
        this.#disks.set(disk.disk, disk)
        return
      }
      case 'volume': {
        const volume = json as VolumeRecord
        this.#volumes.set(volume.volume, volume)
        this.#volumesByName.set(volume.name, volume)
        return
      }
      case 'setting':
        this.#settings.set(name, json as SettingValue)
        return
      case 'token':
        this.#tokens.set(name, json as TokenRecord)
        return
      case 'away':
        this.#away.set(Number.parseInt(name, 16) as NodeNumber, json as AwayRecord)
        return
      case 'recent': {
        const entry = json as { id: string; result: CommandResult }
        this.#recent.set(name, entry)
        this.#recentById.set(entry.id, entry.result)
        return
      }
      default:
        assert(false, `unknown part "${kind}" of the stored state`)
    }
  }

  #valueOf(key: string): Uint8Array | undefined {
    const [kind, name] = split(key)
    if (kind === 'chains') return encodeChains(Number.parseInt(name, 16) * SLOTS_PER_VALUE, this.#chains, this.#slotRevisions)
    const json = this.#jsonOf(kind, name)
    return json === undefined ? undefined : encoder.encode(JSON.stringify(json))
  }

  #jsonOf(kind: string, name: string): unknown {
    switch (kind) {
      case 'meta':
        return this.#meta
      case 'node':
        return this.#nodes.get(Number.parseInt(name, 16) as NodeNumber)
      case 'disk':
        return this.#disks.get(Number.parseInt(name, 16) as DiskNumber)
      case 'volume':
        return this.#volumes.get(Number.parseInt(name, 16) as VolumeNumber)
      case 'setting':
        return this.#settings.get(name)
      case 'token':
        return this.#tokens.get(name)
      case 'away':
        return this.#away.get(Number.parseInt(name, 16) as NodeNumber)
      default:
        return this.#recent.get(name)
    }
  }
}

function split(key: string): [kind: string, name: string] {
  const slash = key.indexOf('/')
  return slash < 0 ? [key, ''] : [key.slice(0, slash), key.slice(slash + 1)]
}

function keyOf({ version, entries }: Chain): string {
  let key = `${version}`
  for (const { disk, node, state, since, incarnation } of entries) key += `,${disk},${node},${state},${since},${incarnation}`
  return key
}

/** u32 slots, then f64 per slot, then the packed chains as i32; all little-endian. */
function encodeChains(from: number, chains: readonly Chain[], revisions: Float64Array): Uint8Array {
  const part = chains.slice(from, from + SLOTS_PER_VALUE)
  const packed = packChains(part.map((chain, i) => ({ slot: (from + i) as SlotIndex, chain })))
  const bytes = new Uint8Array(4 + 8 * part.length + 4 * packed.length)
  new DataView(bytes.buffer).setUint32(0, part.length, true)
  // typed arrays are little-endian on every machine this runs on; whole arrays at once, because a node event does this for all slots in one turn
  bytes.set(new Uint8Array(revisions.buffer, revisions.byteOffset + 8 * from, 8 * part.length), 4)
  bytes.set(new Uint8Array(packed.buffer, packed.byteOffset, packed.byteLength), 4 + 8 * part.length)
  return bytes
}

function decodeChains(bytes: Uint8Array): Array<{ slot: SlotIndex; chain: Chain; revision: number }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const count = view.getUint32(0, true)
  const words = (bytes.length - 4 - 8 * count) / 4
  assert(count <= SLOTS_PER_VALUE && Number.isInteger(words) && words >= 0, 'stored chains are cut short')
  const packed = new Int32Array(new Uint8Array(bytes.subarray(4 + 8 * count)).buffer)
  const chains = unpackChains(packed)
  assert(chains.length === count, `stored chains: ${chains.length} of ${count}`)
  return chains.map((entry, i) => ({ ...entry, revision: view.getFloat64(4 + 8 * i, true) }))
}
