import assert from 'node:assert/strict'
import test from 'node:test'
import { MemoryBlockClient } from '../../test/support/memory-block-client.ts'
import type { VolumeNumber } from '../base/ids.ts'
import { Prng } from '../base/prng.ts'
import { WriteFlag } from '../base/request.ts'
import { Status } from '../base/status.ts'
import { BLOCK_BYTES, MiB, PAGE_BYTES, SECTOR_BYTES } from '../base/units.ts'
import type { PageNumber } from '../env/arena.ts'
import { SimHost } from '../env/sim/host.ts'
import { SimIoQueue } from '../env/sim/ioqueue.ts'
import { SimNetwork } from '../env/sim/network.ts'
import { World } from '../env/sim/world.ts'
import { VolumeLayer } from './volume.ts'

const SIZE_BYTES = 12 * MiB + 1536

function make(operationsMax?: number) {
  const world = new World({ seed: 1 })
  const host = new SimHost(new SimNetwork(world), { name: 'h', address: '10.0.0.1', bootOffsetMs: 0 })
  const queue = new SimIoQueue({ process: host.start('xsand'), name: 'q' })
  queue.runReactor(() => queue.turn(0))
  const client = new MemoryBlockClient(queue)
  if (operationsMax !== undefined) client.operationsMax = operationsMax
  const volume = client.add('v', SIZE_BYTES)
  const layer = new VolumeLayer(client, queue.arena)
  /** Runs one operation on a buffer of `pages` and gives its status. */
  const operate = async (pages: number, start: (page: number, done: (row: number, status: number) => void) => void): Promise<number> => {
    const page = queue.arena.alloc(pages * PAGE_BYTES)
    assert.ok(page >= 0)
    let status = -1
    start(page, (row, s) => {
      assert.equal(row, 77)
      assert.equal(status, -1, 'answered once')
      status = s
    })
    assert.equal(status, -1, 'never inside the call')
    assert.ok(await world.run(() => status >= 0, 10_000))
    queue.arena.free(page as PageNumber)
    return status
  }
  return { world, queue, client, volume, layer, operate }
}

const touched = (offset: number, length: number) => Math.ceil(((offset % PAGE_BYTES) + length) / PAGE_BYTES)

test('random reads, writes, zeroes and trims of any size and place agree with an array of bytes', async () => {
  const m = make()
  const prng = new Prng(7)
  const model = new Uint8Array(SIZE_BYTES)
  const bytes = m.queue.arena.bytes
  for (let i = 0; i < 300; i++) {
    const big = prng.chance(0.3)
    const offset = prng.below(SIZE_BYTES / SECTOR_BYTES) * SECTOR_BYTES
    const length = Math.min(SIZE_BYTES - offset, prng.between(1, big ? 12_000 : 24) * SECTOR_BYTES)
    const delta = offset % PAGE_BYTES
    const pages = touched(offset, length)
    const kind = prng.below(4)
    const page = m.queue.arena.alloc(pages * PAGE_BYTES)
    assert.ok(page >= 0)
    let status = -1
    const done = (_row: number, s: number) => {
      status = s
    }
    const value = prng.between(1, 255)
    if (kind === 0) m.layer.read(m.volume, offset, length, page, done, 0)
    else if (kind === 1) {
      bytes.fill(value, page * PAGE_BYTES + delta, page * PAGE_BYTES + delta + length)
      m.layer.write(m.volume, offset, length, page, 0, done, 0)
      model.fill(value, offset, offset + length)
    } else if (kind === 2) {
      m.layer.zero(m.volume, offset, length, m.layer.zeroScratchPages(offset, length) > 0 ? m.queue.arena.alloc(2 * PAGE_BYTES) : -1, 0, done, 0)
      model.fill(0, offset, offset + length)
    } else if (m.layer.trim(m.volume, offset, length, 0, done, 0))
      model.fill(0, Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES, Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES)
    else status = Status.SUCCESS
    assert.ok(await m.world.run(() => status >= 0, 10_000))
    assert.equal(status, Status.SUCCESS)
    if (kind === 0) {
      const from = page * PAGE_BYTES + delta
      assert.ok(Buffer.from(bytes.buffer, bytes.byteOffset + from, length).equals(Buffer.from(model.buffer, offset, length)), `read ${offset}+${length}`)
    }
    m.queue.arena.free(page as PageNumber)
  }
  assert.ok(Buffer.from(m.client.volumes.get(m.volume)!.bytes.buffer).equals(Buffer.from(model.buffer)))
})

test('a request inside one block goes through in one piece, a longer one is cut at blocks and at 1 MiB', async () => {
  const { layer, volume, client, operate } = make()
  await operate(1, (page, done) => layer.read(volume, 512, 512, page, done, 77))
  assert.deepEqual(client.calls.splice(0), ['read 0:0+1'])
  await operate(1 + 512, (page, done) => layer.write(volume, BLOCK_BYTES - 512, 2 * MiB, page, 0, done, 77))
  assert.deepEqual(client.calls.splice(0), [`write 0:${BLOCK_BYTES - 512}+512`, `write 1:0+${MiB}`, `write 1:${MiB}+${MiB - 512}`])
  await operate(2, (page, done) => layer.zero(volume, 512, 2 * PAGE_BYTES, page, 0, done, 77))
  assert.deepEqual(client.calls.splice(0), ['write 0:512+3584', 'zero 0:1+1', 'write 0:8192+512'])
})

test('the first failure of a piece is the failure of the request, and it waits for the others', async () => {
  const { layer, volume, client, operate } = make()
  client.failing.set(1, Status.INSUFFICIENT_SPACE)
  assert.equal(await operate(1025, (page, done) => layer.write(volume, BLOCK_BYTES - PAGE_BYTES, BLOCK_BYTES, page, 0, done, 77)), Status.INSUFFICIENT_SPACE)
  client.failing.clear()
  assert.equal(await operate(1, (page, done) => layer.read(9 as VolumeNumber, 0, 512, page, done, 77)), Status.VOLUME_NOT_FOUND)
})

test('a write of several blocks fails that spans a loss of what was acknowledged from memory: a flush that tells of it may have been before its end', async () => {
  const { layer, volume, client, operate } = make()
  const spanning = (flags: number) =>
    operate(3, (page, done) => {
      layer.write(volume, BLOCK_BYTES - PAGE_BYTES, 2 * PAGE_BYTES, page, flags, done, 77)
      client.losses++
    })
  assert.equal(await spanning(WriteFlag.NONE), Status.WRITE_FAILED)
  assert.equal(await spanning(WriteFlag.FUA), Status.SUCCESS, 'each piece was durable before it was acknowledged')
  assert.equal(await operate(3, (page, done) => layer.write(volume, BLOCK_BYTES - PAGE_BYTES, 2 * PAGE_BYTES, page, 0, done, 77)), Status.SUCCESS)
})

test('requests of thousands of pieces never ask the block client for more than it takes at one time, and all of them end', async () => {
  const { layer, volume, client, world } = make(64)
  const ended: number[] = []
  for (let row = 0; row < layer.requestsMax; row++) assert.ok(layer.trim(volume, 512, 4096 * MiB - 512, 0, (r, status) => ended.push(r * 1000 + status), row))
  assert.ok(await world.run(() => ended.length === layer.requestsMax, 100_000))
  assert.deepEqual(
    ended.sort((a, b) => a - b),
    Array.from({ length: layer.requestsMax }, (_, row) => row * 1000 + Status.SUCCESS),
  )
  assert.equal(client.calls.length, layer.requestsMax * 1024)
})

test('nothing more is begun of a request that has failed, or whose client has gone', async () => {
  const { layer, volume, client, operate, world } = make()
  client.failing.set(2, Status.INSUFFICIENT_SPACE)
  assert.equal(await operate(1, (_, done) => assert.ok(layer.trim(volume, 0, 4096 * MiB, 0, done, 77))), Status.INSUFFICIENT_SPACE)
  assert.ok(client.calls.splice(0).length <= 32)
  client.failing.clear()
  let status = -1
  const done = (_: number, s: number) => {
    status = s
  }
  layer.trim(volume, 0, 4096 * MiB, 0, done, 77)
  layer.orphan(done, 77)
  assert.ok(await world.run(() => status >= 0, 10_000))
  assert.equal(status, Status.CONNECTION_LOST)
  assert.deepEqual(client.calls.map((call) => call.split(' ')[0]).sort(), ['orphan', ...Array(16).fill('zero')])
})

test('a volume is found by name, and seen to grow or go', () => {
  const { layer, volume } = make()
  assert.equal(layer.open('v')?.sizeBytes, SIZE_BYTES)
  assert.equal(layer.open('w'), undefined)
  assert.equal(layer.sizeBytes(volume), SIZE_BYTES)
  assert.equal(layer.sizeBytes(9 as VolumeNumber), -1)
})
