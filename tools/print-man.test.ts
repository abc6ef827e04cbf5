import assert from 'node:assert/strict'
import test from 'node:test'
import { manPages, stalePages } from './print-man.ts'

test('the manual pages are those of the commands and of the configuration', () => {
  assert.deepEqual(stalePages(), [], 'run: node tools/print-man.ts')
})

test('no line of a page is taken for a request of troff that it is not', () => {
  for (const [name, page] of manPages()) for (const line of page.split('\n')) if (line.startsWith('.')) assert.match(line, /^\.(TH|SH|TP|RS|RE|BR)( |$)/, name)
})
