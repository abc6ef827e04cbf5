/** The table every benchmark prints, or the same as JSON. */
import Table from 'cli-table3'

export interface Row {
  readonly figure: string
  /** Absent: could not be measured; `note` says why. */
  readonly xsan?: number
  readonly peer?: number
  readonly unit: string
  /** What the ratio xsan / peer must reach at least ('>=') or at most ('<='); or xsan itself, where there is no peer. */
  readonly goal?: { readonly at: '>=' | '<' | '<='; readonly value: number }
  readonly note?: string
}

export interface Report {
  readonly name: string
  /** What was compared, on what. */
  readonly setting: string
  readonly rows: readonly Row[]
}

export interface BenchArgs {
  readonly json: boolean
  /** Of each measurement. */
  readonly seconds: number
  readonly rounds: number
}

export function parseArgs(args: readonly string[], defaults: { seconds: number; rounds: number }): BenchArgs {
  const value = (name: string, byDefault: number) => {
    const at = args.indexOf(`--${name}`)
    if (at < 0) return byDefault
    const number = Number(args[at + 1])
    if (!(number > 0)) throw new Error(`--${name} needs a number above 0`)
    return number
  }
  return { json: args.includes('--json'), seconds: value('seconds', defaults.seconds), rounds: value('rounds', defaults.rounds) }
}

export function print(report: Report, json: boolean): void {
  if (json) {
    console.log(JSON.stringify(report))
    return
  }
  const table = new Table({
    head: ['figure', 'xsan', 'peer', 'ratio', 'goal', ''],
    style: { head: [], border: [] },
    colAligns: ['left', 'right', 'right', 'right', 'right', 'left'],
  })
  for (const row of report.rows) {
    const compared = compare(row)
    table.push([
      row.figure,
      cell(row.xsan, row.unit),
      cell(row.peer, row.unit),
      row.peer === undefined || compared === undefined ? '' : `${compared.toFixed(2)}x`,
      row.goal === undefined ? '' : `${row.goal.at} ${row.goal.value}${row.peer === undefined ? ` ${row.unit}` : 'x'}`,
      row.note ?? (reached(row) === undefined ? '' : reached(row) ? 'reached' : 'not reached'),
    ])
  }
  console.log(`\n${report.name}: ${report.setting}\n${table.toString()}`)
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  if (sorted.length === 0) return Number.NaN
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

function compare({ xsan, peer }: Row): number | undefined {
  if (xsan === undefined) return undefined
  return peer === undefined ? xsan : xsan / peer
}

function reached(row: Row): boolean | undefined {
  const compared = compare(row)
  if (row.goal === undefined || compared === undefined || Number.isNaN(compared)) return undefined
  if (row.goal.at === '>=') return compared >= row.goal.value
  return row.goal.at === '<' ? compared < row.goal.value : compared <= row.goal.value
}

function cell(value: number | undefined, unit: string): string {
  if (value === undefined || Number.isNaN(value)) return '-'
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2
  return `${value.toFixed(digits)} ${unit}`
}
