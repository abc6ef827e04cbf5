/** The commands as a shell sees them, against a server that answers from a table. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createServer as createTcpServer } from 'node:net'
import test, { after, before } from 'node:test'
import { fileURLToPath } from 'node:url'
import { parse } from 'yaml'
import { XsanError } from '../base/errors.ts'
import { Status, type StatusName } from '../base/status.ts'
import type { Message } from '../env/control.ts'
import { NodeLog } from '../env/node/log.ts'
import { GrpcRpc } from '../env/node/rpc.ts'
import { EXIT_CODES } from './exit-codes.ts'

const rpc = new GrpcRpc({ log: new NodeLog({ level: 'FATAL' }) })
const seen: Array<{ method: string; request: Message }> = []
let server = ''
let health = 'safe'

const VOLUME = {
  id: 7,
  name: 'db1',
  sizeBytes: 10 * 1024 ** 3,
  replicas: 3,
  syncWhenWrite: true,
  state: 'ready',
  health: 'safe',
  uris: ['nbd://127.0.0.1:10809/db1'],
}
const STATUS = () => ({
  clusterId: 'c1',
  health,
  reasons: health === 'safe' ? [] : ['2 copies are missing'],
  leader: 'node-2',
  nodes: [{ id: 'node-1', state: 'ready' }],
  resync: { blocksLeft: 3, bytesMoved: 8192, bytesNeeded: 4096 },
})

before(async () => {
  const answer = (method: string, make: (request: Message) => Message) => async (request: Message) => {
    seen.push({ method, request })
    return make(request)
  }
  rpc.serve('xsan.v1.Volume', {
    Create: answer('Create', ({ name, sizeBytes, replicas }) => ({ ...VOLUME, name, sizeBytes, replicas })),
    Info: async ({ volume }) => {
      throw new XsanError(volume as StatusName, `about ${String(volume)}`, 'do something')
    },
    List: answer('List', ({ pageToken }) => (pageToken === '' ? { volumes: [VOLUME], nextPageToken: 'p2' } : { volumes: [{ ...VOLUME, name: 'db2' }] })),
    Delete: answer('Delete', ({ volume }) => ({ id: 7, name: volume })),
  })
  rpc.serve('xsan.v1.Cluster', { Status: answer('Status', STATUS) })
  rpc.serve('xsan.v1.Debug', {
    VolumeInfo: answer('VolumeInfo', ({ firstBlock }) => ({
      volume: VOLUME,
      blocks: [{ blockId: `7:${String(firstBlock)}`, index: firstBlock, slot: 5 }],
      nextBlock: firstBlock === 0 ? 9 : 0,
    })),
    BlockLocation: answer('BlockLocation', () => ({
      blockId: '7:0',
      volume: 'db1',
      replicas: [
        {
          nodeId: 'node-1',
          state: 'SERVING',
          present: true,
          updateVer: '3.17',
          commitVer: '3.17',
          chainVer: 3,
          blockState: 'COMMIT',
          checksum: 0xdeadbeef,
          role: 'head',
        },
      ],
    })),
    PerfStats: answer('PerfStats', () => ({ nodes: [{ nodeId: 'node-1', counters: { read_ops: 5, 'storage.aio_enqueue': 2 } }] })),
  })
  const { port } = await rpc.listen({ host: '127.0.0.1', port: 0 })
  server = `127.0.0.1:${port}`
})
after(() => rpc.close())

function run(command: string, ...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(fileURLToPath(new URL(`../../packaging/bin/${command}`, import.meta.url)), args, {
      env: { ...process.env, XSAN_SERVER: server },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (chunk) => (stdout += chunk))
    child.stderr.on('data', (chunk) => (stderr += chunk))
    child.on('close', (code) => resolve({ code: code ?? -1, stdout, stderr }))
  })
}
const json = async (command: string, ...args: string[]) => {
  const { code, stdout, stderr } = await run(command, ...args, '-o', 'json')
  assert.equal(code, 0, stderr)
  return JSON.parse(stdout) as Record<string, unknown>
}

test('volume create sends bytes and prints id and URIs as JSON', async () => {
  const volume = await json('xsan', 'volume', 'create', 'db9', '10GiB', '--replicas', '2')
  assert.deepEqual(
    [volume['format_version'], volume['id'], volume['name'], volume['size_bytes'], volume['replicas'], volume['uris']],
    [1, 7, 'db9', 10 * 1024 ** 3, 2, ['nbd://127.0.0.1:10809/db1']],
  )
})

test('durability is sent only when it was given', async () => {
  await json('xsan', 'volume', 'create', 'a', '1G')
  assert.equal(seen.at(-1)?.request['syncWhenWrite'], undefined)
  await json('xsan', 'volume', 'create', 'a', '1G', '--sync', 'off')
  assert.equal(seen.at(-1)?.request['syncWhenWrite'], false)
})

test('a listing fetches all pages', async () => {
  const { volumes } = (await json('xsan', 'volume', 'list')) as { volumes: Array<{ name: string }> }
  assert.deepEqual(
    volumes.map(({ name }) => name),
    ['db1', 'db2'],
  )
})

test('tables have no colour and no frame when nobody looks', async () => {
  const { stdout } = await run('xsan', 'volume', 'list')
  const [head, row] = stdout.split('\n')
  assert.match(head!, /^VOLUME +ID +SIZE/)
  assert.match(row!, /^db1 +7 +10GiB/)
  assert.ok(!stdout.includes('\x1b'))
})

test('YAML says the same as JSON', async () => {
  const { stdout } = await run('xsan', 'cluster', 'status', '-o', 'yaml')
  assert.deepEqual(parse(stdout), await json('xsan', 'cluster', 'status'))
})

test('a result that cannot be written is an error; one that is no longer read is not', async () => {
  const to = async (shell: string) => {
    const child = spawn('bash', ['-c', shell, fileURLToPath(new URL('../../packaging/bin/xsan', import.meta.url))], {
      env: { ...process.env, XSAN_SERVER: server },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let stderr = ''
    child.stderr.on('data', (chunk) => (stderr += chunk))
    const [code] = await once(child, 'close')
    return { code: code as number, stderr }
  }
  const full = await to('"$0" volume list -o json >/dev/full')
  assert.equal(full.code, 2)
  assert.match(full.stderr, /^error XSAN-301 WRITE_FAILED: standard output cannot be written: ENOSPC.* Try: /)
  assert.deepEqual(await to('set -o pipefail; "$0" volume list | true'), { code: 0, stderr: '' })
})

test('options are taken before the noun, after the noun and after the verb', async () => {
  for (const args of [
    ['--server', server, '-o', 'json', 'volume', 'list'],
    ['volume', '--server', server, '-o', 'json', 'list'],
    ['volume', 'list', '--server', server, '-o', 'json'],
  ]) {
    const { code, stdout } = await run('xsan', ...args)
    assert.equal(code, 0)
    assert.equal(JSON.parse(stdout).volumes.length, 2)
  }
})

test('cluster status has health, leader, nodes and resync under their fixed names', async () => {
  const status = await json('xsan', 'cluster', 'status')
  assert.equal(status['health'], 'safe')
  assert.equal(status['leader'], 'node-2')
  const { blocks_left, bytes_moved, bytes_needed } = status['resync'] as Record<string, unknown>
  assert.deepEqual([blocks_left, bytes_moved, bytes_needed], [3, 8192, 4096])
})

test('--wait healthy returns once the cluster is, and exits 8 with the reason when it is not in time', async () => {
  health = 'at-risk'
  const waiting = run('xsan', 'cluster', 'status', '--wait', 'healthy', '--timeout', '3s')
  const { code, stderr } = await waiting
  assert.equal(code, 8)
  assert.match(stderr, /not healthy after 3 s \(.*2 copies are missing/)
  const later = run('xsan', 'cluster', 'status', '--wait', 'healthy', '--timeout', '20s')
  setTimeout(() => {
    health = 'safe'
  }, 600)
  assert.equal((await later).code, 0)
})

test('an error of the server is printed with code, name, cause and next step, and decides the exit code', async () => {
  const samples: StatusName[] = ['VOLUME_NOT_FOUND', 'VOLUME_EXISTS', 'INSUFFICIENT_SPACE', 'CLUSTER_NOT_READY', 'BUSY', 'NODE_UNREACHABLE', 'INVALID_PARAM']
  const codes = [5, 3, 4, 6, 7, 2, 1]
  for (const [index, name] of samples.entries()) {
    const { code, stdout, stderr } = await run('xsan', 'volume', 'info', name)
    assert.equal(stderr, `error XSAN-${String(Status[name]).padStart(3, '0')} ${name}: about ${name}. Try: do something\n`)
    assert.equal(stdout, '')
    assert.equal(code, codes[index], name)
  }
})

test('every status but SUCCESS has an exit code that is not 0', () => {
  for (const [name, code] of Object.entries(EXIT_CODES)) assert.equal(code === 0, name === 'SUCCESS', name)
})

test('usage errors exit 64 and say what to do', async () => {
  for (const args of [
    ['volume', 'creat'],
    ['volume', 'create', 'x'],
    ['volume', 'list', '-o', 'xml'],
    ['volume', 'list', '--serve', 'x'],
    ['volume', 'create', 'x', '1G', '--replicas', 'two'],
    ['volume'],
  ]) {
    const { code, stderr } = await run('xsan', ...args)
    assert.equal(code, 64, args.join(' '))
    assert.match(stderr, /Try: |Usage: /)
  }
})

test('a wrong value of an option that all commands have: the help of the command it was given to is named, wherever it stands', async () => {
  for (const args of [
    ['volume', 'list', '-o', 'xml'],
    ['-o', 'xml', 'volume', 'list'],
    ['volume', '--output=xml', '--server', 'volume', 'list'],
  ]) {
    const { code, stderr } = await run('xsan', ...args)
    assert.equal(code, 64, args.join(' '))
    assert.match(stderr, /Try: xsan volume list --help/)
  }
  const { stderr } = await run('xsan', 'volume', '-o', 'xml')
  assert.match(stderr, /Try: xsan volume --help/)
})

test('a size that is none is refused before anything is sent', async () => {
  const before = seen.length
  const { code, stderr } = await run('xsan', 'volume', 'create', 'x', 'big')
  assert.equal(code, 64)
  assert.match(stderr, /"big" is not a size/)
  assert.equal(seen.length, before)
})

test('delete without a terminal needs --yes', async () => {
  assert.equal((await run('xsan', 'volume', 'delete', 'db1')).code, 64)
  const deleted = await json('xsan', 'volume', 'delete', 'db1', '--yes')
  assert.equal(deleted['name'], 'db1')
})

test('a server that is not there is named, with exit code 2', async () => {
  const { code, stderr } = await run('xsan', '--server', '127.0.0.1:1', 'volume', 'list')
  assert.equal(code, 2)
  assert.match(stderr, /error XSAN-100 NODE_UNREACHABLE: nothing answers at 127\.0\.0\.1:1 \(ECONNREFUSED\)/)
})

test('xsan-debug has its four commands, under exactly these names', async () => {
  assert.equal((await json('xsan-debug', 'cluster-status'))['leader'], 'node-2')
  const volume = (await json('xsan-debug', 'volume-info', '7')) as { id: number; blocks: Array<{ block_id: string }> }
  assert.equal(volume.id, 7)
  assert.deepEqual(
    volume.blocks.map(({ block_id }) => block_id),
    ['7:0', '7:9'],
  )
  const location = (await json('xsan-debug', 'block-location', 'db1:0')) as { replicas: Array<Record<string, unknown>> }
  assert.equal(location.replicas[0]?.['checksum'], 0xdeadbeef)
  assert.equal(location.replicas[0]?.['update_ver'], '3.17')
  const stats = (await json('xsan-debug', 'perf-stats')) as { nodes: Array<{ counters: Record<string, number> }> }
  assert.deepEqual(stats.nodes[0]?.counters, { read_ops: 5, 'storage.aio_enqueue': 2 })
  for (const command of ['cluster-status', 'volume-info 7', 'block-location 7:0', 'perf-stats'])
    assert.equal((await run('xsan-debug', ...command.split(' '))).code, 0)
})

test('what answers and is no node, a name without an address, a wait without an end, an address that is none: each said as what it is', async () => {
  const http = createServer((_, response) => response.end('hello'))
  const deaf = createTcpServer((socket) => socket.destroy())
  const listen = (of: ReturnType<typeof createTcpServer>) =>
    new Promise<string>((resolve) => of.listen(0, '127.0.0.1', () => resolve(`127.0.0.1:${(of.address() as { port: number }).port}`)))
  try {
    for (const [code, pattern, ...args] of [
      [2, /what answers at 127\.0\.0\.1:\d+ does not speak gRPC\. Try: Use the port of control/, '--server', await listen(http), 'volume', 'list'],
      [
        2,
        /(what answers at 127\.0\.0\.1:\d+ does not speak gRPC|nothing answers at 127\.0\.0\.1:\d+ \(ECONNRESET\))\. Try: /,
        '--server',
        await listen(deaf),
        'volume',
        'list',
      ],
      [2, /the name in nosuch\.invalid:1 leads to no address/, '--server', 'nosuch.invalid:1', 'volume', 'list'],
      [64, /"nohost" is not an address/, '--server', 'nohost', 'volume', 'list'],
      [64, /"99999999999h" is too long a time/, 'volume', 'list', '--timeout', '99999999999h'],
      [64, /unknown command 'nope'/, 'help', 'nope', 'create'],
    ] as const) {
      const ran = await run('xsan', ...args)
      assert.equal(ran.code, code, ran.stderr)
      assert.match(ran.stderr, pattern)
      assert.equal(ran.stderr.trimEnd().split('\n').length, 1)
    }
    assert.match((await run('xsan', 'help', 'volume', 'create')).stdout, /Usage: xsan volume create /)
  } finally {
    http.close()
    deaf.close()
  }
})
