/** A run as a picture over virtual time, for people who would rather look than read: faults per node, messages, operations per client. */
import { describeFault, type Fault, type FaultKind, type Schedule } from './faults.ts'
import { type History, shownOf } from './history.ts'
import type { RunResult } from './run.ts'

const WIDTH = 1800
const LEFT = 110
const LANE = 22
const BINS = 600
/** Of a letter of a label, at most. */
const LETTER = 6.5
/** Events of the trace that are drawn as densities. */
const MESSAGES: ReadonlyArray<readonly [name: string, labels: RegExp]> = [
  ['data', /^(data|send)\b/],
  ['calls', /^rpc\b/],
  ['heartbeats', /^datagram\b/],
  ['disk', /^(read|write|synced|flush)\b/],
]
/** Faults of all nodes, and those of the cluster, which have a lane of their own. */
const OF_ALL: ReadonlySet<FaultKind> = new Set(['power-all', 'straggler', 'datagram-loss'])
const OF_CLUSTER: ReadonlySet<FaultKind> = new Set(['upgrade', 'node-add', 'remove-syncing', 'volume-churn', 'volume-grow', 'setting'])
const COLOURS: Readonly<Record<string, string>> = { read: '#4878a8', write: '#3a8a4d', failed: '#c0392b', unknown: '#c77b0a' }

export class Picture {
  readonly #schedule: Schedule
  readonly #times: number[][] = MESSAGES.map(() => [])
  readonly #notes: Array<{ atMs: number; text: string }> = []
  #firstFaultMs: number | undefined
  #history: History | undefined

  constructor(schedule: Schedule) {
    this.#schedule = schedule
  }

  readonly onTrace = (line: string): void => {
    const text = line.trimStart()
    const space = text.indexOf(' ')
    const atMs = Number(text.slice(0, space))
    const what = text.slice(space + 1)
    const kind = MESSAGES.findIndex(([, labels]) => labels.test(what))
    if (kind >= 0) this.#times[kind]!.push(atMs)
    else if (/^(process|power|disk|misdirected|operator .*:)/.test(what)) this.#notes.push({ atMs, text: what })
    if (this.#firstFaultMs === undefined && what.startsWith('fault ')) this.#firstFaultMs = atMs
  }

  readonly onHistory = (history: History): void => {
    this.#history = history
  }

  html(result: RunResult, commit: string): string {
    const { faults, nodes, seed, profile, focus } = this.#schedule
    const endMs = Math.max(1, result.virtualSeconds * 1000)
    const x = (ms: number) => (LEFT + ((WIDTH - LEFT - 10) * Math.min(ms, endMs)) / endMs).toFixed(1)
    const width = (fromMs: number, toMs: number) => Math.max(1, Number(x(toMs)) - Number(x(fromMs))).toFixed(1)
    const parts: string[] = []
    let y = 10
    const lane = (name: string, height = LANE) => {
      parts.push(`<text x="4" y="${y + 14}">${escaped(name)}</text><line x1="${LEFT}" x2="${WIDTH}" y1="${y + height - 1}" y2="${y + height - 1}" class="l"/>`)
      y += height
      return y - height
    }
    const tip = (text: string) => `<title>${escaped(text)}</title>`
    const startMs = (this.#firstFaultMs ?? 0) - (faults[0]?.atMs ?? 0)
    const laneOfFaults = (name: string, own: readonly Fault[]) => {
      const ends: number[] = []
      const placed = own.map((fault) => {
        let row = ends.findIndex((end) => end <= fault.atMs)
        if (row < 0) row = ends.length
        // a label that is longer than its fault keeps its place too
        const labelMs = (fault.kind.length * LETTER * endMs) / (WIDTH - LEFT - 10)
        ends[row] = fault.atMs + Math.max(fault.durationMs, labelMs)
        return { fault, row }
      })
      const top = lane(name, Math.max(1, ends.length) * 16 + 6)
      for (const { fault, row } of placed) {
        const from = startMs + fault.atMs
        const at = top + 2 + row * 16
        parts.push(
          `<g>${tip(`${from.toFixed(0)} ms: ${describeFault(fault)}`)}<rect x="${x(from)}" y="${at}" width="${width(from, from + fault.durationMs)}" height="14" class="f"/><text x="${Number(x(from)) + 2}" y="${at + 11}">${fault.kind}</text></g>`,
        )
      }
    }
    for (let node = 0; node < nodes; node++) {
      const isOwn = ({ kind, node: of }: Fault) => OF_ALL.has(kind) || (of === node && !OF_CLUSTER.has(kind))
      laneOfFaults(`node ${node + 1}`, faults.filter(isOwn))
    }
    const ofCluster = faults.filter(({ kind }) => OF_CLUSTER.has(kind))
    if (ofCluster.length > 0) laneOfFaults('cluster', ofCluster)
    const noteLane = lane('events')
    for (const { atMs, text } of this.#notes) parts.push(`<g>${tip(`${atMs.toFixed(1)} ms: ${text}`)}<circle cx="${x(atMs)}" cy="${noteLane + 11}" r="4"/></g>`)
    for (const [kind, [name]] of MESSAGES.entries()) {
      const bins = new Float64Array(BINS)
      for (const atMs of this.#times[kind]!) bins[Math.min(BINS - 1, Math.floor((atMs / endMs) * BINS))]!++
      const most = Math.max(1, ...bins)
      const top = lane(name, 40)
      const points = [...bins].map((count, i) => `${x(((i + 0.5) / BINS) * endMs)},${(top + 38 - (36 * count) / most).toFixed(1)}`)
      parts.push(`<g>${tip(`at most ${most} per ${(endMs / BINS).toFixed(0)} ms`)}<polyline points="${points.join(' ')}" class="d"/></g>`)
    }
    const lanes = new Map<string, number>()
    const clientOf = (op: { readonly client: string }) => op.client.split('.')[0]!
    const collator = new Intl.Collator('en', { numeric: true })
    const operations = [...(this.#history?.operations() ?? [])].sort((a, b) => collator.compare(clientOf(a), clientOf(b)))
    for (const op of operations) {
      const client = clientOf(op)
      let top = lanes.get(client)
      if (top === undefined) {
        top = lane(client, 34)
        lanes.set(client, top)
      }
      const colour = COLOURS[op.outcome === 'ok' ? op.kind : op.outcome]
      const text = `${op.kind} ${op.id} at ${op.offsetBytes} +${op.lengthBytes} of volume ${op.volume}: ${op.outcome}, ${op.callMs.toFixed(1)} to ${op.returnMs.toFixed(1)} ms`
      parts.push(
        `<rect x="${x(op.callMs)}" y="${top + 2 + (op.id % 6) * 5}" width="${width(op.callMs, op.returnMs)}" height="4" fill="${colour}">${tip(text)}</rect>`,
      )
    }
    const ticks = Array.from(
      { length: 21 },
      (_, i) => `<text x="${x((endMs * i) / 20)}" y="${y + 14}" text-anchor="${i === 20 ? 'end' : 'middle'}">${((endMs * i) / 20_000).toFixed(1)} s</text>`,
    )
    const violations = shownOf(result.violations).map(({ promise, detail }) => `<h3>Violated: ${escaped(promise)}</h3><pre>${escaped(detail)}</pre>`)
    return `<!doctype html><meta charset="utf-8"><title>seed ${escaped(String(seed))}</title>
<style>body{font:13px sans-serif}svg text{font-size:11px}.l{stroke:#ccc}.f{fill:#e8b4a8;stroke:#b5543c}.d{fill:none;stroke:#555}circle{fill:#7d3c98}</style>
<h2>seed ${escaped(String(seed))}, ${focus === undefined ? `profile ${profile}` : `focus ${focus}`}, commit ${escaped(commit)}</h2>
<p>${result.virtualSeconds} s of virtual time, ${result.events} events, ${result.operations} operations. Point at something to read what it is.
Operations: <span style="color:${COLOURS['read']}">reads</span>, <span style="color:${COLOURS['write']}">writes</span>,
<span style="color:${COLOURS['failed']}">failed</span>, <span style="color:${COLOURS['unknown']}">never answered</span>.</p>
${violations.length > 0 ? violations.join('\n') : '<p>Nothing was violated.</p>'}
<svg width="${WIDTH}" height="${y + 24}" xmlns="http://www.w3.org/2000/svg">
${parts.join('\n')}
${ticks.join('')}
</svg>
<h3>Last lines of the nodes</h3><pre>${result.log.slice(-60).map(escaped).join('\n')}</pre>
`
  }
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)
}
