import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { MiB } from '../base/units.ts'
import { SUPERBLOCK_MAGIC } from '../store/layout.ts'
import type { DeviceConfig } from './config.ts'
import { findDisks, overcommitted, rememberFormatted } from './disks.ts'

function playground(t: TestContext) {
  const dir = mkdtempSync(join(tmpdir(), 'xsan-disks-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const device: DeviceConfig = { path: join(dir, 'disk'), type: 'ssd', role: 'capacity', size: 64 * MiB }
  let drawn = 0
  const find = () => findDisks([device], dir, () => `uuid-${++drawn}`)
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

test('a blank disk, or none, where a formatted one was, is another disk', (t) => {
  const { dir, find, blank } = playground(t)
  rememberFormatted(find(), dir)
  assert.equal(find()[0]?.uuid, 'uuid-2', 'the file is gone')
  rememberFormatted(find(), dir)
  blank()
  const [swapped] = find()
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
