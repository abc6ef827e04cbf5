/** Whole control planes in one process: real Raft core, simulated network, clock and storage, and a data plane that only answers. */
import assert from 'node:assert/strict'
import { createHash, createHmac } from 'node:crypto'
import test from 'node:test'
import { fileURLToPath } from 'node:url'
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader'
import { XsanError } from '../base/errors.ts'
import type { Incarnation, NodeNumber } from '../base/ids.ts'
import { GiB } from '../base/units.ts'
import type { Message } from '../env/control.ts'
import { createRaftCore } from '../env/native/raft.ts'
import { type RpcCodec, type SimControlEnv, SimControlNetwork } from '../env/sim/control.ts'
import { SimHost, type SimProcess } from '../env/sim/host.ts'
import { SimNetwork } from '../env/sim/network.ts'
import { World } from '../env/sim/world.ts'
import { type Chain, LastIdFlag, ReplicaState, unpackChains } from '../placement/chain.ts'
import type { ControlPort, ControlToReactor, ReactorToControl, TableNode } from '../placement/messages.ts'
import { View } from '../placement/view.ts'
import { healthOf } from './health.ts'
import { packPairs } from './machine.ts'
import type { Hmac, Registration } from './options.ts'
import { ControlPlane } from './plane.ts'
import { ClusterState, FEATURE_LEVEL } from './state.ts'

const SLOTS = 64
const LEASE_MS = 2000
const hmac: Hmac = (key, bytes) => createHmac('sha256', key).update(bytes).digest()

/** Messages go through the protobuf form of proto/, so that a field it does not have is found. */
function protoCodec(): RpcCodec {
  const definitions = loadSync(['xsan/v1/admin.proto', 'xsan/v1/peer.proto'], {
    includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
    longs: Number,
    enums: String,
    defaults: true,
  })
  type Method = Record<'requestSerialize' | 'responseSerialize', (message: object) => Buffer> &
    Record<'requestDeserialize' | 'responseDeserialize', (bytes: Buffer) => object> &
    Record<'requestType' | 'responseType', MessageTypeDefinition<object, object>>
  const convert = (side: 'request' | 'response') => (method: string, message: Message) => {
    const [service = '', name = ''] = method.split('/')
    const definition = (definitions[service] as unknown as Record<string, Method>)[name]
    assert.ok(definition, `proto has no ${method}`)
    const fields = (definition[`${side}Type`].type as { field: Array<{ name: string }> }).field.map((field) =>
      field.name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()),
    )
    for (const key of Object.keys(message))
      assert.ok(fields.includes(key) || fields.includes(key.replace(/_(\w)/g, (_, l: string) => l.toUpperCase())), `${method}: ${side} has no field ${key}`)
    return definition[`${side}Deserialize`](definition[`${side}Serialize`](message)) as Message
  }
  return { request: convert('request'), response: convert('response') }
}

/** A data plane without data: keeps table and lease, catches up at once, answers. */
class FakeDataPlane {
  readonly registration: Registration
  readonly process: SimProcess
  readonly chains = new Map<number, Chain>()
  nodes: readonly TableNode[] = []
  revision = 0
  leaseUntilMs = 0
  leaseRevision = 0
  readonly peersDown: string[] = []
  stopped = false
  readonly #handlers: Array<(message: ReactorToControl) => void> = []
  readonly #nowMs: () => number
  /** slot -> id it pretends to hold */
  readonly #lastId: (slot: number) => number
  syncMs = 5
  /** Its replicas are those of resyncs that never ended. */
  unfinished = false
  /** Its host lost power since they served. */
  lostPower = false
  /** It does not say what its replicas hold. */
  silent = false

  constructor(
    process: SimProcess,
    registration: Registration,
    nowMs: () => number,
    lastId: (slot: number) => number,
    ready: { readonly afterMs: number; readonly dataPort: number },
  ) {
    this.process = process
    this.registration = registration
    this.#nowMs = nowMs
    this.#lastId = lastId
    this.tell({ type: 'ready', dataPort: ready.dataPort, nbdPort: 10809 }, ready.afterMs)
  }

  readonly port: ControlPort = {
    send: (message) => {
      this.process.schedule(0.1, 'to data plane', () => {
        this.#take(structuredClone(message))
      })
    },
    onMessage: (handler) => {
      this.#handlers.push(handler)
    },
  }

  tell(message: ReactorToControl, delayMs = 0.1): void {
    this.process.schedule(delayMs, 'to control', () => {
      this.process.world.asyncPending = true
      for (const handler of this.#handlers) handler(message)
    })
  }

  /** May it serve I/O now? */
  get serves(): boolean {
    return this.process.state === 'running' && this.leaseUntilMs > this.#nowMs() && this.revision >= this.leaseRevision
  }

  servesSlot(slot: number): boolean {
    const { incarnation, node } = this.registration
    return (
      this.serves &&
      this.chains.get(slot)?.entries.some((entry) => entry.node === node && entry.incarnation === incarnation && entry.state === ReplicaState.SERVING) === true
    )
  }

  #take(message: ControlToReactor): void {
    this.process.world.asyncPending = true
    const { node, incarnation } = this.registration
    if (message.type === 'lease' && this.stopped) return
    if (message.type === 'table') {
      assert.ok(message.revision > this.revision, 'tables come in order')
      this.revision = message.revision
      if (message.nodes) this.nodes = message.nodes
      const reports: number[] = []
      const ids: number[] = []
      for (const { slot, chain } of unpackChains(message.chains)) {
        assert.ok(chain.version > (this.chains.get(slot)?.version ?? 0), 'chain versions rise')
        this.chains.set(slot, chain)
        for (const entry of chain.entries) {
          if (entry.node !== node) continue
          if (entry.state === ReplicaState.SYNCING) reports.push(slot, entry.since, incarnation)
          const isAsked = entry.state === ReplicaState.LASTSRV || entry.state === ReplicaState.WAITING
          if (isAsked && chain.entries[0]!.state > ReplicaState.DRAINING)
            ids.push(slot, chain.version, 0, this.#lastId(slot), (this.unfinished ? LastIdFlag.INCOMPLETE : 0) | (this.lostPower ? LastIdFlag.LOST_POWER : 0))
        }
      }
      this.tell({ type: 'tableApplied', revision: message.revision })
      if (reports.length > 0) this.tell({ type: 'upToDate', reports: Int32Array.from(reports) }, this.syncMs)
      if (ids.length > 0 && !this.silent) this.tell({ type: 'lastIds', disk: this.registration.disks[0]!, ids: Int32Array.from(ids) }, 1)
    } else if (message.type === 'lease') {
      this.leaseUntilMs = message.untilMs
      this.leaseRevision = message.revision
    } else if (message.type === 'peerDown') this.peersDown.push(`${message.node}.${message.incarnation}`)
    else if (message.type === 'stop') {
      this.stopped = true
      this.leaseUntilMs = 0
      this.tell({ type: 'stopped' }, 2)
    } else if (message.type === 'query') {
      const { query } = message
      const answer =
        query.kind === 'blocks'
          ? [3, 7]
          : query.kind === 'block'
            ? [{ disk: this.registration.disks[0], exists: true, updateVersion: [0x100, 5], updateSv: 5, committedSv: 5, state: 'COMMIT', checksum: 77 }]
            : {}
      this.tell({ type: 'answer', queryId: message.queryId, answer })
    }
  }
}

class TestNode {
  readonly cluster: TestCluster
  readonly number: number
  readonly host: SimHost
  process!: SimProcess
  env!: SimControlEnv
  plane!: ControlPlane
  data: FakeDataPlane | undefined
  fatal: unknown
  lastId: (slot: number) => number = () => 0
  clusterId = 'c1'
  hasDisk = true
  leaseMs = LEASE_MS
  grpcPort = 8080
  /** Where its data plane listens, whatever its configuration says. */
  dataPort = 8000
  /** Its data plane takes so long to mount. */
  readyAfterMs = 3
  /** Its data plane takes so long to catch up. */
  syncMs = 5
  unfinished = false
  lostPower = false
  silent = false
  #id: string

  constructor(cluster: TestCluster, number: number) {
    this.cluster = cluster
    this.number = number
    this.#id = `node-${number}`
    this.host = new SimHost(cluster.network, { name: `h${number}`, address: `10.0.0.${number}`, bootOffsetMs: 1000 * number })
  }

  get id(): string {
    return this.#id
  }

  set id(id: string) {
    this.#id = id
  }

  get grpc(): string {
    return `${this.host.address}:${this.grpcPort}`
  }

  async start(): Promise<void> {
    this.process = this.host.start('xsand')
    this.env = this.cluster.control.env(this.process)
    const { process, env } = this
    const call = env.rpc.call.bind(env.rpc)
    env.rpc.call = (...of) => {
      this.cluster.calls++
      return call(...of)
    }
    this.data = undefined
    this.fatal = undefined
    this.plane = new ControlPlane({
      env,
      createCore: createRaftCore,
      hmac,
      reactorTurning: () => true,
      openDataPlane: async (registration) => {
        this.data = new FakeDataPlane(
          process,
          registration,
          () => env.clock.nowMs(),
          (slot) => this.lastId(slot),
          { afterMs: this.readyAfterMs, dataPort: this.dataPort },
        )
        this.data.syncMs = this.syncMs
        this.data.unfinished = this.unfinished
        this.data.lostPower = this.lostPower
        this.data.silent = this.silent
        return this.data.port
      },
      onFatal: (error) => {
        this.fatal = error
      },
      config: {
        nodeId: this.id,
        clusterId: this.clusterId,
        listen: { host: this.host.address, port: this.grpcPort },
        addresses: { grpc: this.grpc, data: `${this.host.address}:8000`, nbd: `${this.host.address}:10809`, nbdSocket: '', admin: `${this.host.address}:9000` },
        zone: '',
        rack: '',
        version: '0.1.0',
        dataDir: '/data',
        bootId: 'boot',
        pid: 1,
        disks: this.hasDisk ? [{ uuid: `disk-${this.number}`, path: '/disk', type: 'ssd', role: 'capacity', capacityBytes: 4 * GiB }] : [],
        replicas: this.cluster.replicas,
        syncWhenWrite: true,
        slotCount: SLOTS,
        leaseMs: this.leaseMs,
        heartbeat: { host: this.host.address, port: this.grpcPort, multicastGroup: '239.255.88.10', multicastPort: 8088, intervalMs: 1000 },
        entries: [
          { key: 'storage.read_only', value: false, origin: 'default', hot: true, description: 'Refuse writes.' },
          { key: 'cluster.bind_port', value: 8080, origin: 'file', hot: false, description: 'Port.' },
        ],
        describeKey: (key) => ({ hot: key === 'storage.read_only' || key.startsWith('failover.'), description: '', parse: (value) => value }),
      },
    })
    await this.cluster.world.settle(this.plane.start(), 5000)
  }

  kill(): void {
    this.process.kill()
  }

  /** A moment after it was killed: its port is free again. */
  async restart(): Promise<void> {
    await this.cluster.world.runFor(30)
    await this.start()
  }

  get leads(): boolean {
    return this.process.state === 'running' && this.plane.member?.coordinator?.ready === true
  }

  async call(method: string, request: Message = {}, timeoutMs = 10_000): Promise<Message> {
    const { world, client } = this.cluster
    return world.settle(client.rpc.call(this.grpc, `xsan.v1.${method}`, request, { timeoutMs }), timeoutMs + 1000)
  }
}

class TestCluster {
  readonly world: World
  readonly network: SimNetwork
  readonly control: SimControlNetwork
  readonly client: SimControlEnv
  readonly nodes: TestNode[]
  readonly warnings: string[] = []
  /** That nodes have made. */
  calls = 0
  readonly replicas: number

  constructor(options: { seed: number; nodes: number; replicas?: number }) {
    this.replicas = options.replicas ?? 3
    this.world = new World({ seed: options.seed, ...(process.env['TRACE'] === '2' ? { trace: console.log } : {}) })
    this.network = new SimNetwork(this.world)
    this.control = new SimControlNetwork(this.network, protoCodec())
    this.control.onLog = ({ process: of, level, message, fields }) => {
      const line = `${this.world.nowMs.toFixed(1)} ${of.host.name} ${level} ${message} ${JSON.stringify(fields)}`
      if (level === 'WARN') this.warnings.push(line)
      if (process.env['TRACE'] !== undefined) console.log(line)
    }
    this.client = this.control.env(new SimHost(this.network, { name: 'client', address: '10.0.0.99' }).start('xsan'))
    this.nodes = Array.from({ length: options.nodes }, (_, i) => new TestNode(this, i + 1))
  }

  node(number: number): TestNode {
    return this.nodes[number - 1]!
  }

  /** All nodes started, the first one initialized, the others joined, every chain full. */
  static async up(options: {
    seed: number
    nodes: number
    replicas?: number
    volume?: boolean
    diskless?: number
    /** Of the first nodes, as their files say. */
    leasesMs?: readonly number[]
  }): Promise<TestCluster> {
    const cluster = new TestCluster(options)
    options.leasesMs?.forEach((leaseMs, at) => {
      cluster.nodes[at]!.leaseMs = leaseMs
    })
    if (options.diskless !== undefined) cluster.node(options.diskless).hasDisk = false
    for (const node of cluster.nodes) await node.start()
    await cluster.node(1).call('Cluster/Init')
    for (const node of cluster.nodes.slice(1)) await cluster.join(node)
    await cluster.until(() => cluster.full(Math.min(cluster.replicas, options.nodes)), 20_000, 'every chain is full')
    if (options.volume ?? true) await cluster.node(1).call('Volume/Create', { name: 'v1', sizeBytes: GiB })
    return cluster
  }

  async join(node: TestNode): Promise<void> {
    const { token } = await this.node(1).call('Cluster/AddNode')
    await node.call('Cluster/Join', { token })
  }

  async until(condition: () => boolean, timeoutMs: number, what: string): Promise<number> {
    const startMs = this.world.nowMs
    assert.ok(await this.world.run(condition, timeoutMs), `${what}: not within ${timeoutMs} ms`)
    return this.world.nowMs - startMs
  }

  /** Every node knows that three vote, and that they have stopped asking the one that voted alone before. */
  async threeVoters(timeoutMs = 5000): Promise<void> {
    const voting = ({ plane }: TestNode) => {
      const { voters, votersOutgoing } = plane.member!.raft!.members
      return voters.length === 3 && votersOutgoing.length === 0
    }
    await this.until(() => this.nodes.every(voting), timeoutMs, 'three voters')
  }

  get leader(): TestNode | undefined {
    return this.nodes.find((node) => node.leads)
  }

  get serving(): TestNode[] {
    return this.nodes.filter((node) => node.data?.serves)
  }

  /** Every live node with a data plane knows chains of so many serving replicas. */
  full(replicas: number): boolean {
    const live = this.nodes.filter((node) => node.process.state === 'running')
    const serving = (node: number, incarnation: number) => this.node(node).data?.registration.incarnation === incarnation
    return live.every(
      ({ data }) =>
        data?.serves === true &&
        data.chains.size === SLOTS &&
        [...data.chains.values()].every(
          ({ entries }) => entries.filter((of) => of.state === ReplicaState.SERVING && serving(of.node, of.incarnation)).length === replicas,
        ),
    )
  }

  /** The data listener of `dead` refuses: every data plane that knew it says so. */
  refused(dead: TestNode, delayMs = 5): void {
    const node = dead.number as NodeNumber
    const incarnation = dead.data!.registration.incarnation as Incarnation
    for (const { data, process } of this.nodes) {
      if (process.state === 'running' && data !== undefined && data.registration.node !== node) data.tell({ type: 'peerRefused', node, incarnation }, delayMs)
    }
  }

  /** Its process ends, and the others have found out. */
  async lose(node: TestNode): Promise<void> {
    node.kill()
    this.refused(node)
    await this.world.runFor(500)
  }
}

test('three nodes become one cluster: init, two joins, three replicas everywhere, heads spread, safe', async () => {
  const cluster = await TestCluster.up({ seed: 1, nodes: 3, volume: false })
  await cluster.threeVoters()
  const status = await cluster.node(2).call('Cluster/Status')
  assert.equal(status['health'], 'safe', JSON.stringify(status['reasons']))
  assert.equal(status['leader'], 'node-1')
  const nodes = status['nodes'] as Message[]
  assert.deepEqual(
    nodes.map((node) => node['state']),
    ['ready', 'ready', 'ready'],
  )
  for (const node of nodes) assert.ok(Number(node['chainsHeaded']) >= 20, `heads of ${String(node['id'])}: ${String(node['chainsHeaded'])}`)
  await cluster.world.runFor(3000)
  assert.equal(cluster.node(3).plane.member!.heartbeats!.heard.size, 2)
})

test('before init a node says how to begin; wrong and used tokens are refused', async () => {
  const cluster = new TestCluster({ seed: 2, nodes: 3 })
  for (const node of cluster.nodes) {
    if (node.number === 3) node.clusterId = 'other'
    await node.start()
  }
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  await assert.rejects(two.call('Volume/List'), (error: XsanError) => error.status === 'CLUSTER_NOT_READY' && error.nextStep.includes('cluster join'))
  assert.equal((await two.call('Node/Local'))['state'], 'uninitialized')
  await one.call('Cluster/Init')
  await assert.rejects(one.call('Cluster/Init'), { status: 'ALREADY_EXISTS' })
  const { token } = await one.call('Cluster/AddNode', { nodeId: 'node-2' })
  await assert.rejects(two.call('Cluster/Join', { token: 'xsan1.nonsense' }), { status: 'INVALID_PARAM' })
  await assert.rejects(three.call('Cluster/Join', { token }), { status: 'WRONG_CLUSTER' })
  await two.call('Cluster/Join', { token })
  await assert.rejects(two.call('Cluster/Join', { token }), { status: 'ALREADY_EXISTS' })
  assert.equal((await two.call('Cluster/Status'))['clusterId'], 'c1')
})

test('a token for another node is refused, a used one too', async () => {
  const cluster = new TestCluster({ seed: 3, nodes: 3 })
  for (const node of cluster.nodes) await node.start()
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  await one.call('Cluster/Init')
  const { token } = await one.call('Cluster/AddNode', { nodeId: 'node-2' })
  await assert.rejects(three.call('Cluster/Join', { token }), { status: 'PERMISSION_DENIED' })
  await two.call('Cluster/Join', { token })
  const { token: any } = await one.call('Cluster/AddNode')
  await three.call('Cluster/Join', { token: any })
  assert.equal(((await three.call('Cluster/Status'))['nodes'] as Message[]).length, 3)
})

test('a token lets one directory in: not another host of the same name, and the same one again when the answer was lost', async () => {
  const cluster = new TestCluster({ seed: 64, nodes: 3 })
  const [one, two, twin] = cluster.nodes as [TestNode, TestNode, TestNode]
  twin.id = two.id
  for (const node of cluster.nodes) await node.start()
  await one.call('Cluster/Init')
  const { token } = await one.call('Cluster/AddNode')
  void cluster.client.rpc.call(two.grpc, 'xsan.v1.Cluster/Join', { token }, { timeoutMs: 5000 }).catch(() => undefined)
  await cluster.until(() => one.plane.member!.state.nodeById('node-2') !== undefined, 5000, 'it is admitted')
  two.kill()
  await assert.rejects(twin.call('Cluster/Join', { token }), { status: 'PERMISSION_DENIED' })
  await two.restart()
  assert.equal((await two.call('Node/Local'))['state'], 'uninitialized')
  assert.equal((await two.call('Cluster/Join', { token }))['nodeNumber'], 2)
  await assert.rejects(twin.call('Cluster/Join', { token }), { status: 'PERMISSION_DENIED' })
  assert.equal(two.fatal, undefined)
})

test('who only guesses a token, or has a name that is none, writes nothing to the log', async () => {
  const cluster = await TestCluster.up({ seed: 69, nodes: 1, volume: false })
  const one = cluster.node(1)
  const { token } = (await one.call('Cluster/AddNode')) as { token: string }
  const raft = one.plane.member!.raft!
  await cluster.world.runFor(1000)
  const { lastIndex } = raft.status()
  const admit = (changes: Message) =>
    one.call('Peer/Admit', { token, joinId: 'j', nodeId: 'node-2', clusterId: 'c1', blockSize: 4 * 1024 * 1024, featureLevelMax: FEATURE_LEVEL, ...changes })
  const { s: _, ...known } = JSON.parse(Buffer.from(token.slice(6), 'base64url').toString('utf8'))
  const guessed = `xsan1.${Buffer.from(JSON.stringify({ ...known, s: 'guessed' })).toString('base64url')}`
  await assert.rejects(admit({ token: guessed }), { status: 'PERMISSION_DENIED' })
  for (const nodeId of ['', 'a b', 'x'.repeat(64), '../x']) await assert.rejects(admit({ nodeId }), { status: 'INVALID_PARAM' })
  await assert.rejects(admit({ joinId: '' }), { status: 'INVALID_PARAM' })
  assert.equal(raft.status().lastIndex, lastIndex)
  assert.equal((await admit({}))['nodeNumber'], 2)
})

test('a name that no volume can have is kept nowhere: neither in the log nor with the answers in the state', async () => {
  const cluster = await TestCluster.up({ seed: 100, nodes: 1 })
  const raft = cluster.node(1).plane.member!.raft!
  await cluster.world.runFor(1000)
  const { lastIndex } = raft.status()
  for (const name of ['', '7', 'a/b', 'x'.repeat(500_000)])
    await assert.rejects(cluster.node(1).call('Volume/Create', { name, sizeBytes: GiB }), { status: 'INVALID_PARAM' })
  assert.equal(raft.status().lastIndex, lastIndex)
})

test('every call works on every node, and errors name what is wrong', async () => {
  const cluster = await TestCluster.up({ seed: 4, nodes: 3, volume: false })
  const created = await cluster.node(2).call('Volume/Create', { name: 'db1', sizeBytes: 100 * GiB })
  assert.equal(created['id'], 1)
  assert.deepEqual((created['uris'] as string[])[0], 'nbd://10.0.0.1:10809/db1')
  for (const node of cluster.nodes) {
    const listed = (await node.call('Volume/List'))['volumes'] as Message[]
    assert.deepEqual(
      listed.map((volume) => volume['name']),
      ['db1'],
    )
  }
  const refused = (promise: Promise<unknown>, status: string) => assert.rejects(promise, (error: XsanError) => error.status === status && error.nextStep !== '')
  await refused(cluster.node(3).call('Volume/Create', { name: 'db1', sizeBytes: GiB }), 'VOLUME_EXISTS')
  await refused(cluster.node(3).call('Volume/Create', { name: '9x', sizeBytes: GiB }), 'INVALID_PARAM')
  await refused(cluster.node(3).call('Volume/Create', { name: 'x', sizeBytes: 1000 }), 'INVALID_PARAM')
  await refused(cluster.node(3).call('Volume/Create', { name: 'x', sizeBytes: GiB, replicas: 4 }), 'INVALID_PARAM')
  await refused(cluster.node(3).call('Volume/Info', { volume: 'nope' }), 'VOLUME_NOT_FOUND')
  await refused(cluster.node(3).call('Volume/Resize', { volume: 'db1', sizeBytes: GiB }), 'INVALID_PARAM')
  assert.equal((await cluster.node(3).call('Volume/Resize', { volume: 'db1', sizeBytes: 200 * GiB }))['sizeBytes'], 200 * GiB)
  const debug = await cluster.node(2).call('Debug/VolumeInfo', { volume: 'db1' })
  assert.deepEqual(
    (debug['blocks'] as Message[]).map((block) => block['blockId']),
    ['1:3', '1:7'],
  )
  const location = await cluster.node(3).call('Debug/BlockLocation', { block: 'db1:3' })
  const replicas = location['replicas'] as Message[]
  assert.equal(replicas.length, 3)
  assert.ok(
    replicas.every((replica) => replica['state'] === 'SERVING' && replica['answered'] === true && replica['updateVer'] === '1.5' && replica['checksum'] === 77),
    JSON.stringify(replicas),
  )
  assert.deepEqual(
    replicas.map((replica) => replica['role']),
    ['head', 'middle', 'tail'],
  )
  await refused(cluster.node(3).call('Config/Set', { key: 'cluster.bind_port', valueJson: '1' }), 'RESTART_REQUIRED')
  await cluster.node(3).call('Config/Set', { key: 'storage.read_only', valueJson: 'true' })
  const items = (await cluster.node(1).call('Config/Show'))['items'] as Message[]
  assert.deepEqual(items[0], { key: 'storage.read_only', valueJson: 'true', origin: 'cluster', hot: true, description: 'Refuse writes.' })
  assert.equal(((await cluster.node(2).call('Disk/List'))['disks'] as Message[]).length, 3)
  assert.equal(((await cluster.node(2).call('Export/List'))['exports'] as Message[]).length, 3)
  assert.equal(((await cluster.node(2).call('Debug/PerfStats'))['nodes'] as Message[]).length, 3)
  assert.equal((await cluster.node(2).call('Volume/Delete', { volume: 'db1' }))['id'], 1)
  assert.equal((await cluster.node(2).call('Volume/Create', { name: 'db1', sizeBytes: GiB }))['id'], 2, 'numbers are never used again')
})

test('the leader and head is killed: survivors have a new table within 200 ms, and the node returns by itself', async () => {
  const times: number[] = []
  for (const seed of [10, 11, 12, 13, 14]) {
    const cluster = await TestCluster.up({ seed, nodes: 3 })
    await cluster.threeVoters()
    const leader = cluster.leader!
    await cluster.world.runFor(777)
    leader.kill()
    cluster.refused(leader)
    times.push(await cluster.until(() => cluster.full(2), 3000, 'the survivors serve'))
    const survivor = cluster.nodes.find((node) => node !== leader)!
    assert.ok(survivor.data!.peersDown.includes(`${leader.number}.1`), 'connections to the dead process are closed')
    const status = await survivor.call('Cluster/Status')
    assert.equal(status['health'], 'at-risk')
    await leader.restart()
    await cluster.until(() => cluster.full(3), 10_000, 'three replicas again')
    assert.equal(leader.data!.registration.incarnation, 2)
  }
  assert.ok(Math.max(...times) < 200, `fail-over took ${times.map((ms) => Math.round(ms)).join(', ')} ms`)
})

test('a frozen node costs one lease, serves nothing past it, and comes back', async () => {
  const cluster = await TestCluster.up({ seed: 20, nodes: 3 })
  const frozen = cluster.nodes.find((node) => !node.leads)!
  frozen.process.freeze()
  const tookMs = await cluster.until(
    () =>
      cluster.nodes.every(
        (node) =>
          node === frozen ||
          (node.data!.serves &&
            [...node.data!.chains.values()].every((chain) => chain.entries.filter((entry) => entry.state === ReplicaState.SERVING).length === 2)),
      ),
    5000,
    'dropped',
  )
  assert.ok(tookMs <= LEASE_MS * 1.1 + 200, `took ${tookMs} ms`)
  frozen.process.thaw()
  assert.equal(frozen.data!.serves, false, 'its lease is over when it wakes')
  await cluster.until(() => cluster.full(3), 10_000, 'three replicas again')
})

test('a node that holds no replica and whose lease is over: its peers close its connections, once', async () => {
  const cluster = await TestCluster.up({ seed: 21, nodes: 4, diskless: 4 })
  const frozen = cluster.node(4)
  const others = cluster.nodes.slice(0, 3)
  frozen.process.freeze()
  const isTold = () => others.every((node) => node.data!.peersDown.includes('4.1'))
  const tookMs = await cluster.until(isTold, 5000, 'its peers are told')
  assert.ok(tookMs <= LEASE_MS * 1.1 + 200, `took ${tookMs} ms`)
  assert.ok(cluster.full(3), 'nobody else lost anything')
  await cluster.world.runFor(3000)
  for (const node of others) assert.equal(node.data!.peersDown.length, 1)
  frozen.process.thaw()
  await cluster.until(() => frozen.data!.serves, 5000, 'it has a lease again')
  // and the next time as well
  frozen.process.freeze()
  await cluster.until(() => others.every((node) => node.data!.peersDown.length === 2), 5000, 'its peers are told again')
})

test('what the leader has to ask all nodes for is answered at every node, also while one of them says nothing', async () => {
  const cluster = await TestCluster.up({ seed: 97, nodes: 4 })
  await cluster.threeVoters()
  const [asked, silent] = cluster.nodes.filter((node) => !node.leads) as [TestNode, TestNode]
  silent.process.freeze()
  for (const method of ['Debug/VolumeInfo', 'Debug/PerfStats', 'Debug/BlockLocation', 'Volume/List'])
    await asked.call(method, method === 'Debug/BlockLocation' ? { block: 'v1:0' } : method === 'Debug/VolumeInfo' ? { volume: 'v1' } : {}, 15_000)
  const { nodes } = await asked.call('Debug/PerfStats', {}, 15_000)
  const errors = (nodes as Array<{ nodeId: string; error: string }>).filter(({ error }) => error !== '')
  assert.deepEqual(
    errors.map(({ nodeId }) => nodeId),
    [silent.id],
  )
})

test('a frozen leader costs an election and a lease', async () => {
  const cluster = await TestCluster.up({ seed: 25, nodes: 3 })
  await cluster.threeVoters()
  const frozen = cluster.leader!
  const others = cluster.nodes.filter((node) => node !== frozen)
  let servedMs = cluster.world.nowMs
  let gapMs = 0
  frozen.process.freeze()
  const without = () => {
    if (others.every((node) => node.data!.serves)) servedMs = cluster.world.nowMs
    gapMs = Math.max(gapMs, cluster.world.nowMs - servedMs)
    return others.every(
      (node) =>
        node.data!.serves &&
        [...node.data!.chains.values()].every((chain) => chain.entries.filter((entry) => entry.state === ReplicaState.SERVING).length === 2),
    )
  }
  const tookMs = await cluster.until(without, 10_000, 'dropped')
  assert.ok(tookMs < 2 * (LEASE_MS / 2) + LEASE_MS + 500, `took ${tookMs} ms`)
  assert.ok(gapMs < 1000, `the others had no lease for ${gapMs} ms`)
  frozen.process.thaw()
  assert.equal(frozen.data!.serves, false, 'its lease is over when it wakes')
  // a new one comes with the new table
  await steps(cluster, 50, () => checkServers(cluster, 25))
  await cluster.until(() => cluster.full(3), 10_000, 'three replicas again')
})

test('without a quorum leases end and all pauses; with it service goes on and no chain has changed', async () => {
  const cluster = await TestCluster.up({ seed: 21, nodes: 3 })
  await cluster.threeVoters()
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  cluster.network.cut(one.host, two.host)
  cluster.network.cut(one.host, three.host)
  cluster.network.cut(two.host, three.host)
  await cluster.until(() => cluster.serving.length === 0, LEASE_MS + 200, 'nobody serves')
  const status = await one.call('Cluster/Status')
  assert.equal(status['health'], 'unavailable')
  assert.equal(status['leaderless'], true)
  const reasons = (status['reasons'] as string[]).join('\n')
  assert.match(
    reasons,
    /^No leader: 2 of the 3 voters \(node-1, node-2, node-3\) have to run and reach each other; only node-1 answers\. Start 1 of node-2, node-3, or mend/,
  )
  assert.match(reasons, /^Node node-2 does not answer: 10\.0\.0\.2:8080 /m)
  assert.match(reasons, /^Without a lease, .*: node-1\.$/m)
  assert.deepEqual(
    (status['nodes'] as Message[]).map((node) => [node['id'], node['state'], node['chainsServing'], node['leader']]),
    [
      ['node-1', 'waiting', 0, false],
      ['node-2', 'unknown', undefined, false],
      ['node-3', 'unknown', undefined, false],
    ],
  )
  assert.deepEqual(status['chains'], { total: SLOTS, full: 0, degraded: 0, unavailable: 0, unknown: SLOTS }, 'no old state of chains as if it were of now')
  await assert.rejects(one.call('Volume/Create', { name: 'x', sizeBytes: GiB }, 3000), (error: XsanError) =>
    ['CLUSTER_NOT_READY', 'CONSENSUS_FAILED'].includes(error.status),
  )
  cluster.network.healAll()
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
})

test('status without a leader says who answers, whom they follow and hear, and that it is asked elsewhere when only this node is cut off', async () => {
  const cluster = await TestCluster.up({ seed: 23, nodes: 3 })
  await cluster.threeVoters()
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  assert.equal(cluster.leader, one)
  await cluster.world.runFor(3000)
  // reaches a follower, not the leader
  cluster.network.cut(one.host, three.host)
  await cluster.world.runFor(LEASE_MS + 8000)
  assert.equal(cluster.leader, one)
  const cut = await three.call('Cluster/Status')
  assert.equal(cut['leaderless'], true)
  assert.match(
    (cut['reasons'] as string[]).join('\n'),
    /Node node-2 follows node-1 as leader, which does not answer node-3: ask it with --server 10\.0\.0\.1:8080/,
  )
  const detail = (cut['nodes'] as Message[]).map((node) => String(node['detail']))
  assert.match(detail[0]!, /^does not answer \(.*\); its last heartbeat came 1?\d(\.\d)? s ago$/)
  assert.match(detail[1]!, /^answers; follows node-1; hears node-1, node-3; serves for /)
  cluster.network.healAll()
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
  assert.equal((await two.call('Cluster/Status'))['leaderless'], false)
  // the only two voters that are needed go: the one left says that either of them will do, and serves until its lease ends
  two.kill()
  three.kill()
  await cluster.world.runFor(100)
  const status = await one.call('Cluster/Status', {}, 1000)
  assert.equal(status['leaderless'], true)
  assert.match((status['reasons'] as string[]).join('\n'), /Until their leases end, in seconds, these serve on: node-1\./)
})

test('all processes killed and started again: the last set decides, and serves', async () => {
  const cluster = await TestCluster.up({ seed: 22, nodes: 3 })
  for (const node of cluster.nodes) node.kill()
  for (const node of cluster.nodes) {
    node.lastId = (slot) => ((slot % 3) + 1 === node.number ? 9 : 5)
    await node.restart()
  }
  const tookMs = await cluster.until(() => cluster.full(3), 30_000, 'all serve again')
  assert.ok(tookMs < 15_000, `took ${tookMs} ms`)
  for (const [slot, chain] of cluster.node(1).data!.chains) assert.equal(chain.entries[0]!.node, (slot % 3) + 1, 'the one with the highest id serves first')
})

test('one of two last servers is away: it is waited for', async () => {
  const cluster = await TestCluster.up({ seed: 23, nodes: 3 })
  for (const node of cluster.nodes) node.kill()
  await cluster.node(1).restart()
  await cluster.node(2).restart()
  await cluster.world.runFor(8000)
  assert.equal((await cluster.node(1).call('Cluster/Status'))['health'], 'unavailable')
  await cluster.node(3).restart()
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
})

test('a last server that never returns is given up when the operator says so', async () => {
  const cluster = await TestCluster.up({ seed: 26, nodes: 3 })
  await cluster.threeVoters()
  for (const node of cluster.nodes) node.kill()
  await cluster.node(1).restart()
  await cluster.node(2).restart()
  await cluster.until(
    () => cluster.leader !== undefined && cluster.node(1).data?.chains.get(0)?.entries[0]?.state === ReplicaState.LASTSRV,
    10_000,
    'the last set is known',
  )
  const dry = await cluster.node(1).call('Cluster/Recover', { dryRun: true })
  assert.deepEqual(dry, {
    waitsFor: ['node-3'],
    olderCopies: [],
    slots: SLOTS,
    slotsTotal: SLOTS,
    unfinished: [],
    volumes: [{ id: 1, name: 'v1', blocks: 256, blocksMissing: 256 }],
  })
  await cluster.world.runFor(3000)
  assert.equal((await cluster.node(1).call('Cluster/Status'))['health'], 'unavailable')
  await cluster.node(2).call('Cluster/Recover', {})
  await cluster.until(() => cluster.full(2), 5000, 'the two serve')
  await cluster.node(3).restart()
  await cluster.until(() => cluster.full(3), 20_000, 'the third comes back as any other')
})

const nodesOf = (chain: Chain) => chain.entries.map(({ node }) => node as number).sort()

test('data loss is accepted for what the operator saw lost, and for nothing that is lost later', async () => {
  const cluster = await TestCluster.up({ seed: 62, nodes: 5, replicas: 2 })
  await cluster.until(() => cluster.node(1).plane.member!.raft!.members.voters.length === 5, 20_000, 'five voters')
  // for good: what only these two held can never be had again
  for (const gone of [cluster.node(4), cluster.node(5)]) gone.kill()
  cluster.refused(cluster.node(4))
  cluster.refused(cluster.node(5))
  await cluster.until(() => cluster.leader !== undefined, 5000, 'a leader')
  const one = cluster.node(1)
  const chains = () => [...one.data!.chains.values()]
  const isLost = (chain: Chain) => chain.entries.every(({ state }) => state === ReplicaState.LASTSRV)
  await cluster.until(() => chains().some(isLost), 5000, 'some slots are lost')
  await one.call('Cluster/Recover', { acceptDataLoss: true })
  const stale = cluster.nodes.slice(0, 3).find((node) => !node.leads)!
  const complete = cluster.nodes.slice(0, 3).find((node) => !node.leads && node !== stale)!
  // a replica that does not catch up beside a complete one
  stale.kill()
  cluster.refused(stale)
  await cluster.world.runFor(200)
  stale.syncMs = 1e9
  await stale.restart()
  const leader = cluster.leader!
  const pair = [stale.number, complete.number].sort()
  const shared = () => [...leader.data!.chains.values()].filter((chain) => nodesOf(chain).join() === pair.join())
  const stateOf = (chain: Chain, node: TestNode) => chain.entries.find((entry) => entry.node === node.number)!.state
  await cluster.until(() => shared().length > 0 && shared().every((chain) => stateOf(chain, stale) === ReplicaState.SYNCING), 10_000, 'it catches up')
  const { term } = leader.plane.member!.raft!
  // the complete one is away for a moment
  complete.kill()
  cluster.refused(complete)
  await complete.restart()
  await steps(cluster, 3000, () => {
    for (const chain of shared()) assert.notEqual(stateOf(chain, stale), ReplicaState.SERVING, 'acknowledged writes are given up')
  })
  assert.equal(leader.plane.member!.raft!.term, term, 'the same leader')
  assert.ok(shared().every((chain) => stateOf(chain, complete) === ReplicaState.SERVING))
})

test('what the operator has agreed to give up is what he was shown: of a node that has gone meanwhile nothing is given up', async () => {
  const cluster = await TestCluster.up({ seed: 99, nodes: 5, replicas: 1 })
  await cluster.threeVoters()
  const [one, , , four, five] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode, TestNode]
  await cluster.lose(four)
  const shown = await one.call('Cluster/Recover', { dryRun: true, acceptDataLoss: true })
  assert.deepEqual(shown['waitsFor'], ['node-4'])
  await cluster.lose(five)
  const agreed = { acceptDataLoss: true, asShown: true, waitsFor: shown['waitsFor'] }
  await assert.rejects(one.call('Cluster/Recover', agreed), { status: 'BUSY', message: 'by now node-5 is waited for, too: nothing was done' })
  await cluster.world.runFor(2000)
  const lost = () => [...one.data!.chains.values()].filter(({ entries }) => entries.every((of) => of.state === ReplicaState.LASTSRV)).length
  assert.equal(lost(), Number((await one.call('Cluster/Recover', { dryRun: true }))['slots']))
  await five.restart()
  await cluster.until(() => five.data?.serves === true && lost() === Number(shown['slots']), 20_000, 'it serves what it had')
  assert.equal((await one.call('Cluster/Recover', agreed))['slots'], shown['slots'])
  await cluster.until(() => lost() === 0, 20_000, 'the rest is given up')
})

test('nor of a disk that has failed meanwhile, its node being there, nor of a node that goes after he has agreed', async () => {
  const cluster = await TestCluster.up({ seed: 100, nodes: 5, replicas: 1 })
  await cluster.threeVoters()
  const [one, , , four, five] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode, TestNode]
  const chains = one.data!.chains
  const slots = [...chains].filter(([, chain]) => nodesOf(chain).includes(five.number)).map(([slot]) => slot)
  const isEach = (state: ReplicaState) => slots.every((slot) => chains.get(slot)!.entries[0]!.state === state && nodesOf(chains.get(slot)!)[0] === five.number)
  const { LASTSRV, SERVING } = ReplicaState
  await cluster.lose(four)
  const shown = await one.call('Cluster/Recover', { dryRun: true })
  assert.deepEqual(shown['waitsFor'], ['node-4'])
  five.data!.tell({ type: 'diskFailed', disk: five.data!.registration.disks[0]!, reason: 'EIO' })
  await cluster.until(() => isEach(LASTSRV), 5000, 'its disk was the last')
  assert.deepEqual((await one.call('Cluster/Recover', { dryRun: true }))['waitsFor'], ['node-4', 'node-5 (disk /disk)'])
  const agreed = { acceptDataLoss: true, asShown: true, waitsFor: shown['waitsFor'] }
  await assert.rejects(one.call('Cluster/Recover', agreed), { status: 'BUSY', message: 'by now node-5 (disk /disk) is waited for, too: nothing was done' })

  // started anew, which tries the disk again, it is there, and has not said what it holds
  five.silent = true
  await cluster.lose(five)
  await five.restart()
  await cluster.until(() => five.data?.serves === true, 10_000, 'it is there')
  assert.deepEqual((await one.call('Cluster/Recover', { dryRun: true }))['waitsFor'], ['node-4'])
  await one.call('Cluster/Recover', agreed)
  await cluster.lose(five)
  await cluster.world.runFor(3000)
  assert.equal(isEach(LASTSRV), true, 'nobody has agreed to go on without it')
  five.silent = false
  await five.restart()
  await cluster.until(() => isEach(SERVING), 20_000, 'it serves what it had')
})

test('an older copy whose node is away is named before a loss is accepted: it is not given up for one that has nothing', async () => {
  const cluster = await TestCluster.up({ seed: 104, nodes: 5, replicas: 2 })
  await cluster.until(() => cluster.node(1).plane.member!.raft!.members.voters.length === 5, 20_000, 'five voters')
  const [one, , , older, last] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode, TestNode]
  const { chains } = one.data!
  const pair = [older.number, last.number].join()
  const slots = [...chains].filter(([, chain]) => nodesOf(chain).join() === pair).map(([slot]) => slot)
  const isEach = (node: TestNode, state: ReplicaState) =>
    slots.every((slot) => chains.get(slot)!.entries.find((entry) => entry.node === node.number)?.state === state)
  older.lastId = () => 7
  await cluster.lose(older)
  await cluster.lose(last)
  await cluster.until(() => isEach(last, ReplicaState.LASTSRV) && isEach(older, ReplicaState.OFFLINE), 5000, 'one was the last')
  const shown = async () => {
    const { waitsFor, olderCopies } = await one.call('Cluster/Recover', { dryRun: true })
    return { acceptDataLoss: true, asShown: true, waitsFor, olderCopies }
  }
  const both = await shown()
  assert.deepEqual([both.waitsFor, both.olderCopies], [['node-5'], ['node-4']])
  await assert.rejects(one.call('Cluster/Recover', { ...both, olderCopies: [] }), {
    status: 'BUSY',
    message: 'by now node-4 is away as well, with older copies: nothing was done',
  })

  // it is there when the operator agrees, has not said what it holds, and goes again
  older.silent = true
  await older.restart()
  await cluster.until(() => older.data?.serves === true && isEach(older, ReplicaState.WAITING), 10_000, 'it is there')
  const known = await shown()
  assert.deepEqual([known.waitsFor, known.olderCopies], [['node-5'], []])
  await one.call('Cluster/Recover', known)
  await cluster.lose(older)
  await cluster.world.runFor(3000)
  assert.ok(isEach(last, ReplicaState.LASTSRV), 'nobody has agreed to begin anew')
  older.silent = false
  await older.restart()
  await cluster.until(() => isEach(older, ReplicaState.SERVING), 20_000, 'it serves what it had')
})

test('what is accepted as lost is what was missing when that was said, not at an earlier or later word of recover that gives up nothing', async () => {
  const cluster = await TestCluster.up({ seed: 105, nodes: 5, replicas: 1 })
  await cluster.until(() => cluster.node(1).plane.member!.raft!.members.voters.length === 5, 20_000, 'five voters')
  const [one, , , four, five] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode, TestNode]
  const isWaitedFor = ({ number }: TestNode) =>
    [...one.data!.chains.values()].filter((chain) => nodesOf(chain).includes(number)).every(({ entries }) => entries[0]!.state === ReplicaState.LASTSRV)
  five.silent = true
  await cluster.lose(five)
  await one.call('Cluster/Recover', {})
  await five.restart()
  await cluster.until(() => five.data?.serves === true, 10_000, 'it is there, and has not said what it holds')
  await cluster.lose(four)
  assert.deepEqual((await one.call('Cluster/Recover', { dryRun: true }))['waitsFor'], ['node-4'])
  four.silent = true
  await four.restart()
  await cluster.until(() => four.data?.serves === true, 10_000, 'so is the other')
  await one.call('Cluster/Recover', { acceptDataLoss: true })
  await cluster.lose(four)
  await cluster.lose(five)
  await one.call('Cluster/Recover', {})
  await cluster.world.runFor(3000)
  assert.ok(isWaitedFor(five), 'of the one that was missing before')
  assert.ok(isWaitedFor(four), 'of the one that was missing after')
})

test('the disk of one copy fails, and the other copy is lost before another one is made: the first is found, tried again, and serves', async () => {
  const cluster = await TestCluster.up({ seed: 107, nodes: 4, replicas: 2 })
  await cluster.threeVoters()
  const [one, two, failing, last] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  const pair = [failing.number, last.number].join()
  const { chains } = one.data!
  const slots = [...chains].filter(([, chain]) => nodesOf(chain).join() === pair).map(([slot]) => slot)
  assert.ok(slots.length > 0)
  const isEach = (node: TestNode, state: ReplicaState) =>
    slots.every((slot) => chains.get(slot)!.entries.find((entry) => entry.node === node.number)?.state === state)
  failing.lastId = () => 7
  for (const { data } of [one, two]) Object.assign(data!, { syncMs: 1e9, unfinished: true })
  // nothing else has happened for a while: where copies should be is known at once
  await cluster.world.runFor(5000)
  failing.data!.tell({ type: 'diskFailed', disk: failing.data!.registration.disks[0]!, reason: 'EIO' })
  const isBeingMade = (slot: number) => {
    const states = chains.get(slot)!.entries.map(({ state }) => state)
    return states.includes(ReplicaState.SYNCING) && !states.includes(ReplicaState.DRAINING)
  }
  await cluster.until(() => slots.every(isBeingMade), 10_000, 'others are being made')
  await cluster.lose(last)
  await cluster.until(() => isEach(last, ReplicaState.LASTSRV), 5000, 'nobody serves')
  const { waitsFor, olderCopies } = await one.call('Cluster/Recover', { dryRun: true })
  assert.deepEqual([waitsFor, olderCopies], [['node-4'], ['node-3 (disk /disk)']])
  failing.kill()
  await failing.restart()
  await cluster.until(() => failing.data?.serves === true && isEach(failing, ReplicaState.WAITING), 10_000, 'its disk is tried again')
  await one.call('Cluster/Recover', { acceptDataLoss: true })
  await cluster.until(() => isEach(failing, ReplicaState.SERVING), 10_000, 'it serves what it had')
})

test('what is left of the data is a copy that was being made: the operator is told whose, before and after', async () => {
  const cluster = await TestCluster.up({ seed: 29, nodes: 3, replicas: 2 })
  await cluster.threeVoters()
  const [lost, left] = cluster.nodes.filter((node) => !node.leads) as [TestNode, TestNode]
  left.kill()
  cluster.refused(left)
  await cluster.world.runFor(200)
  left.syncMs = 1e9
  left.unfinished = true
  await left.restart()
  const pair = [lost.number, left.number].sort().join()
  const shared = () => [...(left.data?.chains.values() ?? [])].filter((chain) => nodesOf(chain).join() === pair)
  const states = (node: TestNode) => new Set(shared().map(({ entries }) => entries.find((entry) => entry.node === node.number)!.state))
  await cluster.until(() => shared().length > 0 && states(left).has(ReplicaState.SYNCING) && states(left).size === 1, 20_000, 'it catches up')
  lost.kill()
  cluster.refused(lost)
  await cluster.until(() => states(lost).has(ReplicaState.LASTSRV) && states(left).has(ReplicaState.WAITING), 10_000, 'nobody serves')
  await cluster.world.runFor(500)
  const id = left.plane.member!.state.nodes.get(left.number as NodeNumber)!.id
  const dry = await left.call('Cluster/Recover', { dryRun: true })
  assert.deepEqual([dry['slots'], dry['unfinished']], [shared().length, [id]])
  await left.call('Cluster/Recover', { acceptDataLoss: true })
  await cluster.until(() => states(left).has(ReplicaState.SERVING), 5000, 'it serves')
  const told = cluster.warnings.filter((line) => line.includes('fromUnfinishedCopiesOn'))
  assert.deepEqual([told.length, told[0]?.includes(`"fromUnfinishedCopiesOn":["${id}"]`)], [1, true], told.join('\n'))
})

test('what was lost with all its copies keeps nobody else from being rebuilt, and begins anew, empty, when the loss is accepted', async () => {
  const cluster = await TestCluster.up({ seed: 67, nodes: 5, replicas: 2 })
  await cluster.until(() => cluster.node(1).plane.member!.raft!.members.voters.length === 5, 20_000, 'five voters')
  await cluster.node(1).call('Config/Set', { key: 'failover.rebuild_after', valueJson: '5000' })
  for (const gone of [cluster.node(4), cluster.node(5)]) gone.kill()
  cluster.refused(cluster.node(4))
  cluster.refused(cluster.node(5))
  const chains = () => [...cluster.node(1).data!.chains.values()]
  const servers = ({ entries }: Chain) => entries.filter(({ state }) => state === ReplicaState.SERVING).length
  const isLost = (chain: Chain) => chain.entries.every(({ state }) => state === ReplicaState.LASTSRV)
  await cluster.until(() => chains().some(isLost) && chains().every((chain) => isLost(chain) || servers(chain) >= 1), 5000, 'some slots are lost')
  await cluster.until(() => chains().every((chain) => isLost(chain) || servers(chain) === 2), 30_000, 'two copies of all the others')
  assert.ok(chains().some(isLost))
  await cluster.node(2).call('Cluster/Recover', {})
  await cluster.world.runFor(1000)
  assert.ok(chains().some(isLost), 'nothing is given up unless it is said')
  await cluster.node(2).call('Cluster/Recover', { acceptDataLoss: true })
  await cluster.until(() => chains().every((chain) => servers(chain) === 2), 30_000, 'two copies of all')
  assert.equal((await cluster.node(1).call('Cluster/Recover', { dryRun: true }))['slots'], 0)
})

test('the time to wait for the last servers of a slot counts from the loss of that slot', async () => {
  const cluster = await TestCluster.up({ seed: 63, nodes: 7, replicas: 2 })
  await cluster.until(() => cluster.node(1).plane.member!.raft!.members.voters.length === 5, 20_000, 'five voters')
  await cluster.node(1).call('Config/Set', { key: 'failover.recover_wait', valueJson: '20000' })
  const leader = cluster.leader!
  const { voters } = leader.plane.member!.raft!.members
  const isVoter = (node: TestNode) => voters.includes(node.number as NodeNumber)
  const [a, b] = cluster.nodes.filter((node) => !isVoter(node)) as [TestNode, TestNode]
  const [c, d] = cluster.nodes.filter((node) => node !== leader && isVoter(node)) as [TestNode, TestNode]
  const pairOf = (a: TestNode, b: TestNode) => {
    const pair = [a.number, b.number].sort().join()
    return [...leader.data!.chains.values()].filter((chain) => nodesOf(chain).join() === pair)
  }
  const serves = (chain: Chain) => chain.entries.some(({ state }) => state === ReplicaState.SERVING)
  // two are away for long, and lose what both hold
  for (const node of [a, b]) node.kill()
  cluster.refused(a)
  cluster.refused(b)
  await cluster.until(() => pairOf(a, b).every((chain) => !serves(chain)), 5000, 'a first loss')
  await cluster.world.runFor(22_000)
  // two more processes end at one time; one of them comes back at once, and the last writes may be with the other
  const lost = pairOf(c, d).length
  assert.ok(lost > 0)
  c.kill()
  d.kill()
  cluster.refused(c)
  cluster.refused(d)
  await c.restart()
  const { term } = leader.plane.member!.raft!
  await cluster.until(() => pairOf(c, d).every((chain) => !serves(chain)), 5000, 'a second loss')
  await steps(cluster, 8000, () => {
    for (const chain of pairOf(c, d)) assert.ok(!serves(chain), 'the other last server was not waited for')
  })
  assert.equal(leader.plane.member!.raft!.term, term, 'the same leader')
  await cluster.world.runFor(20_000)
  assert.ok(pairOf(c, d).every(serves), 'it is not waited for any longer')
})

test('a host that lost its power once is not said to have lost it again, however long others are waited for', async () => {
  const cluster = await TestCluster.up({ seed: 94, nodes: 4, replicas: 1, volume: false })
  const [one, , three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await cluster.threeVoters()
  await one.call('Volume/Create', { name: 'relaxed', sizeBytes: 1024 * GiB, syncWhenWrite: false })
  const losses = () => cluster.leader!.plane.member!.state.findVolume('relaxed')!.losses ?? 0
  const cycle = async (lostPower: boolean) => {
    three.kill()
    cluster.refused(three)
    await cluster.world.runFor(500)
    three.lostPower = lostPower
    await three.restart()
    await cluster.until(() => [...Array(SLOTS).keys()].some((slot) => three.data?.servesSlot(slot)), 20_000, 'it serves again')
  }
  // its copies are missing from now on
  four.kill()
  cluster.refused(four)
  await cycle(true)
  assert.equal(losses(), 1)
  await cluster.world.runFor(2000)
  await cycle(false)
  assert.equal(losses(), 1)
})

test('disks that all stood still at once are tried again when their processes start anew: nobody else has what they hold', async () => {
  const cluster = await TestCluster.up({ seed: 66, nodes: 3 })
  await cluster.threeVoters()
  for (const { data } of cluster.nodes) data!.tell({ type: 'diskFailed', disk: data!.registration.disks[0]!, reason: 'the disk has not answered for 2000 ms' })
  const chains = () => [...(cluster.node(1).data?.chains.values() ?? [])]
  await cluster.until(() => chains().every(({ entries }) => entries.every(({ state }) => state >= ReplicaState.LASTSRV)), 5000, 'nobody serves')
  // every disk answers again
  const last = cluster.nodes.filter((node) =>
    chains().some(({ entries }) => entries.some((of) => of.node === node.number && of.state === ReplicaState.LASTSRV)),
  )
  assert.ok(last.length > 0)
  for (const node of cluster.nodes) {
    node.kill()
    await node.restart()
  }
  const isServed = ({ entries }: Chain) => entries.some(({ state }) => state === ReplicaState.SERVING)
  await cluster.until(() => chains().length === SLOTS && chains().every(isServed), 30_000, 'all slots are served again')
})

test('a renewal that a dead process had sent before, and that the network kept, is no sign of its life', async () => {
  const cluster = await TestCluster.up({ seed: 68, nodes: 5, replicas: 2 })
  await cluster.until(() => cluster.node(1).plane.member!.raft!.members.voters.length === 5, 20_000, 'five voters')
  const leader = cluster.leader!
  const [a, b] = cluster.nodes.filter((node) => node !== leader) as [TestNode, TestNode]
  const { rpc } = b.env
  const call = rpc.call.bind(rpc)
  let kept: Message | undefined
  rpc.call = (address, method, request, options) => {
    if (method.endsWith('/Renew')) kept = request
    return call(address, method, request, options)
  }
  await cluster.until(() => kept !== undefined, 2000, 'it renews')
  b.kill()
  a.kill()
  cluster.refused(a)
  const pair = () => [...leader.data!.chains.values()].filter((chain) => nodesOf(chain).join() === [a.number, b.number].sort().join())
  const hasView = (node: TestNode, view: View) => leader.plane.member!.coordinator!.view.view(node.number as NodeNumber) === view
  await cluster.until(() => hasView(a, View.DOWN), 1000, 'the death of one is known')
  assert.ok(hasView(b, View.MAYBE) && pair().length > 0)
  await cluster.world.settle(cluster.client.rpc.call(leader.grpc, 'xsan.v1.Peer/Renew', kept!, { timeoutMs: 1000 }), 1000)
  assert.ok(!hasView(b, View.UP))
  await steps(cluster, 5000, () => {
    for (const { entries } of pair())
      assert.ok(
        entries.every(({ node, state }) => (node as number) !== a.number || state !== ReplicaState.OFFLINE),
        'the one that died last is given up',
      )
  })
})

test('a node that comes and goes is held off its chains, longer each time', async () => {
  const cluster = await TestCluster.up({ seed: 27, nodes: 3 })
  await cluster.threeVoters()
  const flapping = cluster.nodes.find((node) => !node.leads)!
  const times: number[] = []
  for (let round = 0; round < 4; round++) {
    flapping.kill()
    cluster.refused(flapping)
    await cluster.until(() => cluster.full(2), 5000, 'dropped')
    await flapping.restart()
    times.push(await cluster.until(() => cluster.full(3), 60_000, 'back'))
  }
  assert.ok(times[0]! < 1000, `the first return took ${times[0]} ms`)
  assert.ok(times[2]! >= 2000 && times[3]! >= 4000, times.join(', '))
})

test('proofs of death count for nothing when they are not trusted', async () => {
  const cluster = await TestCluster.up({ seed: 28, nodes: 3 })
  await cluster.node(1).call('Config/Set', { key: 'failover.trust_refused', valueJson: 'false' })
  const victim = cluster.nodes.find((node) => !node.leads)!
  victim.kill()
  cluster.refused(victim)
  const tookMs = await cluster.until(() => cluster.full(2), 5000, 'dropped')
  assert.ok(tookMs > LEASE_MS / 2, `took ${tookMs} ms`)
})

test('a proof of death that was wrong is believed for two leases, not for ever: then the leader is followed again, and the cluster is quiet', async () => {
  const cluster = await TestCluster.up({ seed: 92, nodes: 3 })
  await cluster.threeVoters()
  await cluster.world.runFor(1000)
  const leader = cluster.leader!
  const [misled, away] = cluster.nodes.filter((node) => node !== leader) as [TestNode, TestNode]
  // nobody else can lead: the leader does not vote for another while the one that is left follows it
  away.kill()
  cluster.refused(away)
  await cluster.until(() => cluster.full(2), 5000, 'two serve')
  let calls = 0
  const { rpc } = misled.env
  const call = rpc.call.bind(rpc)
  rpc.call = (address, method, request, options) => {
    if (method.endsWith('/Renew') || method.endsWith('/Report')) calls++
    return call(address, method, request, options)
  }
  misled.data!.tell({ type: 'peerRefused', node: leader.number as NodeNumber, incarnation: leader.data!.registration.incarnation })
  await cluster.world.runFor(2 * LEASE_MS)
  assert.ok(calls < 60, `${calls} renewals and reports in two leases`)
  await cluster.world.runFor(LEASE_MS)
  const now = cluster.leader!
  const terms = () => cluster.nodes.filter((node) => node !== away).map((node) => node.plane.member!.raft!.term)
  const [before, warnings] = [terms(), cluster.warnings.length]
  calls = 0
  await cluster.world.runFor(5 * LEASE_MS)
  assert.equal(misled.plane.member!.raft!.leader, now.number)
  assert.deepEqual(terms(), before)
  assert.deepEqual(cluster.warnings.slice(warnings), [])
  assert.ok(calls < 60, `${calls} renewals and reports`)
  assert.ok(cluster.full(2))
})

test('a leader that died and came back leads again before it is registered: the proof of its first death is not held against it', async () => {
  const cluster = await TestCluster.up({ seed: 95, nodes: 3 })
  await cluster.threeVoters()
  const leader = cluster.leader!
  const [behind, away] = cluster.nodes.filter((node) => node !== leader) as [TestNode, TestNode]
  cluster.network.cut(leader.host, behind.host)
  await cluster.world.settle(leader.plane.member!.coordinator!.propose('settings.set', { key: 'storage.read_only', value: true }), 1000)
  leader.kill()
  away.kill()
  cluster.network.healAll()
  cluster.refused(leader)
  cluster.refused(away)
  const raft = behind.plane.member!.raft!
  await leader.restart()
  const startedMs = cluster.world.nowMs
  await cluster.until(() => raft.leader === leader.number, 2 * LEASE_MS, 'it is followed')
  assert.ok(cluster.world.nowMs - startedMs < LEASE_MS, 'the proof is still one')
  await cluster.world.runFor(500)
  assert.equal(raft.leader, leader.number)
  assert.ok(cluster.leader === leader)
})

test('a volume that is made before the first chains waits for them', async () => {
  const cluster = new TestCluster({ seed: 70, nodes: 1 })
  const one = cluster.node(1)
  await one.start()
  one.readyAfterMs = 3000
  await one.call('Cluster/Init')
  assert.equal(one.plane.member!.state.chains.length, 0)
  await one.call('Volume/Create', { name: 'early', sizeBytes: GiB })
  assert.equal(one.plane.member!.state.chains.length, 0)
  await cluster.until(() => cluster.full(1), 10_000, 'every slot has its chain')
})

test('while nodes that have joined do not vote yet, health says so', async () => {
  const cluster = await TestCluster.up({ seed: 83, nodes: 3 })
  await cluster.threeVoters()
  const { state, raft } = cluster.node(1).plane.member!
  const health = (voters: readonly number[]) => healthOf({ state, view: () => View.UP, planned: new Set(), voters: voters as NodeNumber[] })
  assert.deepEqual([health(raft!.members.voters).health, health(raft!.members.voters).reasons], ['safe', []])
  const growing = health([1])
  assert.equal(growing.health, 'at-risk')
  assert.match(growing.reasons.join(), /^1 of 3 nodes that should vote does \(node-1\): the loss of one of them stops changes/)
})

test('two nodes are not called safe: the one that votes alone stops both when it is lost', async () => {
  const cluster = await TestCluster.up({ seed: 102, nodes: 2, replicas: 2 })
  const verdict = async () => {
    const { health, reasons } = await cluster.node(2).call('Cluster/Status')
    return [health, reasons]
  }
  const why = 'Of two nodes one alone votes (node-1): its loss stops changes and, a lease later, all I/O. A third node, which needs no disks, prevents that.'
  assert.deepEqual(await verdict(), ['at-risk', [why]])
  const witness = new TestNode(cluster, 3)
  witness.hasDisk = false
  cluster.nodes.push(witness)
  await witness.start()
  await cluster.join(witness)
  await cluster.threeVoters()
  assert.deepEqual(await verdict(), ['safe', []])
})

/** Every live node knows that these vote, and no others are asked. */
async function votersAre(cluster: TestCluster, ...wanted: readonly number[]): Promise<void> {
  const known = ({ plane, process }: TestNode) => {
    if (process.state !== 'running') return true
    const { voters, votersOutgoing } = plane.member!.raft!.members
    return votersOutgoing.length === 0 && [...voters].sort().join() === wanted.join()
  }
  await cluster.until(() => cluster.nodes.every(known), 20_000, `voters ${wanted.join()}`)
}

test('a voter that stays away gives its vote to a learner, which carries the cluster through the next loss; it returns as a learner', async () => {
  const cluster = await TestCluster.up({ seed: 81, nodes: 4 })
  const [one, two, three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await one.call('Config/Set', { key: 'failover.replace_voter_after', valueJson: '5000' })
  await votersAre(cluster, 1, 2, 3)
  three.kill()
  await cluster.world.runFor(4000)
  await votersAre(cluster, 1, 2, 3)
  const tookMs = await cluster.until(() => one.plane.member!.raft!.members.voters.includes(4 as NodeNumber), 10_000, 'node-4 votes')
  assert.ok(tookMs > 500, `after its time, not before: ${tookMs}`)
  await votersAre(cluster, 1, 2, 4)
  const status = await two.call('Cluster/Status')
  const roles = () => (status['nodes'] as Message[]).map((node) => node['raftRole'])
  assert.deepEqual(roles(), ['voter', 'voter', 'learner', 'voter'])
  // with node 3 still a voter this would be the end of the majority
  two.kill()
  await cluster.world.runFor(5000)
  await one.call('Volume/Create', { name: 'after', sizeBytes: GiB })
  await two.restart()
  await three.restart()
  await cluster.until(() => cluster.full(3), 60_000, 'all serve again')
  await votersAre(cluster, 1, 2, 4)
  assert.ok(four.plane.member!.raft!.members.learners.includes(3 as NodeNumber))
  await one.call('Config/Set', { key: 'failover.replace_voter_after', valueJson: '0' })
  four.kill()
  await cluster.world.runFor(20_000)
  await votersAre(cluster, 1, 2, 4)
})

test('a voter whose data plane is long in replay keeps its vote: it answers Raft', async () => {
  const cluster = await TestCluster.up({ seed: 83, nodes: 4 })
  const [one, , three] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await one.call('Config/Set', { key: 'failover.replace_voter_after', valueJson: '5000' })
  await votersAre(cluster, 1, 2, 3)
  three.kill()
  cluster.refused(three)
  three.readyAfterMs = 20_000
  await three.restart()
  await cluster.world.runFor(15_000)
  assert.equal(three.data!.serves, false)
  await votersAre(cluster, 1, 2, 3)
  await cluster.until(() => cluster.full(3), 60_000, 'all serve again')
  await votersAre(cluster, 1, 2, 3)
})

test('two of five voters stay away: the three left vote alone, and may lose one more; those that return vote again', async () => {
  const cluster = await TestCluster.up({ seed: 82, nodes: 5 })
  const [one, two, three, four, five] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode, TestNode]
  await one.call('Config/Set', { key: 'failover.replace_voter_after', valueJson: '3000' })
  await votersAre(cluster, 1, 2, 3, 4, 5)
  five.kill()
  await cluster.world.runFor(8000)
  // one away of five: to do without it would gain nothing
  await votersAre(cluster, 1, 2, 3, 4, 5)
  four.kill()
  await votersAre(cluster, 1, 2, 3)
  three.kill()
  await cluster.world.runFor(8000)
  await votersAre(cluster, 1, 2, 3)
  await one.call('Volume/Create', { name: 'after', sizeBytes: GiB })
  // a vote for one that lives, if it alone returns
  await four.restart()
  await votersAre(cluster, 1, 2, 4)
  await three.restart()
  await five.restart()
  await votersAre(cluster, 1, 2, 3, 4, 5)
  assert.equal(two.fatal, undefined)
})

test('a node that is gone is not waited for from the beginning whenever another node begins to lead', async () => {
  const cluster = await TestCluster.up({ seed: 84, nodes: 4 })
  const [one, , , four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await cluster.threeVoters()
  await one.call('Config/Set', { key: 'failover.rebuild_after', valueJson: '40000' })
  four.kill()
  cluster.refused(four)
  let takenOver = 0
  for (const startMs = cluster.world.nowMs; cluster.world.nowMs - startMs < 80_000 && !isRebuiltWithout(one, four); ) {
    await cluster.world.runFor(16_000)
    const leader = cluster.leader
    if (leader === undefined) continue
    const heir = leader.plane.member!.raft!.members.voters.find((of) => of !== leader.number)!
    await cluster.world.settle(leader.plane.member!.raft!.transferLeader(heir), 5000).catch(() => undefined)
    if (cluster.leader !== leader) takenOver++
  }
  assert.ok(takenOver >= 2, `${takenOver} leaders took over`)
  assert.ok(isRebuiltWithout(one, four), 'what it held is elsewhere')
})

test('after a restart of all, a node that was gone before keeps its vote and its copies only as long as is left of their time', async () => {
  const cluster = await TestCluster.up({ seed: 87, nodes: 4 })
  const [one, two, three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await cluster.threeVoters()
  for (const key of ['failover.rebuild_after', 'failover.replace_voter_after']) await one.call('Config/Set', { key, valueJson: '60000' })
  three.kill()
  cluster.refused(three)
  await cluster.world.runFor(50_000)
  for (const node of [one, two, four]) node.kill()
  for (const node of [one, two, four]) await node.restart()
  await cluster.until(() => [one, two, four].every((node) => node.data?.serves === true), 20_000, 'the others serve')
  assert.ok(!isRebuiltWithout(one, three) && one.plane.member!.raft!.members.voters.includes(3 as NodeNumber), 'not before its time')
  await cluster.until(() => isRebuiltWithout(one, three), 30_000, 'what it held is elsewhere')
  await votersAre(cluster, 1, 2, 4)
})

test('a node that was away for long and is back is waited for as long as any other when it goes again', async () => {
  const cluster = await TestCluster.up({ seed: 88, nodes: 4 })
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await cluster.threeVoters()
  for (const key of ['failover.rebuild_after', 'failover.replace_voter_after']) await one.call('Config/Set', { key, valueJson: '60000' })
  three.kill()
  cluster.refused(three)
  await cluster.world.runFor(50_000)
  assert.equal(one.plane.member!.state.away.size, 1)
  await three.restart()
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
  await cluster.until(() => one.plane.member!.state.away.size === 0, 2000, 'nobody is away')
  const revision = one.plane.member!.state.revision
  three.kill()
  two.kill()
  await two.restart()
  await cluster.world.runFor(40_000)
  assert.ok(!isRebuiltWithout(one, three), 'its copies wait for it')
  await votersAre(cluster, 1, 2, 3)
  assert.ok(one.plane.member!.state.away.get(3 as NodeNumber)!.downMs > 30_000)
  assert.ok(one.plane.member!.state.revision - revision < 40, 'data planes are told nothing of it')
})

/** What one node has, the other has no part in, and there are three copies. */
function isRebuiltWithout(node: TestNode, gone: TestNode): boolean {
  return [...node.data!.chains.values()].every(
    ({ entries }) => entries.filter((of) => of.state === ReplicaState.SERVING && of.node !== gone.number).length === 3,
  )
}

test('one node with data grows to three without a restart', async () => {
  const cluster = await TestCluster.up({ seed: 24, nodes: 1 })
  assert.ok(cluster.full(1))
  for (const number of [2, 3]) {
    const node = new TestNode(cluster, number)
    cluster.nodes.push(node)
    await node.start()
    await cluster.join(node)
  }
  await cluster.until(() => cluster.full(3), 30_000, 'three replicas everywhere')
  await cluster.threeVoters()
  const heads = () => cluster.nodes.map(({ number }) => [...cluster.node(1).data!.chains.values()].filter((chain) => chain.entries[0]!.node === number).length)
  await cluster.until(() => Math.max(...heads()) <= SLOTS / 2 && cluster.full(3), 60_000, 'heads are spread')
})

test('a chain that a member serves is never served by a process that lost its lease or its place', async () => {
  for (const seed of seeds(30, 36)) {
    const cluster = await TestCluster.up({ seed, nodes: 3 })
    const random = cluster.world.random('faults')
    const check = () => checkServers(cluster, seed)
    for (let round = 0; round < 8; round++) {
      const victim = random.pick(cluster.nodes)
      const kind = random.below(3)
      if (kind === 0 && victim.process.state === 'running') {
        victim.kill()
        if (random.chance(0.5)) cluster.refused(victim)
        await steps(cluster, random.between(50, 4000), check)
        await victim.restart()
      } else if (kind === 1 && victim.process.state === 'running') {
        victim.process.freeze()
        await steps(cluster, random.between(50, 5000), check)
        victim.process.thaw()
      } else {
        const other = cluster.node((victim.number % 3) + 1)
        cluster.network.cut(victim.host, other.host)
        await steps(cluster, random.between(50, 6000), check)
        cluster.network.healAll()
      }
      await steps(cluster, random.between(50, 2000), check)
    }
    for (const node of cluster.nodes) assert.equal(node.fatal, undefined)
    await cluster.until(() => cluster.full(3), 120_000, `seed ${seed}: all serve again`)
  }
})

test('whatever happens to nodes, and is wrongly believed of them: they come to rest with one state, and calls stay few meanwhile', async () => {
  for (const seed of seeds(700, 703)) {
    const cluster = await TestCluster.up({ seed, nodes: 5 })
    await cluster.node(1).call('Config/Set', { key: 'failover.replace_voter_after', valueJson: '6000' })
    const random = cluster.world.random('faults')
    const running = () => cluster.nodes.filter((node) => node.process.state === 'running')
    for (let round = 0; round < 16; round++) {
      const [victim, other] = [random.pick(cluster.nodes), random.pick(cluster.nodes)]
      const [startMs, callsBefore] = [cluster.world.nowMs, cluster.calls]
      const kind = random.below(6)
      if (kind === 0 && running().length > 3 && victim.process.state === 'running') {
        victim.kill()
        if (random.chance(0.5)) cluster.refused(victim)
      } else if (kind === 1 && victim.process.state !== 'running') {
        if (random.chance(0.3)) victim.grpcPort++
        await victim.restart()
      } else if (kind === 2 && victim.process.state === 'running') {
        victim.process.freeze()
        await cluster.world.runFor(random.between(50, 5000))
        victim.process.thaw()
      } else if (kind === 3 && victim.data !== undefined) cluster.refused(victim)
      else if (kind === 4 && other !== victim) {
        cluster.network.cut(victim.host, other.host)
        if (random.chance(0.5)) cluster.network.cut(other.host, victim.host)
        await cluster.world.runFor(random.between(50, 8000))
        cluster.network.healAll()
      } else if (kind === 5) void cluster.leader?.plane.member?.raft?.transferLeader(victim.number as NodeNumber).catch(() => undefined)
      await cluster.world.runFor(random.between(50, 4000))
      // an election is a burst
      const perSecond = ((cluster.calls - callsBefore) * 1000) / Math.max(1000, cluster.world.nowMs - startMs)
      assert.ok(perSecond < 1500, `seed ${seed}, round ${round}: ${Math.round(perSecond)} calls a second`)
    }
    for (const node of cluster.nodes) if (node.process.state !== 'running') await node.restart()
    await cluster.until(() => cluster.full(3) || cluster.nodes.some((node) => node.fatal !== undefined), 180_000, `seed ${seed}: all serve again`)
    await cluster.world.runFor(5000)
    for (const node of cluster.nodes) assert.equal(node.fatal, undefined)
    const terms = () => cluster.nodes.map((node) => node.plane.member!.raft!.term).join()
    const [quiet, callsBefore] = [terms(), cluster.calls]
    await cluster.world.runFor(5000)
    assert.equal(terms(), quiet)
    assert.ok((cluster.calls - callsBefore) / 5 < 500, `${(cluster.calls - callsBefore) / 5} calls a second at rest`)
    const states = cluster.nodes.map((node) => createHash('sha256').update(packPairs(node.plane.member!.state.pairs())).digest('hex'))
    assert.equal(new Set(states).size, 1, `seed ${seed}: ${states.join()}`)
  }
})

/** Two processes may serve one slot at one time only if they agree on its version, or the older one knows no newer yet and all new servers are its fellows. */
function checkServers(cluster: TestCluster, seed: number): void {
  for (let slot = 0; slot < SLOTS; slot++) {
    const servers = cluster.nodes.filter((node) => node.data?.servesSlot(slot))
    const newest = Math.max(0, ...servers.map((node) => node.data!.chains.get(slot)!.version))
    const now = servers.map((node) => node.data!.chains.get(slot)!).find((chain) => chain.version === newest)!
    for (const { data, id } of servers) {
      const entry = now.entries.find((of) => of.node === data!.registration.node)
      assert.ok(
        entry !== undefined && (entry.state === ReplicaState.SERVING || entry.state === ReplicaState.DRAINING),
        `seed ${seed}, ${cluster.world.nowMs} ms: ${id} serves slot ${slot} that it lost`,
      )
    }
  }
}

test('a leader with a short lease waits for the end of those that a leader with a long one has granted', async () => {
  const seed = 61
  const cluster = await TestCluster.up({ seed, nodes: 4, leasesMs: [8000] })
  await cluster.threeVoters(20_000)
  const away = cluster.node(4)
  await cluster.until(() => away.data!.leaseUntilMs - away.env.clock.nowMs() > 6000, 20_000, 'it has a long lease')
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  assert.ok(one.leads)
  for (const other of [one, two, three]) cluster.network.cut(away.host, other.host)
  one.kill()
  await steps(cluster, 10_000, () => checkServers(cluster, seed))
  const servers = (node: TestNode) => [...node.data!.chains.values()].map(({ entries }) => entries.filter(({ state }) => state === ReplicaState.SERVING).length)
  assert.ok(Math.max(...servers(two)) <= 2, 'the two that are gone are out of all chains by then')
  assert.ok(two.data!.serves && three.data!.serves)
})

/** FROM..TO of the environment, for a longer run by hand. */
function seeds(from: number, to: number): number[] {
  const [a, b] = [Number(process.env['FROM'] ?? from), Number(process.env['TO'] ?? to)]
  return Array.from({ length: b - a }, (_, i) => a + i)
}

async function steps(cluster: TestCluster, durationMs: number, check: () => void): Promise<void> {
  for (let leftMs = durationMs; leftMs > 0; leftMs -= 25) {
    await cluster.world.runFor(Math.min(25, leftMs))
    check()
  }
}

test('once a lowered lease is the longest of all, and one of the old length has passed, a new leader waits for the new one only', async () => {
  const cluster = await TestCluster.up({ seed: 62, nodes: 3, leasesMs: [8000, 8000, 8000] })
  await cluster.threeVoters(20_000)
  for (const node of cluster.nodes) {
    node.leaseMs = 1000
    node.kill()
    cluster.refused(node)
    await node.restart()
    await cluster.until(() => cluster.full(3), 60_000, 'all serve again')
  }
  const max = () => cluster.leader!.plane.member!.state.leaseMsMax
  assert.equal(max(), 8000)
  await cluster.world.runFor(9000)
  assert.equal(max(), 1000)
  const leader = cluster.leader!
  const survivors = cluster.nodes.filter((node) => node !== leader)
  // without proof of death: a lease has to pass
  for (const other of survivors) cluster.network.cut(leader.host, other.host)
  leader.kill()
  const tookMs = await cluster.until(
    () =>
      survivors.every(
        ({ data }) =>
          data!.serves && [...data!.chains.values()].every(({ entries }) => entries.filter(({ state }) => state === ReplicaState.SERVING).length === 2),
      ),
    20_000,
    'the two serve alone',
  )
  assert.ok(tookMs < 5000, `${tookMs} ms`)
})

test('a node is removed: its replicas move, then it leaves Raft and stops', async () => {
  const cluster = await TestCluster.up({ seed: 40, nodes: 4 })
  await assert.rejects(cluster.node(1).call('Cluster/RemoveNode', { nodeId: 'node-9' }), { status: 'NODE_NOT_FOUND' })
  await cluster.node(1).call('Cluster/RemoveNode', { nodeId: 'node-4' })
  await cluster.until(() => !cluster.node(1).plane.member!.state.nodes.has(4 as NodeNumber), 60_000, 'gone from the state')
  await cluster.until(() => !cluster.node(1).plane.member!.raft!.members.voters.includes(4 as NodeNumber), 10_000, 'gone from Raft')
  await cluster.until(() => cluster.node(4).fatal !== undefined, 5000, 'the removed node knows')
  // the service manager starts no process again that ends with this one
  assert.deepEqual(
    [(cluster.node(4).fatal as XsanError).status, (cluster.node(4).fatal as XsanError).message],
    ['PERMISSION_DENIED', 'this node was removed from the cluster'],
  )
  await assert.rejects(cluster.node(2).call('Cluster/RemoveNode', { nodeId: 'node-3' }), { status: 'BUSY' })
})

test('what is asked for again after its answer was lost: a removal says that it is done, a named request is made once and answers as before', async () => {
  const cluster = await TestCluster.up({ seed: 84, nodes: 4, volume: false })
  const [one, two, three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  // leaving, asked again, and gone, asked again, at another node
  assert.equal((await one.call('Cluster/RemoveNode', { nodeId: 'node-4' }))['removed'], false)
  assert.equal((await two.call('Cluster/RemoveNode', { nodeId: 'node-4' }))['removed'], false)
  await cluster.until(() => four.fatal !== undefined, 60_000, 'the removed node knows')
  for (const request of [{ nodeId: 'node-4' }, { nodeId: 'node-4', dryRun: true }, { nodeId: 'node-4', force: true }])
    assert.deepEqual(await three.call('Cluster/RemoveNode', request), { nodeId: 'node-4', chains: 0, removed: true })
  await assert.rejects(one.call('Cluster/RemoveNode', { nodeId: 'node-5' }), { status: 'NODE_NOT_FOUND' })
  // survives a restart of all: it is replicated state
  const stored = new ClusterState()
  stored.load(one.plane.member!.state.pairs())
  assert.ok(stored.wasRemovedById('node-4'))

  const create = { name: 'v', sizeBytes: GiB, requestId: 'mine' }
  const first = await one.call('Volume/Create', create)
  assert.equal((await two.call('Volume/Create', create))['id'], first['id'])
  await assert.rejects(two.call('Volume/Create', { ...create, requestId: 'another' }), { status: 'VOLUME_EXISTS' })
  await assert.rejects(two.call('Volume/Create', { ...create, requestId: '' }), { status: 'VOLUME_EXISTS' })
  // one name for two requests: two requests
  const other = await two.call('Volume/Create', { ...create, name: 'w' })
  assert.notEqual(other['id'], first['id'])
  const resize = { volume: 'v', sizeBytes: 2 * GiB, requestId: 'mine' }
  assert.equal((await one.call('Volume/Resize', resize))['sizeBytes'], 2 * GiB)
  await one.call('Volume/Resize', { volume: 'v', sizeBytes: 3 * GiB })
  await three.call('Volume/Resize', resize)
  assert.equal((await one.call('Volume/Info', { volume: 'v' }))['sizeBytes'], 3 * GiB, 'what came after it stays')
  const remove = { volume: 'v', requestId: 'mine' }
  const gone = await one.call('Volume/Delete', remove)
  assert.deepEqual(await two.call('Volume/Delete', remove), gone)
  await assert.rejects(two.call('Volume/Delete', { volume: 'v' }), { status: 'VOLUME_NOT_FOUND' })
  const add = { nodeId: 'node-4', requestId: 'mine' }
  assert.deepEqual(await two.call('Cluster/AddNode', add), await one.call('Cluster/AddNode', add), 'one token')
  assert.notEqual((await one.call('Cluster/AddNode', { nodeId: 'node-4' }))['token'], (await one.call('Cluster/AddNode', add))['token'])
  await assert.rejects(one.call('Volume/Create', { ...create, requestId: 'x'.repeat(129) }), { status: 'INVALID_PARAM' })
})

test('a named request that was refused for then is tried anew under its name, and made once', async () => {
  const cluster = await TestCluster.up({ seed: 101, nodes: 3 })
  const [one, two] = cluster.nodes as [TestNode, TestNode]
  const remove = { nodeId: 'node-3', requestId: 'mine' }
  for (const node of [one, two]) await assert.rejects(node.call('Cluster/RemoveNode', remove), { status: 'BUSY' })
  const added = new TestNode(cluster, 4)
  cluster.nodes.push(added)
  await added.start()
  await cluster.join(added)
  await two.call('Cluster/RemoveNode', remove)
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3', cancel: true })
  await two.call('Cluster/RemoveNode', remove)
  assert.equal(one.plane.member!.state.nodeById('node-3')!.state, 'member', 'what came after it stays')
})

test('what a node has reported of itself counts no more once it is down, or removed', async () => {
  const cluster = await TestCluster.up({ seed: 92, nodes: 4 })
  const [one, , three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  const lost = [{ slot: 1, volume: 1, layer: 0, index: 0, page: 7 }]
  const report = ({ data }: TestNode) =>
    data!.tell({
      type: 'stats',
      counters: { 'nbd_connections{volume=1}': 2 },
      disks: [],
      resync: { slotsLeft: 1, blocksLeft: 5, bytesMoved: 10, bytesNeeded: 20, lostPages: 1, lost },
    })
  const told = async () => {
    const { resync, reasons } = (await one.call('Cluster/Status')) as { resync: Message; reasons: string[] }
    const exports = (await one.call('Export/List'))['exports'] as Message[]
    return [resync['blocksLeft'], reasons.some((text) => / lost, /.test(text)), exports.reduce((sum, of) => sum + Number(of['connections']), 0)]
  }
  report(three)
  report(four)
  await cluster.world.runFor(1000)
  assert.deepEqual(await told(), [10, true, 4])
  await one.call('Cluster/RemoveNode', { nodeId: 'node-4' })
  await cluster.until(() => four.fatal !== undefined, 60_000, 'it is removed')
  assert.deepEqual(await told(), [5, true, 2])
  three.kill()
  cluster.refused(three)
  await cluster.world.runFor(1000)
  assert.deepEqual(await told(), [0, false, 0])
})

test('a listing of exports goes on where it was, whatever is created and deleted between two pages', async () => {
  const cluster = await TestCluster.up({ seed: 103, nodes: 2, volume: false })
  const one = cluster.node(1)
  for (const name of ['a', 'b', 'c']) await one.call('Volume/Create', { name, sizeBytes: GiB })
  const listed: string[] = []
  let pageToken = ''
  do {
    const answer = await one.call('Export/List', { pageSize: 3, pageToken })
    for (const { volume, nodeId } of answer['exports'] as Message[]) listed.push(`${volume} ${nodeId}`)
    if (pageToken === '') await one.call('Volume/Delete', { volume: 'a' })
    pageToken = String(answer['nextPageToken'])
  } while (pageToken !== '')
  assert.deepEqual(listed, ['a node-1', 'a node-2', 'b node-1', 'b node-2', 'c node-1', 'c node-2'])
})

test('a listing looks at the chains once, not for every volume: the leader grants leases on the same thread', async () => {
  const cluster = await TestCluster.up({ seed: 93, nodes: 3 })
  const { view } = cluster.leader!.plane.member!.coordinator!
  const ask = view.view.bind(view)
  let asked = 0
  view.view = (node) => {
    asked++
    return ask(node)
  }
  const listing = async () => {
    const before = asked
    const { volumes } = await cluster.leader!.call('Volume/List')
    return { volumes: (volumes as Message[]).length, asked: asked - before }
  }
  const few = await listing()
  for (let i = 2; i <= 40; i++) await cluster.leader!.call('Volume/Create', { name: `v${i}`, sizeBytes: GiB })
  const many = await listing()
  assert.deepEqual([few.volumes, many.volumes], [1, 40])
  assert.ok(many.asked < 2 * few.asked, `${few.asked} looks, then ${many.asked}`)
})

test('a voter that holds no copy is removed: its vote goes first, for its process ends as soon as it hears of it, and its majority with it', async () => {
  for (const removed of [1, 2]) {
    const cluster = await TestCluster.up({ seed: 89, nodes: 2, diskless: removed, replicas: 1 })
    const [leaves, stays] = [cluster.node(removed), cluster.node(3 - removed)]
    if (removed === 2) await cluster.world.settle(cluster.node(1).plane.member!.raft!.changeMembers({ addVoters: [2 as NodeNumber] }), 1000)
    await stays.call('Cluster/RemoveNode', { nodeId: leaves.id })
    await cluster.until(() => leaves.fatal !== undefined, 20_000, 'the removed node knows')
    leaves.kill()
    await cluster.world.runFor(10_000)
    assert.ok(stays.leads && stays.data!.serves)
    assert.deepEqual(stays.plane.member!.raft!.members.voters, [stays.number])
    assert.deepEqual(
      ((await stays.call('Node/List'))['nodes'] as Message[]).map(({ id }) => id),
      [stays.id],
    )
  }
})

test('a voter is not removed while the others that vote are no majority without it; once they are, it is', async () => {
  const cluster = await TestCluster.up({ seed: 90, nodes: 4, diskless: 3, replicas: 1 })
  await cluster.threeVoters()
  const [one, two, three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  for (const node of [two, four]) node.kill()
  await cluster.world.runFor(2 * LEASE_MS)
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3' })
  await cluster.world.runFor(10_000)
  assert.equal(three.fatal, undefined)
  assert.match(((await one.call('Cluster/Status'))['reasons'] as string[]).join(), /Node node-3 is being emptied, to be removed\./)
  await two.restart()
  await cluster.until(() => three.fatal !== undefined, 20_000, 'the removed node knows')
  three.kill()
  await cluster.world.runFor(5000)
  assert.ok([one, two].every(({ data }) => data!.serves))
})

test('a learner that has just died gets no vote of one that leaves, when another voter has died as well', async () => {
  const cluster = await TestCluster.up({ seed: 104, nodes: 4, diskless: 3, replicas: 1 })
  await cluster.threeVoters()
  const [one, two, three, four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  assert.deepEqual(one.plane.member!.raft!.members.voters, [1, 2, 3])
  for (const node of [two, four]) node.kill()
  await cluster.world.runFor(1000)
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3', force: true })
  await cluster.world.runFor(10_000)
  assert.deepEqual(
    [one, three].map(({ data, fatal }) => [data!.serves, fatal]),
    [
      [true, undefined],
      [true, undefined],
    ],
  )
  await two.restart()
  await cluster.until(() => three.fatal !== undefined, 20_000, 'it is removed once there are enough without it')
})

test('voters that live keep their votes while too few of those that would vote instead of them do', async () => {
  const cluster = await TestCluster.up({ seed: 91, nodes: 5, replicas: 1 })
  const voting = ({ plane }: TestNode) => plane.member!.raft!.members
  await cluster.until(() => cluster.nodes.every((node) => voting(node).voters.length === 5 && voting(node).votersOutgoing.length === 0), 10_000, 'five vote')
  const [one, two, three, four, five] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode, TestNode]
  for (const node of [two, three]) node.kill()
  await cluster.world.runFor(2 * LEASE_MS)
  // of one moment: the leader sees both leave at once
  const leave = ({ number }: TestNode) => one.plane.member!.coordinator!.propose('node.leave', { node: number as NodeNumber })
  await cluster.world.settle(Promise.all([four, five].map(leave)), 1000)
  await cluster.world.runFor(10_000)
  for (const node of [one, four, five]) assert.ok(node.data!.serves, 'three of five are a majority')
  for (const node of [two, three]) await node.restart()
  await cluster.until(() => four.fatal !== undefined && five.fatal !== undefined, 60_000, 'both are removed')
  for (const node of [four, five]) node.kill()
  await cluster.world.runFor(5000)
  assert.ok([one, two, three].every(({ data }) => data!.serves))
  assert.deepEqual(voting(one).voters, [1, 2, 3])
})

test('while a node is being emptied it votes as before, so that the others survive a loss', async () => {
  const cluster = await TestCluster.up({ seed: 98, nodes: 3, replicas: 2 })
  await cluster.threeVoters()
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  for (const node of cluster.nodes) node.data!.syncMs = 1e9
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3' })
  await cluster.world.runFor(5000)
  one.kill()
  cluster.refused(one)
  await cluster.until(() => (two.leads || three.leads) && two.data!.serves && three.data!.serves, 10_000, 'the others go on')
})

test('nor do the others give up their votes when it is restarted meanwhile', async () => {
  const cluster = await TestCluster.up({ seed: 101, nodes: 3, replicas: 2 })
  await cluster.threeVoters()
  const three = cluster.node(3)
  for (const node of cluster.nodes) node.data!.syncMs = node.syncMs = 1e9
  await cluster.node(1).call('Cluster/RemoveNode', { nodeId: 'node-3' })
  await cluster.world.runFor(2000)
  three.kill()
  cluster.refused(three)
  await cluster.world.runFor(8000)
  await three.restart()
  await cluster.until(() => three.data?.serves === true, 10_000, 'it is back')
  await cluster.world.runFor(3000)
  const leader = cluster.leader!
  leader.kill()
  cluster.refused(leader)
  const others = cluster.nodes.filter((node) => node !== leader)
  await cluster.until(() => others.some((node) => node.leads) && others.every((node) => node.data!.serves), 10_000, 'the others go on')
})

test('a removal can be called off until it has ended; the last node, and the last with disks, are not removed at all', async () => {
  const cluster = await TestCluster.up({ seed: 86, nodes: 3, replicas: 2 })
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  await cluster.until(() => one.plane.member!.state.featureLevel === FEATURE_LEVEL, 10_000, 'every node can do it')
  // it cannot move while its replicas do not catch up anywhere else
  for (const node of cluster.nodes) node.data!.syncMs = 1e9
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3' })
  await cluster.world.runFor(2000)
  assert.match(((await one.call('Cluster/Status'))['reasons'] as string[]).join(), /Node node-3 is being emptied, to be removed\./)
  assert.equal((await two.call('Cluster/RemoveNode', { nodeId: 'node-3', cancel: true }))['removed'], false)
  for (const node of cluster.nodes) node.data!.syncMs = 5
  await cluster.world.runFor(20_000)
  assert.equal(three.fatal, undefined)
  assert.equal(one.plane.member!.state.nodes.get(3 as NodeNumber)?.state, 'member')
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3', cancel: true })
  const alone = await TestCluster.up({ seed: 87, nodes: 1 })
  for (const force of [true, false]) {
    await assert.rejects(alone.node(1).call('Cluster/RemoveNode', { nodeId: 'node-1', force }), {
      status: 'BUSY',
      message: 'node-1 is the only node: a cluster has at least one',
    })
  }
  const witnessed = await TestCluster.up({ seed: 88, nodes: 2, diskless: 2, replicas: 1 })
  await assert.rejects(witnessed.node(2).call('Cluster/RemoveNode', { nodeId: 'node-1', force: true }), {
    status: 'BUSY',
    message: /no other node than node-1 has disks/,
  })
})

test('a removal is called off while nothing else keeps the copies of the node from coming back: they do', async () => {
  const cluster = await TestCluster.up({ seed: 106, nodes: 3 })
  await cluster.threeVoters()
  const [one, , three] = cluster.nodes as [TestNode, TestNode, TestNode]
  await cluster.lose(three)
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3', force: true })
  await three.restart()
  await cluster.until(() => three.data?.serves === true, 10_000, 'it is back')
  await cluster.world.runFor(200)
  assert.ok(
    [...one.data!.chains.values()].every(({ entries }) => entries.at(-1)!.state === ReplicaState.OFFLINE),
    'nothing starts on it',
  )
  await one.call('Cluster/RemoveNode', { nodeId: 'node-3', cancel: true })
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
})

test('a removal that is called off while its last step is on its way into the log does not come to pass', async () => {
  const cluster = await TestCluster.up({ seed: 102, nodes: 4, replicas: 2, diskless: 4 })
  await cluster.threeVoters()
  await cluster.until(() => cluster.leader?.plane.member?.state.featureLevel === FEATURE_LEVEL, 10_000, 'every node can do it')
  const leader = cluster.leader!
  const raft = leader.plane.member!.raft!
  const propose = raft.propose.bind(raft)
  const stay = Promise.withResolvers<void>()
  let cancelled: Promise<Message> | undefined
  raft.propose = async (command, options) => {
    const { op } = JSON.parse(new TextDecoder().decode(command)) as { op: string }
    if (op === 'node.remove' && cancelled === undefined) {
      cancelled = cluster.client.rpc.call(leader.grpc, 'xsan.v1.Cluster/RemoveNode', { nodeId: 'node-4', cancel: true }, { timeoutMs: 5000 })
      await stay.promise
    }
    const result = propose(command, options)
    if (op === 'node.stay') stay.resolve()
    return result
  }
  await leader.call('Cluster/RemoveNode', { nodeId: 'node-4' })
  await cluster.until(() => cancelled !== undefined, 5000, 'nothing keeps it any more')
  assert.equal((await cluster.world.settle(cancelled!, 6000))['removed'], false)
  await cluster.world.runFor(3000)
  assert.equal(cluster.node(4).fatal, undefined)
  assert.equal(leader.plane.member!.state.nodes.get(4 as NodeNumber)?.state, 'member')
})

test('a node that has the id of one that was removed is a node of its own', async () => {
  const cluster = await TestCluster.up({ seed: 85, nodes: 4, volume: false })
  const [one, , , four] = cluster.nodes as [TestNode, TestNode, TestNode, TestNode]
  await one.call('Cluster/RemoveNode', { nodeId: 'node-4' })
  await cluster.until(() => four.fatal !== undefined, 60_000, 'the removed node knows')
  const { token } = await one.call('Cluster/AddNode', { nodeId: 'node-4' })
  const fresh = new TestNode(cluster, 5)
  fresh.id = 'node-4'
  cluster.nodes.push(fresh)
  await fresh.start()
  await fresh.call('Cluster/Join', { token })
  const asked = await one.call('Cluster/RemoveNode', { nodeId: 'node-4', dryRun: true })
  assert.equal(asked['removed'], false)
})

test('of four nodes with three copies one may be removed, not two: one that leaves counts no more', async () => {
  const cluster = await TestCluster.up({ seed: 65, nodes: 4 })
  const remove = (number: number) =>
    cluster.client.rpc.call(cluster.node(number).grpc, 'xsan.v1.Cluster/RemoveNode', { nodeId: `node-${number}` }, { timeoutMs: 5000 })
  const answers = await cluster.world.settle(Promise.allSettled([remove(3), remove(4)]), 6000)
  assert.deepEqual(answers.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  await assert.rejects(cluster.node(1).call('Cluster/RemoveNode', { nodeId: 'node-2' }), { status: 'BUSY' })
  await assert.rejects(cluster.node(1).call('Volume/Create', { name: 'x', sizeBytes: GiB, replicas: 4 }), { status: 'INVALID_PARAM' })
})

test('a clean stop drains the data plane and hands the leadership over', async () => {
  const cluster = await TestCluster.up({ seed: 41, nodes: 3 })
  await cluster.threeVoters()
  const leader = cluster.leader!
  await cluster.world.settle(leader.plane.stop(), 5000)
  assert.ok(leader.data!.stopped)
  const next = cluster.nodes.find((node) => node !== leader && node.leads)
  if (next === undefined) await cluster.until(() => cluster.nodes.some((node) => node !== leader && node.leads), 500, 'another leads')
})

test('a node that stops says so itself: nobody waits for its lease, nor for its process to be gone', async () => {
  for (const [seed, isLeader] of [
    [42, true],
    [43, false],
  ] as const) {
    const cluster = await TestCluster.up({ seed, nodes: 3 })
    await cluster.threeVoters()
    await cluster.world.runFor(1000)
    const going = cluster.nodes.find((node) => node.leads === isLeader)!
    const others = cluster.nodes.filter((node) => node !== going)
    const stopping = going.plane.stop()
    const { node } = going.data!.registration
    const isOut = () =>
      others.every((other) =>
        [...other.data!.chains.values()].every((chain) => chain.entries.every((entry) => entry.node !== node || entry.state === ReplicaState.OFFLINE)),
      )
    const tookMs = await cluster.until(isOut, 5000, 'its replicas are out of the chains')
    assert.ok(tookMs < LEASE_MS / 4, `took ${tookMs} ms`)
    assert.equal(going.process.state, 'running')
    assert.ok(!going.data!.serves, 'it serves nothing any more')
    assert.ok(others.every((other) => other.data!.serves))
    await cluster.world.settle(stopping, 5000)
  }
})

test('a node that starts while the leader takes no commands waits for it', async () => {
  const cluster = await TestCluster.up({ seed: 93, nodes: 3 })
  await cluster.threeVoters()
  const leader = cluster.leader!
  const starting = cluster.nodes.find((node) => node !== leader)!
  starting.kill()
  const raft = leader.plane.member!.raft!
  const propose = raft.propose.bind(raft)
  raft.propose = () => Promise.reject(new XsanError('BUSY', 'the leadership is being handed over'))
  await starting.restart()
  await cluster.world.runFor(8000)
  assert.ok(starting.data === undefined, 'it could not register so far')
  assert.equal(starting.fatal, undefined)
  raft.propose = propose
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
})

test('a registration that the network has kept, of a process that has died since, fences nobody', async () => {
  const cluster = await TestCluster.up({ seed: 101, nodes: 3 })
  await cluster.threeVoters()
  await cluster.until(() => cluster.leader?.plane.member?.state.featureLevel === FEATURE_LEVEL, 10_000, 'every node says which start it is')
  const leader = cluster.leader!
  const node = cluster.nodes.find((of) => of !== leader)!
  node.kill()
  await node.restart()
  const { rpc } = node.env
  const call = rpc.call.bind(rpc)
  let kept: Message | undefined
  rpc.call = (address, method, request, options) => {
    if (!method.endsWith('/Register')) return call(address, method, request, options)
    kept = request
    return new Promise(() => undefined)
  }
  await cluster.until(() => kept !== undefined, 5000, 'it asks to be registered')
  node.kill()
  await node.restart()
  await cluster.until(() => cluster.full(3), 20_000, 'the next process serves')
  const late = cluster.world.settle(cluster.client.rpc.call(leader.grpc, 'xsan.v1.Peer/Register', kept!, { timeoutMs: 1000 }), 2000)
  await assert.rejects(late, { status: 'PERMISSION_DENIED' })
  await cluster.world.runFor(3000)
  assert.equal(node.fatal, undefined)
  assert.ok(cluster.full(3))
})

test('a node whose control port has changed is found again, as a voter and as a learner', async () => {
  const cluster = await TestCluster.up({ seed: 94, nodes: 4 })
  await cluster.threeVoters()
  for (const moved of [cluster.node(4), cluster.node(2), cluster.leader!]) {
    moved.kill()
    cluster.refused(moved)
    moved.grpcPort += 1000
    await moved.restart()
    await cluster.until(() => cluster.full(3), 30_000, `${moved.id} serves again`)
    assert.equal(cluster.leader!.plane.member!.state.nodeById(moved.id)!.grpc, moved.grpc)
  }
})

test('members that have all moved while they were away find each other by their heartbeats, also when only two of three are left', async () => {
  for (const [seed, away] of [
    [97, 0],
    [98, 3],
  ] as const) {
    const cluster = await TestCluster.up({ seed, nodes: 3 })
    await cluster.threeVoters()
    for (const node of cluster.nodes) node.kill()
    const moved = cluster.nodes.filter((node) => node.number !== away)
    for (const node of moved) node.grpcPort += 1000
    await cluster.world.runFor(5000)
    // one after the other, so that what the first says at its start nobody hears
    for (const node of moved) {
      await node.start()
      await cluster.world.runFor(4000)
    }
    await cluster.until(() => cluster.leader !== undefined && moved.every((node) => node.data?.serves === true), 20_000, 'those that moved serve')
    for (const node of moved) assert.equal(cluster.leader!.plane.member!.state.nodeById(node.id)!.grpc, node.grpc)
  }
})

test('where the data plane listens is told, also when another report is under way at that moment', async () => {
  const cluster = await TestCluster.up({ seed: 95, nodes: 3 })
  const node = cluster.nodes.find((of) => of !== cluster.leader)!
  node.kill()
  node.dataPort = 8123
  node.readyAfterMs = 20
  await node.restart()
  await cluster.until(() => node.data !== undefined, 5000, 'it is registered')
  const { data } = node
  for (let delayMs = 5; delayMs < 20; delayMs += 0.1) data!.tell({ type: 'peerRefused', node: 99 as NodeNumber, incarnation: 0 as Incarnation }, delayMs)
  await cluster.until(() => cluster.full(3), 20_000, 'all serve again')
  for (const other of cluster.nodes) assert.equal(other.data!.nodes.find((of) => of.id === node.id)!.dataAddress, `${node.host.address}:8123`)
})

test('a token that has let a node in is good for no second one, however late it is asked for again under its name', async () => {
  const cluster = new TestCluster({ seed: 96, nodes: 3 })
  for (const node of cluster.nodes) await node.start()
  const [one, two, three] = cluster.nodes as [TestNode, TestNode, TestNode]
  await one.call('Cluster/Init')
  const named = { requestId: 'the second node' }
  const { token } = await one.call('Cluster/AddNode', named)
  await two.call('Cluster/Join', { token })
  // until the answer to the first request is forgotten
  const state = one.plane.member!.state
  const results = () => state.pairs().filter(({ key }) => key.startsWith('state/recent/'))[0]!.key
  for (const first = results(); first === results(); ) await one.call('Config/Set', { key: 'storage.read_only', valueJson: 'false' })
  for (let i = 0; i < 8; i++) await one.call('Config/Set', { key: 'storage.read_only', valueJson: 'false' })
  const { token: again } = await one.call('Cluster/AddNode', named)
  for (const used of [token, again]) await assert.rejects(three.call('Cluster/Join', { token: used }), { status: 'PERMISSION_DENIED' })
})

test('two runs of one seed are the same', async () => {
  const hashes: string[] = []
  for (let run = 0; run < 2; run++) {
    const cluster = await TestCluster.up({ seed: 50, nodes: 3 })
    cluster.leader!.kill()
    cluster.refused(cluster.nodes.find((node) => node.process.state !== 'running')!)
    await cluster.world.runFor(3000)
    hashes.push(cluster.world.hash)
  }
  assert.equal(hashes[0], hashes[1])
})
