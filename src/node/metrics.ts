/** Prometheus text of what a node counts. Names of ours; the documents' names stand in the HELP text. */
import { Gauge, Registry } from 'prom-client'

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
  readonly resync: () => { readonly blocksLeft: number; readonly bytesMoved: number; readonly bytesNeeded: number }
  /** uninitialized | starting | ready | stopping | failed */
  readonly state: () => string
}

const STATES = ['uninitialized', 'starting', 'ready', 'stopping', 'failed']
/** What goes up and down; all else only rises. */
const GAUGES = /(_in_flight|_in_use|_free|_used|_left_ms|_index|_term|_revision|_is_leader|^connections)$/
/** Ending of a name, and how many of it are a second. */
const UNITS: ReadonlyArray<readonly [string, number]> = [
  ['_us', 1e6],
  ['_ms', 1e3],
]

/** Collected anew at each call: the numbers live in the reactor, here is only their form. */
export async function metricsText(source: MetricsSource): Promise<string> {
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
  const text = await registry.metrics()
  return text + Object.entries(source.counters()).sort(byName).map(counterText).join('')
}

const byName = ([a]: readonly [string, number], [b]: readonly [string, number]) => (a < b ? -1 : a > b ? 1 : 0)

/** read_latency_us -> xsan_read_latency_seconds_total: base units, `_total` on what only rises. */
function counterText([name, value]: readonly [string, number]): string {
  const flat = name
    .replace(/([a-z0-9])([A-Z])/g, '$1_$2')
    .replace(/[^A-Za-z0-9]+/g, '_')
    .toLowerCase()
  const unit = UNITS.find(([ending]) => flat.endsWith(ending))
  const base = unit ? `${flat.slice(0, -unit[0].length)}_seconds` : flat
  const isGauge = GAUGES.test(flat)
  const series = `xsan_${base}${isGauge || base.endsWith('_total') ? '' : '_total'}`
  return `# HELP ${series} ${name}${unit ? ' (in seconds here)' : ''}\n# TYPE ${series} ${isGauge ? 'gauge' : 'counter'}\n${series} ${unit ? value / unit[1] : value}\n`
}
