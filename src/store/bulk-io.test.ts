import assert from 'node:assert/strict'
import test from 'node:test'
import { Bench, PATH } from '../../test/support/store-bench.ts'
import { MiB, PAGE_BYTES } from '../base/units.ts'
import { BulkIo } from './bulk-io.ts'

const PAGES = 300

/** Pages that turns of the reactor moved, most first, while 300 pages were written: 200 of them each alone, 100 side by side. */
async function pagesPerTurn(inMemory: boolean): Promise<number[]> {
  const bench = new Bench(1)
  const { handle } = bench.queue.openFile({ path: PATH, createBytes: 8 * MiB, lock: true })
  const bulk = new BulkIo(bench.queue, { file: handle, path: PATH, pagesMax: PAGES, inMemory })
  const page = bench.alloc(PAGES)
  const { bytes } = bench.queue.arena
  for (let i = 0; i < PAGES; i++) {
    bytes.fill(1 + (i % 250), (page + i) * PAGE_BYTES, (page + i + 1) * PAGE_BYTES)
    bulk.add((i < 200 ? 2 * i : 300 + i) * PAGE_BYTES, page + i)
  }
  const submitted: number[] = []
  const { queue } = bench
  let pages = 0
  const write = queue.write.bind(queue)
  const segment = queue.segment.bind(queue)
  queue.write = (...args: Parameters<typeof write>) => {
    pages++
    write(...args)
  }
  queue.segment = (...args: Parameters<typeof segment>) => {
    pages += args[2] / PAGE_BYTES
    segment(...args)
  }
  queue.onTurnEnd(() => {
    submitted.push(pages)
    pages = 0
  })
  const done = bulk.write()
  await bench.settle(done)
  const there = new Uint8Array(PAGE_BYTES)
  for (let i = 0; i < PAGES; i++) {
    bench.file.readInto((i < 200 ? 2 * i : 300 + i) * PAGE_BYTES, there, 0, PAGE_BYTES)
    assert.ok(there.every((byte) => byte === 1 + (i % 250)))
  }
  return submitted.sort((a, b) => b - a)
}

test('what is moved in memory, inside the call that submits it, is a few pages per turn, or one run of neighbours', async () => {
  const [run, ...others] = await pagesPerTurn(true)
  // what a short write left is asked for again, and counted twice
  assert.ok(run! >= 100 && run! < 100 + 24, `${run} pages in one turn`)
  assert.ok(others[0]! < 24, `${others[0]} pages in one turn`)
})

test('on a disk many requests are under way at a time', async () => {
  const submitted = await pagesPerTurn(false)
  assert.ok(submitted[0]! >= 32, `${submitted[0]} pages in one turn`)
})
