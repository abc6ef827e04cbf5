/** How a node starts, and how it refuses to: real processes, each bad input with a clear error that names the thing and the next step. */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { AdminClient } from '../../src/node/admin-client.ts'
import { bin, endChild, makeDirectory, must, ROOT, removeDirectory, run, until } from '../support/commands.ts'

const MiB = 1024 * 1024
const TIMEOUT_MS = 60_000
/** A loopback address of this suite, so that the ports of the documents are free on it. */
const HOST = '127.88.4.1'

interface Parts {
  cluster?: Record<string, unknown>
  storage?: Record<string, unknown>
  network?: Record<string, unknown>
  nbd?: Record<string, unknown>
  forward?: Record<string, unknown>
  reactor?: Record<string, unknown>
}

let nextPort = 33_000 - (process.pid % 500) * 8

class Node {
  readonly dir: string
  readonly config: string
  readonly grpc: string
  readonly admin: string
  readonly nbdPort: number
  #child: ChildProcess | undefined
  #stderr = ''

  constructor(t: TestContext, parts: Parts = {}, dir = makeDirectory()) {
    const port = nextPort
    nextPort -= 4
    this.dir = dir
    this.config = join(dir, 'xsan.json')
    this.grpc = `127.0.0.1:${port}`
    this.admin = `http://127.0.0.1:${port + 3}`
    this.nbdPort = port + 2
    const config = {
      cluster: { cluster_id: 'c1', node_id: 'node-1', bind_ip: '127.0.0.1', bind_port: port, data_dir: join(dir, 'data'), ...parts.cluster },
      storage: { devices: [{ path: join(dir, 'disk'), type: 'ssd', role: 'capacity', size: '256M' }], default_replica_count: 1, ...parts.storage },
      network: { data_port: port + 1, admin_port: port + 3, heartbeat_group: '', ...parts.network },
      nbd: { port: port + 2, socket: join(dir, 'nbd.sock'), ...parts.nbd },
      ...(parts.forward ? { forward: parts.forward } : {}),
      ...(parts.reactor ? { reactor: parts.reactor } : {}),
    }
    writeFileSync(this.config, JSON.stringify(config))
    t.after(async () => {
      await this.kill()
      removeDirectory(dir)
    })
  }

  start(config = this.config, env: Readonly<Record<string, string>> = {}, stderr: number | 'pipe' = 'pipe', within: readonly string[] = []): void {
    const words = [...within, bin('xsand'), '--config', config]
    const child = spawn(words[0]!, words.slice(1), { stdio: ['ignore', 'ignore', stderr], env: { ...process.env, ...env } })
    child.stderr?.on('data', (chunk: Buffer) => {
      this.#stderr += chunk.toString()
    })
    this.#child = child
  }

  get stderr(): string {
    return this.#stderr
  }

  async state(grpc = this.grpc): Promise<string> {
    const client = new AdminClient(grpc)
    try {
      return String((await client.call('Node/Local', {}, 1000))['state'])
    } catch {
      return ''
    } finally {
      await client.close()
    }
  }

  async answers(): Promise<void> {
    await until(`the node answers\n${this.#stderr}`, 20_000, async () => (await this.state()) !== '')
  }

  async init(): Promise<void> {
    await this.answers()
    await must(bin('xsan'), ['--server', this.grpc, 'cluster', 'init'])
    await until(`the node is ready\n${this.#stderr}`, 20_000, async () => (await this.state()) === 'ready')
  }

  /** It answers, and ends once it is to be a member; returns its exit code. */
  async failedInit(): Promise<number | null> {
    await this.answers()
    const code = this.exited()
    await run(bin('xsan'), ['--server', this.grpc, 'cluster', 'init'])
    return code
  }

  exited(): Promise<number | null> {
    return new Promise((resolve) => this.#child!.once('exit', resolve))
  }

  /** Sends a signal and returns the exit code. */
  end(signal: NodeJS.Signals): Promise<number | null> {
    const code = this.exited()
    this.#child!.kill(signal)
    return code
  }

  async kill(): Promise<void> {
    if (this.#child) await endChild(this.#child)
  }

  /** Starts it where it must not start; returns what it said. */
  async refused(): Promise<{ code: number; stderr: string }> {
    const { code, stderr } = await run(bin('xsand'), ['--config', this.config], { timeoutMs: 20_000 })
    return { code, stderr: stderr.trimEnd().split('\n').slice(-4).join('\n') }
  }
}

test('the sample of the product documents, with only addresses and paths changed, starts a node that serves', { timeout: 2 * TIMEOUT_MS }, async (t) => {
  const dir = makeDirectory()
  t.after(() => removeDirectory(dir))
  const sample = JSON.parse(readFileSync(join(ROOT, 'conf/sample-004.json'), 'utf8')) as {
    cluster: Record<string, unknown>
    storage: { devices: Array<{ path: string }> }
  }
  sample.cluster['bind_ip'] = HOST
  sample.cluster['data_dir'] = join(dir, 'data')
  for (const [index, device] of sample.storage.devices.entries()) {
    device.path = join(dir, `disk-${index}`)
    writeFileSync(device.path, '')
    truncateSync(device.path, 512 * MiB)
  }
  const config = join(dir, 'xsan.json')
  writeFileSync(config, JSON.stringify(sample))
  const node = new Node(t)
  node.start(config)
  const grpc = `${HOST}:8080`
  await until(`the node answers\n${node.stderr}`, 20_000, async () => (await node.state(grpc)) === 'uninitialized')
  await must(bin('xsan'), ['--server', grpc, 'cluster', 'init'])
  await until(`the node is ready\n${node.stderr}`, 20_000, async () => (await node.state(grpc)) === 'ready')
  const { stdout } = await must(bin('xsan'), ['--server', grpc, 'disk', 'list', '-o', 'json'])
  assert.deepEqual(
    (JSON.parse(stdout) as { disks: Array<{ path: string; role: string; state: string }> }).disks.map(({ path, role, state }) => [path, role, state]),
    [
      [join(dir, 'disk-0'), 'cache', 'ok'],
      [join(dir, 'disk-1'), 'capacity', 'ok'],
    ],
  )
  const created = await must(bin('xsan'), ['--server', grpc, 'volume', 'create', 'v', '64M', '--replicas', '1', '-o', 'json'])
  const { uris } = JSON.parse(created.stdout) as { uris: string[] }
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 91 1M 1M', uris[0]!])
  await must('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 91 1M 1M', uris[0]!])
  const { stdout: location } = await must(bin('xsan-debug'), ['--server', grpc, 'block-location', 'v:0', '-o', 'json'])
  assert.deepEqual(
    (JSON.parse(location) as { replicas: Array<{ disk: number; present: boolean }> }).replicas.map(({ disk, present }) => [disk, present]),
    [[2, true]],
    'on the capacity disk',
  )
  assert.match(node.stderr, /has the role cache/)
  assert.equal(await node.end('SIGTERM'), 0, node.stderr)
})

test('a node serves as many disks as its memory is for, and says how much more takes', { timeout: 2 * TIMEOUT_MS }, async (t) => {
  const dir = makeDirectory()
  const disks = (count: number) => ({
    devices: Array.from({ length: count }, (_, index) => ({ path: join(dir, `disk-${index}`), type: 'hdd', role: 'capacity', size: '96M' })),
    default_replica_count: 1,
  })
  const node = new Node(t, { storage: disks(12) }, dir)
  node.start()
  await node.init()
  const { stdout } = await must(bin('xsan'), ['--server', node.grpc, 'disk', 'list', '-o', 'json'])
  const { disks: listed } = JSON.parse(stdout) as { disks: Array<{ state: string }> }
  assert.deepEqual(
    listed.map(({ state }) => state),
    new Array(12).fill('ok'),
  )
  const created = await must(bin('xsan'), ['--server', node.grpc, 'volume', 'create', 'v', '256M', '--replicas', '1', '-o', 'json'])
  const { uris } = JSON.parse(created.stdout) as { uris: string[] }
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 0 128M', '-c', 'read -P 7 0 128M', uris[0]!], { timeoutMs: 60_000 })
  assert.equal(await node.end('SIGTERM'), 0, node.stderr)
  const smaller = new Node(t, { storage: disks(12), reactor: { arena_size: '32M' } })
  smaller.start()
  assert.notEqual(await smaller.failedInit(), 0)
  assert.match(smaller.stderr, /12 disks need more memory than reactor\.arena_size.*Set reactor\.arena_size to "\d+M" or more/s)
})

test('a node starts empty, becomes a cluster of one, serves NBD, drains on SIGTERM with exit code 0, and has its data after that', {
  timeout: TIMEOUT_MS,
}, async (t) => {
  const node = new Node(t)
  node.start()
  await node.answers()
  assert.equal(await node.state(), 'uninitialized')
  assert.equal((await fetch(`${node.admin}/healthz`)).status, 200)
  assert.equal((await fetch(`${node.admin}/readyz`)).status, 503)
  await node.init()
  await until('readyz', 5000, async () => (await fetch(`${node.admin}/readyz`)).status === 200)
  await must(bin('xsan'), ['--server', node.grpc, 'volume', 'create', 'v', '64M', '--replicas', '1'])
  const uri = `nbd://127.0.0.1:${node.nbdPort}/v`
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 90 1M 1M', uri])
  const metrics = await (await fetch(`${node.admin}/metrics`)).text()
  assert.match(metrics, /^xsan_build_info\{.*\} 1$/m)
  assert.match(metrics, /^xsan_node_state\{state="ready"\} 1$/m)
  assert.equal(await node.end('SIGTERM'), 0, node.stderr)
  for (const line of node.stderr.trimEnd().split('\n')) assert.ok('ts' in JSON.parse(line) && 'level' in JSON.parse(line), line)
  node.start()
  await until('the node is ready again', 20_000, async () => (await node.state()) === 'ready')
  await must('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 90 1M 1M', uri])
})

test('each busy port is named, with the process that holds it', { timeout: TIMEOUT_MS }, async (t) => {
  for (const key of ['bind_port', 'admin_port', 'data_port', 'nbd_port']) {
    const holder = createServer()
    const port = await new Promise<number>((resolve) => holder.listen(0, '127.0.0.1', () => resolve((holder.address() as { port: number }).port)))
    t.after(() => holder.close())
    const parts = { bind_port: { cluster: { bind_port: port } }, nbd_port: { nbd: { port } } }
    const node = new Node(t, parts[key as keyof typeof parts] ?? { network: { [key]: port } })
    // the ports of the data plane and of NBD are opened by a member only
    const isLate = key === 'data_port' || key === 'nbd_port'
    if (isLate) node.start()
    const late = async () => ({ code: await node.failedInit(), stderr: node.stderr })
    const { code, stderr } = await (isLate ? late() : node.refused())
    assert.equal(code, 7, stderr)
    assert.match(stderr, new RegExp(`error XSAN-005 BUSY: .*port ${port} .*taken by PID ${process.pid}.*Try: `))
  }
})

test('a second process on the same directory is refused and does not disturb the first', { timeout: TIMEOUT_MS }, async (t) => {
  const first = new Node(t)
  first.start()
  await first.init()
  const second = new Node(t, { cluster: { data_dir: join(first.dir, 'data') } })
  const { code, stderr } = await second.refused()
  assert.equal(code, 7, stderr)
  assert.match(stderr, /XSAN-005 BUSY: .*metadata/)
  assert.equal(await first.state(), 'ready')
})

test('the data directory of another node, or of another cluster, is refused by name', { timeout: TIMEOUT_MS }, async (t) => {
  const first = new Node(t)
  first.start()
  await first.init()
  assert.equal(await first.end('SIGHUP'), 0, first.stderr)
  for (const [key, value] of [
    ['node_id', 'node-9'],
    ['cluster_id', 'c9'],
  ] as const) {
    const other = new Node(t, { cluster: { data_dir: join(first.dir, 'data'), [key]: value }, storage: { devices: [] } })
    const { code, stderr } = await other.refused()
    assert.notEqual(code, 0)
    assert.match(stderr, new RegExp(`(node-1|c1).*${value}|${value}.*(node-1|c1)`, 's'))
    assert.match(stderr, /Try: /)
  }
})

test("a disk that belongs to another cluster's node is refused by name", { timeout: TIMEOUT_MS }, async (t) => {
  const first = new Node(t)
  first.start()
  await first.init()
  await first.end('SIGTERM')
  const disk = join(first.dir, 'disk')
  const other = new Node(t, { storage: { devices: [{ path: disk, type: 'ssd', role: 'capacity' }], default_replica_count: 1 } })
  other.start()
  await other.answers()
  await run(bin('xsan'), ['--server', other.grpc, 'cluster', 'init'], { timeoutMs: 20_000 })
  await until('the node ends', 20_000, async () => (await other.state()) === '' || /DISK_FOREIGN|belongs to/.test(other.stderr))
  assert.match(other.stderr, /belongs to/)
  assert.match(other.stderr, new RegExp(disk))
})

test('a file, a directory or nothing where a disk should be is refused before anything is changed', { timeout: TIMEOUT_MS }, async (t) => {
  const dir = makeDirectory()
  t.after(() => removeDirectory(dir))
  const letter = join(dir, 'letter.txt')
  writeFileSync(letter, 'Dear John, '.repeat(10_000))
  mkdirSync(join(dir, 'directory'))
  const cases = [
    [letter, /XSAN-205 DISK_FOREIGN: .*letter\.txt holds something that is not XSAN's.*Try: /],
    [join(dir, 'directory'), /XSAN-002 INVALID_PARAM: .*directory is neither a block device nor a file/],
    [join(dir, 'nothing'), /XSAN-204 DISK_NOT_FOUND: .*storage\.devices\[0\]: there is no .*nothing.*Try: /],
  ] as const
  for (const [path, wanted] of cases) {
    const node = new Node(t, { storage: { devices: [{ path, type: 'ssd', role: 'capacity' }] } })
    const { code, stderr } = await node.refused()
    assert.notEqual(code, 0)
    assert.match(stderr, wanted)
  }
  assert.match(readFileSync(letter, 'utf8'), /^Dear John/)
  assert.ok(!existsSync(join(dir, 'nothing')))
})

test('a configuration with errors names all of them and starts nothing', { timeout: TIMEOUT_MS }, async (t) => {
  const node = new Node(t, { network: { heartbeat_intervall: 5 }, storage: { block_size: 65536 } })
  const { code, stderr } = await node.refused()
  assert.equal(code, 1)
  assert.match(stderr, /unknown key network\.heartbeat_intervall; did you mean network\.heartbeat_interval\?/)
  assert.match(stderr, /storage\.block_size: must be 4194304/)
  assert.ok(!existsSync(join(node.dir, 'data')))
  const missing = await run(bin('xsand'), ['--config', join(node.dir, 'none.json')])
  assert.match(missing.stderr, /XSAN-003 NOT_FOUND: there is no configuration file .*none\.json/)
})

const NOTIFY_LISTENER = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('listening', flush=True)
while True:
    print(s.recv(4096).decode().replace(chr(10), ' '), flush=True)
`

test('the service manager hears of start, state, watchdog and stop', { timeout: TIMEOUT_MS }, async (t) => {
  const node = new Node(t)
  const socket = join(node.dir, 'notify.sock')
  const listener = spawn('python3', ['-c', NOTIFY_LISTENER, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.after(() => endChild(listener))
  let heard = ''
  listener.stdout.on('data', (chunk: Buffer) => (heard += chunk.toString()))
  await until('the listener is there', 10_000, () => heard.includes('listening'))
  node.start(node.config, { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '900000' })
  await node.init()
  await until(`ready and watched\n${heard}`, 20_000, () => /STATUS=ready/.test(heard) && heard.split('WATCHDOG=1').length > 3)
  assert.match(heard, /READY=1 STATUS=uninitialized: .* MAINPID=\d+/)
  assert.equal(await node.end('SIGTERM'), 0)
  await until(`stopping\n${heard}`, 5000, () => heard.includes('STOPPING=1'))
})

test('places that cannot be used are named before anything starts: data directory, disks.json, links that lead nowhere', { timeout: TIMEOUT_MS }, async (t) => {
  const proc = await new Node(t, { cluster: { data_dir: '/proc/xsan/data' } }).refused()
  assert.equal(proc.code, 1)
  assert.match(proc.stderr, /start failed at "directory": cluster\.data_dir, \/proc\/xsan\/data, cannot be used/)

  const damaged = new Node(t)
  mkdirSync(join(damaged.dir, 'data'))
  writeFileSync(join(damaged.dir, 'data/disks.json'), '{"a')
  assert.match((await damaged.refused()).stderr, /XSAN-207 DISK_CORRUPTED: start failed at "disks": .*disks\.json is damaged: .* Try: Remove it/)

  const dangling = new Node(t)
  symlinkSync('nowhere', join(dangling.dir, 'disk'))
  assert.match((await dangling.refused()).stderr, /DISK_NOT_FOUND: .*storage\.devices\[0\]: .*disk is a symbolic link that leads nowhere/)

  const address = await new Node(t, { network: { admin_ip: '192.0.2.1' } }).refused()
  assert.match(address.stderr, /cannot listen on 192\.0\.2\.1:\d+.* Try: Set cluster\.bind_ip or network\.admin_ip to an address of this host/)
})

test('an NBD address that is not of this host ends the node with a clear error, and without a flight recorder', { timeout: TIMEOUT_MS }, async (t) => {
  const node = new Node(t, { nbd: { bind_ip: '192.0.2.1' } })
  node.start()
  await node.answers()
  const ended = node.exited()
  await run(bin('xsan'), ['--server', node.grpc, 'cluster', 'init'])
  assert.equal(await ended, 1, node.stderr)
  assert.match(
    node.stderr,
    /error XSAN-002 INVALID_PARAM: opening the NBD export: cannot listen on 192\.0\.2\.1:\d+.* Try: Set nbd\.bind_ip to an address of this host/,
  )
  assert.deepEqual(
    readdirSync(join(node.dir, 'data')).filter((name) => name.startsWith('flight-')),
    [],
  )
})

test('a log that cannot be written is no reason to stop serving', { timeout: TIMEOUT_MS }, async (t) => {
  const node = new Node(t)
  node.start(node.config, {}, openSync('/dev/full', 'w'))
  await node.init()
  await must(bin('xsan'), ['--server', node.grpc, 'volume', 'create', 'v', '64M'])
  assert.equal(await node.end('SIGTERM'), 0)
})

test('a file system that fills up: ENOSPC for new blocks, named by disk list and health; all else goes on, over a restart too', {
  timeout: 3 * TIMEOUT_MS,
}, async (t) => {
  const node = new Node(t, { storage: { devices: [{ path: 'small/disk', type: 'ssd', role: 'capacity', size: '256M' }], default_replica_count: 1 } })
  const small = join(node.dir, 'small')
  mkdirSync(small)
  const mounts = spawn('unshare', ['-Urm', 'sh', '-c', 'mount -t tmpfs -o size=128m none "$0" && echo mounted && exec sleep 600', small])
  t.after(() => endChild(mounts))
  const answer = await Promise.race([once(mounts.stdout, 'data'), once(mounts, 'exit')])
  if (!String(answer[0]).startsWith('mounted')) return t.skip('no mount namespaces here')
  const inOwnMounts = ['nsenter', '-t', String(mounts.pid), '-U', '-m', '--preserve-credentials', '--']
  node.start(node.config, {}, 'pipe', inOwnMounts)
  await node.init()
  assert.match(node.stderr, /small\/disk may grow to 256MiB, but its file system has 128MiB left: when that is full, this disk takes no new blocks/)
  const uri = `nbd://127.0.0.1:${node.nbdPort}/v`
  const xsan = async (...args: string[]) => (await must(bin('xsan'), ['--server', node.grpc, ...args])).stdout
  const io = async (...commands: string[]) => {
    const { stdout, stderr } = await run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri])
    return stdout + stderr
  }
  await xsan('volume', 'create', 'v', '200M')
  assert.doesNotMatch(await io('write -P 17 0 8M', 'flush'), /failed/)
  // somebody else takes the rest
  const inside = `/proc/${mounts.pid}/root${small}`
  // the node may take some of it at the same time
  assert.throws(() => {
    for (;;) appendFileSync(join(inside, 'ballast'), Buffer.alloc(256 * 1024))
  }, /ENOSPC/)
  let written = 8
  for (; written < 200; written += 4) if (/No space left on device/.test(await io(`write -P 18 ${written}M 4M`))) break
  assert.ok(written < 100, `${written} MiB`)
  const says = async (what: RegExp) => assert.match(await xsan('cluster', 'status', '-o', 'json'), what)
  await until('health names the disk', 20_000, async () =>
    /small\/disk of node-1 takes no new blocks: the file system of .*small\/disk is full/.test(await xsan('cluster', 'status', '-o', 'json')),
  )
  await says(/"health": ?"at-risk"/)
  const [disk] = (JSON.parse(await xsan('disk', 'list', '-o', 'json')) as { disks: Array<Record<string, string>> }).disks
  assert.equal(disk!['state'], 'full')
  assert.match(disk!['reason']!, /the file system of .*small\/disk is full/)
  const others = async () => {
    assert.doesNotMatch(await io(`read -P 17 0 8M`, 'write -P 19 0 4M', 'flush', 'read -P 19 0 4M', 'write -P 17 0 4M'), /failed/)
    assert.match(await io(`write ${written}M 4M`), /No space left on device/)
  }
  await others()
  // round the journal, so that everything has gone to its extent
  for (let n = 0; n < 20; n++) assert.doesNotMatch(await io('write -P 17 0 8M'), /failed/)
  await others()
  assert.equal(await node.end('SIGTERM'), 0)
  node.start(node.config, {}, 'pipe', inOwnMounts)
  await until(`the node is ready again\n${node.stderr}`, 20_000, async () => (await node.state()) === 'ready')
  await others()
  rmSync(join(inside, 'ballast'))
  await until('there is space again', 20_000, async () => !/failed/.test(await io(`write ${written}M 4M`)))
  await until('and health says so', 20_000, async () => (await xsan('cluster', 'status', '-o', 'json')).includes('"safe"'))
  assert.equal(await node.end('SIGTERM'), 0, node.stderr)
})

for (const how of ['fails', 'hangs'] as const) {
  test(`the only copy's disk ${how}: its clients are told within retry_total_time and one write life more, the node says why, a restart brings it back`, {
    timeout: 3 * TIMEOUT_MS,
  }, async (t) => {
    const dir = makeDirectory()
    const trigger = join(dir, 'trigger')
    const path = join(dir, 'disk')
    writeFileSync(path, '')
    const faulty = ['--filter=error', 'memory', '256M', 'error=EIO', 'error-pwrite-rate=100%', 'error-pread-rate=100%', `error-file=${trigger}`]
    const fuse = spawn('nbdfuse', [path, '--command', 'nbdkit', '-s', '--exit-with-parent', ...faulty], { stdio: 'ignore' })
    const gone = once(fuse, 'exit')
    t.after(async () => {
      await run('umount', ['-l', path])
      await endChild(fuse)
    })
    const isThere = () => existsSync(path) && statSync(path).size === 256 * MiB
    await Promise.race([gone, until('the disk is there', 10_000, async () => isThere())])
    if (!isThere()) return t.skip('no FUSE here')
    const device = { path, type: 'ssd', role: 'capacity' }
    const node = new Node(t, { storage: { devices: [device], default_replica_count: 1 }, forward: { retry_total_time: 3000 } }, dir)
    node.start()
    await node.init()
    await must(bin('xsan'), ['--server', node.grpc, 'volume', 'create', 'v', '64M'])
    const uri = `nbd://127.0.0.1:${node.nbdPort}/v`
    const io = async (...commands: string[]) => {
      const begunMs = performance.now()
      const { stdout, stderr } = await run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri], { timeoutMs: 50_000 })
      return { text: stdout + stderr, tookMs: performance.now() - begunMs }
    }
    assert.doesNotMatch((await io('write -P 7 0 8M')).text, /failed/)
    const nbdkit = Number((await must('pgrep', ['-P', String(fuse.pid), 'nbdkit'])).stdout)
    if (how === 'fails') writeFileSync(trigger, '')
    else process.kill(nbdkit, 'SIGSTOP')
    t.after(() => process.kill(nbdkit, 'SIGCONT'))
    for (const command of ['write -P 8 0 64k', 'write -P 8 4M 4k', 'read 0 4k']) {
      const { text, tookMs } = await io(command)
      assert.match(text, /Input\/output error/, command)
      assert.ok(tookMs > 2000 && tookMs < 30_000, `${command}: ${tookMs} ms`)
    }
    const { stdout } = await must(bin('xsan'), ['--server', node.grpc, 'cluster', 'status', '-o', 'json'])
    assert.match(stdout, how === 'fails' ? /Disk .*disk of node-1 failed: .*EIO/ : /Disk .*disk of node-1 failed: .*has not answered/)
    assert.match(stdout, /"health": ?"unavailable"/)
    if (how === 'fails') rmSync(trigger)
    else process.kill(nbdkit, 'SIGCONT')
    assert.equal(await node.end('SIGTERM'), 0, node.stderr)
    node.start()
    await until(`the volume serves again\n${node.stderr}`, 30_000, async () => /^read 3145728/m.test((await io('read -P 7 1M 3M')).text))
    assert.doesNotMatch((await io('write -P 9 0 1M', 'read -P 9 0 1M')).text, /[Ff]ailed/)
    assert.equal(await node.end('SIGTERM'), 0, node.stderr)
  })
}
