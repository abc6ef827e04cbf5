/**
 * Who this node is, kept outside the Raft log because it is needed to open it.
 *
 *   node/identity   JSON: format, cluster id and uuid, key, own number, whether it founded the cluster, members to speak Raft with
 *   node/join-id    UTF-8: by what the cluster knows this directory again when it asks to join a second time
 *   node/starts     UTF-8: how many processes of this directory have begun as a member
 */
import { XsanError } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import type { Kv } from '../env/control.ts'

const KEY = 'node/identity'
const JOIN_ID_KEY = 'node/join-id'
const STARTS_KEY = 'node/starts'
const FORMAT = 1
/** As cluster.node_id of the configuration. */
export const NODE_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/

export interface Identity {
  readonly clusterId: string
  readonly clusterUuid: string
  /** Hex. */
  readonly clusterKey: string
  readonly node: NodeNumber
  readonly nodeId: string
  /** Hex: signs this node's heartbeats. */
  readonly nodeKey: string
  readonly founder: boolean
  readonly slotCount: number
  /** grpc addresses of members when it joined: used until the replicated state is here. */
  readonly members: ReadonlyArray<{ readonly node: NodeNumber; readonly grpc: string }>
}

/** Throws WRONG_CLUSTER when the data directory belongs to another cluster or node than the configuration names. */
export async function loadIdentity(
  kv: Kv,
  config: { readonly nodeId: string; readonly clusterId: string; readonly dataDir: string },
): Promise<Identity | undefined> {
  const stored = await storedText(kv, KEY)
  if (stored === undefined) return undefined
  const { format, ...identity } = JSON.parse(stored) as Identity & { format: number }
  if (format !== FORMAT)
    throw new XsanError('DISK_INCOMPATIBLE', `${config.dataDir} has the form ${format}, this program reads ${FORMAT}`, 'Use the version that wrote it.')
  const nextStep = 'Correct cluster.cluster_id, cluster.node_id or cluster.data_dir in the configuration.'
  if (identity.clusterId !== config.clusterId) {
    throw new XsanError(
      'WRONG_CLUSTER',
      `${config.dataDir} belongs to the cluster ${identity.clusterId}, the configuration names ${config.clusterId}`,
      nextStep,
    )
  }
  if (identity.nodeId !== config.nodeId) {
    throw new XsanError('WRONG_CLUSTER', `${config.dataDir} belongs to the node ${identity.nodeId}, the configuration names ${config.nodeId}`, nextStep)
  }
  return identity
}

/** On stable storage when it resolves: a request to join that was sent before a crash and one sent after it name the same directory. */
export async function joinIdOf(kv: Kv, draw: () => string): Promise<string> {
  const stored = await storedText(kv, JOIN_ID_KEY)
  if (stored !== undefined) return stored
  const joinId = draw()
  await kv.batch([{ type: 'put', key: JOIN_ID_KEY, value: new TextEncoder().encode(joinId) }])
  return joinId
}

/** The number of this start, higher than that of any process before; on stable storage when it resolves. */
export async function countStart(kv: Kv): Promise<number> {
  const start = Number((await storedText(kv, STARTS_KEY)) ?? 0) + 1
  await kv.batch([{ type: 'put', key: STARTS_KEY, value: new TextEncoder().encode(String(start)) }])
  return start
}

export async function storeIdentity(kv: Kv, identity: Identity): Promise<void> {
  await kv.batch([{ type: 'put', key: KEY, value: new TextEncoder().encode(JSON.stringify({ format: FORMAT, ...identity })) }])
}

/** The value of that key and no longer one; undefined: there is none. */
export async function storedText(kv: Kv, key: string): Promise<string | undefined> {
  const stored = (await kv.scan(key)).find((entry) => entry.key === key)
  return stored === undefined ? undefined : new TextDecoder().decode(stored.value)
}
