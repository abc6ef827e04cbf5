/** The driver on the real core: a cluster in one process under a virtual clock, with a faulty network and key-value stores that lose what was not synced. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { XsanError } from '../base/errors.ts'
import type { NodeNumber } from '../base/ids.ts'
import { Prng } from '../base/prng.ts'
import type { Clock, Entropy, Kv, KvOp, Log, TimerId } from '../env/control.ts'
import { createRaftCore } from '../env/native/raft.ts'
import { NotLeaderError, RaftNode, type RaftNodeOptions, type StateMachine } from './driver.ts'

const ELECTION_MS = 1000
const n = (number: number) => number as NodeNumber
const utf8 = (text: string) => new TextEncoder().encode(text)
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

/** One heap of events by (time, sequence); after each, promises run dry before the next. */
class World {
  nowMs = 0
  #events: Array<{ atMs: number; sequence: number; run: () => void }> = []
  #sequence = 0
  hash = 0
  readonly prng: Prng

  constructor(seed: number) {
    this.prng = new Prng(seed)
  }

  at(delayMs: number, run: () => void): { cancel(): void } {
    const event = { atMs: this.nowMs + delayMs, sequence: this.#sequence++, run }
    let i = this.#events.length
    while (i > 0 && this.#events[i - 1]!.atMs > event.atMs) i--
    this.#events.splice(i, 0, event)
    return {
      cancel: () => {
        event.run = () => {}
      },
    }
  }

  fold(line: string): void {
    for (let i = 0; i < line.length; i++) this.hash = (Math.imul(this.hash, 31) + line.charCodeAt(i)) | 0
  }

  async run(forMs: number, until?: () => boolean): Promise<void> {
    const endMs = this.nowMs + forMs
    await drain()
    while (until === undefined || !until()) {
      const event = this.#events[0]
      if (event === undefined || event.atMs > endMs) break
      this.#events.shift()
      this.nowMs = event.atMs
      event.run()
      await drain()
    }
    if (until === undefined) this.nowMs = endMs
    else assert.ok(until(), `not within ${forMs} ms: ${until}`)
  }
}

const drain = () => new Promise<void>((resolve) => setImmediate(resolve))

/** Batches take time; a crash loses those not resolved, or keeps some first ones of them that nobody was told of. */
class Disk {
  readonly stored = new Map<string, Uint8Array>()
  batches = 0
  failing = false
}

class DiskKv implements Kv {
  readonly #world: World
  readonly #disk: Disk
  readonly #pending: Array<{ ops: readonly KvOp[]; done: () => void }> = []
  isDead = false

  constructor(world: World, disk: Disk) {
    this.#world = world
    this.#disk = disk
  }

  async scan(prefix: string): Promise<Array<{ key: string; value: Uint8Array }>> {
    return [...this.#disk.stored]
      .filter(([key]) => key.startsWith(prefix))
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, value]) => ({ key, value }))
  }

  batch(ops: readonly KvOp[]): Promise<void> {
    if (this.isDead) return new Promise(() => {})
    if (this.#disk.failing) return Promise.reject(new Error('EIO'))
    return new Promise((resolve) => {
      this.#pending.push({ ops, done: resolve })
      this.#world.at(this.#world.prng.below(3), () => this.#finish())
    })
  }

  #finish(): void {
    if (this.isDead) return
    const batch = this.#pending.shift()!
    this.#write(batch.ops)
    batch.done()
  }

  #write(ops: readonly KvOp[]): void {
    this.#disk.batches++
    for (const op of ops) {
      if (op.type === 'put') this.#disk.stored.set(op.key, op.value.slice())
      else this.#disk.stored.delete(op.key)
    }
  }

  crash(): void {
    this.isDead = true
    const kept = this.#world.prng.below(this.#pending.length + 1)
    for (const batch of this.#pending.slice(0, kept)) this.#write(batch.ops)
  }

  async close(): Promise<void> {}
}

/** A list of words. */
class Words implements StateMachine {
  readonly prefix = 'words/'
  words: string[] = []
  readonly onApply: (index: number, word: string) => void

  constructor(onApply: (index: number, word: string) => void) {
    this.onApply = onApply
  }

  load(stored: ReadonlyArray<{ key: string; value: Uint8Array }>): void {
    this.words = stored.map(({ value }) => text(value))
  }

  apply({ index, command }: { index: number; command: Uint8Array }): { result: unknown; ops: KvOp[] } {
    const word = text(command)
    this.onApply(index, word)
    this.words.push(word)
    return { result: `${word}@${this.words.length}`, ops: [{ type: 'put', key: this.#key(this.words.length), value: command }] }
  }

  snapshot(): Uint8Array {
    return utf8(JSON.stringify(this.words))
  }

  restore(snapshot: Uint8Array): KvOp[] {
    const ops: KvOp[] = this.words.map((_, i) => ({ type: 'delete', key: this.#key(i + 1) }))
    this.words = JSON.parse(text(snapshot)) as string[]
    return [...ops, ...this.words.map((word, i): KvOp => ({ type: 'put', key: this.#key(i + 1), value: utf8(word) }))]
  }

  #key(position: number): string {
    return this.prefix + String(position).padStart(8, '0')
  }
}

const quiet: Log = { log: () => {}, child: () => quiet }

class Member {
  readonly cluster: Cluster
  readonly id: NodeNumber
  readonly disk = new Disk()
  raft: RaftNode | undefined
  words: Words | undefined
  fatal: unknown
  leaderChanges: string[] = []
  /** Crash at the next send, before anything leaves. */
  crashBeforeSend = false
  #kv: DiskKv | undefined
  #life = 0

  constructor(cluster: Cluster, id: NodeNumber) {
    this.cluster = cluster
    this.id = id
  }

  get isUp(): boolean {
    return this.raft !== undefined
  }

  async start(start: RaftNodeOptions['start'], more: Partial<RaftNodeOptions> = {}): Promise<RaftNode> {
    const { world } = this.cluster
    const life = ++this.#life
    const alive = () => life === this.#life
    const clock: Clock = {
      nowMs: () => world.nowMs,
      wallMs: () => world.nowMs,
      setTimer: (delayMs, fn) => world.at(delayMs, () => alive() && fn()) as unknown as TimerId,
      clearTimer: (id) => (id as unknown as { cancel(): void }).cancel(),
    }
    const prng = world.prng.fork(`node ${this.id} life ${life}`)
    const entropy: Entropy = {
      u32: () => prng.u32(),
      bytes: (count) => {
        const bytes = new Uint8Array(count)
        prng.fill(bytes)
        return bytes
      },
      uuid: () => String(prng.u32()),
    }
    this.#kv = new DiskKv(world, this.disk)
    const words = new Words((index, word) => this.cluster.noteApplied(this.id, index, word))
    const opening = RaftNode.open({
      id: this.id,
      createCore: createRaftCore,
      kv: this.#kv,
      clock,
      entropy,
      log: quiet,
      transport: {
        send: (to, messages) => {
          if (!alive()) return
          if (this.crashBeforeSend) {
            this.crashBeforeSend = false
            this.crash()
            return
          }
          this.cluster.deliver(this.id, to, messages)
        },
      },
      stateMachine: words,
      events: {
        onFatal: (error) => {
          this.fatal = error
        },
        onLeaderChange: ({ leader, term, isSelf }) => {
          if (!alive()) return
          this.leaderChanges.push(`${leader}@${term}`)
          world.fold(`${world.nowMs} ${this.id} leader ${leader} ${term}`)
          if (isSelf) this.cluster.noteLeader(this.id, term)
        },
      },
      start,
      electionTimeoutMs: ELECTION_MS,
      ...this.cluster.options,
      ...more,
    })
    let raft: RaftNode | undefined
    let failure: unknown
    opening.then(
      (opened) => {
        raft = opened
      },
      (error: unknown) => {
        failure = error
      },
    )
    await world.run(1000, () => raft !== undefined || failure !== undefined)
    if (raft === undefined) throw failure
    this.raft = raft
    this.words = words
    return raft
  }

  crash(): void {
    this.#life++
    this.#kv?.crash()
    this.raft = undefined
    this.words = undefined
  }
}

class Cluster {
  readonly world: World
  readonly members = new Map<NodeNumber, Member>()
  options: Partial<RaftNodeOptions> = {}
  lossProbability = 0
  delayMsMax = 2
  /** Links that carry nothing, "from>to". */
  readonly cut = new Set<string>()
  readonly #applied = new Map<number, string>()
  readonly #leaders = new Map<number, NodeNumber>()

  constructor(seed: number) {
    this.world = new World(seed)
  }

  static async of(count: number, seed = 1, options: Partial<RaftNodeOptions> = {}): Promise<Cluster> {
    const cluster = new Cluster(seed)
    cluster.options = options
    const voters = Array.from({ length: count }, (_, i) => n(i + 1))
    for (const id of voters) await cluster.add(id).start({ voters })
    return cluster
  }

  add(id: NodeNumber): Member {
    const member = new Member(this, id)
    this.members.set(id, member)
    return member
  }

  node(id: number): Member {
    return this.members.get(n(id))!
  }

  raft(id: number): RaftNode {
    return this.node(id).raft!
  }

  deliver(from: NodeNumber, to: NodeNumber, messages: readonly Uint8Array[]): void {
    const { prng } = this.world
    for (const bytes of messages) {
      if (this.cut.has(`${from}>${to}`) || prng.chance(this.lossProbability)) continue
      const copies = prng.chance(this.lossProbability / 2) ? 2 : 1
      for (let i = 0; i < copies; i++) {
        this.world.at(prng.unit() * this.delayMsMax, () => {
          if (this.cut.has(`${from}>${to}`)) return
          this.world.fold(`${this.world.nowMs} ${from}>${to} ${bytes.length} ${bytes[0]}`)
          this.members.get(to)?.raft?.receive(from, [bytes.slice()])
        })
      }
    }
  }

  isolate(id: number): void {
    for (const other of this.members.keys()) if (other !== id) this.cut.add(`${id}>${other}`).add(`${other}>${id}`)
  }

  heal(): void {
    this.cut.clear()
  }

  noteApplied(node: NodeNumber, index: number, word: string): void {
    const known = this.#applied.get(index)
    assert.ok(known === undefined || known === word, `node ${node} applies ${word} at ${index}, another applied ${known}`)
    this.#applied.set(index, word)
    this.world.fold(`${this.world.nowMs} ${node} apply ${index} ${word}`)
  }

  noteLeader(node: NodeNumber, term: number): void {
    const known = this.#leaders.get(term)
    assert.ok(known === undefined || known === node, `term ${term} has the leaders ${known} and ${node}`)
    this.#leaders.set(term, node)
  }

  get up(): Member[] {
    return [...this.members.values()].filter((member) => member.isUp)
  }

  /** The leader that a majority of those up follow. */
  leaderOf(members = this.up): Member | undefined {
    const leader = members.find((member) => member.raft!.isLeader && members.every((other) => other.raft!.leader === member.id))
    return leader
  }

  async elect(members = this.up, forMs = 20_000): Promise<Member> {
    await this.world.run(forMs, () => this.leaderOf(members) !== undefined)
    return this.leaderOf(members)!
  }

  async settle<T>(promise: Promise<T>, forMs = 20_000): Promise<T> {
    let result: { value: T } | { error: unknown } | undefined
    promise.then(
      (value) => {
        result = { value }
      },
      (error: unknown) => {
        result = { error }
      },
    )
    await this.world.run(forMs, () => result !== undefined)
    if (result !== undefined && 'value' in result) return result.value
    throw (result as unknown as { error: unknown }).error
  }

  async propose(id: number, word: string): Promise<unknown> {
    return this.settle(this.raft(id).propose(utf8(word)))
  }

  async allEqual(members = this.up, forMs = 20_000): Promise<string[]> {
    await this.world.run(forMs, () => {
      const applied = members.map((member) => member.raft!.applied)
      return applied.every((index) => index === applied[0] && index === members[0]!.raft!.status().commit)
    })
    const words = members[0]!.words!.words
    for (const member of members) assert.deepEqual(member.words!.words, words)
    assert.equal(new Set(words).size, words.length, 'a word was applied twice')
    for (const member of members) assert.equal(member.fatal, undefined)
    return words
  }
}

const statusOf = (status: string) => (error: unknown) => (error as XsanError).status === status

test('three nodes elect one leader and apply the same commands in the same order', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  assert.equal(await cluster.propose(leader.id, 'a'), 'a@1')
  const [b, c] = await Promise.all([cluster.settle(leader.raft!.propose(utf8('b'))), cluster.settle(leader.raft!.propose(utf8('c')))])
  assert.deepEqual([b, c], ['b@2', 'c@3'])
  assert.deepEqual(await cluster.allEqual(), ['a', 'b', 'c'])
  for (const member of cluster.up) assert.equal(member.raft!.leader, leader.id)
})

test('a follower refuses a command and names the leader', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const follower = cluster.up.find((member) => member !== leader)!
  await assert.rejects(cluster.settle(follower.raft!.propose(utf8('x'))), (error) => error instanceof NotLeaderError && error.leader === leader.id)
  await assert.rejects(cluster.settle(leader.raft!.propose(new Uint8Array(1024 * 1024 + 1))), statusOf('REQUEST_TOO_LARGE'))
})

test('a single node leads at once, and goes on from its store after a restart', async () => {
  const cluster = await Cluster.of(1)
  await cluster.world.run(50, () => cluster.raft(1).isLeader)
  for (let i = 0; i < 20; i++) await cluster.propose(1, `w${i}`)
  cluster.node(1).crash()
  await cluster.node(1).start({ voters: [n(1)] })
  await cluster.world.run(50, () => cluster.raft(1).isLeader)
  await cluster.propose(1, 'last')
  const words = await cluster.allEqual()
  assert.equal(words.length, 21)
  assert.equal(await cluster.settle(cluster.raft(1).readIndex()), cluster.raft(1).applied)
})

test('a clean stop stores everything and rejects what waits', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  await cluster.propose(leader.id, 'a')
  cluster.isolate(leader.id)
  const waiting = leader.raft!.propose(utf8('b'))
  const rejected = assert.rejects(cluster.settle(waiting), statusOf('STOPPING'))
  await cluster.settle(leader.raft!.stop())
  await rejected
  await assert.rejects(leader.raft!.propose(utf8('c')), statusOf('STOPPING'))
  assert.equal(leader.raft!.isLeader, false)
  assert.equal(leader.raft!.status().lastIndex, 3)
})

test('when the leader is lost another takes over and nothing acknowledged is lost', async () => {
  const cluster = await Cluster.of(3)
  const old = await cluster.elect()
  await cluster.propose(old.id, 'a')
  old.crash()
  const next = await cluster.elect()
  assert.notEqual(next.id, old.id)
  await cluster.propose(next.id, 'b')
  await old.start({ voters: [n(1), n(2), n(3)] })
  await cluster.elect()
  assert.deepEqual(await cluster.allEqual(), ['a', 'b'])
})

test('a vote or an entry is on stable storage before the message that promises it: killed between persist and send, at every send', async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const cluster = await Cluster.of(3, seed)
    const voters = [n(1), n(2), n(3)]
    const acknowledged: string[] = []
    for (let round = 0; round < 4; round++) {
      const leader = await cluster.elect()
      const victim = cluster.node(1 + ((seed + round) % 3))
      victim.crashBeforeSend = true
      await cluster.propose(leader.id, `s${seed}r${round}`).then(
        () => acknowledged.push(`s${seed}r${round}`),
        () => {},
      )
      await cluster.world.run(200)
      if (!victim.isUp) await victim.start({ voters })
      victim.crashBeforeSend = false
    }
    await cluster.elect()
    const words = await cluster.allEqual()
    for (const word of acknowledged) assert.ok(words.includes(word), `${word} was acknowledged and is lost`)
  }
})

test('a command of a deposed leader that was overwritten is refused as certainly not applied', async () => {
  const cluster = await Cluster.of(3)
  const old = await cluster.elect()
  await cluster.propose(old.id, 'a')
  cluster.isolate(old.id)
  const lost = old.raft!.propose(utf8('lost'), { timeoutMs: 60_000 })
  const rejected = assert.rejects(cluster.settle(lost, 60_000), (error) => error instanceof NotLeaderError)
  const others = cluster.up.filter((member) => member !== old)
  const next = await cluster.elect(others)
  await cluster.propose(next.id, 'b')
  await cluster.propose(next.id, 'c')
  cluster.heal()
  await rejected
  assert.deepEqual(await cluster.allEqual(), ['a', 'b', 'c'])
})

test('a command without a majority ends as unknown when its time is over', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  cluster.isolate(leader.id)
  await assert.rejects(cluster.settle(leader.raft!.propose(utf8('x'), { timeoutMs: 500 })), statusOf('CONSENSUS_FAILED'))
  await cluster.world.run(3 * ELECTION_MS)
  assert.equal(leader.raft!.isLeader, false)
})

test('a node long away catches up by snapshot, and again after a restart', async () => {
  const cluster = await Cluster.of(3, 1, { compactAfterEntries: 50, keepEntries: 10 })
  const leader = await cluster.elect()
  const away = cluster.up.find((member) => member !== leader)!
  away.crash()
  for (let i = 0; i < 200; i++) await cluster.propose(leader.id, `w${i}`)
  assert.ok(leader.raft!.status().firstIndex > 100)
  assert.ok([...leader.disk.stored.keys()].filter((key) => key.startsWith('raft/log/')).length <= 120)
  await away.start({ voters: [n(1), n(2), n(3)] })
  assert.equal((await cluster.allEqual()).length, 200)
  await cluster.world.run(100)
  assert.ok(away.raft!.status().firstIndex > 100)
  await cluster.propose(leader.id, 'after')
  away.crash()
  await away.start({ voters: [n(1), n(2), n(3)] })
  await cluster.elect()
  assert.equal((await cluster.allEqual()).length, 201)
})

test('a lost snapshot is sent again', async () => {
  const cluster = await Cluster.of(3, 1, { compactAfterEntries: 20, keepEntries: 5, snapshotTimeoutMs: 2000 })
  const leader = await cluster.elect()
  const away = cluster.up.find((member) => member !== leader)!
  away.crash()
  for (let i = 0; i < 100; i++) await cluster.propose(leader.id, `${i}`.padEnd(100, '.'))
  const deliver = cluster.deliver.bind(cluster)
  let lost = 0
  cluster.deliver = (from, to, messages) => deliver(from, to, lost < 2 ? messages.filter((bytes) => bytes.length < 5000 || lost++ > 2) : messages)
  await away.start({ voters: [n(1), n(2), n(3)] })
  assert.equal((await cluster.allEqual()).length, 100)
  assert.equal(lost, 2)
})

test('one node grows to three without a restart, and shrinks again', async () => {
  const cluster = await Cluster.of(1)
  await cluster.elect()
  await cluster.propose(1, 'first')
  for (const id of [2, 3]) {
    await cluster.add(n(id)).start('join')
    assert.deepEqual((await cluster.settle(cluster.raft(1).addLearner(n(id)))).learners, [n(id)])
    const matched = () =>
      cluster
        .raft(1)
        .status()
        .progress.find(({ node }) => node === id)?.matched ?? 0
    await cluster.world.run(1000, () => matched() >= cluster.raft(1).applied)
    const members = await cluster.settle(cluster.raft(1).promote(n(id)))
    assert.ok(members.voters.includes(n(id)) && members.learners.length === 0 && members.votersOutgoing.length === 0)
    await cluster.propose(1, `with ${id}`)
  }
  assert.deepEqual(await cluster.allEqual(), ['first', 'with 2', 'with 3'])
  cluster.node(1).crash()
  const leader = await cluster.elect()
  await cluster.propose(leader.id, 'without 1')
  await cluster.node(1).start('join')
  await cluster.elect()
  await cluster.allEqual()
  const survivor = cluster.leaderOf()!
  for (const id of [1, 2, 3]) if (id !== survivor.id) await cluster.settle(survivor.raft!.remove(n(id)))
  assert.deepEqual(survivor.raft!.members.voters, [survivor.id])
  await cluster.propose(survivor.id, 'alone')
  await assert.rejects(cluster.settle(survivor.raft!.remove(survivor.id)), statusOf('INVALID_PARAM'))
})

test('a leader that removes itself steps down and the others go on', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  await cluster.settle(leader.raft!.remove(leader.id))
  const others = cluster.up.filter((member) => member !== leader)
  const next = await cluster.elect(others)
  assert.equal(leader.raft!.isLeader, false)
  await cluster.propose(next.id, 'on')
  assert.deepEqual(next.raft!.members.voters, others.map((member) => member.id).sort())
})

test('a voter is replaced in one joint change, even when the leader is lost in the middle of it', async () => {
  for (let seed = 1; seed <= 6; seed++) {
    const cluster = await Cluster.of(3, seed)
    const leader = await cluster.elect()
    await cluster.add(n(4)).start('join')
    await cluster.settle(leader.raft!.addLearner(n(4)))
    const out = cluster.up.find((member) => member !== leader && member.id !== 4)!
    const change = leader.raft!.changeMembers({ addVoters: [n(4)], remove: [out.id] })
    change.catch(() => {})
    await cluster.world.run(seed * 2)
    leader.crash()
    await cluster.world.run(10_000)
    await leader.start({ voters: [n(1), n(2), n(3)] })
    await cluster.world.run(10_000, () => {
      const leading = cluster.up.find((member) => member.raft!.isLeader)
      return leading !== undefined && leading.raft!.members.votersOutgoing.length === 0
    })
    const next = cluster.up.find((member) => member.raft!.isLeader)!
    await cluster.propose(next.id, 'on')
    assert.equal(next.raft!.members.voters.length, 3)
  }
})

test('two changes of members at a time: the second is refused', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const first = cluster.settle(leader.raft!.addLearner(n(7)))
  await assert.rejects(leader.raft!.addLearner(n(8)), statusOf('BUSY'))
  assert.deepEqual((await first).learners, [7])
})

test('leadership is transferred on request', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const target = cluster.up.find((member) => member !== leader)!
  const before = cluster.world.nowMs
  await cluster.settle(leader.raft!.transferLeader(target.id))
  assert.ok(cluster.world.nowMs - before < 100)
  assert.equal((await cluster.elect()).id, target.id)
  await assert.rejects(leader.raft!.transferLeader(target.id), statusOf('NOT_LEADER'))
  await assert.rejects(target.raft!.transferLeader(n(9)), statusOf('INVALID_PARAM'))
})

test('a leader proven dead is replaced in less than 200 ms', async () => {
  for (let seed = 1; seed <= 10; seed++) {
    const cluster = await Cluster.of(3, seed)
    const leader = await cluster.elect()
    await cluster.propose(leader.id, 'a')
    await cluster.world.run(300)
    leader.crash()
    const diedMs = cluster.world.nowMs
    await cluster.world.run(10)
    cluster.up.forEach((member, rank) => {
      cluster.world.at(rank * 5, () => member.raft!.leaderProvenDead(leader.id, rank))
    })
    const next = await cluster.elect()
    assert.ok(cluster.world.nowMs - diedMs < 200, `seed ${seed}: ${cluster.world.nowMs - diedMs} ms`)
    await cluster.propose(next.id, 'b')
    assert.ok(cluster.world.nowMs - diedMs < 250)
  }
})

test('a proof that names another node than the leader changes nothing', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const [a, b] = cluster.up.filter((member) => member !== leader)
  a!.raft!.leaderProvenDead(b!.id, 0)
  await cluster.world.run(1000)
  assert.equal(cluster.leaderOf()?.id, leader.id)
})

test('a deposed leader answers no read, and followers read what was acknowledged', async () => {
  const cluster = await Cluster.of(3)
  const old = await cluster.elect()
  await cluster.propose(old.id, 'a')
  cluster.isolate(old.id)
  const others = cluster.up.filter((member) => member !== old)
  const asLeader = assert.rejects(cluster.settle(old.raft!.readIndex({ asLeader: true, timeoutMs: 60_000 }), 60_000), statusOf('NOT_LEADER'))
  const plain = assert.rejects(cluster.settle(old.raft!.readIndex({ timeoutMs: 800 }), 60_000), statusOf('CONSENSUS_FAILED'))
  const next = await cluster.elect(others)
  await cluster.propose(next.id, 'b')
  const index = await cluster.settle(next.raft!.readIndex({ asLeader: true }))
  const follower = others.find((member) => member !== next)!
  assert.ok((await cluster.settle(follower.raft!.readIndex())) >= index)
  assert.deepEqual(follower.words!.words, ['a', 'b'])
  await Promise.all([asLeader, plain])
  cluster.heal()
  assert.ok((await cluster.settle(old.raft!.readIndex())) >= index)
  assert.deepEqual(old.words!.words, ['a', 'b'])
})

test('a read shares no round that started before it', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const first = leader.raft!.readIndex()
  await cluster.world.run(0.5)
  await cluster.propose(leader.id, 'x')
  const second = await cluster.settle(leader.raft!.readIndex())
  assert.ok((await cluster.settle(first)) <= second)
  assert.equal(second, leader.raft!.applied)
})

test('a new leader answers reads only once its own term has something committed', async () => {
  const cluster = await Cluster.of(3)
  const old = await cluster.elect()
  await cluster.propose(old.id, 'a')
  old.crash()
  const next = await cluster.elect()
  await cluster.settle(next.raft!.readIndex({ asLeader: true }))
  assert.deepEqual(next.words!.words, ['a'])
})

test('a read asked of a new leader at once is answered with its first commit, not some ticks later', async () => {
  for (let seed = 1; seed <= 10; seed++) {
    const cluster = await Cluster.of(3, seed)
    const old = await cluster.elect()
    await cluster.propose(old.id, 'a')
    old.crash()
    const next = await cluster.elect()
    const electedMs = cluster.world.nowMs
    await cluster.settle(next.raft!.readIndex({ asLeader: true }))
    assert.ok(cluster.world.nowMs - electedMs < 100, `seed ${seed}: ${cluster.world.nowMs - electedMs} ms`)
  }
})

test('a store that fails ends the node, and says so once', async () => {
  const cluster = await Cluster.of(1)
  await cluster.elect()
  cluster.node(1).disk.failing = true
  await assert.rejects(cluster.propose(1, 'x'), statusOf('CONSENSUS_FAILED'))
  assert.match(String(cluster.node(1).fatal), /EIO/)
  await assert.rejects(cluster.propose(1, 'y'), statusOf('CONSENSUS_FAILED'))
})

test('a log that was put back as it was earlier is found out by the leader that knows more of it, and is not used under the next one either', async () => {
  const cluster = await Cluster.of(3)
  const voters = { voters: [n(1), n(2), n(3)] }
  const leader = await cluster.elect()
  const restored = cluster.up.find((member) => member !== leader)!
  await cluster.propose(leader.id, 'before')
  await cluster.allEqual()
  const backup = new Map(restored.disk.stored)
  await cluster.propose(leader.id, 'after')
  await cluster.allEqual()
  restored.crash()
  restored.disk.stored.clear()
  for (const [key, value] of backup) restored.disk.stored.set(key, value)
  await restored.start(voters)
  await cluster.world.run(5000, () => restored.fatal !== undefined)
  const refused = { status: 'DISK_CORRUPTED', message: /put back as it was earlier: the log ends at entry \d+, and up to \d+ this node has acknowledged/ }
  assert.throws(() => {
    throw restored.fatal
  }, refused)
  restored.crash()
  leader.crash()
  await leader.start(voters)
  await cluster.elect()
  await assert.rejects(restored.start(voters), refused)
})

test('a damaged, gapped or foreign log is refused with the reason', async () => {
  const voters = { voters: [n(1)] }
  const damage = async (spoil: (stored: Map<string, Uint8Array>) => void) => {
    const cluster = await Cluster.of(1)
    await cluster.elect()
    for (let i = 0; i < 5; i++) await cluster.propose(1, `w${i}`)
    await cluster.settle(cluster.raft(1).stop())
    spoil(cluster.node(1).disk.stored)
    cluster.node(1).crash()
    await cluster.node(1).start(voters)
  }
  const key = (stored: Map<string, Uint8Array>, at: number) => [...stored.keys()].filter((name) => name.startsWith('raft/log/')).sort()[at]!
  const flip = (stored: Map<string, Uint8Array>) => {
    const bytes = stored.get(key(stored, 2))!
    bytes[bytes.length - 1]! ^= 1
  }
  const is = (status: string, reason: RegExp) => (error: unknown) => (error as XsanError).status === status && reason.test((error as XsanError).message)
  await assert.rejects(damage(flip), is('DISK_CORRUPTED', /entry 4: checksum/))
  await assert.rejects(
    damage((stored) => stored.delete(key(stored, 2))),
    is('DISK_CORRUPTED', /entry 4 is missing/),
  )
  await assert.rejects(
    damage((stored) => stored.delete(key(stored, 5))),
    is('DISK_CORRUPTED', /ends at entry 6, and 7 were committed/),
  )
  await assert.rejects(
    damage((stored) => stored.delete('raft/state')),
    is('DISK_CORRUPTED', /no state record/),
  )
  await assert.rejects(
    damage((stored) => stored.set('raft/state', utf8('{"format":1,'))),
    is('DISK_CORRUPTED', /cannot be read/),
  )
  await assert.rejects(
    damage((stored) => stored.set('raft/state', utf8('{"format":2}'))),
    is('DISK_INCOMPATIBLE', /format 2/),
  )
  const cluster = await Cluster.of(1)
  const other = cluster.add(n(2))
  for (const [name, value] of cluster.node(1).disk.stored) other.disk.stored.set(name, value)
  await assert.rejects(other.start('join'), is('INVALID_PARAM', /belongs to node 1/))
})

test('garbage, forged and misdirected messages are refused and harm nothing', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const captured: Uint8Array[] = []
  const deliver = cluster.deliver.bind(cluster)
  cluster.deliver = (from, to, messages) => {
    captured.push(...messages)
    deliver(from, to, messages)
  }
  await cluster.propose(leader.id, 'a')
  const prng = new Prng(7)
  for (let i = 0; i < 2000; i++) {
    const bytes = i % 2 ? prng.pick(captured).slice() : new Uint8Array(prng.below(80))
    if (i % 2) bytes[prng.below(bytes.length)]! ^= 1 << prng.below(8)
    else prng.fill(bytes)
    prng.pick(cluster.up).raft!.receive(prng.pick([n(1), n(2), n(3), n(9)]), [bytes])
    if (i % 100 === 0) await cluster.world.run(10)
  }
  for (const member of cluster.up) member.raft!.receive(n(9), captured)
  await cluster.world.run(1000)
  const now = await cluster.elect()
  await cluster.propose(now.id, 'b')
  assert.deepEqual(await cluster.allEqual(), ['a', 'b'])
})

test('too many commands at a time are refused, not queued without end', async () => {
  const cluster = await Cluster.of(3)
  const leader = await cluster.elect()
  const outcomes = Array.from({ length: 1500 }, (_, i) =>
    leader.raft!.propose(utf8(`w${i}`)).then(
      () => 'done',
      (error: XsanError) => error.status,
    ),
  )
  const statuses = await cluster.settle(Promise.all(outcomes))
  assert.equal(statuses.filter((status) => status === 'done').length, 1024)
  assert.equal(statuses.filter((status) => status === 'BUSY').length, 476)
  assert.equal((await cluster.allEqual()).length, 1024)
})

/** A cluster under faults: crashes, restarts, partitions, loss, reordering, duplicates. Then healed: it must serve, with nothing lost or doubled. */
async function torture(seed: number): Promise<{ trace: number; acknowledged: number }> {
  const cluster = await Cluster.of(seed % 2 ? 3 : 5, seed, { compactAfterEntries: 30, keepEntries: 8, snapshotTimeoutMs: 1000 })
  const { world } = cluster
  const voters = [...cluster.members.keys()]
  const acknowledged: string[] = []
  const refused: string[] = []
  let proposed = 0
  cluster.lossProbability = 0.05
  cluster.delayMsMax = 30
  for (let step = 0; step < 120; step++) {
    await world.run(world.prng.below(200))
    for (let i = 0; i < 3; i++) {
      const target = cluster.up.find((member) => member.raft!.isLeader)
      if (!target) continue
      const word = `w${proposed++}`
      target.raft!.propose(utf8(word), { timeoutMs: 3000 }).then(
        () => acknowledged.push(word),
        (error: unknown) => {
          if (error instanceof NotLeaderError) refused.push(word)
        },
      )
    }
    const reader = cluster.up.length > 0 ? world.prng.pick(cluster.up) : undefined
    if (reader) {
      const { words } = reader
      const before = acknowledged.slice()
      reader.raft!.readIndex({ timeoutMs: 3000 }).then(
        () => {
          for (const word of before) assert.ok(words!.words.includes(word), `seed ${seed}: a read misses ${word}, acknowledged before it`)
        },
        () => {},
      )
    }
    const victim = cluster.node(1 + world.prng.below(voters.length))
    switch (world.prng.below(8)) {
      case 0:
        if (victim.isUp && cluster.up.length > voters.length / 2) victim.crash()
        break
      case 1:
        if (victim.isUp) victim.crashBeforeSend = true
        break
      case 2:
      case 3:
        for (const member of cluster.members.values()) if (!member.isUp) await member.start({ voters })
        break
      case 4:
        cluster.isolate(victim.id)
        break
      case 5:
        cluster.heal()
        break
    }
    if (step % 10 === 9) cluster.heal()
  }
  cluster.heal()
  cluster.lossProbability = 0
  cluster.delayMsMax = 2
  for (const member of cluster.members.values()) {
    member.crashBeforeSend = false
    if (!member.isUp) await member.start({ voters })
  }
  const leader = await cluster.elect()
  await world.run(5000)
  await cluster.propose((await cluster.elect()).id, 'end')
  const words = await cluster.allEqual()
  for (const word of acknowledged) assert.ok(words.includes(word), `seed ${seed}: ${word} was acknowledged and is lost`)
  for (const word of refused) assert.ok(!words.includes(word), `seed ${seed}: ${word} was refused as certainly not applied, and was applied`)
  assert.ok(leader.isUp)
  return { trace: world.hash, acknowledged: acknowledged.length }
}

/** As `torture`, while nodes come and go as voters and learners. Never fewer than two members are up at a time. */
async function membershipTorture(seed: number): Promise<number> {
  const cluster = await Cluster.of(3, seed, { compactAfterEntries: 20, keepEntries: 5, snapshotTimeoutMs: 500 })
  const { world } = cluster
  for (const id of [4, 5]) await cluster.add(n(id)).start('join')
  const acknowledged: string[] = []
  let changed = 0
  cluster.delayMsMax = 20
  cluster.lossProbability = 0.02
  for (let step = 0; step < 80; step++) {
    await world.run(world.prng.below(150))
    const leading = cluster.up.find((member) => member.raft!.isLeader)?.raft
    if (leading) {
      const word = `w${step}`
      leading.propose(utf8(word), { timeoutMs: 2000 }).then(
        () => acknowledged.push(word),
        () => {},
      )
      const { voters, learners } = leading.members
      const node = n(1 + world.prng.below(5))
      const kind = world.prng.below(4)
      const change =
        kind === 0 && !voters.includes(node)
          ? { addLearners: [node] }
          : kind === 1
            ? { addVoters: [node] }
            : kind === 2 && voters.length > 3 && voters.includes(node)
              ? { remove: [node] }
              : kind === 3 && voters.length >= 3 && voters.includes(node) && learners[0]
                ? { addVoters: [learners[0]], remove: [node] }
                : undefined
      if (change) {
        leading.changeMembers(change, { timeoutMs: 2000 }).then(
          () => changed++,
          () => {},
        )
      }
    }
    const victim = cluster.node(1 + world.prng.below(5))
    const what = world.prng.below(10)
    if (what === 0 && cluster.up.length > 4) victim.crash()
    if (what === 1 || what === 2) for (const member of cluster.members.values()) if (!member.isUp) await member.start('join')
    if (what === 3) cluster.isolate(victim.id)
    if (what === 4 || step % 10 === 9) cluster.heal()
  }
  cluster.heal()
  cluster.lossProbability = 0
  cluster.delayMsMax = 2
  for (const member of cluster.members.values()) if (!member.isUp) await member.start('join')
  const stable = () => cluster.up.find((member) => member.raft!.isLeader && member.raft!.members.votersOutgoing.length === 0)
  await world.run(30_000, () => stable() !== undefined)
  await world.run(8000)
  const { voters, learners } = stable()!.raft!.members
  await cluster.propose(stable()!.id, 'end')
  const words = await cluster.allEqual(cluster.up.filter((member) => voters.includes(member.id) || learners.includes(member.id)))
  for (const word of acknowledged) assert.ok(words.includes(word), `seed ${seed}: ${word} was acknowledged and is lost`)
  return changed
}

test('20 seeds of members that come and go under faults: nothing acknowledged is lost', async () => {
  let changed = 0
  for (let seed = 1; seed <= 20; seed++) changed += await membershipTorture(seed)
  assert.ok(changed > 100, `only ${changed} changes of members came through`)
})

test('30 seeds of crashes, partitions and loss: nothing acknowledged is lost, nothing is applied twice, no read goes back', async () => {
  let acknowledged = 0
  for (let seed = 1; seed <= 30; seed++) acknowledged += (await torture(seed)).acknowledged
  assert.ok(acknowledged > 1000, `only ${acknowledged} commands came through`)
})

test('the same seed gives the same trace', async () => {
  const first = await torture(77)
  assert.deepEqual(await torture(77), first)
  assert.notDeepEqual(await torture(78), first)
})
