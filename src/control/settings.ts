/** Settings of the whole cluster: what the replicated state says, else the given default. Keys are those of the configuration. */
import type { ConfigEntry } from './options.ts'
import type { ClusterState, SettingValue } from './state.ts'

/** Static in the file of a node, but of the whole cluster once it exists: they change without a restart. */
export const CLUSTER_KEYS: readonly string[] = ['storage.default_replica_count', 'storage.sync_when_write']

const REPLICAS_DEFAULT = 2
/** Of the whole cluster alone: `cluster init` has taken them from the founder's file. */
export const NO_OWN: OwnSettings = new Map()

/** Hot keys of a node's own file. */
export type OwnSettings = ReadonlyMap<string, SettingValue>

export function ownSettings(entries: readonly ConfigEntry[]): OwnSettings {
  const settings = new Map<string, SettingValue>()
  for (const { key, value, hot } of entries) {
    if (hot && (typeof value === 'number' || typeof value === 'boolean' || typeof value === 'string')) settings.set(key, value)
  }
  return settings
}

/** What a node goes by: the hot keys of its file, overlaid by the settings of the whole cluster. */
export function effectiveSettings(state: ClusterState, own: OwnSettings): Record<string, SettingValue> {
  return Object.fromEntries([...own, ...state.settings])
}

export function numberSetting(state: ClusterState, own: OwnSettings, key: string, byDefault: number): number {
  const value = state.settings.get(key) ?? own.get(key)
  return typeof value === 'number' ? value : byDefault
}

export function booleanSetting(state: ClusterState, own: OwnSettings, key: string, byDefault: boolean): boolean {
  const value = state.settings.get(key) ?? own.get(key)
  return typeof value === 'boolean' ? value : byDefault
}

/** Copies of a volume that asks for no number. */
export function defaultReplicas(state: ClusterState): number {
  return numberSetting(state, NO_OWN, 'storage.default_replica_count', REPLICAS_DEFAULT)
}

/** Copies of each block: all slots carry as many as the most demanding volume wants. */
export function replicaCount(state: ClusterState): number {
  let count = defaultReplicas(state)
  for (const volume of state.volumes.values()) if (volume.replicas > count) count = volume.replicas
  return count
}
