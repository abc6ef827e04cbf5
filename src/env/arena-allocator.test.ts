import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../base/prng.ts'
import { KiB, MiB, PAGE_BYTES } from '../base/units.ts'
import { ArenaClass, type PageNumber } from './arena.ts'
import { ArenaAllocator, arenaClassOf } from './arena-allocator.ts'

test('sizes fall into the four classes of the product documents', () => {
  assert.equal(arenaClassOf(1), ArenaClass.SMALL)
  assert.equal(arenaClassOf(1023), ArenaClass.SMALL)
  assert.equal(arenaClassOf(KiB), ArenaClass.MEDIUM)
  assert.equal(arenaClassOf(64 * KiB), ArenaClass.MEDIUM)
  assert.equal(arenaClassOf(64 * KiB + 1), ArenaClass.LARGE)
  assert.equal(arenaClassOf(4 * MiB), ArenaClass.LARGE)
  assert.equal(arenaClassOf(4 * MiB + 1), ArenaClass.HUGE)
})

test('allocations never overlap, and agree with a plain map of pages', () => {
  for (let seed = 1; seed <= 5; seed++) {
    const random = new Prng(seed)
    const total = random.between(50, 5000)
    const first = random.below(20)
    const allocator = new ArenaAllocator(total, first)
    const owner = new Int32Array(total)
    const live: Array<{ page: PageNumber; pages: number; bytes: number }> = []
    let used = 0
    for (let step = 1; step < 20_000; step++) {
      if (random.chance(0.52)) {
        const bytes = random.chance(0.3) ? random.between(1, 4096) : random.between(1, 40 * PAGE_BYTES)
        const pages = Math.ceil(bytes / PAGE_BYTES)
        const page = allocator.alloc(bytes)
        let run = 0
        let longest = 0
        if (page === -1) {
          for (let p = first; p < total; p++) {
            run = owner[p] === 0 ? run + 1 : 0
            longest = Math.max(longest, run)
          }
          assert.ok(longest < pages, `a run of ${longest} pages is free, ${pages} were asked`)
          continue
        }
        assert.ok(page >= first && page + pages <= total)
        for (let p: number = page; p < page + pages; p++) {
          assert.equal(owner[p], 0)
          owner[p] = step
        }
        used += pages
        live.push({ page, pages, bytes })
        assert.equal(allocator.pagesOf(page), pages)
      } else if (live.length > 0) {
        const i = random.below(live.length)
        const { page, pages } = live[i]!
        live[i] = live.at(-1)!
        live.pop()
        allocator.free(page)
        owner.fill(0, page, page + pages)
        used -= pages
      }
      if (step % 1000 === 0) {
        const stats = allocator.stats()
        assert.equal(stats.freeBytes, (total - first - used) * PAGE_BYTES)
        assert.equal(
          stats.usedBytes.reduce((a, b) => a + b),
          used * PAGE_BYTES,
        )
        for (const c of [0, 1, 2, 3]) assert.equal(stats.usedCount[c], live.filter((x) => arenaClassOf(x.bytes) === c).length)
      }
    }
    for (const { page } of live) allocator.free(page)
    assert.equal(allocator.alloc((total - first) * PAGE_BYTES), first, 'everything is one run again')
  }
})

test('freeing twice, a page inside an allocation or one never allocated is an assertion', () => {
  const allocator = new ArenaAllocator(100, 4)
  const page = allocator.alloc(3 * PAGE_BYTES) as PageNumber
  for (const bad of [page + 1, page + 2, page + 3, 0, 99, 100, -1, 1e9])
    assert.throws(() => allocator.free(bad as PageNumber), /freed twice or never allocated/)
  allocator.free(page)
  assert.throws(() => allocator.free(page))
  assert.throws(() => allocator.alloc(0))
  assert.throws(() => allocator.alloc(-5))
  assert.throws(() => allocator.alloc(Number.NaN))
})

test('a full arena says so, and takes exact sizes without waste', () => {
  const allocator = new ArenaAllocator(64)
  const pages = Array.from({ length: 64 }, () => allocator.alloc(1))
  assert.equal(new Set(pages).size, 64)
  assert.equal(allocator.alloc(1), -1)
  allocator.free(pages[10] as PageNumber)
  allocator.free(pages[12] as PageNumber)
  assert.equal(allocator.alloc(2 * PAGE_BYTES), -1, 'two pages apart are not a run')
  allocator.free(pages[11] as PageNumber)
  assert.equal(allocator.alloc(3 * PAGE_BYTES), Math.min(pages[10]!, pages[11]!, pages[12]!))
})

test('sixteen million pages (64 GiB) are cut', () => {
  const allocator = new ArenaAllocator(1 << 24)
  const big = allocator.alloc((1 << 24) * PAGE_BYTES - 2 * PAGE_BYTES)
  assert.equal(big, 0)
  assert.equal(allocator.alloc(PAGE_BYTES), (1 << 24) - 2)
  assert.equal(allocator.alloc(2 * PAGE_BYTES), -1)
  allocator.free(big as PageNumber)
  assert.equal(allocator.alloc(4 * MiB), 0)
})
