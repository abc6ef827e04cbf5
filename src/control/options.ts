/** What `src/node` (or the simulator) gives to the control plane of one node, and what it gets back. */
import type { DiskNumber, Incarnation, NodeNumber } from '../base/ids.ts'
import type { ControlEnv } from '../env/control.ts'
import type { RaftCoreFactory } from '../env/raft-core.ts'
import type { ControlPort } from '../placement/messages.ts'
import type { RegisterDisk } from './ops/node-register.ts'
import type { NodeAddresses, SettingValue } from './state.ts'

/** HMAC-SHA-256: 32 bytes. */
export type Hmac = (key: Uint8Array, bytes: Uint8Array) => Uint8Array

export interface ConfigEntry {
  readonly key: string
  readonly value: unknown
  /** "default", or the file it comes from. */
  readonly origin: string
  readonly hot: boolean
  readonly description: string
}

export interface ControlConfig {
  /** cluster.node_id, cluster.cluster_id */
  readonly nodeId: string
  readonly clusterId: string
  /** Where gRPC listens. */
  readonly listen: { readonly host: string; readonly port: number }
  /** What others are told. A port of 0 in `grpc` is replaced by the one bound; `data` and `nbd` by what the data plane reports. */
  readonly addresses: NodeAddresses
  readonly zone: string
  readonly rack: string
  readonly version: string
  /** Highest feature level of commands that this program applies: FEATURE_LEVEL, but where a program of an earlier version is simulated. */
  readonly featureMax?: number
  readonly dataDir: string
  /** Of the running kernel. */
  readonly bootId: string
  readonly pid: number
  /** All disks of the configuration; a uuid names a disk for good. */
  readonly disks: readonly RegisterDisk[]
  readonly replicas: number
  readonly syncWhenWrite: boolean
  readonly slotCount: number
  readonly virtualNodesPerPhysical?: number
  /** Length L of a lease. Default 2000. */
  readonly leaseMs?: number
  /** Without a word of a leader for one to two of these a node stands for election. At most half a lease is taken: the leases of the others must not end meanwhile. */
  readonly electionTimeoutMs?: number
  readonly heartbeat: {
    readonly host: string
    readonly port: number
    /** '' = unicast only. */
    readonly multicastGroup: string
    readonly multicastPort: number
    readonly intervalMs: number
  }
  /** The configuration as `xsan config show` lists it. */
  readonly entries: readonly ConfigEntry[]
  /** Of a key of the schema; throws NOT_FOUND naming the nearest one. `parse` throws INVALID_PARAM. */
  describeKey(key: string): { readonly hot: boolean; readonly description: string; parse(value: unknown): unknown }
}

/** What the data plane of this process starts with. */
export interface Registration {
  readonly clusterId: string
  readonly clusterUuid: string
  /** Members prove with it that they are members: key of the hello between data planes (32 bytes). */
  readonly clusterKey: Uint8Array
  readonly node: NodeNumber
  readonly nodeId: string
  readonly incarnation: Incarnation
  readonly slotCount: number
  /** Number of each disk of `ControlConfig.disks`, in that order. */
  readonly disks: readonly DiskNumber[]
}

export interface ControlOptions {
  readonly env: ControlEnv
  readonly config: ControlConfig
  readonly createCore: RaftCoreFactory
  readonly hmac: Hmac
  /**
   * Called once, when this process is registered: starts the reactor and gives the port to it. The first message is the whole table.
   * Messages sent before the reactor listens must wait in the port.
   */
  openDataPlane(registration: Registration): Promise<ControlPort>
  /** Do all reactors turn? The lease is withheld while not. */
  reactorTurning(): boolean
  /** Hot settings (of the node's file, overlaid by the cluster's) as they are now, at start and at each change. The reactor is told by the port as well. */
  onSettings?(settings: Readonly<Record<string, SettingValue>>): void
  /** Writes the flight recorders to a file and returns its path; throws WRITE_FAILED. Absent where there are none. */
  dumpFlight?(reason: string): string
  /** The process has to end: our own storage failed, or this node was removed. Called once. */
  onFatal(error: unknown): void
}

export interface ControlStatus {
  /** uninitialized | starting | ready | stopping | failed */
  readonly state: 'uninitialized' | 'starting' | 'ready' | 'stopping' | 'failed'
  /** What runs, or failed, and what it waits for. */
  readonly stage: string
  readonly detail: string
  readonly nodeId: string
  readonly node: NodeNumber
  readonly incarnation: Incarnation
  readonly clusterId: string
  readonly clusterUuid: string
  /** Node id; '' = none known. */
  readonly leader: string
  /** Left of the lease, ms; 0: none. */
  readonly leaseMs: number
}
