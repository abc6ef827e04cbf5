/** Prometheus text of what a node counts. Names of ours; the documents' names stand in the HELP text. */
import { documentNamesOf, type Histogram, splitHistograms } from '../base/counter-names.ts'

export interface MetricsSource {
  readonly version: string
  readonly nodeId: string
  /** By the documents' names, as `perf-stats` shows them. */
  readonly counters: () => Readonly<Record<string, number>>
  readonly disks: () => ReadonlyArray<{
    readonly disk: number
    readonly capacityBytes: number
    readonly usedBytes: number
    readonly journalUsedBytes: number
    readonly journalBytes: number
  }>
  readonly resync: () => { readonly blocksLeft: number; readonly bytesMoved: number; readonly bytesNeeded: number; readonly lostPages: number }
  /** uninitialized | starting | ready | stopping | failed */
  readonly state: () => string
}

const STATES = ['uninitialized', 'starting', 'ready', 'stopping', 'failed']
/** What goes up and down; all else only rises. */
const GAUGES = /(_in_flight|_in_use|_free|_used|_left_ms|_index|_term|_revision|_is_leader|connections)$/
/** Ending of a name, and how many of it are a second. */
const UNITS: ReadonlyArray<readonly [string, number]> = [
  ['_us', 1e6],
  ['_ms', 1e3],
]

/** Collected anew at each call: the numbers live in the reactor, here is only their form. */
export async function metricsText(source: MetricsSource): Promise<string> {
  // 85 modules that no node needs before somebody asks
  const { Gauge, Registry } = await import('prom-client')
  const registry = new Registry()
  const gauge = (name: string, help: string, labels: readonly string[] = []) => new Gauge({ name, help, labelNames: [...labels], registers: [registry] })
  gauge('xsan_build_info', 'Version of this node.', ['version', 'node']).set({ version: source.version, node: source.nodeId }, 1)
  const state = gauge('xsan_node_state', 'State of this node: one series per state, 1 for the present one.', ['state'])
  for (const name of STATES) state.set({ state: name }, source.state() === name ? 1 : 0)
  const capacity = gauge('xsan_disk_capacity_bytes', 'Size of a disk for blocks.', ['disk'])
  const used = gauge('xsan_disk_used_bytes', 'Of it, in use.', ['disk'])
  const journal = gauge('xsan_disk_journal_bytes', 'Size of the journal of a disk.', ['disk'])
  const journalUsed = gauge('xsan_disk_journal_used_bytes', 'Of it, not yet written back.', ['disk'])
  for (const disk of source.disks()) {
    const labels = { disk: String(disk.disk) }
    capacity.set(labels, disk.capacityBytes)
    used.set(labels, disk.usedBytes)
    journal.set(labels, disk.journalBytes)
    journalUsed.set(labels, disk.journalUsedBytes)
  }
  const resync = source.resync()
  gauge('xsan_resync_blocks_left', 'Blocks still to be compared or copied to this node.').set(resync.blocksLeft)
  gauge('xsan_resync_moved_bytes', 'Payload moved by the present or last resync.').set(resync.bytesMoved)
  gauge('xsan_resync_needed_bytes', 'Of it, what really differed.').set(resync.bytesNeeded)
  gauge('xsan_lost_pages', 'Pages (4 KiB) served by this node whose content is on no replica: reads of them fail until they are written anew.').set(
    resync.lostPages,
  )
  const { histograms, rest } = splitHistograms(source.counters())
  const text = await registry.metrics()
  return text + histograms.map(histogramText).join('') + families(rest).sort(byName).map(familyText).join('')
}

const byName = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]) => (a < b ? -1 : a > b ? 1 : 0)

type Sample = readonly [labels: string, value: number]

/** `name{label=value}` -> its samples by name. */
function families(counters: Readonly<Record<string, number>>): Array<readonly [string, Sample[]]> {
  const all = new Map<string, Sample[]>()
  for (const [key, value] of Object.entries(counters)) {
    const match = /^([^{]+)(?:\{([a-z_]+)=([^}]*)\})?$/.exec(key)
    const name = match?.[1] ?? key
    const labels = match?.[2] === undefined ? '' : `{${match[2]}="${match[3]!.replace(/["\\\n]/g, '_')}"}`
    all.set(name, [...(all.get(name) ?? []), [labels, value]])
  }
  return [...all]
}

function flatName(name: string): string {
  return name
    .replace(/([a-z0-9])([A-Z])/g, '$1_$2')
    .replace(/[^A-Za-z0-9]+/g, '_')
    .toLowerCase()
}

/** read_latency_us -> xsan_read_latency_seconds_total: base units, `_total` on what only rises. */
function familyText([name, samples]: readonly [string, readonly Sample[]]): string {
  const flat = flatName(name.replace(/\.count$/, ''))
  const unit = UNITS.find(([ending]) => flat.endsWith(ending))
  const base = unit ? `${flat.slice(0, -unit[0].length).replace(/_sum$/, '')}_seconds` : flat
  const isGauge = GAUGES.test(flat)
  const series = `xsan_${base}${isGauge || base.endsWith('_total') ? '' : '_total'}`
  const help = [name, ...documentNamesOf(name)].join(', ')
  const lines = samples.map(([labels, value]) => `${series}${labels} ${unit ? value / unit[1] : value}\n`)
  return `# HELP ${series} ${help}${unit ? ' (in seconds here)' : ''}\n# TYPE ${series} ${isGauge ? 'gauge' : 'counter'}\n${lines.join('')}`
}

function histogramText({ name, buckets, count, sumUs }: Histogram): string {
  const series = `xsan_${flatName(name)}_seconds`
  const lines = buckets.map((bucket) => `${series}_bucket{le="${bucket.us / 1e6}"} ${bucket.count}`)
  return `${[`# HELP ${series} ${name}`, `# TYPE ${series} histogram`, ...lines, `${series}_bucket{le="+Inf"} ${count}`, `${series}_sum ${sumUs / 1e6}`, `${series}_count ${count}`].join('\n')}\n`
}
