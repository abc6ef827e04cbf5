/** What a data plane does, in words, for the trace: only where somebody reads one, and nothing of it goes into the hash. */
import { statusName } from '../../src/base/status.ts'
import type { Client } from '../../src/chain/client.ts'
import type { DataPlane } from '../../src/chain/data-plane.ts'
import type { Replicas } from '../../src/chain/replica.ts'
import type { ChainTable } from '../../src/chain/table.ts'
import { CHAIN_ENTRIES_MAX, ReplicaState } from '../../src/placement/chain.ts'
import { RecordKind } from '../../src/store/store.ts'

/** `say` is called with what this data plane learns, orders, stages, refuses, commits and is answered, from now on. */
export function narrate(plane: DataPlane, say: (text: string) => void): void {
  const { table, replicas, forwarding } = plane
  const client = plane.client as Client
  const { apply } = table
  table.apply = (message, changed, nowMs) => {
    const known = changed.length
    apply.call(table, message, changed, nowMs)
    for (const slot of changed.slice(known)) say(`knows slot ${slot} in version ${table.version[slot]}: ${chainText(table, slot)}`)
  }
  const { stage, advance, sessions } = replicas
  replicas.stage = (row) => {
    say(`${replicas.records.hop[row] === 0 ? 'orders' : 'stages'} ${recordText(replicas, row)}`)
    stage.call(replicas, row)
  }
  replicas.advance = (slot) => {
    const before = replicas.committed[slot]!
    advance.call(replicas, slot)
    if (replicas.committed[slot]! > before) say(`commits slot ${slot} up to ${replicas.committed[slot]}`)
  }
  const { set } = sessions
  sessions.set = (slot, session) => {
    say(`begins to bring slot ${slot} up to date, SYNCING since version ${session.since}`)
    return set.call(sessions, slot, session)
  }
  const { refuse } = forwarding
  forwarding.refuse = (row, status) => {
    say(`refuses ${recordText(replicas, row)}: ${statusName(status)}`)
    refuse.call(forwarding, row, status)
  }
  const { onAnswer } = client
  client.onAnswer = (op, generation, status, chainVersion) => {
    const { slot, volume, index } = client.ops
    const from = chainVersion === 0 ? '' : `, by one that knows version ${chainVersion}`
    if (client.ops.isUsed(op) && client.ops.generation[op] === generation)
      say(`is answered ${statusName(status)} about block ${volume[op]}:${index[op]} in slot ${slot[op]}${from}`)
    onAnswer.call(client, op, generation, status, chainVersion)
  }
}

function chainText(table: ChainTable, slot: number): string {
  const entries: string[] = []
  for (let i = 0; i < table.entryCount[slot]!; i++) {
    const e = slot * CHAIN_ENTRIES_MAX + i
    entries.push(`disk ${table.entryDisk[e]} ${nameIn(ReplicaState, table.entryState[e]!)}`)
  }
  return entries.join(', ')
}

function recordText({ records }: Replicas, row: number): string {
  const { slot, kind, idHigh, sv, volume, index, firstPage, pageCount, clientHigh, clientLow, channel, seq } = records
  const first = firstPage[row]!
  const where = pageCount[row] === 0 ? '' : ` pages ${first} to ${first + pageCount[row]! - 1} of`
  return (
    `record ${sv[row]} of slot ${slot[row]} (version ${idHigh[row]! >>> 8}): ${nameIn(RecordKind, kind[row]!)}${where} block ${volume[row]}:${index[row]}, ` +
    `seq ${seq[row]} of channel ${channel[row]} of client ${clientHigh[row]}.${clientLow[row]}`
  )
}

function nameIn(names: Readonly<Record<string, number>>, value: number): string {
  return Object.keys(names).find((name) => names[name] === value) ?? String(value)
}
