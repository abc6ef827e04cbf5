import assert from 'node:assert/strict'
import test from 'node:test'
import { Status } from '../src/base/status.ts'
import { DOCUMENTS, readDocument, withSections } from './print-docs.ts'

for (const file of DOCUMENTS) {
  test(`${file} says what the code says (else run: node tools/print-docs.ts)`, () => {
    const document = readDocument(file)
    assert.equal(withSections(file, document), document)
  })
}

test('every layout has its fields, and every status its line', () => {
  const wire = readDocument('docs/wire.md')
  for (const name of ['FrameHeader', 'Hello', 'Forward', 'HeartbeatHead', 'NbdRequest', 'Superblock', 'ExtentRow', 'BatchHeader'])
    assert.ok(wire.includes(`### ${name}\n`), name)
  const operating = readDocument('docs/operating.md')
  for (const name of Object.keys(Status)) assert.ok(operating.includes(`| ${name} |`), name)
})

test('a document without the markers is refused', () => {
  assert.throws(() => withSections('docs/wire.md', '# nothing here'), /has no lines/)
})
