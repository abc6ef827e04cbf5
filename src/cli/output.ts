/**
 * How results are printed: a table for people, JSON or YAML for scripts. Data goes to stdout, everything else to stderr.
 * JSON and YAML carry `format_version`, raised when a field changes its meaning or goes away; fields may be added at any time.
 */
import { createRequire } from 'node:module'
import type TableModule from 'cli-table3'
import type * as YamlModule from 'yaml'
import type { XsanError } from '../base/errors.ts'
import { formatSize } from '../base/units.ts'

/** Loaded when needed: a daemon prints neither, a script no table. */
const load = createRequire(import.meta.url)

export const FORMAT_VERSION = 1
export const OUTPUT_FORMATS = ['table', 'json', 'yaml'] as const
export type OutputFormat = (typeof OUTPUT_FORMATS)[number]

export type Cell = string | number | boolean | undefined

/** What a command has to say: `data` for scripts (keys become snake_case), `table` for people. */
export interface Output {
  readonly data: Readonly<Record<string, unknown>>
  table(): string
  /** Printed after the data, and gives the exit code: the answer is there, and says that something is missing. */
  readonly problem?: XsanError
}

export function render(output: Output, format: OutputFormat, options: { versioned: boolean; oneLine?: boolean } = { versioned: true }): string {
  if (format === 'table') return output.table()
  const data = options.versioned ? { format_version: FORMAT_VERSION, ...(snakeCase(output.data) as object) } : snakeCase(output.data)
  return format === 'json'
    ? JSON.stringify(data, null, options.oneLine ? 0 : 2)
    : `${options.oneLine ? '---\n' : ''}${(load('yaml') as typeof YamlModule).stringify(data).trimEnd()}`
}

export function table(head: readonly string[], rows: ReadonlyArray<readonly Cell[]>): string {
  const Table = load('cli-table3') as typeof TableModule
  const plain = new Table({
    head: head.map((title) => title.toUpperCase()),
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
    chars: NO_LINES,
  })
  for (const row of rows) plain.push(row.map((cell) => paint(cell === undefined || cell === '' ? '-' : String(cell))))
  return trimLines(plain.toString())
}

/** One thing: its properties, one per line. */
export function properties(rows: ReadonlyArray<readonly [string, Cell]>): string {
  const Table = load('cli-table3') as typeof TableModule
  const plain = new Table({ style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 }, chars: NO_LINES })
  for (const [name, value] of rows) plain.push([name, paint(value === undefined || value === '' ? '-' : String(value))])
  return trimLines(plain.toString())
}

const WORDS: Readonly<Record<string, number>> = Object.fromEntries([
  ...['safe', 'ready', 'ok'].map((word) => [word, 32]),
  ...['at-risk', 'starting', 'draining', 'full', 'unknown', 'waiting', 'frozen', 'uninitialized', 'stopping'].map((word) => [word, 33]),
  ...['unavailable', 'down', 'failed', 'offline', 'dead', 'unresponsive'].map((word) => [word, 31]),
])

/** States in colour, for people at a terminal (https://no-color.org). */
function paint(cell: string): string {
  const colour = Object.hasOwn(WORDS, cell) ? WORDS[cell] : undefined
  return colour === undefined || !usesColour(process.stdout.isTTY, process.env) ? cell : `\x1b[${colour}m${cell}\x1b[39m`
}

export function usesColour(isTerminal: boolean | undefined, env: Readonly<Record<string, string | undefined>>): boolean {
  return isTerminal === true && (env['NO_COLOR'] ?? '') === '' && env['TERM'] !== 'dumb'
}

export function sizeCell(bytes: unknown): string {
  return typeof bytes === 'number' ? formatSize(bytes) : '-'
}

/** Keys of plain objects, all the way down. */
export function snakeCase(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(snakeCase)
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), snakeCase(inner)]))
}

const NO_LINES = Object.fromEntries(
  [
    'top',
    'top-mid',
    'top-left',
    'top-right',
    'bottom',
    'bottom-mid',
    'bottom-left',
    'bottom-right',
    'left',
    'left-mid',
    'mid',
    'mid-mid',
    'right',
    'right-mid',
    'middle',
  ].map((name) => [name, '']),
)

function trimLines(text: string): string {
  return text
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
}
