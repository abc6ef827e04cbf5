import assert from 'node:assert/strict'
import test from 'node:test'
import { TRANSITIONS } from '../src/placement/chain.ts'
import { readDocument, transitionsMarkdown, withTransitions } from './print-transitions.ts'

test('docs/ARCHITECTURE.md prints the transition table that the code has (else run: node tools/print-transitions.ts)', () => {
  const document = readDocument()
  assert.equal(withTransitions(document), document)
})

test('the printed table has one line for every row, with all its conditions', () => {
  const lines = transitionsMarkdown().split('\n').slice(2)
  assert.equal(lines.length, TRANSITIONS.length)
  TRANSITIONS.forEach((transition, i) => {
    assert.ok(lines[i]!.startsWith(`| ${transition.name} |`))
    for (const condition of transition.when) assert.ok(lines[i]!.includes(condition))
  })
})

test('a document without the markers is refused', () => {
  assert.throws(() => withTransitions('# nothing here'), /has no lines/)
})
