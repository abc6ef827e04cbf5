import assert from 'node:assert/strict'
import test from 'node:test'
import { PageMemory, Slabs } from './memory.ts'

test('pieces of a slab do not overlap, and it is used again only when all were released', () => {
  const slabs = new Slabs()
  const first = slabs.place(100_000)
  const second = slabs.place(100_000)
  assert.equal(second.slab, first.slab)
  assert.ok(second.at >= first.at + 100_000)
  first.slab.release()
  const third = slabs.place(100_000)
  assert.notEqual(third.slab, first.slab, 'the second piece is held')
  second.slab.release()
  const fourth = slabs.place(200_000)
  assert.equal(fourth.slab, first.slab)
  assert.equal(fourth.at, 0)
})

test('a piece held by two is held until both released it', () => {
  const slabs = new Slabs()
  const { slab } = slabs.place(200_000)
  slab.shared()
  slab.release()
  assert.notEqual(slabs.place(100_000).slab, slab)
  slab.release()
  assert.equal(slabs.place(200_000).slab, slab)
})

test('pages are apart, and come again only after the world they were for', () => {
  const memory = new PageMemory()
  const pages = Array.from({ length: 200 }, () => memory.page())
  for (const [i, page] of pages.entries()) page.fill(i)
  for (const [i, page] of pages.entries()) assert.ok(page.every((byte) => byte === i))
  assert.equal(new Set(pages).size, pages.length)
  memory.retire()
  assert.equal(memory.page(), pages[0])
})
