/**
 * The traces that broke earlier drafts (last section of protocol.md), each as a schedule: a script of model steps, or the steps by which the model is caught when the
 * rule is switched off (`mut`), followed under the rules as they are. They are kept in traces.txt, because some take a while to find:
 *
 *   node test/sim/model/traces.ts      makes traces.txt anew (a minute; needed when the format or the model's rules change)
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { modelBinary } from './model.ts'
import { type ModelSchedule, parseSchedule } from './schedule.ts'

interface Trace {
  readonly title: string
  /** Options of the model's `retrace`. */
  readonly options: string
  readonly steps?: string
}

const JOINS = "s0 v2: n1 -> WAITING; s0 v3: n1 -> SYNCING; n0 renews; n1 renews; s0 n0 answers n1's comparison; s0 n1 gets the comparison"
const ONE = 'slots=1 mx=2 blocks=2 kill=2 expire=1 brk=1 ops=3 len=80'
const TWO = 'slots=2 mx=2 my=2 blocks=2 kill=2 expire=1 brk=1 dup=2 cancel=1 ops=3 len=150'
const DRAIN = 'slots=1 mx=3 blocks=1 drain=2 kill=2 expire=1 brk=1 ops=3 len=90'

export const TRACES: readonly Trace[] = [
  {
    title: 'a SYNCING member outlives its source and reports later',
    options: 'slots=1 mx=1 blocks=1 ops=2 kill=1',
    steps: `${JOINS}; s0 n1 syncs its journal, reports; c0 writes s0 b0; n0 orders; KILL n0; n0 proven dead; n1 renews; s0 v4: all SERVING; coordinator gets n1's report; n1 renews`,
  },
  {
    title: 'a drop in favour of a survivor that is already dead',
    options: 'slots=1 mx=2 blocks=1 ops=2 kill=2',
    steps:
      'c0 writes s0 b0; n0 orders; s0 n0->n1 Fwd; s0 n1->n0 Ack; n0 answers; KILL n1; KILL n0; n0 proven dead; n0 restarts; n0 registers; n0 renews; n1 proven dead; s0 v2: all SERVING',
  },
  {
    title: 'a head whose lease has ended answers late',
    options: 'slots=1 mx=3 blocks=1 ops=2 expire=1',
    steps:
      'c0 writes s0 b0; n0 orders; s0 n0->n1 Fwd; s0 n1->n2 Fwd; s0 n2->n1 Ack; LEASE of n0; n1 renews; n2 renews; s0 v2: n0 -> OFFLINE; s0 n1->n0 Ack; n1 learns s0 v2; n1 answers',
  },
  {
    title: 'a head killed and restarted within its lease does not stay SERVING',
    options: 'slots=1 mx=3 blocks=1 ops=2 kill=1',
    steps: 'c0 writes s0 b0; n0 orders; KILL n0; n0 restarts; n0 registers; n0 renews; n1 renews; n2 renews; s0 v2: n0 -> OFFLINE',
  },
  {
    title: 'resync does not keep own channel rows',
    options: 'slots=1 mx=2 blocks=1 ops=2 expire=1 kill=1',
    steps:
      'c0 writes s0 b0; n0 orders; LEASE of n0; n1 renews; s0 v2: n0 -> OFFLINE; n1 learns s0 v2; n0 renews; s0 v3: n0 -> WAITING; s0 v4: n0 -> SYNCING; n1 learns s0 v3; n1 learns s0 v4; n0 renews',
  },
  {
    title: 'a cancel is not confirmed by the head alone: its copy takes effect after a fail-over, or never',
    options: 'slots=1 mx=3 blocks=1 ops=2 kill=1 cancel=1 dup=1',
    steps:
      'c0 writes s0 b0; RESEND c0 W { c: 0, seq: 1, blk: 0 } of s0: a copy to n1; CANCEL c0; n0 orders the cancel; KILL n0; n0 proven dead; n1 renews; n2 renews; s0 v2: n0 -> OFFLINE; n1 learns s0 v2; old copy of W',
  },
  {
    title: 'a SYNCING member does not acknowledge what is not durable',
    options: 'slots=1 mx=1 blocks=1 ops=2 power=1 expire=1',
    steps: `c0 writes s0 b0; n0 orders; n0 syncs; n0 answers; ${JOINS}; s0 n0 answers n1's comparison; s0 n1 gets the comparison; s0 n0 answers n1's inventory; s0 n1 gets; s0 n1 syncs its journal, reports; c0 writes s0 b0; n0 orders; n0 syncs; s0 n0->n1; coordinator gets n1's report; LEASE of n0; n1 renews; s0 v5: n0 -> OFFLINE; POWER LOSS n1, 1`,
  },
  { title: 'a row merged from another slot does not answer a retry', options: `mut=foreign_rows_keep_id ${TWO}` },
  { title: 'a row of equal seq, not held, does not overwrite a held one', options: `mut=tie_takes_not_held ${TWO}` },
  { title: 'rows that are not held keep their seq', options: `mut=rows_dropped ${TWO}` },
  { title: 'equal seq and not held is ordered again', options: `mut=refuse_not_held ${TWO}` },
  { title: 'an answer from before a skip-acknowledged write is not installed after it', options: `mut=no_skip_check ${ONE}` },
  { title: "`last` is not taken from a block's answer", options: `mut=last_from_snapshot ${ONE}` },
  { title: 'no report while a record of an answer is not here', options: `mut=report_with_hole ${ONE}` },
  { title: 'a retry is not ordered twice', options: `mut=no_dedupe ${ONE} dup=1` },
  { title: 'a DRAINING member keeps its place', options: 'mut=drain_behind slots=1 mx=2 blocks=1 drain=2 kill=1 expire=1 ops=2 len=60' },
  { title: 'DRAINING changes no since', options: `mut=drain_new_since ${DRAIN}` },
  { title: 'a DRAINING survivor serves again', options: 'mut=drain_not_survivor slots=1 mx=2 blocks=1 drain=2 kill=2 expire=1 ops=2 len=60' },
  { title: 'answers come from the member that forwards', options: `mut=source_last_serving ${DRAIN}` },
  { title: "a tail's staged record waits for a successor that joins", options: 'mut=tail_elig_stays slots=1 mx=1 blocks=1 power=2 expire=1 ops=2 len=60' },
  { title: 'nothing is committed before it is durable', options: 'mut=commit_not_durable slots=1 mx=2 blocks=1 power=3 kill=1 expire=1 ops=3 len=90' },
  { title: 'a cancel is confirmed when it is committed, not before', options: 'mut=cancel_early slots=1 mx=3 blocks=1 cancel=2 dup=2 kill=2 ops=3 len=60' },
]

const file = new URL('traces.txt', import.meta.url)

/** By title. */
export function savedTraces(): Map<string, ModelSchedule> {
  const lines = readFileSync(file, 'utf8').split('\n')
  const saved = new Map<string, ModelSchedule>()
  for (let i = 0; i + 1 < lines.length; i += 2) saved.set(lines[i]!, parseSchedule(lines[i + 1]!))
  return saved
}

function rewrite(): void {
  const lines = TRACES.flatMap(({ title, options, steps }) => {
    const args = ['retrace', 'lag=1', 'secs=60', 'best=0', ...options.split(' '), ...(steps === undefined ? [] : [`steps=${steps}`])]
    return [title, execFileSync(modelBinary(), args, { encoding: 'utf8', maxBuffer: 1 << 24 }).trimEnd()]
  })
  writeFileSync(file, `${lines.join('\n')}\n`)
}

if (process.argv[1] === import.meta.filename) rewrite()
