/** `xsan dev`, whose form is fixed because strangers' scripts use it. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { bin, makeDirectory, must, removeDirectory, run, until, xsan, xsanJson } from '../support/commands.ts'
import { isAlive } from '../support/dev-cluster.ts'

interface Shown {
  cluster_id: string
  nodes: Array<{
    id: string
    pid: number
    state: string
    grpc: string
    data: string
    nbd: string
    nbd_socket: string
    iscsi: null
    admin: string
    data_dir: string
  }>
}

function playground(t: TestContext): string {
  // whoever calls a directory "play" learns nothing
  const dir = join(makeDirectory(), "play ground's ü%20&?#")
  t.after(async () => {
    await xsan('dev', 'down', '--wipe', '--dir', dir)
    removeDirectory(join(dir, '..'))
  })
  return dir
}
const dev = (dir: string, ...args: string[]) => xsanJson<Shown>('dev', ...args, '--dir', dir)

test('a playground of three: its JSON, kill, frozen and dead nodes, several starts at once, down and up again', { timeout: 240_000 }, async (t) => {
  const dir = playground(t)
  const up = await dev(dir, 'up', '--nodes', '3', '--disk-size', '1G', '--set', 'log.level=DEBUG', '--set', 'network.max_connections=77')
  assert.deepEqual(Object.keys(up), ['cluster_id', 'nodes'])
  assert.deepEqual(
    up.nodes.map(({ id }) => id),
    ['node-1', 'node-2', 'node-3'],
  )
  for (const node of up.nodes) {
    assert.deepEqual(Object.keys(node), ['id', 'pid', 'state', 'grpc', 'data', 'nbd', 'nbd_socket', 'iscsi', 'admin', 'data_dir'])
    assert.equal(node.state, 'ready')
    assert.match(node.grpc, /^127\.0\.0\.1:\d+$/)
    assert.match(node.data, /^127\.0\.0\.1:\d+$/)
    assert.match(node.nbd, /^nbd:\/\/127\.0\.0\.1:\d+$/)
    assert.match(node.admin, /^http:\/\/127\.0\.0\.1:\d+$/)
    assert.equal(node.iscsi, null)
    assert.ok(existsSync(node.nbd_socket) && existsSync(node.data_dir))
    assert.ok(isAlive(node.pid))
  }
  const status = await xsanJson<{ leader: string; health: string; nodes: Array<{ id: string; state: string }> }>(
    '--server',
    up.nodes[1]!.grpc,
    'cluster',
    'status',
  )
  assert.equal(status.health, 'safe')
  assert.ok(
    up.nodes.some(({ id }) => id === status.leader),
    'the leader is a node id',
  )
  const { items } = await xsanJson<{ items: Array<{ key: string; value: unknown }> }>('--server', up.nodes[2]!.grpc, 'config', 'show')
  assert.equal(items.find(({ key }) => key === 'network.max_connections')?.value, 77)

  const { uris } = await xsanJson<{ uris: string[] }>('--server', up.nodes[0]!.grpc, 'volume', 'create', 'v', '64M')
  assert.equal(uris.length, 6)
  for (const uri of uris) assert.equal((await must('nbdinfo', ['--size', uri])).stdout.trim(), String(64 * 1024 * 1024))

  const states = (shown: Shown) => shown.nodes.map(({ state }) => state)
  assert.deepEqual(states(await dev(dir, 'kill', 'node-3', '--signal', 'STOP')), ['ready', 'ready', 'frozen'])
  await dev(dir, 'kill', 'node-3', '--signal', 'CONT')
  process.kill(up.nodes[1]!.pid, 'SIGKILL')
  await until('the process is gone', 5000, () => !isAlive(up.nodes[1]!.pid))
  assert.deepEqual(states(await dev(dir, 'status')), ['ready', 'dead', 'ready'])
  assert.deepEqual(states(await dev(dir, 'kill', 'node-3')), ['ready', 'dead', 'dead'])

  const started = await Promise.all([dev(dir, 'start', 'node-2'), dev(dir, 'start', 'node-3'), dev(dir, 'start', 'node-2')])
  const last = await dev(dir, 'status')
  assert.deepEqual(states(last), ['ready', 'ready', 'ready'])
  assert.equal(started[0]!.nodes[1]!.pid, started[2]!.nodes[1]!.pid, 'two starts of one node make one process')
  const again = await dev(dir, 'up', '--nodes', '3')
  assert.deepEqual(
    again.nodes.map(({ pid }) => pid),
    last.nodes.map(({ pid }) => pid),
    'up of a running playground changes nothing',
  )

  assert.deepEqual(states(await dev(dir, 'down')), ['dead', 'dead', 'dead'])
  assert.ok(last.nodes.every(({ pid }) => !isAlive(pid)))
  assert.ok(existsSync(last.nodes[0]!.data_dir))
  assert.deepEqual(states(await dev(dir, 'up', '--nodes', '3')), ['ready', 'ready', 'ready'])
  await dev(dir, 'down', '--wipe')
  assert.ok(!existsSync(dir), '`up` had made it')
})

test('start returns while a majority is dead, and the rest makes the cluster whole again', { timeout: 180_000 }, async (t) => {
  const dir = playground(t)
  await dev(dir, 'up', '--nodes', '3', '--disk-size', '1G')
  await dev(dir, 'kill', 'node-1', 'node-2', 'node-3')
  for (const id of ['node-3', 'node-1', 'node-2']) await dev(dir, 'start', id)
  await until('all are ready', 30_000, async () => (await dev(dir, 'status')).nodes.every(({ state }) => state === 'ready'))
})

test('ctrl-C of `dev up` ends what it started, not what ran before', { timeout: 120_000 }, async (t) => {
  const dir = playground(t)
  const interrupted = async (args: readonly string[], isTime: (nodes: Shown['nodes']) => boolean) => {
    const child = spawn(bin('xsan'), ['dev', 'up', ...args, '--dir', dir], { stdio: 'ignore' })
    const ended = once(child, 'exit')
    let nodes: Shown['nodes'] = []
    await until('it is time', 30_000, async () => {
      const { code, stdout } = await xsan('dev', 'status', '--dir', dir, '-o', 'json')
      nodes = code === 0 ? (JSON.parse(stdout) as Shown).nodes : []
      return isTime(nodes)
    })
    child.kill('SIGINT')
    assert.deepEqual(await ended, [null, 'SIGINT'])
    return nodes
  }
  const nodes = await interrupted(['--nodes', '2', '--replicas', '1', '--disk-size', '1G'], (of) => of.length === 2 && of.every(({ pid }) => isAlive(pid)))
  for (const { pid } of nodes) assert.equal(isAlive(pid), false)
  const [first] = (await dev(dir, 'up', '--nodes', '2', '--replicas', '1', '--disk-size', '1G')).nodes
  await dev(dir, 'kill', 'node-2')
  const again = await interrupted(['--nodes', '2'], (of) => of.every(({ pid, state }) => state !== 'dead' && isAlive(pid)))
  assert.deepEqual([again[0]!.pid, isAlive(first!.pid), isAlive(again[1]!.pid)], [first!.pid, true, false])
})

test('wrong use is refused with the next step, and starts nothing', { timeout: 120_000 }, async (t) => {
  const dir = playground(t)
  const refused = async (...args: string[]) => {
    const { code, stderr } = await xsan('dev', ...args, '--dir', dir)
    return { code, stderr }
  }
  assert.equal((await refused('status')).code, 5)
  assert.equal((await run(join(import.meta.dirname, '../../packaging/bin/xsan'), ['dev', 'status'])).code, 64)
  const unknownKey = await refused('up', '--set', 'network.heartbeat_intervall=1')
  assert.equal(unknownKey.code, 1)
  assert.match(unknownKey.stderr, /unknown key network\.heartbeat_intervall; did you mean network\.heartbeat_interval\?/)
  assert.equal((await refused('up', '--nodes', '0')).code, 64)
  assert.equal((await xsan('dev', 'up', '--dir', '')).code, 64)
  assert.match((await refused('up', '--nodes', '2', '--replicas', '3')).stderr, /3 copies need as many nodes/)
  const holder = createServer()
  const port = await new Promise<number>((resolve) => holder.listen(0, '127.0.0.1', () => resolve((holder.address() as { port: number }).port)))
  t.after(() => holder.close())
  const taken = await refused('up', '--nodes', '1', '--base-port', String(port))
  assert.equal(taken.code, 7)
  assert.match(taken.stderr, new RegExp(`TCP port ${port} is taken by PID ${process.pid}`))

  // beside the second node's heartbeats
  const beats = createSocket('udp4')
  await new Promise<void>((resolve) => beats.bind(0, '127.0.0.1', resolve))
  t.after(() => beats.close())
  const beatsPort = beats.address().port
  const deaf = await refused('up', '--nodes', '2', '--base-port', String(beatsPort - 4))
  assert.equal(deaf.code, 7, deaf.stderr)
  assert.match(deaf.stderr, new RegExp(`UDP port ${beatsPort} is taken by PID ${process.pid}`))

  for (const [code, args, pattern] of [
    [64, ['up', '--base-port', '70000'], /and the last port is 65535/],
    [64, ['up', '--base-port', '0'], /too small/],
    [64, ['up', '--nodes', '65'], /1 to 64 nodes/],
    [64, ['up', '--replicas', '0'], /too small/],
    [64, ['up', '--disk-size', 'big'], /is not a size/],
    [1, ['up', '--disk-size', '1M'], /storage\.devices\[0\]\.size: must be at least 64MiB/],
    [1, ['up', '--set', '__proto__.a=1'], /unknown key/],
    [64, ['up', '--set', '=1'], /not of the form key=value/],
    [64, ['up', '--set', 'cluster.node_id=x'], /cluster\.node_id cannot be set for a playground.*each node has its own/],
    [64, ['up', '--set', 'cluster={"bind_port":1}'], /cluster\.bind_port cannot be set for a playground.*--base-port/],
    [64, ['up', '--set', 'cluster.bind_ip=127.0.0.2'], /a playground is reached at 127\.0\.0\.1.*Leave it out, or set it to 127\.0\.0\.1\./],
    [64, ['up', '--set', 'nbd={"bind_ip":"127.0.0.2"}'], /a playground is reached at 127\.0\.0\.1.*127\.0\.0\.1 or 0\.0\.0\.0/],
  ] as const) {
    const ran = await refused(...args)
    assert.equal(ran.code, code, ran.stderr)
    assert.match(ran.stderr, pattern)
  }
  assert.ok(!existsSync(dir), 'nothing is left of what was refused')
  for (const place of ['/proc/xsan', '/dev/null/x'])
    assert.match((await xsan('dev', 'up', '--nodes', '1', '--dir', place)).stderr, /the directory of the playground, \/.*, cannot be used/)

  // what is somebody's own is left alone
  mkdirSync(join(dir, 'node-2'), { recursive: true })
  const own = await refused('up', '--nodes', '2')
  assert.equal(own.code, 3, own.stderr)
  assert.match(own.stderr, /node-2 is there already, and of no playground/)
  assert.deepEqual(readdirSync(dir), ['node-2'])
  rmdirSync(join(dir, 'node-2'))

  // two at once: one makes it, the other finds it
  const [one, other] = await Promise.all([dev(dir, 'up', '--nodes', '1', '--disk-size', '512M'), dev(dir, 'up', '--nodes', '1', '--disk-size', '512M')])
  assert.equal(other.nodes[0]!.pid, one.nodes[0]!.pid)
  assert.match((await refused('up', '--nodes', '1', '--set', 'cluster=5')).stderr, /cluster: /)
  for (const signal of ['NOPE', '0', '99', '']) {
    const ran = await refused('kill', 'node-1', '--signal', signal)
    assert.match(ran.stderr, new RegExp(`"${signal}" is not a signal`))
    assert.equal(ran.code, 64)
  }
  assert.equal(JSON.parse(readFileSync(join(dir, 'node-1/xsan.json'), 'utf8')).storage.default_replica_count, 1)
  assert.equal((await refused('kill', 'node-7')).code, 5)
  assert.match((await refused('start', 'node-7')).stderr, /there is no node node-7\. Try: One of: node-1/)
  for (const [option, value] of [
    ['--nodes', '3'],
    ['--replicas', '2'],
    ['--disk-size', '1G'],
    ['--base-port', '2000'],
  ] as const) {
    const ran = await refused('up', option, value)
    assert.equal(ran.code, 3, ran.stderr)
    assert.match(ran.stderr, /ALREADY_EXISTS: .* holds a playground/)
  }
  assert.equal((await dev(dir, 'up')).nodes[0]!.pid, one.nodes[0]!.pid, 'without options: the one that is there')
  assert.equal((await dev(dir, 'status')).nodes[0]!.pid, one.nodes[0]!.pid)

  // by number; what is set later leaves alone what was set before; a start that fails says why, once
  assert.equal((await dev(dir, 'kill', 'node-1', '--signal', '9')).nodes[0]!.state, 'dead')
  await dev(dir, 'up', '--set', 'log.level=DEBUG')
  await dev(dir, 'down')
  await dev(dir, 'up', '--set', 'network.max_connections=7')
  const { items } = await xsanJson<{ items: Array<{ key: string; value: unknown }> }>('--server', one.nodes[0]!.grpc, 'config', 'show')
  const shown = (key: string) => items.find((item) => item.key === key)?.value
  assert.deepEqual([shown('log.level'), shown('network.max_connections')], ['DEBUG', 7])
  await dev(dir, 'down')
  const squatter = createServer()
  await new Promise<void>((resolve) => squatter.listen(Number(one.nodes[0]!.nbd.split(':').at(-1)), '127.0.0.1', () => resolve()))
  t.after(() => squatter.close())
  const busy = await refused('start', 'node-1')
  assert.equal(busy.code, 7, busy.stderr)
  assert.match(busy.stderr, /^error XSAN-005 BUSY: node-1: .* is taken by PID \d+/)
})

test('a damaged description is told, and the command it names wipes what is there', { timeout: 60_000 }, async (t) => {
  const dir = playground(t)
  const [node] = (await dev(dir, 'up', '--nodes', '1', '--disk-size', '256M')).nodes
  for (const text of ['{', '{}', 'null']) {
    writeFileSync(join(dir, 'dev.json'), text)
    for (const verb of ['status', 'up', 'down']) {
      const { code, stderr } = await xsan('dev', verb, '--dir', dir)
      assert.equal(code, 1)
      assert.match(stderr, /dev\.json is of no use: .* Try: xsan dev down --wipe --dir /)
    }
  }
  const { code, stderr } = await xsan('dev', 'down', '--wipe', '--dir', dir)
  assert.equal(code, 0, stderr)
  assert.equal(isAlive(node!.pid), false)
  assert.deepEqual(readdirSync(dir), [])
  // one that was moved is no better; a symbolic link to it is
  await dev(dir, 'up', '--nodes', '1', '--disk-size', '256M')
  symlinkSync(dir, `${dir}-link`)
  assert.equal((await dev(`${dir}-link`, 'down')).nodes[0]!.state, 'dead')
  renameSync(dir, `${dir}-moved`)
  assert.match((await xsan('dev', 'up', '--dir', `${dir}-moved`)).stderr, /it was made for .* Try: xsan dev down --wipe/)
  assert.equal((await xsan('dev', 'down', '--wipe', '--dir', `${dir}-moved`)).code, 0)
  assert.deepEqual(readdirSync(`${dir}-moved`), [])
})

test('of another user: said so, whatever is asked', { timeout: 60_000, skip: process.getuid?.() === 0 ? false : 'needs root' }, async (t) => {
  const dir = playground(t)
  await dev(dir, 'up', '--nodes', '1', '--disk-size', '256M')
  const other = (...args: readonly string[]) => run('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', bin('xsan'), 'dev', ...args, '--dir', dir])
  chmodSync(join(dir, '..'), 0o755)
  for (const mode of [0o700, 0o755]) {
    chmodSync(dir, mode)
    for (const args of [['status'], ['kill', 'node-1'], ['start', 'node-1'], ['down', '--wipe'], ['up', '--nodes', '1']]) {
      const { code, stderr } = await other(...args)
      assert.equal(code, 1, `${args.join(' ')}: ${stderr}`)
      assert.match(stderr, /^error XSAN-0\d\d [A-Z_]+: .+ Try: .+\n$/)
    }
  }
  assert.equal((await dev(dir, 'status')).nodes[0]!.state, 'ready')
})

test('a wait that ends ends in time, and says that nothing runs', { timeout: 60_000 }, async (t) => {
  const dir = playground(t)
  const { code, stderr } = await xsan('dev', 'up', '--nodes', '1', '--disk-size', '256M', '--timeout', '50ms', '--dir', dir)
  assert.equal(code, 6, stderr)
  assert.match(stderr, /error XSAN-101 CLUSTER_NOT_READY: node-1 is .* Try: .*--timeout/)
  assert.deepEqual(
    (await dev(dir, 'status')).nodes.map(({ state }) => state),
    ['dead'],
  )
})

test('a node that ends while the cluster is made says why: no space for its disk', { timeout: 60_000 }, async (t) => {
  const dir = playground(t)
  const small = 'mount -t tmpfs -o size=16m none "$0" || exit 77; exec "$@"'
  const up = [bin('xsan'), 'dev', 'up', '--nodes', '3', '--disk-size', '256M', '--dir', join(dir, 'play')]
  mkdirSync(dir, { recursive: true })
  const { code, stderr } = await run('unshare', ['-Urm', 'sh', '-c', small, dir, ...up])
  if (code === 77 || code === null || /unshare/.test(stderr)) return t.skip('no mount namespaces here')
  assert.equal(code, 4, stderr)
  assert.match(stderr, /error XSAN-202 INSUFFICIENT_SPACE: node-\d: .*disk-0 has no space .* Try: Free some space there: /)
})
