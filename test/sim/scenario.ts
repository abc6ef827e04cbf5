/** Scenarios in prose: a healthy cluster of three, a volume, clients at work; something happens; what the clients saw is checked. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { ReplicaState } from '../../src/placement/chain.ts'
import { leftovers, Watch } from './checkers.ts'
import { SimCluster, type SimClusterOptions, type SimVolume } from './cluster.ts'
import { History, writeStamps } from './history.ts'
import { NbdInitiator } from './nbd-client.ts'
import { type ClientSeat, SimClient } from './workload.ts'

const WRITE_LIFE_MS = 4500
/** As in the runs (run.ts). */
export const NBD_WRITE_LIFE_MS = WRITE_LIFE_MS + 600
const REAL_TIMEOUT_MS = 240_000

export class Scenario extends SimCluster {
  readonly history = new History()
  readonly clients: SimClient[] = []
  readonly initiators: NbdInitiator[] = []
  readonly watch = new Watch(this)
  #paths = 0

  /** Clients on the named nodes (each stays on its own), `ops` operations each; they end by themselves. */
  load(volume: SimVolume, options: { on: readonly number[]; ops: number; thinkMs?: number; readShare?: number; depth?: number; nbd?: boolean }): void {
    if (!volume.syncWhenWrite) this.history.relaxedVolumes.add(volume.volume)
    for (const number of options.on) {
      const node = this.node(number)
      const client = new SimClient({
        name: `client on ${node.id}`,
        history: this.history,
        random: this.world.random(`client ${this.clients.length}`),
        volume: volume.volume,
        sizeBytes: volume.sizeBytes,
        syncWhenWrite: volume.syncWhenWrite,
        opsMax: options.ops,
        depth: options.depth ?? 2,
        readShare: options.readShare ?? 0.4,
        thinkMs: options.thinkMs ?? 10,
        seat: options.nbd === true ? this.#initiator(volume, number).seat : () => node.seat,
      })
      this.clients.push(client)
      client.start(this.world, options.nbd === true ? NBD_WRITE_LIFE_MS : WRITE_LIFE_MS)
    }
  }

  /** An initiator that does nothing by itself. */
  initiatorOn(volume: SimVolume, number: number): NbdInitiator {
    return this.#initiator(volume, number)
  }

  /** One write of whole pages by a path of the caller's choice; the history knows of it. */
  writeOnce(volume: SimVolume, seat: ClientSeat, offsetBytes: number, lengthBytes: number): { readonly ended: boolean } {
    const page = seat.queue.arena.alloc(lengthBytes)
    const { volume: number, syncWhenWrite } = volume
    const client = `path ${++this.#paths}`
    const open = this.history.beginWrite({ client, volume: number, offsetBytes, lengthBytes, nowMs: this.world.nowMs })
    writeStamps(seat.queue.arena.bytes, page * PAGE_BYTES, open)
    const result = { ended: false }
    const end = (outcome: 'ok' | 'failed') => {
      if (result.ended) return
      result.ended = true
      this.history.endWrite(open, outcome, this.world.nowMs, syncWhenWrite)
      seat.queue.arena.free(page as never)
    }
    // In a turn of its queue, as an export does
    const tag = seat.queue.register(client, () =>
      seat.volumes.write(number, offsetBytes, lengthBytes, page, 0, (_row, status) => end(status === 0 ? 'ok' : 'failed'), 0),
    )
    seat.queue.timeout(0, tag, 0)
    seat.process.onEnd(() => {
      if (result.ended) return
      result.ended = true
      this.history.clientDied(client, this.world.nowMs + WRITE_LIFE_MS)
    })
    return result
  }

  /** Every page that was touched is read by every node. */
  async readAll(volume: SimVolume): Promise<void> {
    for (const page of this.history.pagesOf(volume.volume)) {
      for (const node of this.nodes) {
        if (node.seat) await this.readOnce(volume, node.index + 1, page * PAGE_BYTES)
      }
    }
  }

  /** A page as read through that node; the history knows of it. */
  async readOnce(volume: SimVolume, number: number, offsetBytes: number): Promise<Uint8Array> {
    const { queue, volumes } = this.node(number).seat!
    const { arena } = queue
    const page = arena.alloc(PAGE_BYTES)
    const place = { volume: volume.volume, offsetBytes, lengthBytes: PAGE_BYTES }
    const open = this.history.beginRead({ client: `reader on node-${number}`, ...place, nowMs: this.world.nowMs })
    let status = -1
    const done = (_row: number, result: number) => {
      status = result
    }
    const tag = queue.register('reader', () => volumes.read(volume.volume, offsetBytes, PAGE_BYTES, page, done, 0))
    queue.timeout(0, tag, 0)
    await this.until('a read', () => status >= 0)
    this.history.endRead(open, status === 0 ? arena.bytes : undefined, page * PAGE_BYTES, this.world.nowMs)
    const bytes = arena.bytes.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    arena.free(page as never)
    return bytes
  }

  /** Every chain is served by all nodes but this one. */
  async healthyWithout(number: number): Promise<void> {
    const away = () => this.node(number).control?.member?.node
    await this.until('served by the others', () =>
      (this.state?.chains ?? []).every(({ entries }) => entries.every((entry) => (entry.state === ReplicaState.SERVING) !== (entry.node === away()))),
    )
  }

  /** Prefers the node, and takes any other while that one does not run. */
  #initiator(volume: SimVolume, number: number): NbdInitiator {
    const count = this.initiators.length + 1
    const name = `initiator-${count}`
    const choose = () => (this.node(number).nbd ? this.node(number) : this.nodes.find((node) => node.running && node.nbd))
    const initiator = new NbdInitiator(this, { name, number: count, volume: volume.name, random: this.world.random(name), choose })
    this.initiators.push(initiator)
    return initiator
  }

  async seconds(count: number): Promise<void> {
    await this.world.runFor(count * 1000)
  }

  /** Every client has done all its operations. */
  async clientsDone(limitMs = 60_000): Promise<void> {
    await this.until(
      'the clients are done',
      () => this.clients.every((client) => client.done),
      limitMs,
      () => this.clients.map((client) => client.describe()).join('; '),
    )
  }

  get longestStallMs(): number {
    return Math.max(0, ...this.clients.map((client) => client.longestMs))
  }

  /** Operations that ended with anything but success, by kind. */
  get failures(): Record<string, number> {
    const failures: Record<string, number> = {}
    for (const client of this.clients) {
      for (const [end, count] of client.ends) if (!end.endsWith(' SUCCESS')) failures[end] = (failures[end] ?? 0) + count
    }
    return failures
  }

  /** `but`: statuses that may occur. */
  assertNoErrors(options: { but?: readonly string[] } = {}): void {
    const failures = Object.entries(this.failures).filter(([name]) => !options.but?.includes(name.split(' ')[1]!))
    assert.deepEqual(Object.fromEntries(failures), {}, 'no client saw an error')
  }

  /** Number of the node that leads; 0: none. */
  get leader(): number {
    return this.nodes.findIndex((node) => node.running && node.control?.member?.raft?.isLeader === true) + 1
  }

  /** All is well again: every replica serves, all copies are equal, nothing is left over, and the history has an explanation. */
  async allIsWell(): Promise<void> {
    await this.healthy()
    for (const initiator of this.initiators) initiator.close()
    await this.world.run(() => this.quiet && leftovers(this).length === 0 && this.orphans().length === 0, 8000)
    this.watch.stop()
    assert.deepEqual(this.watch.violations, [])
    assert.deepEqual(this.inspect(), [])
    const { violations, undecided } = this.history.check()
    assert.deepEqual(violations, [])
    assert.equal(undecided, 0)
    this.world.assertNothingReal()
  }
}

/** One test: `body` gets a healthy cluster of three with one volume of 12 MiB. */
export function scenario(
  title: string,
  body: (t: Scenario, volume: SimVolume) => Promise<void>,
  options: Partial<SimClusterOptions> & { syncWhenWrite?: boolean } = {},
): void {
  test(title, { timeout: REAL_TIMEOUT_MS }, async () => {
    const { syncWhenWrite = true, ...cluster } = options
    const t = new Scenario({ seed: 1, nodes: 3, ...cluster })
    try {
      await t.form()
      await t.healthy()
      t.watch.start()
      await body(t, await t.createVolume('db', { sizeBytes: 3 * BLOCK_BYTES, syncWhenWrite }))
    } catch (error) {
      process.stderr.write(`${title}: after ${t.world.nowMs.toFixed(0)} ms; the last lines of the nodes:\n${t.logLines.slice(-25).join('\n')}\n`)
      throw error
    }
  })
}
