import assert from 'node:assert/strict'
import test from 'node:test'
import { tooFewFiles } from './limits.ts'

const limits = (soft: string) => `Limit                     Soft Limit           Hard Limit           Units
Max processes             127000               127000               processes
Max open files            ${soft.padEnd(20)} 524288               files
`

test('fewer files than clients may come are told, with both numbers; enough of them are not', () => {
  assert.equal(tooFewFiles(1000, limits('1127')), 'this process may open 1127 files, network.max_connections (1000) takes 1128')
  assert.equal(tooFewFiles(1000, limits('1128')), undefined)
  assert.equal(tooFewFiles(1000, limits('unlimited')), undefined)
  assert.equal(tooFewFiles(1000, ''), undefined)
  assert.match(tooFewFiles(1e9)!, /^this process may open \d+ files/)
})
