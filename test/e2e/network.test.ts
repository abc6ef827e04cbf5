/**
 * Networks that fail, on real nodes: each on a host of its own (a network namespace), with heartbeats by multicast. Of the failure table: a host that
 * is lost or cut off, and, beyond it, two hosts that do not reach each other. Every acknowledged byte is verified afterwards.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { after, before, type TestContext } from 'node:test'
import { bin, endChild, makeDirectory, must, type Ran, removeDirectory, run, sleep, until } from '../support/commands.ts'
import { Lan } from '../support/lan.ts'
import { VerifiedLoad } from '../support/verified-load.ts'

const HOSTS = [1, 2, 3] as const
const SIZE_BYTES = 32 * 1024 * 1024
const TEST_MS = 120_000
/** forward.retry_total_time and forward.write_life of the nodes. */
const RETRY_MS = 6000

interface Status {
  readonly health: string
  readonly reasons: readonly string[]
  readonly leader: string
}

const dir = makeDirectory()
const daemons: ChildProcess[] = []
let lan: Lan | null = null
let volumes = 0

const socketOf = (host: number) => join(dir, `nbd-${host}.sock`)
const logOf = (host: number) => join(dir, `log-${host}`)
const hostOf = (nodeId: string) => Number(nodeId.slice('node-'.length))

/** The command line of a program that runs on that host. */
function on(host: number, program: string, ...args: string[]): [command: string, args: string[]] {
  const [command, ...words] = lan!.on(host)
  return [command!, [...words, bin(program), ...args]]
}

const asking = (host: number, ...args: string[]) => on(host, 'xsan', '--server', `${lan!.address(host)}:8080`, ...args)

function xsan(host: number, ...args: string[]): Promise<Ran> {
  return must(...asking(host, ...args), { timeoutMs: 90_000 })
}

async function status(host: number): Promise<Status> {
  return JSON.parse((await xsan(host, 'cluster', 'status', '-o', 'json')).stdout) as Status
}

function startDaemon(host: number): void {
  const config = {
    cluster: { cluster_id: 'lan', node_id: `node-${host}`, bind_ip: lan!.address(host), bind_port: 8080, data_dir: join(dir, `data-${host}`) },
    storage: { devices: [{ path: join(dir, `disk-${host}`), type: 'ssd', role: 'capacity', size: '1G' }], default_replica_count: 3 },
    nbd: { socket: socketOf(host) },
    forward: { retry_total_time: RETRY_MS },
  }
  const path = join(dir, `node-${host}.json`)
  writeFileSync(path, JSON.stringify(config))
  daemons.push(spawn(...on(host, 'xsand', '--config', path), { stdio: ['ignore', 'ignore', openSync(logOf(host), 'a')] }))
}

async function answers(host: number): Promise<void> {
  await until(`node ${host} answers`, 30_000, async () => (await run(...asking(host, 'node', 'list'))).stderr.includes('cluster init')).catch(
    (error: Error) => {
      throw new Error(`${error.message}\n${readFileSync(logOf(host), 'utf8').slice(-2000)}`)
    },
  )
}

before(
  async () => {
    lan = await Lan.make(HOSTS.length)
    if (lan === null) return
    for (const host of HOSTS) startDaemon(host)
    for (const host of HOSTS) await answers(host)
    await xsan(1, 'cluster', 'init')
    for (const host of [2, 3]) {
      const { token } = JSON.parse((await xsan(1, 'cluster', 'add', `node-${host}`, '-o', 'json')).stdout) as { token: string }
      await xsan(host, 'cluster', 'join', token)
    }
    await healthy()
  },
  { timeout: TEST_MS },
)
after(
  async () => {
    for (const daemon of daemons) await endChild(daemon)
    await lan?.end()
    removeDirectory(dir)
  },
  { timeout: 60_000 },
)

async function healthy(): Promise<void> {
  await xsan(1, 'cluster', 'status', '--wait', 'healthy', '--timeout', '60s')
}

/** A new volume, and a load on it through these hosts; writes begin at the first. */
async function loadThrough(hosts: readonly number[]): Promise<{ volume: string; load: VerifiedLoad }> {
  const volume = `volume-${++volumes}`
  await xsan(1, 'volume', 'create', volume, String(SIZE_BYTES))
  const endpoints = hosts.map((host) => ({ path: socketOf(host) }))
  return { volume, load: new VerifiedLoad({ endpoints, exportName: volume, sizeBytes: SIZE_BYTES, seed: volumes, patienceMs: 20_000 }) }
}

async function goesOn(load: VerifiedLoad): Promise<void> {
  const from = load.answers
  await until('the load goes on', 20_000, () => load.answers > from + 50)
}

function has(t: TestContext): boolean {
  if (lan === null) t.skip('no network namespaces here')
  return lan !== null
}

test('a host that is cut off: the others stall for a lease; its own clients wait, then fail; back again, it heals by itself', {
  timeout: TEST_MS,
}, async (t) => {
  if (!has(t)) return
  const { leader } = await status(1)
  const victim = hostOf(leader)
  const others = HOSTS.filter((host) => host !== victim)
  const { volume, load } = await loadThrough(others)
  load.start()
  try {
    await goesOn(load)
    load.mark()
    for (const other of others) await Promise.all([lan!.cut(victim, other), lan!.cut(other, victim)])
    await goesOn(load)
    await sleep(3000)
    await goesOn(load)
    assert.ok(load.longestMs < 10_000, `an answer took ${load.longestMs.toFixed(0)} ms`)
    const startMs = performance.now()
    const { stdout, stderr } = await run('qemu-io', ['-f', 'raw', '-c', 'write -P 9 0 64k', `nbd+unix:///${volume}?socket=${socketOf(victim)}`])
    assert.match(stdout + stderr, /Input\/output error/, 'its own client is told')
    const tookMs = performance.now() - startMs
    assert.ok(tookMs < 2 * RETRY_MS + 15_000, `after ${tookMs.toFixed(0)} ms`)
    for (const other of others) await Promise.all([lan!.heal(victim, other), lan!.heal(other, victim)])
    await until('it is whole again', 60_000, async () => (await status(others[0]!)).health === 'safe')
    await goesOn(load)
    await load.stop()
    for (const endpoint of others.keys()) await load.verify(endpoint)
    assert.deepEqual(load.violations, [])
    assert.deepEqual(load.stats.errors, {})
  } finally {
    load.close()
  }
})

test('two hosts that do not reach each other, and both reach the leader: it is said, writes through the leader go on after seconds, none fails', {
  timeout: TEST_MS,
}, async (t) => {
  if (!has(t)) return
  const leader = hostOf((await status(1)).leader)
  const [one, other] = HOSTS.filter((host) => host !== leader) as [number, number]
  const { load } = await loadThrough([leader])
  load.start()
  try {
    await goesOn(load)
    load.mark()
    await Promise.all([lan!.cut(one, other), lan!.cut(other, one)])
    const said = `Nodes node-${one} and node-${other} do not reach the data ports of each other`
    await until('it is said', 20_000, async () => (await status(leader)).reasons.some((reason) => reason.startsWith(said)), 500)
    await goesOn(load)
    await sleep(2000)
    await goesOn(load)
    assert.ok(load.longestMs < 15_000, `an answer took ${load.longestMs.toFixed(0)} ms`)
    await Promise.all([lan!.heal(one, other), lan!.heal(other, one)])
    await until('it is whole again', 60_000, async () => (await status(leader)).health === 'safe')
    await load.stop()
    await load.verify(0)
    assert.deepEqual(load.violations, [])
    assert.deepEqual(load.stats.errors, {})
  } finally {
    load.close()
  }
})
