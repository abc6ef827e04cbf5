import assert from 'node:assert/strict'
import { closeSync, copyFileSync, mkdirSync, mkdtempSync, openSync, renameSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { crc32c } from '../base/crc32c.ts'
import { MiB } from '../base/units.ts'
import { FORMAT_VERSION, SUPERBLOCK_MAGIC, Superblock } from '../store/layout.ts'
import type { DeviceConfig } from './config.ts'
import { findDisks, overcommitted, rememberFailed, rememberFormatted, replaced } from './disks.ts'

function playground(t: TestContext) {
  const dir = mkdtempSync(join(tmpdir(), 'xsan-disks-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const device: DeviceConfig = { path: join(dir, 'disk'), type: 'ssd', role: 'capacity', size: 64 * MiB }
  let drawn = 0
  const find = async () => (await findDisks([device], dir, () => `uuid-${++drawn}`)).disks
  const blank = () => {
    writeFileSync(device.path, '')
    truncateSync(device.path, 64 * MiB)
  }
  return { dir, device, find, blank }
}

test('a blank disk keeps its uuid over restarts until it is formatted', async (t) => {
  const { dir, find, blank } = playground(t)
  const [first] = await find()
  assert.deepEqual([first?.uuid, first?.formatted, first?.createBytes], ['uuid-1', false, 64 * MiB])
  assert.equal((await find())[0]?.uuid, 'uuid-1', 'the node was not admitted yet')
  blank()
  assert.equal((await find())[0]?.uuid, 'uuid-1')
  rememberFormatted(await find(), dir, () => true)
  const found = await find()
  assert.deepEqual([found[0]?.uuid, replaced(found)], ['uuid-1', []], 'it could not be formatted')
})

test('a blank disk, or none, where a formatted one was, is another disk, and that is said', async (t) => {
  const { dir, device, find, blank } = playground(t)
  assert.deepEqual(replaced(await find()), [])
  rememberFormatted(await find(), dir)
  assert.deepEqual(replaced(await find()), [`${device.path} is not there, where disk uuid-1 of this node was: a new disk is made there`])
  assert.equal((await find())[0]?.uuid, 'uuid-2', 'the file is gone')
  rememberFormatted(await find(), dir)
  blank()
  const found = await find()
  assert.deepEqual(replaced(found), [`${device.path} is blank, where disk uuid-2 of this node was: a new disk is made there`])
  const [swapped] = found
  assert.deepEqual([swapped?.uuid, swapped?.formatted], ['uuid-3', false])
  assert.equal((await find())[0]?.uuid, 'uuid-3', 'this one in turn keeps its uuid until it is formatted')
})

test('a damaged superblock keeps the uuid it had: the mount decides', async (t) => {
  const { dir, device, find } = playground(t)
  rememberFormatted(await find(), dir)
  const page = Buffer.alloc(64 * MiB)
  page.writeUInt32LE(SUPERBLOCK_MAGIC.lo, 0)
  page.writeUInt32LE(SUPERBLOCK_MAGIC.hi, 4)
  writeFileSync(device.path, page)
  assert.deepEqual([(await find())[0]?.uuid, (await find())[0]?.formatted], ['uuid-1', true])
})

/** One formatted disk of this node, as a file with both superblocks, both valid unless given otherwise. */
async function formatted(t: TestContext) {
  const at = playground(t)
  const { dir, device } = at
  const uuid = '0102030405060708090a0b0c0d0e0f10'
  const page = Buffer.alloc(4096)
  const superblock = (diskUuid: string) => {
    Superblock.encode(new DataView(page.buffer, page.byteOffset), 0, {
      ...Superblock.decode(new DataView(new ArrayBuffer(4096)), 0),
      magic: SUPERBLOCK_MAGIC,
      formatVersion: FORMAT_VERSION,
      diskUuid: Buffer.from(diskUuid, 'hex'),
    })
    Superblock.set.crc(new DataView(page.buffer, page.byteOffset), 0, 0)
    Superblock.set.crc(new DataView(page.buffer, page.byteOffset), 0, crc32c(page))
    return page
  }
  at.blank()
  const write = (bytes: Uint8Array, end: 'first' | 'last') => {
    const fd = openSync(device.path, 'r+')
    writeSync(fd, bytes, 0, bytes.length, end === 'first' ? 0 : 64 * MiB - 4096)
    closeSync(fd)
  }
  write(superblock(uuid), 'first')
  write(superblock(uuid), 'last')
  const [disk] = await at.find()
  rememberFormatted([disk!], dir)
  return { ...at, write, uuid: disk!.uuid, superblock }
}

test('a disk of this node whose first page is lost is the same disk: its second superblock says so, and it is never formatted', async (t) => {
  for (const lost of [Buffer.alloc(4096), Buffer.alloc(4096, 7)]) {
    const { find, write, uuid } = await formatted(t)
    write(lost, 'first')
    const [disk] = await find()
    assert.deepEqual([disk?.uuid, disk?.formatted, disk?.broken], [uuid, true, undefined])
  }
})

test('a disk of this node that holds something else at both ends is broken, not foreign: the node goes on without it', async (t) => {
  const { find, write, uuid } = await formatted(t)
  write(Buffer.alloc(4096, 7), 'first')
  write(Buffer.alloc(4096, 7), 'last')
  const [disk] = await find()
  assert.deepEqual([disk?.uuid, disk?.formatted, disk?.broken?.status], [uuid, true, 'DISK_CORRUPTED'])
  assert.match(disk!.broken!.message, /storage\.devices\[0\]: .* held a disk of this node, and holds something else now/)
  assert.match(disk!.broken!.nextStep, /only then: remove it if it is a file, zero its first and its last MiB/)
})

test('what the operator has zeroed at both ends is a new disk', async (t) => {
  const { find, write, uuid } = await formatted(t)
  write(Buffer.alloc(4096), 'first')
  write(Buffer.alloc(4096), 'last')
  assert.notEqual((await find())[0]?.uuid, uuid)
  assert.equal((await find())[0]?.formatted, false)
})

test('what begins behind the first page, or lies at the end, is foreign as well: nothing is formatted over it', async (t) => {
  // btrfs, ReiserFS and GFS2 begin at 64 KiB; RAID metadata lies in the last pages
  for (const offset of [64 * 1024 + 64, MiB - 1, 64 * MiB - 64 * 1024, 64 * MiB - 8192]) {
    const { find, blank, device } = playground(t)
    blank()
    const fd = openSync(device.path, 'r+')
    writeSync(fd, Buffer.from('_BHRfS_M'), 0, 1, offset)
    closeSync(fd)
    await assert.rejects(find(), { status: 'DISK_FOREIGN', message: /storage\.devices\[0\]: .* holds something that is not XSAN's/ }, `${offset}`)
  }
})

test('over a disk of this node, it makes that disk broken', async (t) => {
  const { find, write, device, uuid } = await formatted(t)
  write(Buffer.alloc(4096), 'first')
  write(Buffer.alloc(4096), 'last')
  const fd = openSync(device.path, 'r+')
  writeSync(fd, Buffer.from('_BHRfS_M'), 0, 8, 64 * 1024 + 64)
  closeSync(fd)
  const [disk] = await find()
  assert.deepEqual([disk?.uuid, disk?.formatted, disk?.broken?.status], [uuid, true, 'DISK_CORRUPTED'])
})

test('a power loss between the two superblocks of a new disk: it is mounted by the one that is there', async (t) => {
  const { dir, find, write, blank, superblock, device } = await formatted(t)
  const fresh = 'f'.repeat(32)
  blank()
  writeFileSync(join(dir, 'disks.json'), JSON.stringify({ [device.path]: { uuid: 'ffffffff-ffff-ffff-ffff-ffffffffffff', formatted: false } }))
  write(superblock(fresh), 'last')
  assert.deepEqual([(await find())[0]?.uuid, (await find())[0]?.formatted], ['ffffffff-ffff-ffff-ffff-ffffffffffff', true])
})

test('a device of this node that is gone keeps no node from starting, and is itself again when it is back; one never seen does', async (t) => {
  const { dir, device, uuid } = await formatted(t)
  const gone = { path: device.path, type: device.type, role: device.role }
  const find = (devices: readonly DeviceConfig[]) => findDisks(devices, dir, () => 'new')
  renameSync(device.path, `${device.path}.away`)
  const without = await find([gone])
  assert.deepEqual(without.disks, [])
  assert.match(without.leftOut[0]!.message, /storage\.devices\[0\]: there is no /)
  rememberFormatted(without.disks, dir)
  renameSync(`${device.path}.away`, device.path)
  assert.deepEqual([(await find([gone])).disks[0]?.uuid, (await find([gone])).leftOut], [uuid, []])
  await assert.rejects(find([{ ...gone, path: join(dir, 'never') }]), { status: 'DISK_NOT_FOUND' })
})

test('a disk that has failed, or was not there, is known to have been away until it has been mounted again', async (t) => {
  const { dir, device } = await formatted(t)
  const gone = { path: device.path, type: device.type, role: device.role }
  const find = async (given: DeviceConfig = gone) => (await findDisks([given], dir, () => 'new')).disks
  const isAway = async () => (await find())[0]?.wasAway === true
  const mounted = async () => rememberFormatted(await find(), dir)
  assert.equal(await isAway(), false)
  rememberFailed((await find())[0]!, dir)
  assert.deepEqual([await isAway(), await isAway()], [true, true])
  rememberFormatted(await find(), dir, () => true)
  assert.equal(await isAway(), true, 'it could not be mounted')
  await mounted()
  assert.equal(await isAway(), false)
  // pulled out, missed by one process, and back
  renameSync(device.path, `${device.path}.away`)
  rememberFormatted(await find(), dir)
  renameSync(`${device.path}.away`, device.path)
  assert.deepEqual([await isAway(), await isAway()], [true, true])
  await mounted()
  assert.equal(await isAway(), false)
  rememberFailed((await find())[0]!, dir)
  renameSync(device.path, `${device.path}.moved`)
  assert.equal((await find({ ...gone, path: `${device.path}.moved` }))[0]?.wasAway, true)
})

test('a disk of this node that does not answer keeps no node from starting, unless there are so many that nothing else would get on; one never seen does', async (t) => {
  const { dir, device, uuid } = await formatted(t)
  const never = new Promise<never>(() => {})
  const find = (devices: readonly DeviceConfig[], isHung: (path: string) => boolean, hungMs = 50) =>
    findDisks(devices, dir, () => 'new', { hungMs, openFile: (path) => (isHung(path) ? never : open(path)) })
  const without = await find([device], () => true)
  assert.deepEqual([without.disks, without.leftOut[0]?.status], [[], 'READ_FAILED'])
  assert.match(without.leftOut[0]!.message, /storage\.devices\[0\]: .* has not answered for 50 ms/)
  assert.equal((await find([device], () => false, 20_000)).disks[0]?.uuid, uuid, 'it is remembered')

  const others = [1, 2, 3, 4].map((n) => ({ ...device, path: join(dir, `disk ${n}`) }))
  for (const { path } of others) copyFileSync(device.path, path)
  await assert.rejects(
    find(others.slice(0, 1), () => true),
    { status: 'READ_FAILED' },
  )
  rememberFormatted(
    others.map(({ path }, n) => ({ path, uuid: `of ${n}`, type: '', role: '', capacityBytes: 0, formatted: true })),
    dir,
  )
  const one = await find([...others.slice(0, 3), device], (path) => path !== device.path, 500)
  assert.deepEqual([one.disks.length, one.leftOut.length], [1, 3])
  await assert.rejects(
    find(others, () => true),
    { status: 'READ_FAILED' },
  )
})

test('a disk of this node of which one superblock cannot be read is mounted by the other; with neither it is left out', async (t) => {
  const { dir, device, uuid } = await formatted(t)
  const find = (...bad: number[]) => {
    const openFile = async (path: string) => {
      const file = await open(path)
      const read = ((bytes: Uint8Array, from: number, length: number, offset: number) =>
        bad.includes(offset)
          ? Promise.reject(Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO' }))
          : file.read(bytes, from, length, offset)) as never
      return { read, stat: () => file.stat(), close: () => file.close() }
    }
    return findDisks([device], dir, () => 'new', { openFile: openFile as never })
  }
  const last = 64 * MiB - 4096
  for (const bad of [0, last]) assert.deepEqual([(await find(bad)).disks[0]?.uuid, (await find(bad)).disks[0]?.formatted], [uuid, true])
  const { disks, leftOut } = await find(0, last)
  assert.deepEqual([disks, leftOut[0]?.status], [[], 'READ_FAILED'])
  rmSync(join(dir, 'disks.json'))
  await assert.rejects(find(0), { status: 'READ_FAILED' })
})

test('a damaged superblock of a disk whose name is not known: a node that has run goes on without it, a new one does not start', async (t) => {
  const { dir, device, write, superblock, uuid } = await formatted(t)
  rmSync(join(dir, 'disks.json'))
  const damaged = Buffer.from(superblock(uuid.replaceAll('-', '')))
  damaged[100]! ^= 1
  write(damaged, 'first')
  const find = () => findDisks([device], dir, () => 'new')
  await assert.rejects(find(), { status: 'DISK_CORRUPTED' })
  mkdirSync(join(dir, 'meta'))
  const { disks, leftOut } = await find()
  assert.deepEqual([disks, leftOut[0]?.status], [[], 'DISK_CORRUPTED'])
})

test('a file that its file system can never hold is warned of, one that it can is not', () => {
  const disk = (capacityBytes: number) => ({
    uuid: '',
    path: join(tmpdir(), `xsan-none-${process.pid}`),
    type: 'ssd',
    role: 'capacity',
    capacityBytes,
    formatted: false,
  })
  assert.deepEqual(overcommitted([disk(4096)]), [])
  assert.match(overcommitted([disk(2 ** 52)])[0]!, /may grow to 4PiB, but its file system has .* left/)
})
