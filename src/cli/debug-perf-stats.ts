import { Option } from 'commander'
import { quantileUs, splitHistograms } from '../base/counter-names.ts'
import type { Message } from '../env/control.ts'
import { table } from './output.ts'
import { command } from './program.ts'

interface NodeCounters {
  readonly nodeId: string
  readonly counters: Readonly<Record<string, number>>
  readonly error: string
}

export const debugPerfStats = command<{ node?: string }>({
  usage: 'perf-stats',
  description: "counters of operations, bytes, latencies and queues; the documents' names are those with dots",
  watchable: true,
  options: [new Option('--node <id>', 'only of this node')],
  async run({ client, options }) {
    const { nodes } = (await client.call('Debug/PerfStats', { nodeId: options.node ?? '' })) as Message & { nodes: NodeCounters[] }
    return { data: { nodes }, table: () => counterTable(nodes) }
  },
})

function counterTable(nodes: readonly NodeCounters[]): string {
  const columns = nodes.map(({ counters }) => forPeople(counters))
  const names = [...new Set(columns.flatMap((column) => Object.keys(column)))].sort()
  const counters = table(
    ['counter', ...nodes.map(({ nodeId }) => nodeId)],
    names.map((name) => [name, ...columns.map((column) => column[name])]),
  )
  const silent = nodes.filter(({ error }) => error !== '').map(({ nodeId, error }) => `${nodeId} did not answer: ${error}`)
  return [counters, ...silent].join('\n')
}

/** Of a histogram: how many, the mean, and the ends of the buckets that hold the median and the 99th percentile. */
function forPeople(counters: Readonly<Record<string, number>>): Record<string, string | number> {
  const { histograms, rest } = splitHistograms(counters)
  const shown: Record<string, string | number> = { ...rest }
  for (const histogram of histograms) {
    const { name, count, sumUs } = histogram
    shown[`${name}.count`] = count
    shown[`${name}.mean_us`] = count === 0 ? 0 : Math.round(sumUs / count)
    shown[`${name}.p50_us`] = atMost(quantileUs(histogram, 0.5))
    shown[`${name}.p99_us`] = atMost(quantileUs(histogram, 0.99))
  }
  return shown
}

const atMost = (us: number) => (us === 0 ? 0 : us === Number.POSITIVE_INFINITY ? 'more' : `<= ${us}`)
