/** Clients nobody here wrote, against three nodes with three copies: libnbd's tools and shell, qemu, fio, and a real ext4 image. */
import assert from 'node:assert/strict'
import { copyFileSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { after, before } from 'node:test'
import { makeDirectory, must, ROOT, removeDirectory, run, until, xsanJson } from '../support/commands.ts'
import { DevCluster } from '../support/dev-cluster.ts'

const MiB = 1024 * 1024
const TEST_MS = 120_000
let cluster: DevCluster
let dir: string

before(
  async () => {
    dir = makeDirectory()
    cluster = await DevCluster.up({ nodes: 3, replicas: 3, diskSize: '2G' })
    await cluster.createVolume('image', '128M')
    await cluster.createVolume('scratch', '256M')
  },
  { timeout: TEST_MS },
)
after(
  async () => {
    await cluster?.end()
    removeDirectory(dir)
  },
  { timeout: 60_000 },
)

test('nbdinfo shows every volume on every node, over TCP and the UNIX socket', { timeout: TEST_MS }, async () => {
  for (const { id, nbd } of cluster.nodes) {
    const { stdout } = await must('nbdinfo', ['--json', '--list', nbd])
    const names = (JSON.parse(stdout) as { exports: Array<{ 'export-name': string }> }).exports.map((of) => of['export-name'])
    assert.deepEqual(names.sort(), ['image', 'scratch'])
    assert.equal((await must('nbdinfo', ['--size', cluster.socketUri(id, 'image')])).stdout.trim(), String(128 * 1024 * 1024))
  }
})

test('an ext4 image copied in through one node comes out of another byte for byte, and e2fsck finds nothing', { timeout: TEST_MS }, async () => {
  const files = join(dir, 'files')
  mkdirSync(files)
  for (const name of ['package-lock.json', 'README.md', 'docs/ARCHITECTURE.md']) copyFileSync(join(ROOT, name), join(files, name.replace('/', '-')))
  for (let i = 0; i < 200; i++) writeFileSync(join(files, `file-${i}`), Buffer.alloc(1 + ((i * 7919) % 150_000), i))
  const image = join(dir, 'in.img')
  writeFileSync(image, '')
  truncateSync(image, 128 * 1024 * 1024)
  await must('mke2fs', ['-q', '-t', 'ext4', '-d', files, image])
  await must('nbdcopy', [image, cluster.uri('node-1', 'image')])
  const out = join(dir, 'out.img')
  await must('nbdcopy', [cluster.socketUri('node-2', 'image'), out])
  await must('cmp', [image, out])
  await must('e2fsck', ['-f', '-n', out])
  assert.ok((await cluster.assertReplicasEqual('image')) > 0)
})

test('what is discarded gives its space back, on every disk', { timeout: TEST_MS }, async () => {
  await cluster.createVolume('thin', '64M')
  const used = async () =>
    (await xsanJson<{ disks: Array<{ used_bytes: number }> }>('--server', cluster.nodes[0]!.grpc, 'disk', 'list')).disks.map((disk) => disk.used_bytes)
  const before = await used()
  const isUsed = (bytes: number) => async () => (await used()).every((now, i) => now - before[i]! === bytes)
  const io = (command: string) => must('qemu-io', ['-f', 'raw', '-c', command, '-c', 'flush', cluster.uri('node-1', 'thin')])
  await io('write -P 7 0 40M')
  await until('written', 10_000, isUsed(40 * MiB))
  await io('discard 2M 30M')
  await until('seven whole blocks less', 10_000, isUsed(12 * MiB))
  await io('write -z -u 0 40M')
  await until('nothing left', 10_000, isUsed(0))
  await must('qemu-io', ['-f', 'raw', '-c', 'read -P 0 0 64M', cluster.uri('node-3', 'thin')])
  assert.equal(await cluster.assertReplicasEqual('thin'), 0)
})

test('qemu-io writes patterns, zeroes and discards through one node and finds them through another', { timeout: TEST_MS }, async () => {
  const steps = (id: string, ...commands: string[]) =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), cluster.uri(id, 'scratch')])
  await steps(
    'node-1',
    'write -P 0x11 0 8M',
    'write -P 0x22 4190208 8192',
    'write -P 0x33 1536 512',
    'write -z 5M 1M',
    'discard 6M 1M',
    'aio_write -P 0x44 7M 64k',
    'aio_flush',
    'flush',
  )
  const { stdout } = await steps(
    'node-3',
    'read -P 0x33 1536 512',
    'read -P 0x11 2048 4k',
    'read -P 0x22 4190208 8192',
    'read -P 0 5M 1M',
    'read -P 0 6M 1M',
    'read -P 0x44 7M 64k',
  )
  assert.doesNotMatch(stdout, /verification failed/)
})

for (const [title, options] of [
  ['4 KiB random writes at depth 32', ['--bs=4k', '--iodepth=32', '--size=48m']],
  ['mixed sizes in sectors that cross pages and blocks', ['--bsrange=512-1m', '--blockalign=512', '--iodepth=8', '--size=64m', '--io_size=64m']],
] as const) {
  test(`fio verifies what it wrote: ${title}`, { timeout: TEST_MS }, async () => {
    const { stdout } = await must(
      'fio',
      [
        '--name=v',
        '--ioengine=nbd',
        `--uri=${cluster.uri('node-2', 'scratch')}`,
        '--rw=randwrite',
        '--verify=crc32c',
        '--do_verify=1',
        '--output-format=json',
        ...options,
      ],
      { cwd: dir },
    )
    const [job] = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: Array<{ error: number }> }).jobs
    assert.equal(job?.error, 0)
  })
}

test("libnbd's shell: FUA, multi-conn flush on one node covers what was written on another, block status, limits", { timeout: TEST_MS }, async () => {
  const script = `
a = nbd.NBD(); a.connect_uri("${cluster.uri('node-1', 'scratch')}")
b = nbd.NBD(); b.connect_uri("${cluster.uri('node-2', 'scratch')}")
assert a.can_multi_conn() and a.can_fua() and a.can_trim() and a.can_zero() and a.can_flush()
assert a.get_block_size(nbd.SIZE_MINIMUM) == 512
page = bytes([7]) * 4096
a.pwrite(page, 100 * 4096, nbd.CMD_FLAG_FUA)
assert b.pread(4096, 100 * 4096) == page
a.pwrite(bytes([8]) * 512, 100 * 4096 + 512)
b.flush()
assert b.pread(4096, 100 * 4096) == page[:512] + bytes([8]) * 512 + page[1024:]
b.trim(4096, 100 * 4096)
assert a.pread(4096, 100 * 4096) == bytes(4096)
big = bytes(range(256)) * (32 * 1024 * 1024 // 256)
a.pwrite(big, 64 * 1024 * 1024)
assert b.pread(len(big), 64 * 1024 * 1024) == big
a.set_strict_mode(0)
for bad in (lambda: a.pread(512, 1), lambda: a.pread(512, a.get_size()), lambda: a.pread(100, 0)):
    try:
        bad()
        raise SystemExit("accepted")
    except nbd.Error as error:
        assert error.errno == "EINVAL", error.errno
a.shutdown(); b.shutdown()
print("all good")
`
  const { code, stdout, stderr } = await run('nbdsh', ['-c', script], { env: { PATH: '/usr/bin:/bin' } })
  assert.equal(code, 0, stderr)
  assert.match(stdout, /all good/)
})
