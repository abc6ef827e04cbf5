import type { SettingValue } from '../state.ts'
import type { Operation } from './operation.ts'

/** A setting of the whole cluster; null: back to what the nodes' files say. */
export const settingsSet: Operation<{ readonly key: string; readonly value: SettingValue | null }, null> = {
  feature: 1,
  apply(state, { key, value }) {
    state.theCluster
    state.setSetting(key, value)
    return null
  },
}
