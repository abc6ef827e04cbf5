import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { XsanError } from '../../base/errors.ts'
import type { LogLevelName } from '../control.ts'
import { LineWriter, NodeLog } from './log.ts'

function capture(level: LogLevelName) {
  const lines: Array<Record<string, unknown>> = []
  const log = new NodeLog({ level, fields: { node: 'node-1' }, write: (line) => lines.push(JSON.parse(line)) })
  return { log, lines }
}

test('a line is one JSON object with time, level, node, message and its fields', () => {
  const { log, lines } = capture('INFO')
  log.child({ volume: 'db1' }).log('INFO', 'volume created', { tag: 'req-7' })
  assert.equal(lines.length, 1)
  const { ts, ...rest } = lines[0]!
  assert.match(String(ts), /^\d{4}-\d\d-\d\dT[\d:.]+Z$/)
  assert.deepEqual(rest, { level: 'INFO', node: 'node-1', volume: 'db1', tag: 'req-7', msg: 'volume created' })
})

test('an error of ours gives the line its code, cause and next step', () => {
  const { log, lines } = capture('INFO')
  log.log('WARN', 'disk refused', { error: new XsanError('DISK_FOREIGN', 'belongs to cluster b', 'Use another disk.', { cause: new Error('magic') }) })
  assert.equal(lines[0]!['code'], 'XSAN-205')
  assert.equal(lines[0]!['error'], 'DISK_FOREIGN: belongs to cluster b')
  assert.equal(lines[0]!['next_step'], 'Use another disk.')
  assert.equal(lines[0]!['cause'], 'magic')
})

test('a warning names file, line and function; a line of INFO does not pay for that', () => {
  const { log, lines } = capture('INFO')
  function mount() {
    log.log('WARN', 'slow')
    log.log('INFO', 'fine')
  }
  mount()
  assert.match(String(lines[0]!['file']), /^src\/env\/node\/log\.test\.ts:\d+$/)
  assert.equal(lines[0]!['func'], 'mount')
  assert.equal(lines[1]!['file'], undefined)
})

test('with DEBUG switched on every line names its place, loggers made before included', () => {
  const { log, lines } = capture('INFO')
  const child = log.child({ tag: 'x' })
  child.log('DEBUG', 'not written')
  log.level = 'DEBUG'
  child.log('DEBUG', 'written')
  assert.equal(lines.length, 1)
  assert.match(String(lines[0]!['file']), /log\.test\.ts/)
})

test('a field does not hide one that every line carries', () => {
  const { log, lines } = capture('INFO')
  log.log('INFO', 'a node is up', { node: 'node-2' })
  assert.deepEqual([lines[0]!['node'], lines[0]!['about_node']], ['node-1', 'node-2'])
})

test('a log that cannot be written costs lines, not the process, and the next one that can says how many', (t) => {
  const full = openSync('/dev/full', 'w')
  const path = join(tmpdir(), `xsan-log-${process.pid}`)
  const good = openSync(path, 'w')
  t.after(() => {
    closeSync(full)
    closeSync(good)
    rmSync(path)
  })
  const writer = new LineWriter(full)
  writer.write('one\n')
  writer.write('two\n')
  // the same number, now a file with room
  closeSync(full)
  const again = openSync(path, 'a')
  assert.equal(again, full, 'the lowest free descriptor')
  writer.write('three\n')
  const [notice, line] = readFileSync(path, 'utf8').trimEnd().split('\n')
  assert.equal((JSON.parse(notice!) as { lost: number }).lost, 2)
  assert.equal(line, 'three')
})

test('a reader of the log that stands still is waited for once, not for every line', (t) => {
  const reader = spawn('sleep', ['60'], { stdio: ['pipe', 'ignore', 'ignore'] })
  t.after(() => reader.kill())
  const { fd } = (reader.stdin as unknown as { _handle: { fd: number } })._handle
  assert.throws(() => {
    for (;;) writeSync(fd, 'x'.repeat(1000))
  }, /EAGAIN/)
  const waits = t.mock.method(Atomics, 'wait', () => 'timed-out')
  const writer = new LineWriter(fd)
  for (let i = 0; i < 20; i++) writer.write(`${'line '.repeat(1000)}\n`)
  assert.ok(waits.mock.callCount() > 0 && waits.mock.callCount() <= 100, `${waits.mock.callCount()} ms`)
})
