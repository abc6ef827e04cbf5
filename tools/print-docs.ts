/**
 * Writes what documents take from the code, between their markers:
 *   docs/wire.md        every byte layout of src/wire and of the store
 *   docs/operating.md   error codes with exit codes and NBD errors; exit codes; ports and their keys
 *
 *   node tools/print-docs.ts            writes
 *   node tools/print-docs.ts --check    exits 1 when a document disagrees with the code
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { Status, type StatusName } from '../src/base/status.ts'
import { STATUS_MEANINGS } from '../src/base/status-meanings.ts'
import { EXIT_CODES } from '../src/cli/exit-codes.ts'
import { nbdErrno } from '../src/export/nbd/errors.ts'
import { configKeys } from '../src/node/config.ts'
import * as layout from '../src/store/layout.ts'
import * as heartbeat from '../src/wire/heartbeat.ts'
import * as nbd from '../src/wire/nbd.ts'
import * as peer from '../src/wire/peer.ts'
import type { Struct } from '../src/wire/struct.ts'

type AnyStruct = Pick<Struct<Record<string, never>>, 'name' | 'size' | 'endian' | 'source' | 'docs'>
type Module = Readonly<Record<string, unknown>>

const isStruct = (value: unknown): value is AnyStruct => typeof value === 'object' && value !== null && 'docs' in value && 'endian' in value
const row = (...cells: ReadonlyArray<string | number>) => `| ${cells.map((cell) => String(cell).replace(/\|/g, '\\|')).join(' | ')} |`

/** The layouts a module exports, in the order of the source file. */
function layouts(module: Module, file: string): string {
  const source = readFileSync(new URL(`../${file}`, import.meta.url), 'utf8')
  const structs = Object.values(module)
    .filter(isStruct)
    .sort((a, b) => source.indexOf(`const ${a.name} `) - source.indexOf(`const ${b.name} `))
  return structs
    .map(({ name, size, endian, docs }) =>
      [
        `### ${name}`,
        '',
        `${size} bytes, ${endian}-endian.`,
        '',
        row('offset', 'bytes', 'type', 'field', ''),
        row('---', '---', '---', '---', '---'),
        ...docs.map((field) => row(field.offset, field.size, field.type, `\`${field.name}\``, field.note)),
      ].join('\n'),
    )
    .join('\n\n')
}

/** A table of numbers: the types of frames, options, commands. */
function numbers(title: string, of: Readonly<Record<string, number>>): string {
  return `${title}: ${Object.entries(of)
    .map(([name, value]) => `${value} ${name}`)
    .join(', ')}.`
}

function statuses(): string {
  const rows = (Object.entries(Status) as Array<[StatusName, number]>).map(([name, code]) => {
    const errno = Object.entries(nbd.NbdErrno).find(([, value]) => value === nbdErrno(code))?.[0] ?? String(nbdErrno(code))
    return row(`XSAN-${String(code).padStart(3, '0')}`, name, EXIT_CODES[name], errno, STATUS_MEANINGS[name])
  })
  return [row('code', 'name', 'exit', 'NBD', 'what it means, and what to do'), row('---', '---', '---', '---', '---'), ...rows].join('\n')
}

function ports(): string {
  const rows = configKeys()
    .filter(({ key }) => /port$|^nbd\.socket$/.test(key))
    .map(({ key, byDefault, description }) => row(`\`${key}\``, String(byDefault), description))
  return [row('key', 'default', 'for'), row('---', '---', '---'), ...rows].join('\n')
}

const SECTIONS: Readonly<Record<string, Readonly<Record<string, () => string>>>> = {
  'docs/wire.md': {
    peer: () => `${numbers('Frame types', peer.PeerFrame)} ${numbers('Lanes', peer.Lane)}\n\n${layouts(peer, 'src/wire/peer.ts')}`,
    heartbeat: () => layouts(heartbeat, 'src/wire/heartbeat.ts'),
    nbd: () => `${numbers('Commands', nbd.Command)} ${numbers('Options', nbd.Option)} ${numbers('Errors', nbd.NbdErrno)}\n\n${layouts(nbd, 'src/wire/nbd.ts')}`,
    disk: () => layouts(layout, 'src/store/layout.ts'),
  },
  'docs/operating.md': { errors: statuses, ports },
}

/** The document with its sections as the code has them. Throws when a marker is missing. */
export function withSections(file: string, document: string): string {
  return Object.entries(SECTIONS[file] ?? {}).reduce((text, [name, make]) => {
    const [begin, end] = [`<!-- ${name}:begin (written by tools/print-docs.ts) -->`, `<!-- ${name}:end -->`]
    const [from, to] = [text.indexOf(begin), text.indexOf(end)]
    if (from < 0 || to < from) throw new Error(`${file} has no lines "${begin}" and "${end}"`)
    return `${text.slice(0, from + begin.length)}\n${make()}\n${text.slice(to)}`
  }, document)
}

export const DOCUMENTS = Object.keys(SECTIONS)

export function readDocument(file: string): string {
  return readFileSync(new URL(`../${file}`, import.meta.url), 'utf8')
}

if (import.meta.main) {
  for (const file of DOCUMENTS) {
    const document = readDocument(file)
    const wanted = withSections(file, document)
    if (!process.argv.includes('--check')) writeFileSync(new URL(`../${file}`, import.meta.url), wanted)
    else if (document !== wanted) {
      console.error(`${file} disagrees with the code. Run: node tools/print-docs.ts`)
      process.exitCode = 1
    }
  }
}
