/** Branded identities: two numbers of different meaning do not mix. */

declare const brand: unique symbol
export type Brand<T, B extends string> = T & { readonly [brand]: B }

/** Node id as in the configuration (`cluster.node_id`), e.g. "node-1". */
export type NodeId = Brand<string, 'NodeId'>
/** Small dense number a node gets from the cluster when it joins; never reused; > 0. Used on the wire, in chains, in Raft (as the Raft id). */
export type NodeNumber = Brand<number, 'NodeNumber'>
/** Small dense number of a disk, given by the cluster; never reused; > 0. A replica is named by its disk: one replica of a slot per disk. */
export type DiskNumber = Brand<number, 'DiskNumber'>
/** Start number of one node process (u32), from Raft: each start of a process registers a higher one. */
export type Incarnation = Brand<number, 'Incarnation'>
/** Index of a slot, 0 .. slotCount - 1. One chain per slot. */
export type SlotIndex = Brand<number, 'SlotIndex'>
/** Version of one slot's chain: 24 bits, starts at 1. */
export type ChainVersion = Brand<number, 'ChainVersion'>
/** Revision of the whole replicated table (Raft apply index of the last change that touches it), u53. */
export type TableRevision = Brand<number, 'TableRevision'>
/** Volume number, never reused; the `family` of its blocks; > 0. */
export type VolumeNumber = Brand<number, 'VolumeNumber'>

export const NODE_NONE = 0 as NodeNumber
