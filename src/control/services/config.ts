/** xsan.v1.Config: the node's own file, overlaid by the settings of the whole cluster. */
import { XsanError } from '../../base/errors.ts'
import type { Message } from '../../env/control.ts'
import { CLUSTER_KEYS } from '../settings.ts'
import type { SettingValue } from '../state.ts'
import { type AdminService, atLeader, flag, fresh, here, type ServiceContext, text, tryOut } from './service.ts'

const ASK_TIMEOUT_MS = 3000

export const configService: AdminService = {
  Show: here(async (context, request) => {
    const nodeId = text(request, 'nodeId')
    if (nodeId === '' || nodeId === context.config.nodeId) return { items: configItems(context) }
    const node = context.state.nodeById(nodeId)
    if (node === undefined) throw new XsanError('NODE_NOT_FOUND', `there is no node ${nodeId}`, 'See `xsan node list`.')
    return { items: await context.ask(node.node, { kind: 'config' }, ASK_TIMEOUT_MS) }
  }),

  Set: atLeader(async (context, request, call) => {
    const coordinator = await fresh(context)
    const key = text(request, 'key')
    const { hot, parse } = context.config.describeKey(key)
    if (!hot && !CLUSTER_KEYS.includes(key)) {
      throw new XsanError(
        'RESTART_REQUIRED',
        `${key} cannot change at run time: restart required`,
        `Set it in the configuration file of each node and restart them one by one.`,
      )
    }
    const value = parse(jsonOrText(text(request, 'valueJson')))
    if (typeof value !== 'number' && typeof value !== 'boolean' && typeof value !== 'string')
      throw new XsanError('INVALID_PARAM', `${key} cannot be set by itself`)
    if (flag(request, 'dryRun')) {
      tryOut(context.state, 'settings.set', { key, value })
      return { item: { key, valueJson: JSON.stringify(value), origin: 'cluster', hot: true, description: '' } }
    }
    await coordinator.propose('settings.set', { key, value }, call.requestId)
    return {
      item: configItems(context).find((item) => item['key'] === key) ?? { key, valueJson: JSON.stringify(value), origin: 'cluster', hot, description: '' },
    }
  }),
}

export function configItems({ config, state }: Pick<ServiceContext, 'config' | 'state'>): Message[] {
  return config.entries.map(({ key, value, origin, hot, description }) => {
    const cluster: SettingValue | undefined = hot || CLUSTER_KEYS.includes(key) ? state.settings.get(key) : undefined
    return {
      key,
      valueJson: JSON.stringify(cluster ?? value) ?? 'null',
      origin: cluster === undefined ? origin : 'cluster',
      hot: hot || CLUSTER_KEYS.includes(key),
      description,
    }
  })
}

function jsonOrText(value: string): unknown {
  try {
    return JSON.parse(value)
  } catch {
    return value
  }
}
