import assert from 'node:assert/strict'
import test from 'node:test'
import { countAt, sitesOf } from './refusals.ts'

test('statuses that are given and reasons are found, comparisons and sets are not', () => {
  const source = `
const RETRYABLE = new Set([
  Status.BUSY,
])
if (status === Status.BUSY) return Status.NOT_HEAD
this.#answer(u, late ? Status.WRITE_EXPIRED : Status.SUCCESS)
if (bad) return 'a page with a wrong checksum'
case Status.NO_BUFFER:
`
  assert.deepEqual(
    sitesOf(source).map(({ line, what }) => [line, what]),
    [
      [5, 'NOT_HEAD'],
      [6, 'WRITE_EXPIRED'],
      [7, "'a page with a wrong checksum'"],
    ],
  )
  for (const site of sitesOf(source)) assert.ok(source.slice(site.offset).replace('Status.', '').startsWith(site.what))
})

test('the innermost range around a place counts', () => {
  const ranges = [
    { startOffset: 0, endOffset: 100, count: 7 },
    { startOffset: 20, endOffset: 40, count: 0 },
  ]
  assert.equal(countAt(ranges, 10), 7)
  assert.equal(countAt(ranges, 30), 0)
  assert.equal(countAt(ranges, 200), 0)
})
