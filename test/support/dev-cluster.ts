/** A playground of real processes (`xsan dev up`) as tests and benchmarks use it. Whoever makes one calls `end` in a finally or an after hook. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { AdminClient } from '../../src/node/admin-client.ts'
import { bin, makeDirectory, must, type Ran, removeDirectory, run, sleep, until, xsanJson } from './commands.ts'
import { type Endpoint, endpointOf, NbdClient } from './nbd-client.ts'

export interface DevNode {
  readonly id: string
  readonly pid: number
  readonly state: string
  readonly grpc: string
  readonly data: string
  readonly nbd: string
  readonly nbd_socket: string
  readonly iscsi: null
  readonly admin: string
  readonly data_dir: string
}

export interface Replica {
  readonly nodeId: string
  readonly state: string
  readonly role: string
  readonly present: boolean
  readonly updateVer: string
  readonly commitVer: string
  readonly checksum: number
  readonly pages: number
  readonly error: string
}

export interface Status {
  readonly health: string
  readonly reasons: string[]
  readonly leader: string
  readonly nodes: ReadonlyArray<{ readonly id: string; readonly state: string; readonly chainsHeaded: number; readonly chainsServing: number }>
  readonly resync: { readonly blocksLeft: number; readonly bytesMoved: number; readonly bytesNeeded: number }
  readonly chains: { readonly total: number; readonly full: number }
}

export interface DevClusterOptions {
  readonly nodes?: number
  readonly replicas?: number
  readonly diskSize?: string
  /** Directory in which the playground's own is made; default: the temporary directory. */
  readonly parent?: string
  /** As in `--set key=value`. */
  readonly set?: readonly string[]
}

const CALL_MS = 5000

export class DevCluster {
  readonly dir: string
  nodes: readonly DevNode[] = []
  clusterId = ''

  private constructor(dir: string) {
    this.dir = dir
  }

  static async up(options: DevClusterOptions = {}): Promise<DevCluster> {
    const cluster = new DevCluster(makeDirectory(options.parent, 'xsan-dev-'))
    const nodes = options.nodes ?? 3
    try {
      await cluster.#dev(
        'up',
        '--nodes',
        String(nodes),
        '--replicas',
        String(options.replicas ?? Math.min(3, nodes)),
        ...sizeArgs(options.diskSize),
        ...setArgs(options.set),
      )
      return cluster
    } catch (error) {
      const logs = [1, 2, 3].map((number) => cluster.log(`node-${number}`).slice(-2000)).filter((text) => text !== '')
      await cluster.end()
      throw new Error(`${String(error)}\n${logs.join('\n---\n')}`)
    }
  }

  /** Ends all processes; the files stay, {@link resume} goes on with them. */
  async down(): Promise<void> {
    await this.#dev('down')
  }

  async resume(): Promise<void> {
    await this.#dev('up', '--nodes', String(this.nodes.length))
  }

  /** Everything gone: processes and files. */
  async end(): Promise<void> {
    await run(bin('xsan'), ['dev', 'down', '--wipe', '--dir', this.dir], { timeoutMs: 60_000 })
    for (const { pid, id } of this.nodes) if (isAlive(pid)) throw new Error(`${id} (PID ${pid}) outlived \`dev down\``)
    removeDirectory(this.dir)
  }

  node(id: string): DevNode {
    const node = this.nodes.find((candidate) => candidate.id === id)
    assert.ok(node, `no node ${id}`)
    return node
  }

  others(...ids: readonly string[]): DevNode[] {
    return this.nodes.filter((node) => !ids.includes(node.id))
  }

  /** A plain kill(2), as a stranger's script does it. */
  signal(id: string, signal: NodeJS.Signals): void {
    process.kill(this.node(id).pid, signal)
  }

  /** SIGKILL, and the process is gone when it returns. */
  async kill(id: string): Promise<void> {
    const { pid } = this.node(id)
    process.kill(pid, 'SIGKILL')
    await until(`${id} is dead`, 5000, () => !isAlive(pid), 5)
  }

  /** Returns once the nodes are ready, or answer while a majority is missing. */
  async start(...ids: readonly string[]): Promise<void> {
    await this.#dev('start', ...ids)
  }

  async refresh(): Promise<void> {
    await this.#dev('status')
  }

  /** Said by the first of `from` that answers. */
  async call<T>(method: string, request: Record<string, unknown> = {}, from: readonly DevNode[] = this.nodes, timeoutMs = CALL_MS): Promise<T> {
    let last: unknown
    for (const node of from) {
      if (!isAlive(node.pid)) continue
      const client = new AdminClient(node.grpc)
      try {
        return (await client.call(method, request, timeoutMs)) as T
      } catch (error) {
        last = error
      } finally {
        await client.close()
      }
    }
    throw last ?? new Error('no node is alive')
  }

  status(from: readonly DevNode[] = this.nodes): Promise<Status> {
    return this.call<Status>('Cluster/Status', {}, from)
  }

  async healthy(timeoutMs = 60_000): Promise<Status> {
    let status: Status | undefined
    let why = ''
    const endMs = performance.now() + timeoutMs
    while (performance.now() < endMs) {
      try {
        status = await this.status()
        if (status.health === 'safe') return status
        why = `${status.health}: ${status.reasons.join(' ')}`
      } catch (error) {
        why = String(error)
      }
      await sleep(100)
    }
    throw new Error(`not healthy within ${timeoutMs} ms: ${why}`)
  }

  /** Node id of the Raft leader, once one is known. */
  async leader(): Promise<string> {
    let leader = ''
    await until('a leader is known', 20_000, async () => {
      leader = await this.status().then(
        (status) => status.leader,
        () => '',
      )
      return leader !== '' && isAlive(this.node(leader).pid)
    })
    return leader
  }

  async createVolume(name: string, size: string, ...args: readonly string[]): Promise<void> {
    await xsanJson('--server', this.nodes.find(({ pid }) => isAlive(pid))!.grpc, 'volume', 'create', name, size, ...args)
  }

  uri(id: string, volume: string): string {
    return `${this.node(id).nbd}/${volume}`
  }

  socketUri(id: string, volume: string): string {
    return `nbd+unix:///${volume}?socket=${this.node(id).nbd_socket}`
  }

  endpoint(id: string): Endpoint {
    return endpointOf(this.node(id).nbd)
  }

  /** Tries until the node serves the volume. */
  async nbd(id: string, volume: string, timeoutMs = 10_000): Promise<NbdClient> {
    const endMs = performance.now() + timeoutMs
    for (;;) {
      try {
        return await NbdClient.connect(this.endpoint(id), volume, 2000)
      } catch (error) {
        if (performance.now() > endMs) throw error
        await sleep(50)
      }
    }
  }

  async blocks(volume: string): Promise<string[]> {
    const ids: string[] = []
    let firstBlock = 0
    do {
      const page = await this.call<{ blocks: Array<{ blockId: string }>; nextBlock: number }>('Debug/VolumeInfo', { volume, firstBlock, pageSize: 1000 })
      ids.push(...page.blocks.map(({ blockId }) => blockId))
      firstBlock = page.nextBlock
    } while (firstBlock !== 0)
    return ids
  }

  async replicas(block: string): Promise<Replica[]> {
    return (await this.call<{ replicas: Replica[] }>('Debug/BlockLocation', { block })).replicas
  }

  /** Every block of the volume: all copies serve, and have one version and one checksum. Returns how many blocks were compared. */
  async assertReplicasEqual(volume: string, copies = 3): Promise<number> {
    const blocks = await this.blocks(volume)
    for (const block of blocks) {
      let why = ''
      // versions of a copy may be on their way for a moment after the last answer
      for (let round = 0; round < 20; round++) {
        const replicas = await this.replicas(block)
        const serving = replicas.filter(({ state }) => state === 'SERVING')
        why = differences(serving, copies)
        if (why === '') break
        await sleep(100)
      }
      assert.equal(why, '', `copies of ${block}`)
    }
    return blocks.length
  }

  log(id: string): string {
    try {
      return readFileSync(join(this.dir, id, 'xsand.log'), 'utf8')
    } catch {
      return ''
    }
  }

  async #dev(verb: string, ...args: readonly string[]): Promise<Ran> {
    const ran = await must(bin('xsan'), ['dev', verb, ...args, '--dir', this.dir, '-o', 'json'], { timeoutMs: 150_000 })
    const { cluster_id: clusterId, nodes } = JSON.parse(ran.stdout) as { cluster_id: string; nodes: DevNode[] }
    this.clusterId = clusterId
    this.nodes = nodes
    return ran
  }
}

function differences(serving: readonly Replica[], copies: number): string {
  if (serving.length !== copies) return `${serving.length} of ${copies} copies serve`
  const failed = serving.find(({ error }) => error !== '')
  if (failed !== undefined) return `${failed.nodeId}: ${failed.error}`
  const told = serving.map(({ present, updateVer, checksum, pages }) => JSON.stringify([present, updateVer, checksum, pages]))
  return new Set(told).size === 1 ? '' : serving.map(({ nodeId }, index) => `${nodeId} ${told[index]}`).join(', ')
}

export function isAlive(pid: number): boolean {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return !'ZX'.includes(text[text.lastIndexOf(')') + 2]!)
  } catch {
    return false
  }
}

const sizeArgs = (diskSize: string | undefined) => (diskSize === undefined ? [] : ['--disk-size', diskSize])
const setArgs = (set: readonly string[] | undefined) => (set ?? []).flatMap((text) => ['--set', text])
