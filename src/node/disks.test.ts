import assert from 'node:assert/strict'
import { closeSync, mkdirSync, mkdtempSync, openSync, renameSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { crc32c } from '../base/crc32c.ts'
import { MiB } from '../base/units.ts'
import { FORMAT_VERSION, SUPERBLOCK_MAGIC, Superblock } from '../store/layout.ts'
import type { DeviceConfig } from './config.ts'
import { findDisks, overcommitted, rememberFormatted, replaced } from './disks.ts'

function playground(t: TestContext) {
  const dir = mkdtempSync(join(tmpdir(), 'xsan-disks-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const device: DeviceConfig = { path: join(dir, 'disk'), type: 'ssd', role: 'capacity', size: 64 * MiB }
  let drawn = 0
  const find = () => findDisks([device], dir, () => `uuid-${++drawn}`).disks
  const blank = () => {
    writeFileSync(device.path, '')
    truncateSync(device.path, 64 * MiB)
  }
  return { dir, device, find, blank }
}

test('a blank disk keeps its uuid over restarts until it is formatted', (t) => {
  const { find, blank } = playground(t)
  const [first] = find()
  assert.deepEqual([first?.uuid, first?.formatted, first?.createBytes], ['uuid-1', false, 64 * MiB])
  assert.equal(find()[0]?.uuid, 'uuid-1', 'the node was not admitted yet')
  blank()
  assert.equal(find()[0]?.uuid, 'uuid-1')
})

test('a blank disk, or none, where a formatted one was, is another disk, and that is said', (t) => {
  const { dir, device, find, blank } = playground(t)
  assert.deepEqual(replaced(find()), [])
  rememberFormatted(find(), dir)
  assert.deepEqual(replaced(find()), [`${device.path} is not there, where disk uuid-1 of this node was: a new disk is made there`])
  assert.equal(find()[0]?.uuid, 'uuid-2', 'the file is gone')
  rememberFormatted(find(), dir)
  blank()
  const found = find()
  assert.deepEqual(replaced(found), [`${device.path} is blank, where disk uuid-2 of this node was: a new disk is made there`])
  const [swapped] = found
  assert.deepEqual([swapped?.uuid, swapped?.formatted], ['uuid-3', false])
  assert.equal(find()[0]?.uuid, 'uuid-3', 'this one in turn keeps its uuid until it is formatted')
})

test('a damaged superblock keeps the uuid it had: the mount decides', (t) => {
  const { dir, device, find } = playground(t)
  rememberFormatted(find(), dir)
  const page = Buffer.alloc(64 * MiB)
  page.writeUInt32LE(SUPERBLOCK_MAGIC.lo, 0)
  page.writeUInt32LE(SUPERBLOCK_MAGIC.hi, 4)
  writeFileSync(device.path, page)
  assert.deepEqual([find()[0]?.uuid, find()[0]?.formatted], ['uuid-1', true])
})

/** One formatted disk of this node, as a file with both superblocks, both valid unless given otherwise. */
function formatted(t: TestContext) {
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
  const [disk] = at.find()
  rememberFormatted([disk!], dir)
  return { ...at, write, uuid: disk!.uuid, superblock }
}

test('a disk of this node whose first page is lost is the same disk: its second superblock says so, and it is never formatted', (t) => {
  for (const lost of [Buffer.alloc(4096), Buffer.alloc(4096, 7)]) {
    const { find, write, uuid } = formatted(t)
    write(lost, 'first')
    const [disk] = find()
    assert.deepEqual([disk?.uuid, disk?.formatted, disk?.broken], [uuid, true, undefined])
  }
})

test('a disk of this node that holds something else at both ends is broken, not foreign: the node goes on without it', (t) => {
  const { find, write, uuid } = formatted(t)
  write(Buffer.alloc(4096, 7), 'first')
  write(Buffer.alloc(4096, 7), 'last')
  const [disk] = find()
  assert.deepEqual([disk?.uuid, disk?.formatted, disk?.broken?.status], [uuid, true, 'DISK_CORRUPTED'])
  assert.match(disk!.broken!.message, /storage\.devices\[0\]: .* held a disk of this node, and holds something else now/)
  assert.match(disk!.broken!.nextStep, /only then: remove it if it is a file, zero its first and its last MiB/)
})

test('what the operator has zeroed at both ends is a new disk', (t) => {
  const { find, write, uuid } = formatted(t)
  write(Buffer.alloc(4096), 'first')
  write(Buffer.alloc(4096), 'last')
  assert.notEqual(find()[0]?.uuid, uuid)
  assert.equal(find()[0]?.formatted, false)
})

test('what begins behind the first page, or lies at the end, is foreign as well: nothing is formatted over it', (t) => {
  // btrfs, ReiserFS and GFS2 begin at 64 KiB; RAID metadata lies in the last pages
  for (const offset of [64 * 1024 + 64, MiB - 1, 64 * MiB - 64 * 1024, 64 * MiB - 8192]) {
    const { find, blank, device } = playground(t)
    blank()
    const fd = openSync(device.path, 'r+')
    writeSync(fd, Buffer.from('_BHRfS_M'), 0, 1, offset)
    closeSync(fd)
    assert.throws(find, { status: 'DISK_FOREIGN', message: /storage\.devices\[0\]: .* holds something that is not XSAN's/ }, `${offset}`)
  }
})

test('over a disk of this node, it makes that disk broken', (t) => {
  const { find, write, device, uuid } = formatted(t)
  write(Buffer.alloc(4096), 'first')
  write(Buffer.alloc(4096), 'last')
  const fd = openSync(device.path, 'r+')
  writeSync(fd, Buffer.from('_BHRfS_M'), 0, 8, 64 * 1024 + 64)
  closeSync(fd)
  const [disk] = find()
  assert.deepEqual([disk?.uuid, disk?.formatted, disk?.broken?.status], [uuid, true, 'DISK_CORRUPTED'])
})

test('a power loss between the two superblocks of a new disk: it is mounted by the one that is there', (t) => {
  const { dir, find, write, blank, superblock, device } = formatted(t)
  const fresh = 'f'.repeat(32)
  blank()
  writeFileSync(join(dir, 'disks.json'), JSON.stringify({ [device.path]: { uuid: 'ffffffff-ffff-ffff-ffff-ffffffffffff', formatted: false } }))
  write(superblock(fresh), 'last')
  assert.deepEqual([find()[0]?.uuid, find()[0]?.formatted], ['ffffffff-ffff-ffff-ffff-ffffffffffff', true])
})

test('a device of this node that is gone keeps no node from starting, and is itself again when it is back; one never seen does', (t) => {
  const { dir, device, uuid } = formatted(t)
  const gone = { path: device.path, type: device.type, role: device.role }
  const find = (devices: readonly DeviceConfig[]) => findDisks(devices, dir, () => 'new')
  renameSync(device.path, `${device.path}.away`)
  const without = find([gone])
  assert.deepEqual(without.disks, [])
  assert.match(without.leftOut[0]!.message, /storage\.devices\[0\]: there is no /)
  rememberFormatted(without.disks, dir)
  renameSync(`${device.path}.away`, device.path)
  assert.deepEqual([find([gone]).disks[0]?.uuid, find([gone]).leftOut], [uuid, []])
  assert.throws(() => find([{ ...gone, path: join(dir, 'never') }]), { status: 'DISK_NOT_FOUND' })
})

test('a damaged superblock of a disk whose name is not known: a node that has run goes on without it, a new one does not start', (t) => {
  const { dir, device, write, superblock, uuid } = formatted(t)
  rmSync(join(dir, 'disks.json'))
  const damaged = Buffer.from(superblock(uuid.replaceAll('-', '')))
  damaged[100]! ^= 1
  write(damaged, 'first')
  const find = () => findDisks([device], dir, () => 'new')
  assert.throws(find, { status: 'DISK_CORRUPTED' })
  mkdirSync(join(dir, 'meta'))
  const { disks, leftOut } = find()
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
