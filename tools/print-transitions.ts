/**
 * Writes the transition table of src/placement/chain.ts into docs/ARCHITECTURE.md, between its markers.
 *
 *   node tools/print-transitions.ts            writes
 *   node tools/print-transitions.ts --check    exits 1 when the document disagrees with the code
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { GONE, REPLICA_STATE_NAMES, TRANSITIONS, type Transition } from '../src/placement/chain.ts'

const BEGIN = '<!-- transitions:begin (written by tools/print-transitions.ts) -->'
const END = '<!-- transitions:end -->'
const DOCUMENT = new URL('../docs/ARCHITECTURE.md', import.meta.url)

const stateName = (state: Transition['from']) => (state === GONE ? '(not in the chain)' : REPLICA_STATE_NAMES[state])

export function transitionsMarkdown(): string {
  const rows = (TRANSITIONS as readonly Transition[]).map(({ name, from, when, to, others }) => {
    const along = Object.entries(others ?? {}).map(([state, target]) => `${state === stateName(from) ? `other ${state}` : state} -> ${stateName(target)}`)
    return `| ${name} | ${stateName(from)} | ${when.join('; ')} | ${[`**${stateName(to)}**`, ...along].join('; ')} |`
  })
  return ['| row | a replica in state | when all of | goes to (and in the same step) |', '|---|---|---|---|', ...rows].join('\n')
}

/** The document with the table as the code has it. Throws when the markers are missing. */
export function withTransitions(document: string): string {
  const begin = document.indexOf(BEGIN)
  const end = document.indexOf(END)
  if (begin < 0 || end < begin) throw new Error(`docs/ARCHITECTURE.md has no lines "${BEGIN}" and "${END}"`)
  return `${document.slice(0, begin + BEGIN.length)}\n${transitionsMarkdown()}\n${document.slice(end)}`
}

export function readDocument(): string {
  return readFileSync(DOCUMENT, 'utf8')
}

if (import.meta.main) {
  const document = readDocument()
  const wanted = withTransitions(document)
  if (!process.argv.includes('--check')) writeFileSync(DOCUMENT, wanted)
  else if (document !== wanted) {
    console.error('docs/ARCHITECTURE.md prints another transition table than src/placement/chain.ts has. Run: node tools/print-transitions.ts')
    process.exitCode = 1
  }
}
