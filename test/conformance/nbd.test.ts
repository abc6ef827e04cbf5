/** The NBD export against clients nobody here wrote (libnbd, qemu, fio, nbdcopy) and against peers that send nonsense. Volumes live in memory. */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Prng } from '../../src/base/prng.ts'

const run = promisify(execFile)
const SERVER = fileURLToPath(new URL('../support/nbd-memory-server.ts', import.meta.url))
const MIB = 1024 * 1024

let server: ChildProcess
let port: number
let dir: string
const stderr: string[] = []

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'xsan-nbd-'))
  server = spawn(
    process.execPath,
    [SERVER, '--connections', '12', '--socket', join(dir, 'nbd.sock'), `small:${8 * MIB}`, `big:${256 * MIB}`, `odd:${3 * MIB + 1536}`, `fixed:${4 * MIB}:ro`],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  server.stderr?.on('data', (chunk) => stderr.push(String(chunk)))
  const [line] = await once(server.stdout!, 'data')
  port = JSON.parse(String(line)).port
})

after(async () => {
  server.kill('SIGKILL')
  await rm(dir, { recursive: true, force: true })
})

const uri = (name: string) => `nbd://127.0.0.1:${port}/${name}`
const options = { timeout: 60_000, maxBuffer: 16 * MIB, cwd: tmpdir() }

test('nbdinfo lists every volume with its size and flags', async () => {
  const { stdout } = await run('nbdinfo', ['--json', '--list', `nbd://127.0.0.1:${port}`], options)
  const listed = JSON.parse(stdout).exports
  assert.deepEqual(listed.map((e: { 'export-name': string }) => e['export-name']).sort(), ['big', 'fixed', 'odd', 'small'])
  const big = listed.find((e: { 'export-name': string }) => e['export-name'] === 'big')
  assert.equal(big['export-size'], 256 * MIB)
  assert.equal(big.block_size_minimum, 512)
  assert.equal(big.can_multi_conn, true)
  assert.equal(big.can_fua, true)
  assert.equal(big.can_trim, true)
  assert.equal(big.can_zero, true)
  assert.equal(listed.find((e: { 'export-name': string }) => e['export-name'] === 'fixed').is_read_only, true)
})

test('nbdinfo lists sixty volumes, and a client that only goes on asking is let go', { timeout: 60_000 }, async () => {
  const many = spawn(process.execPath, [SERVER, ...Array.from({ length: 60 }, (_, n) => `v${n}:${MIB}`)], { stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    const [line] = await once(many.stdout!, 'data')
    const at = `nbd://127.0.0.1:${JSON.parse(String(line)).port}`
    const { stdout } = await run('nbdinfo', ['--json', '--list', at], options)
    assert.equal(JSON.parse(stdout).exports.length, 60)
    const ask = "h.set_opt_mode(True)\nh.connect_uri(uri)\ntry:\n  for n in range(1000): h.opt_list(lambda *a: 0)\nexcept nbd.Error: print('let go', n)"
    const { stdout: said } = await run('nbdsh', ['-c', `uri = "${at}"`, '-c', ask], { ...options, env: { ...process.env, PATH: '/usr/bin:/bin' } })
    assert.match(said, /let go \d+/)
  } finally {
    many.kill('SIGKILL')
  }
})

test('an unknown volume is refused by name', async () => {
  await assert.rejects(run('nbdinfo', [uri('nosuch')], options), (error: { stderr: string }) =>
    /nosuch|requested export is not available|No such file/i.test(error.stderr),
  )
})

test('nbdcopy copies an image in and out, over TCP and the UNIX socket, byte for byte', async () => {
  const image = new Uint8Array(64 * MIB)
  new Prng(1).fill(image.subarray(0, 20 * MIB))
  new Prng(2).fill(image.subarray(40 * MIB + 512, 41 * MIB))
  await writeFile(join(dir, 'in.img'), image)
  await run('nbdcopy', [join(dir, 'in.img'), uri('big')], options)
  await run('nbdcopy', [`nbd+unix:///big?socket=${join(dir, 'nbd.sock')}`, join(dir, 'out.img')], options)
  const copied = await readFile(join(dir, 'out.img'))
  assert.ok(copied.subarray(0, image.length).equals(Buffer.from(image.buffer)))
})

test('fio verifies what it wrote, 4 KiB random at depth 32', async () => {
  const { stdout } = await run(
    'fio',
    [
      '--name=v',
      '--ioengine=nbd',
      `--uri=${uri('big')}`,
      '--rw=randwrite',
      '--bs=4k',
      '--iodepth=32',
      '--size=32m',
      '--verify=crc32c',
      '--do_verify=1',
      '--output-format=json',
    ],
    options,
  )
  const job = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0]
  assert.equal(job.error, 0)
})

test('fio verifies mixed block sizes that cross blocks and pages', async () => {
  const { stdout } = await run(
    'fio',
    [
      '--name=v',
      '--ioengine=nbd',
      `--uri=${uri('big')}`,
      '--rw=randwrite',
      '--bsrange=512-3m',
      '--bs_unaligned=0',
      '--blockalign=512',
      '--iodepth=8',
      '--size=96m',
      '--io_size=96m',
      '--verify=crc32c',
      '--do_verify=1',
      '--output-format=json',
    ],
    options,
  )
  assert.equal(JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0].error, 0)
})

test('qemu-io: sub-page writes, zeroes, discard and flush read back as written', async () => {
  const commands = [
    'write -P 17 0 64k',
    'write -P 18 512 512',
    'write -P 19 4194304 1M',
    'write -z 8192 12800',
    'discard 65536 8192',
    'flush',
    'read -P 17 0 512',
    'read -P 18 512 512',
    'read -P 17 1024 7168',
    'read -P 0 8192 12800',
    'read -P 17 20992 44544',
    'read -P 19 4194304 1M',
  ]
  const { stdout } = await run('qemu-io', ['-f', 'raw', uri('small'), ...commands.flatMap((c) => ['-c', c])], options)
  assert.doesNotMatch(stdout, /verification failed|error/i)
})

test('a misaligned request gets EINVAL, one beyond the end ENOSPC or EINVAL, and the connection goes on', async () => {
  const script = `
h.set_strict_mode(0)
h.connect_uri("${uri('odd')}")
def expect(errno, f):
    try:
        f()
    except nbd.Error as e:
        assert e.errno == errno, (e.errno, errno)
    else:
        raise Exception("no error")
expect("EINVAL", lambda: h.pread(100, 0))
expect("EINVAL", lambda: h.pread(512, 7))
expect("EINVAL", lambda: h.pwrite(b"x" * 513, 0))
expect("ENOSPC", lambda: h.pwrite(b"x" * 1024, h.get_size() - 512))
expect("EINVAL", lambda: h.pread(1024, h.get_size() - 512))
h.pwrite(b"y" * 512, h.get_size() - 512)
assert h.pread(512, h.get_size() - 512) == b"y" * 512
h.pwrite(b"z" * (2 * 1024 * 1024), 512, nbd.CMD_FLAG_FUA)
assert h.pread(2 * 1024 * 1024, 512) == bytearray(b"z" * (2 * 1024 * 1024))
h.flush()
`
  await run('nbdsh', ['-c', script], { ...options, env: { ...process.env, PATH: '/usr/bin:/bin' } })
})

test('a read-only volume refuses writes with EPERM', async () => {
  const script = `
h.set_strict_mode(0)
h.connect_uri("${uri('fixed')}")
try:
    h.pwrite(b"x" * 512, 0)
except nbd.Error as e:
    assert e.errno == "EPERM", e.errno
else:
    raise Exception("no error")
assert h.pread(512, 0) == bytearray(512)
`
  await run('nbdsh', ['-c', script], { ...options, env: { ...process.env, PATH: '/usr/bin:/bin' } })
})

test('requests of 32 MiB work, larger ones are refused', async () => {
  const script = `
h.set_strict_mode(0)
h.connect_uri("${uri('big')}")
data = bytes(range(256)) * (32 * 4096)
assert len(data) == 32 * 1024 * 1024
h.pwrite(data, 4096 + 512)
assert h.pread(len(data), 4096 + 512) == data
`
  await run('nbdsh', ['-c', script], { ...options, env: { ...process.env, PATH: '/usr/bin:/bin' } })
})

async function dial(): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  await once(socket, 'connect')
  return socket
}

async function ended(socket: Socket): Promise<void> {
  socket.resume()
  if (socket.closed) return
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('the server kept the connection')), 15_000)
    socket.on('close', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}

/** A connection in the transmission phase of a volume, by NBD_OPT_EXPORT_NAME; what it is told about the volume, and what comes later. */
async function opened(name: string): Promise<{ socket: Socket; flags: number; received: () => Buffer; until: (bytes: number) => Promise<Buffer> }> {
  const socket = connect({ host: '127.0.0.1', port })
  const chunks: Buffer[] = []
  let count = 0
  socket.on('data', (chunk) => {
    chunks.push(chunk)
    count += chunk.length
  })
  socket.on('error', () => {})
  const received = () => Buffer.concat(chunks)
  const until = async (bytes: number) => {
    while (count < bytes && !socket.closed) await new Promise((resolve) => setTimeout(resolve, 5))
    return received()
  }
  await until(18)
  const option = Buffer.alloc(20)
  option.writeUInt32BE(3, 0)
  option.write('IHAVEOPT', 4)
  option.writeUInt32BE(1, 12)
  option.writeUInt32BE(name.length, 16)
  socket.write(Buffer.concat([option, Buffer.from(name)]))
  await until(28)
  const flags = received().readUInt16BE(26)
  chunks.length = 0
  count = 0
  return { socket, flags, received, until }
}

function request(type: number, offsetBytes: number, lengthBytes: number, cookie = 0): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32BE(0x25609513, 0)
  bytes.writeUInt16BE(type, 6)
  bytes.writeUInt32BE(cookie, 12)
  bytes.writeBigUInt64BE(BigInt(offsetBytes), 16)
  bytes.writeUInt32BE(lengthBytes, 24)
  return bytes
}

test('a refused write is answered when all of it has come', { timeout: 60_000 }, async () => {
  const client = await opened('small')
  client.socket.write(Buffer.concat([request(1, 8 * MIB, 16 * MIB, 1), Buffer.alloc(8 * MIB)]))
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.equal(client.received().length, 0)
  client.socket.write(Buffer.concat([Buffer.alloc(8 * MIB), request(0, 0, 512, 2)]))
  const replies = await client.until(32 + 512)
  assert.deepEqual([replies.readUInt32BE(4), replies.readUInt32BE(12)], [28, 1])
  assert.deepEqual([replies.readUInt32BE(20), replies.readUInt32BE(28)], [0, 2])
  const half = await opened('small')
  half.socket.write(Buffer.concat([request(1, 8 * MIB, 16 * MIB, 1), Buffer.alloc(8 * MIB)]))
  half.socket.end()
  await ended(half.socket)
  client.socket.destroy()
})

test('a client that reads no replies does not keep others waiting, however much it asks for', { timeout: 60_000 }, async () => {
  const greedy = await Promise.all([opened('big'), opened('big')])
  for (const { socket } of greedy) {
    socket.pause()
    socket.write(Buffer.concat(Array.from({ length: 300 }, (_, i) => request(0, (i % 256) * MIB, MIB))))
  }
  await new Promise((resolve) => setTimeout(resolve, 500))
  const modest = await opened('big')
  modest.socket.write(Buffer.concat([request(0, 0, 4 * MIB), request(0, MIB, 4096)]))
  await modest.until(16 + 4 * MIB + 16 + 4096)
  for (const { socket } of greedy) socket.destroy()
  modest.socket.destroy()
})

test('a client that reads late gets all of it, 300 requests in one go', { timeout: 60_000 }, async () => {
  const late = await opened('big')
  late.socket.pause()
  late.socket.write(Buffer.concat(Array.from({ length: 300 }, (_, i) => request(0, (i % 256) * MIB, 256 * 1024))))
  await new Promise((resolve) => setTimeout(resolve, 200))
  late.socket.resume()
  await late.until(300 * (16 + 256 * 1024))
  late.socket.destroy()
})

test('what a client has asked for before it says goodbye is done and answered, then the connection is closed', { timeout: 60_000 }, async () => {
  const client = await opened('big')
  const closed = once(client.socket, 'close')
  const payload = Buffer.alloc(30 * MIB, 0x5e)
  client.socket.write(Buffer.concat([request(1, 9 * MIB, payload.length, 1), payload, request(3, 0, 0, 2), request(2, 0, 0)]))
  await closed
  const replies = client.received()
  assert.equal(replies.length, 32)
  assert.deepEqual([replies.readUInt32BE(4), replies.readUInt32BE(20)], [0, 0])
  assert.deepEqual([replies.readUInt32BE(12), replies.readUInt32BE(28)].sort(), [1, 2])
  const after = await opened('big')
  after.socket.write(request(0, 9 * MIB, payload.length))
  assert.ok((await after.until(16 + payload.length)).subarray(16).equals(payload))
  after.socket.destroy()
})

test('reads in one piece on demand are offered with structured replies only', async () => {
  const plain = await opened('small')
  plain.socket.destroy()
  assert.equal(plain.flags & 0x80, 0)
  const { stdout } = await run('nbdinfo', ['--json', uri('small')], options)
  assert.equal(JSON.parse(stdout).exports[0].can_df, true)
})

test('no descriptor left for a client: said once, and it is served when there is one again', { timeout: 60_000 }, async () => {
  const scarce = spawn('sh', ['-c', 'ulimit -n 48; exec "$@"', 'sh', process.execPath, SERVER, `v:${MIB}`], { stdio: ['ignore', 'pipe', 'pipe'] })
  try {
    let said = ''
    scarce.stderr.on('data', (chunk) => {
      said += chunk
    })
    const [line] = await once(scarce.stdout, 'data')
    const at = { host: '127.0.0.1', port: JSON.parse(String(line)).port }
    const idle = Array.from({ length: 48 }, () => connect(at).on('error', () => {}))
    while (!said.includes('descriptors')) await new Promise((resolve) => setTimeout(resolve, 10))
    await new Promise((resolve) => setTimeout(resolve, 300))
    assert.equal(said.match(/descriptors/g)?.length, 1)
    for (const socket of idle) socket.destroy()
    const { stdout } = await run('nbdinfo', ['--size', `nbd://127.0.0.1:${at.port}/v`], options)
    assert.equal(stdout.trim(), String(MIB))
  } finally {
    scarce.kill('SIGKILL')
  }
})

test('garbage, oversized lengths and half-open peers cost only their own connection', async () => {
  const random = new Uint8Array(4096)
  new Prng(9).fill(random)
  for (const bytes of [random, Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from('IHAVEOPT'), Buffer.from([0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff])])]) {
    const socket = await dial()
    socket.write(bytes)
    await ended(socket)
  }
  const halfOpen = await dial()
  // the name's length inside the option is a lie: refused, the connection goes on
  halfOpen.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from('IHAVEOPT'), Buffer.from([0, 0, 0, 7, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0xf0, 0, 0])]))
  await run('nbdinfo', ['--size', uri('small')], options)
  halfOpen.destroy()
})

test('one connection more than max_connections is told so, and there is room again when one leaves', async () => {
  const idle = await Promise.all(Array.from({ length: 12 }, dial))
  await new Promise((resolve) => setTimeout(resolve, 200))
  await assert.rejects(run('nbdinfo', ['--size', uri('small')], options), (error: { stderr: string }) => /policy/.test(error.stderr))
  await assert.rejects(run('qemu-img', ['info', uri('small')], options), (error: { stderr: string }) => /max_connections/.test(error.stderr))
  for (const socket of idle) socket.destroy()
  await new Promise((resolve) => setTimeout(resolve, 200))
  const { stdout } = await run('nbdinfo', ['--size', uri('small')], options)
  assert.equal(stdout.trim(), String(8 * MIB))
  assert.equal(stderr.join('').match(/max_connections/g)?.length, 1, 'logged once')
})
