/**
 * What an acknowledgement means, looked at in the moment it is given (design, invariants 1 and 2; protocol 9, 12, 20): with luck and a loss of power a
 * history would tell of it later; here every single one counts.
 *
 * - Only the SERVING head of a chain orders, in the version it knows, one after the other.
 * - An answered write is on every SERVING and DRAINING member of the version in which its head answers, durable where that was promised; and where a
 *   SYNCING one has stored it, likewise.
 * - An answered flush: what was committed of the volume when it was asked for is durable on every member of its chains, in every chain that is the same
 *   before and after.
 * - What is asked for with FUA goes to the chains with FUA, each piece of it.
 * - A copy that reports that it is up to date holds on stable storage what its resync has brought (protocol 24).
 * - And it holds no block that its source lacks, unless the removal is still on its way, and each page of its source as far as the stream has come
 *   (protocol 23).
 * - A read is answered in the chain version in which it began, by a copy that serves (protocol 18).
 * - A peer's new session is granted only what it does not hold from earlier ones (src/chain/credits.ts).
 * - A disk that gives back blocks of a volume that exists, because others have them, says before that its copy is not whole (protocol 25).
 */
import type { VolumeNumber } from '../../src/base/ids.ts'
import { type Done, WriteFlag } from '../../src/base/request.ts'
import { Status } from '../../src/base/status.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import type { BlockClient } from '../../src/chain/block-client.ts'
import { Credits, HOPS } from '../../src/chain/credits.ts'
import type { DataPlane, DataPlaneLimits } from '../../src/chain/data-plane.ts'
import { NONE, svOf } from '../../src/chain/records.ts'
import type { SyncSession } from '../../src/chain/session.ts'
import { CHAIN_ENTRIES_MAX, inWritePath, ReplicaState } from '../../src/placement/chain.ts'
import { slotOf } from '../../src/placement/ring.ts'
import { type BlockRow, PAGE_LOST, PageFlag, type ReplicaStore } from '../../src/store/store.ts'
import type { VolumeLayer } from '../../src/volume/volume.ts'
import type { SimCluster } from './cluster.ts'
import type { Ledger } from './ledger.ts'
import type { SimNode } from './node.ts'

type Found = (promise: string, detail: string) => void

/** A record that this data plane has staged; the newest of each channel. */
interface Staged {
  readonly slot: number
  readonly seq: number
  readonly idHigh: number
  readonly idLow: number
  readonly durable: boolean
  readonly atMs: number
}

/** From now on each order, answer and flush of the data plane is looked at. `found` is told of what is wrong. */
export function watchAcknowledged(
  cluster: SimCluster,
  plane: DataPlane,
  { queue, limits }: { readonly queue: { readonly nowMs: number }; readonly limits: DataPlaneLimits },
  found: Found,
): void {
  watchReads(plane, found)
  watchCredits(plane.credits, limits, found)
  const { writes, replicas, flushes, table } = plane
  const { records } = replicas
  const staged = new Map<string, Staged>()
  const { stage } = replicas
  const { committed } = writes
  const { flush } = flushes
  const { sessions, stores } = replicas
  const { set } = sessions

  replicas.stage = (row) => {
    const slot = records.slot[row]!
    if (records.hop[row] === 0) {
      const state = table.entryState[slot * CHAIN_ENTRIES_MAX + table.ownPosition[slot]!]
      if (state !== ReplicaState.SERVING || table.ownPosition[slot] !== 0)
        found('only the head of a chain orders', `slot ${slot}: ordered in state ${state}, at place ${table.ownPosition[slot]}`)
      if (records.idHigh[row]! >>> 8 !== table.version[slot]! % 0x100_0000)
        found('only the head of a chain orders', `slot ${slot}: ordered as of version ${records.idHigh[row]! >>> 8}, known is ${table.version[slot]}`)
    }
    staged.set(`${records.clientHigh[row]} ${records.clientLow[row]} ${records.channel[row]}`, {
      slot,
      seq: records.seq[row]!,
      idHigh: records.idHigh[row]!,
      idLow: records.idLow[row]!,
      durable: records.durable[row] === 1,
      atMs: cluster.world.nowMs,
    })
    stage.call(replicas, row)
  }

  writes.committed = (u) => {
    const { updates } = writes
    const slot = updates.slot[u]!
    const record = staged.get(`${updates.clientHigh[u]} ${updates.clientLow[u]} ${updates.channel[u]}`)
    const isAnswer = table.isHead(slot) && table.leaseValid(queue.nowMs)
    if (isAnswer && record?.slot === slot && record.seq === updates.seq[u]) {
      const why = missing(cluster, plane, record)
      if (why !== '') found('an acknowledged write is on every member', `slot ${slot}, version ${table.version[slot]}, ${why}`)
    }
    committed.call(writes, u)
  }

  const lookAtReport = (slot: number, session: SyncSession) => {
    const own = replicas.storeOf(slot)
    if (own === undefined) return
    const ledger = cluster.ledgers.get(own.disk)
    const last = ledger?.endOfResync(slot) ?? 0
    if (ledger && last > ledger.durable)
      found('who reports has it on stable storage', `slot ${slot}: its end is record ${last} of disk ${ledger.disk}, and ${ledger.durable} is durable`)
    const position = svOf(own.lastHigh[slot]!, own.lastLow[slot]!)
    if (position < session.high)
      found('who reports is past all that it was answered', `slot ${slot}: disk ${own.disk} is at ${position}, and answers held ${session.high}`)
    const resynced = sourceOf(cluster, plane, slot)
    if (resynced === undefined) return
    const differs = extraBlock(cluster, own, resynced, { slot, position }) || lackingPage(cluster, own, resynced, { slot, position })
    if (differs !== '') found('who reports holds what its source holds', `slot ${slot}: ${differs}`)
  }

  sessions.set = (slot, session) => {
    let { reported } = session
    const report = (value: boolean) => {
      if (value && !reported) lookAtReport(slot, session)
      reported = value
    }
    Object.defineProperty(session, 'reported', { get: () => reported, set: report })
    return set.call(sessions, slot, session)
  }

  for (const store of stores) {
    const { sweep } = store
    store.sweep = (isGarbage) =>
      sweep.call(store, (volume, slot) => {
        const isDue = isGarbage(volume, slot)
        if (isDue && cluster.state?.volumes.has(volume as VolumeNumber) === true && !store.isIncomplete(slot))
          found('a copy that is given up counts no more', `slot ${slot}: disk ${store.disk} gives up blocks of volume ${volume} and counts as whole`)
        return isDue
      })
  }

  flushes.flush = (volume, deadlineMs, done) => {
    const owed = owedBy(cluster, volume)
    flush.call(flushes, volume, deadlineMs, (status) => {
      if (status === Status.SUCCESS) {
        const { state } = cluster
        // a volume that has been deleted meanwhile owes nothing
        for (const { slot, version, node, store, ledger, position } of state?.volumes.has(volume) ? owed : []) {
          const isOver = !node.running || ledger.store !== store || store.failed
          if (isOver || state?.chains[slot]?.version !== version || position <= ledger.durable) continue
          found(
            'flushed is durable on every member',
            `volume ${volume}: slot ${slot}, version ${version}: record ${position} of disk ${ledger.disk} is not, ${ledger.durable} is`,
          )
        }
      }
      return done(status)
    })
  }
}

/** Of reads of this node's own clients. */
function watchReads({ reads, client, table }: DataPlane, found: Found): void {
  const { submit } = reads
  const answers = client as unknown as { onAnswer(op: number, generation: number, status: number, chainVersion: number): void }
  const { onAnswer } = answers
  const columns = reads.reads
  const asked = new Map<number, { readonly generation: number; readonly slot: number; readonly version: number }>()
  reads.submit = (r) => {
    if (columns.peer[r] === NONE)
      asked.set(columns.requestRow[r]!, { generation: columns.requestGeneration[r]!, slot: columns.slot[r]!, version: columns.chainVersion[r]! })
    submit.call(reads, r)
  }
  answers.onAnswer = (op, generation, status, chainVersion) => {
    const read = asked.get(op)
    asked.delete(op)
    if (read?.generation === generation && status === Status.SUCCESS) {
      const { slot, version } = read
      if (table.version[slot] !== version || table.ownState[slot] !== ReplicaState.SERVING)
        found(
          'a read is answered as it was asked',
          `slot ${slot}: asked in version ${version}, answered in ${table.version[slot]}, state ${table.ownState[slot]}`,
        )
    }
    onAnswer.call(client, op, generation, status, chainVersion)
  }
}

interface Asked {
  readonly volume: number
  readonly from: number
  readonly to: number
  readonly isFua: boolean
}

/** From now on each piece of what this node's clients write is looked at. */
export function watchPieces(volumes: VolumeLayer, client: BlockClient, found: Found): void {
  /** By whom to tell: what of it has not ended, by row, and who is told in its place. */
  const asked = new Map<Done, { readonly rows: Map<number, Asked>; readonly end: Done }>()
  const ended = (done: Done, row: number) => {
    const { rows } = asked.get(done)!
    rows.delete(row)
    if (rows.size === 0) asked.delete(done)
  }
  const ask = (volume: number, from: number, lengthBytes: number, flags: number, done: Done, row: number): Done => {
    const end: Done = (at, status) => {
      ended(done, at)
      done(at, status)
    }
    const known = asked.get(done) ?? { rows: new Map<number, Asked>(), end }
    asked.set(done, known)
    known.rows.set(row, { volume, from, to: from + lengthBytes, isFua: (flags & WriteFlag.FUA) !== 0 })
    return known.end
  }
  const { write, zero, trim, orphan } = volumes
  volumes.write = (volume, offsetBytes, lengthBytes, page, flags, done, row) =>
    write.call(volumes, volume, offsetBytes, lengthBytes, page, flags, ask(volume, offsetBytes, lengthBytes, flags, done, row), row)
  volumes.zero = (volume, offsetBytes, lengthBytes, page, flags, done, row) =>
    zero.call(volumes, volume, offsetBytes, lengthBytes, page, flags, ask(volume, offsetBytes, lengthBytes, flags, done, row), row)
  volumes.trim = (volume, offsetBytes, lengthBytes, flags, done, row) => {
    const isBegun = trim.call(volumes, volume, offsetBytes, lengthBytes, flags, ask(volume, offsetBytes, lengthBytes, flags, done, row), row)
    if (!isBegun) ended(done, row)
    return isBegun
  }
  volumes.orphan = (done, row, ...lostMs) => orphan.call(volumes, asked.get(done)?.end ?? done, row, ...lostMs)

  const look = (volume: number, from: number, lengthBytes: number, flags: number) => {
    if (flags & WriteFlag.FUA) return
    const all = [...asked.values()].flatMap(({ rows }) => [...rows.values()])
    const whose = all.filter((one) => one.volume === volume && one.from <= from && from + lengthBytes <= one.to)
    if (whose.length > 0 && whose.every(({ isFua }) => isFua))
      found('what is asked for with FUA is durable when it ends', `volume ${volume}: ${lengthBytes} bytes at ${from} go on without`)
  }
  const { write: writePiece, zero: zeroPiece } = client
  client.write = (volume, index, offsetBytes, lengthBytes, page, flags, done, row) => {
    look(volume, index * BLOCK_BYTES + offsetBytes, lengthBytes, flags)
    writePiece.call(client, volume, index, offsetBytes, lengthBytes, page, flags, done, row)
  }
  client.zero = (volume, index, firstPage, pageCount, flags, done, row) => {
    look(volume, index * BLOCK_BYTES + firstPage * PAGE_BYTES, pageCount * PAGE_BYTES, flags)
    zeroPiece.call(client, volume, index, firstPage, pageCount, flags, done, row)
  }
}

function watchCredits(credits: Credits, { creditRows, creditBytes }: DataPlaneLimits, found: Found): void {
  const held = new Map<number, number>()
  /** Under the same limits, and nothing held. */
  const fresh = new Credits(1, { rows: creditRows, bytes: creditBytes })
  const { receive, release, share, start } = credits
  const count = (peer: number, hop: number, change: number) => held.set(peer * HOPS + hop, (held.get(peer * HOPS + hop) ?? 0) + change)
  credits.receive = (peer, hop, bytes) => {
    const isTaken = receive.call(credits, peer, hop, bytes)
    if (isTaken) count(peer, hop, 1)
    return isTaken
  }
  credits.release = (peer, hop, bytes) => {
    count(peer, hop, -1)
    return release.call(credits, peer, hop, bytes)
  }
  credits.share = (...given) => {
    share.apply(credits, given)
    fresh.share(...given)
  }
  credits.start = (peer) => {
    start.call(credits, peer)
    fresh.start(0)
    for (let hop = 0; hop < HOPS; hop++) {
      const [rows, most, still] = [credits.grantRows(peer, hop), fresh.grantRows(0, hop), held.get(peer * HOPS + hop) ?? 0]
      if (rows > 0 && rows + still > most)
        found('nobody is granted what he still holds', `peer ${peer}, hop ${hop}: ${rows} rows of ${most}, and ${still} are held`)
    }
  }
}

interface Source {
  readonly source: ReplicaStore
  readonly ledger: Ledger
}

/** Where a slot is brought up to date from; while that runs, and both know the chain as it is: a source that has been dropped may hold anything. */
function sourceOf(cluster: SimCluster, { table }: DataPlane, slot: number): Source | undefined {
  const ledger = cluster.ledgers.get(table.predecessorDisk[slot]!)
  const source = ledger?.store
  if (ledger === undefined || source === undefined || source.failed) return undefined
  const node = cluster.nodes.find((of) => of.running && of.stores.includes(source))
  const versions = [node?.plane?.table.version[slot], cluster.state?.chains[slot]?.version]
  return versions.every((version) => version === table.version[slot]) ? { source, ledger } : undefined
}

/** How far the log of a slot has come. */
interface Place {
  readonly slot: number
  readonly position: number
}

/** A block of the slot here that its source does not have, and whose removal is not on its way; '' when there is none. */
function extraBlock(cluster: SimCluster, own: ReplicaStore, { source, ledger }: Source, { slot, position }: Place): string {
  for (const block of own.blocksOf(slot)) {
    const name = own.blockIdentity(block)
    if (source.findBlock(name.volume, name.layer, name.index) >= 0 || cluster.state?.volumes.has(name.volume as VolumeNumber) !== true) continue
    if (ledger.isRemovedAfter(name, position)) continue
    return `disk ${own.disk} holds block ${name.volume}:${name.index}, and its source, disk ${source.disk}, does not`
  }
  return ''
}

/** A page with data at the source, as of a record that has come here, and another one here; '' when there is none. */
function lackingPage(cluster: SimCluster, own: ReplicaStore, { source }: Source, { slot, position }: Place): string {
  for (const block of source.blocksOf(slot)) {
    const { volume, layer, index } = source.blockIdentity(block)
    if (cluster.state?.volumes.has(volume as VolumeNumber) !== true) continue
    const there = source.capture(block)
    const row = own.findBlock(volume, layer, index)
    const here = row < 0 ? undefined : own.capture(row as BlockRow)
    const page = there.flags.findIndex((flag, at) => {
      const [high, low] = [there.idHigh[at]!, there.idLow[at]!]
      if ((flag & ~PAGE_LOST) !== PageFlag.DATA || (high === 0 && low === 0) || svOf(high, low) > position) return false
      return here?.idHigh[at] !== high || here.idLow[at] !== low
    })
    source.release(there)
    if (here !== undefined) own.release(here)
    if (page < 0) continue
    const [is, was] = [here, there].map((copy) => (copy === undefined ? 'not there' : `as of ${copy.idHigh[page]}:${copy.idLow[page]}`))
    return `page ${page} of block ${volume}:${index} is ${is} on disk ${own.disk}, and ${was} on its source, disk ${source.disk}`
  }
  return ''
}

function missing(cluster: SimCluster, { table, replicas }: DataPlane, { slot, idHigh, idLow, durable, atMs }: Staged): string {
  for (let i = 0; i < table.entryCount[slot]!; i++) {
    const e = slot * CHAIN_ENTRIES_MAX + i
    const state = table.entryState[e] as ReplicaState
    if (!inWritePath(state)) continue
    const ledger = cluster.ledgers.get(table.entryDisk[e]!)
    // its acknowledgement may be on the way for longer than it takes to come back
    if (ledger === undefined || (!durable && ledger.lostPowerMs >= atMs)) continue
    const position = ledger.positionOf(slot, idHigh, idLow)
    const what = `record ${svOf(idHigh, idLow)} on disk ${ledger.disk} (${Object.keys(ReplicaState)[state]})`
    // what a session may skip, it may have staged before that began
    if (state === ReplicaState.SYNCING && (position === undefined || position < ledger.beginOfResync(slot))) continue
    if (position === undefined) {
      // what came with a resync is not staged
      if (svOf(idHigh, idLow) > ledger.resyncedTo(slot)) return `${what} is not there`
    } else if (position > (durable ? ledger.durable : ledger.staged)) return `${what} is not ${durable ? 'durable' : 'staged'}`
  }
  return replicas.committed[slot]! < svOf(idHigh, idLow) ? `record ${svOf(idHigh, idLow)} is not committed here` : ''
}

interface Owed {
  readonly slot: number
  readonly version: number
  readonly node: SimNode
  readonly store: ReplicaStore
  readonly ledger: Ledger
  readonly position: number
}

/** What is committed of the volume now, and where it is: in chains all of whose members know them as they are. */
function owedBy(cluster: SimCluster, volume: VolumeNumber): Owed[] {
  const { state, nodes } = cluster
  const owed: Owed[] = []
  const sizeBytes = state?.volumes.get(volume)?.sizeBytes
  if (!state || sizeBytes === undefined) return owed
  const slotCount = state.chains.length
  const slots = new Set(Array.from({ length: Math.ceil(sizeBytes / BLOCK_BYTES) }, (_, index) => slotOf(volume, index, slotCount)))
  for (const slot of slots) {
    const { version, entries } = state.chains[slot]!
    const members = entries
      .filter((entry) => inWritePath(entry.state))
      .map((entry) => ({ entry, node: nodes.find((of) => of.control?.member?.node === entry.node) }))
    const isKnown = members.every(
      ({ node, entry }) => node?.running && node.control?.member?.incarnation === entry.incarnation && node.plane?.table.version[slot] === version,
    )
    if (!isKnown) continue
    const committed = Math.max(0, ...members.map(({ node }) => node!.plane!.replicas.committed[slot] ?? 0))
    for (const { entry, node } of members) {
      const ledger = cluster.ledgers.get(entry.disk)
      const position = ledger?.newestOf(slot, volume, committed) ?? 0
      if (ledger?.store && position > 0) owed.push({ slot, version, node: node!, store: ledger.store, ledger, position })
    }
  }
  return owed
}
