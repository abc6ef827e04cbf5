import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { makeDirectory } from './directories.ts'

test('a directory is made with its parents, and made again without complaint', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'xsan-dirs-'))
  t.after(() => rmSync(dir, { recursive: true }))
  makeDirectory(join(dir, 'a/b/c'), 'cluster.data_dir')
  makeDirectory(join(dir, 'a/b/c'), 'cluster.data_dir')
  assert.ok(statSync(join(dir, 'a/b/c')).isDirectory())
  writeFileSync(join(dir, 'file'), '')
  assert.throws(() => makeDirectory(join(dir, 'file'), 'cluster.data_dir'), /cluster\.data_dir, .*file, cannot be used: it is not a directory/)
  assert.throws(() => makeDirectory(join(dir, 'file/below'), 'x'), /cannot be used/)
})

test('a place that takes no directories is an error, not an endless loop', () => {
  assert.throws(() => makeDirectory('/proc/xsan/data', 'cluster.data_dir'), /cluster\.data_dir, \/proc\/xsan\/data, cannot be used/)
})
