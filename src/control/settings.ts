/** Settings of the whole cluster: what the replicated state says, else the given default. Keys are those of the configuration. */
import type { ClusterState } from './state.ts'

/** Static in the file of a node, but of the whole cluster once it exists: they change without a restart. */
export const CLUSTER_KEYS: readonly string[] = ['storage.default_replica_count', 'storage.sync_when_write']

const REPLICAS_DEFAULT = 2

export function numberSetting(state: ClusterState, key: string, byDefault: number): number {
  const value = state.settings.get(key)
  return typeof value === 'number' ? value : byDefault
}

export function booleanSetting(state: ClusterState, key: string, byDefault: boolean): boolean {
  const value = state.settings.get(key)
  return typeof value === 'boolean' ? value : byDefault
}

/** Copies of a volume that asks for no number. */
export function defaultReplicas(state: ClusterState): number {
  return numberSetting(state, 'storage.default_replica_count', REPLICAS_DEFAULT)
}

/** Copies of each block: all slots carry as many as the most demanding volume wants. */
export function replicaCount(state: ClusterState): number {
  let count = defaultReplicas(state)
  for (const volume of state.volumes.values()) if (volume.replicas > count) count = volume.replicas
  return count
}
