import { Option } from 'commander'
import { XsanError } from '../base/errors.ts'
import type { Message } from '../env/control.ts'
import type { AdminClient } from '../node/admin-client.ts'
import { type Output, properties, sizeCell, table } from './output.ts'
import { command, parseDuration, sleep } from './program.ts'

const POLL_MS = 300

interface Options {
  wait?: 'healthy'
  timeout: number
}

export const clusterStatus = command<Options>({
  usage: 'status',
  description: 'health of the cluster, its nodes, and what is left to copy',
  options: [
    new Option('--wait <state>', 'return when the cluster is healthy').choices(['healthy']),
    new Option('--timeout <time>', 'how long to wait').argParser(parseDuration).default(60_000, '60s'),
  ],
  watchable: true,
  async run({ client, options, progress }) {
    if (options.wait === 'healthy') return clusterStatusOutput(await waitHealthy(client, options.timeout, progress))
    return clusterStatusOutput(await client.call('Cluster/Status'))
  },
})

/** Polls until health is `safe`. NETWORK_TIMEOUT with the reasons of the last answer when the time is over. */
export async function waitHealthy(client: AdminClient, timeoutMs: number, progress: (line: string) => void): Promise<Message> {
  const endMs = performance.now() + timeoutMs
  let why = 'no answer yet'
  let told = ''
  const eta = new Eta()
  for (;;) {
    const leftMs = endMs - performance.now()
    try {
      const status = await client.call('Cluster/Status', {}, Math.max(100, Math.min(5000, leftMs)))
      if (status['health'] === 'safe') return status
      const left = Number((status['resync'] as Message | undefined)?.['blocksLeft'] ?? 0)
      why = `${String(status['health'])}: ${(status['reasons'] as string[]).join(' ')}${eta.text(left, performance.now())}`
    } catch (error) {
      if (!(error instanceof XsanError)) throw error
      why = error.message
    }
    if (performance.now() >= endMs) {
      throw new XsanError('NETWORK_TIMEOUT', `not healthy after ${timeoutMs / 1000} s (${why})`, 'Wait longer with --timeout, or look at: xsan cluster status')
    }
    if (why !== told) progress(why)
    told = why
    await sleep(POLL_MS)
  }
}

/** How long it takes at the pace of the last seconds. */
export class Eta {
  #first: { readonly left: number; readonly atMs: number } | undefined

  /** '' while nothing is left; without an estimate until something has moved. */
  text(left: number, nowMs: number): string {
    if (left === 0) {
      this.#first = undefined
      return ''
    }
    if (this.#first === undefined || left > this.#first.left) this.#first = { left, atMs: nowMs }
    const done = this.#first.left - left
    const seconds = done === 0 ? undefined : Math.ceil((left * (nowMs - this.#first.atMs)) / done / 1000)
    return `; ${left} blocks left to compare or copy${seconds === undefined ? '' : `, about ${seconds} s`}`
  }
}

/** Also without a leader: what is known then is printed, and the exit code says that it is not all (CLUSTER_NOT_READY). */
export function clusterStatusOutput(status: Message): Output {
  const isCurrent = status['leaderless'] !== true
  const [why = 'no leader answers'] = status['reasons'] as string[]
  return {
    data: status,
    ...(isCurrent
      ? {}
      : { problem: new XsanError('CLUSTER_NOT_READY', why, 'Look at the nodes it names: xsan node local --server HOST:PORT, and their logs.') }),
    table() {
      const nodes = status['nodes'] as Message[]
      const resync = (status['resync'] ?? {}) as Message
      const chains = (status['chains'] ?? {}) as Message
      const reasons = status['reasons'] as string[]
      const head = properties([
        ['Cluster', String(status['clusterId'])],
        ['Health', String(status['health'])],
        ...reasons.map((reason, index) => [index === 0 ? 'Because' : '', reason] as const),
        ['Leader', String(status['leader'])],
        [
          'Chains',
          isCurrent
            ? `${chains['full'] ?? 0} of ${chains['total'] ?? 0} complete, ${chains['degraded'] ?? 0} with fewer copies, ${chains['unavailable'] ?? 0} unavailable`
            : 'not known without a leader',
        ],
        ['Resync', `${resync['blocksLeft'] ?? 0} blocks left; ${sizeCell(resync['bytesMoved'])} moved, ${sizeCell(resync['bytesNeeded'])} needed`],
        ['Space', `${isCurrent ? '' : 'at least '}${sizeCell(status['usedBytes'])} of ${sizeCell(status['capacityBytes'])}`],
        ['Volumes', Number(status['volumes'])],
      ])
      const details = isCurrent ? '' : `\n\n${properties(nodes.map((node) => [String(node['id']), String(node['detail'])] as const))}`
      return `${head}\n\n${nodeTable(nodes)}${details}`
    },
  }
}

export function nodeTable(nodes: readonly Message[]): string {
  return table(
    ['node', 'state', 'raft', 'disks', 'used', 'capacity', 'heads', 'serves', 'syncing', 'iops', 'bytes/s', 'depth', 'grpc', 'data', 'nbd'],
    nodes.map((node) => [
      String(node['id']),
      String(node['state']),
      node['leader'] ? 'leader' : String(node['raftRole']),
      Number(node['disks']),
      sizeCell(node['usedBytes']),
      sizeCell(node['capacityBytes']),
      node['chainsHeaded'] as number | undefined,
      node['chainsServing'] as number | undefined,
      node['chainsSyncing'] as number | undefined,
      Number(node['opsPerSecond'] ?? 0),
      sizeCell(node['bytesPerSecond']),
      Number(node['queueDepth'] ?? 0),
      String(node['grpc']),
      String(node['data']),
      String(node['nbd']),
    ]),
  )
}
