import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { FlightEvent, FlightRecorder } from '../base/flight.ts'
import { FlightRecorders, readFlightFile } from './flight-file.ts'

function directory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'xsan-flight-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}
const recorders = (dir: string) => new FlightRecorders({ version: '1.2.3', node: 'node-1', directory: dir, bootMs: () => 1000 })

test('what was recorded on all threads is in the file, with the reason', (t) => {
  const flight = recorders(directory(t))
  flight.record(FlightEvent.START_STAGE, 4)
  const { memory, setTags } = flight.addThread('reactor-0')
  setTags(['wake', 'nbd recv'])
  const reactor = new FlightRecorder(memory)
  reactor.setTime(999.5)
  reactor.record(FlightEvent.COMPLETION, 1, 7, 4096)
  const dumped = flight.dump('Error: it broke')
  assert.ok('path' in dumped)
  const { header, events } = readFlightFile(dumped.path)
  assert.equal(header.reason, 'Error: it broke')
  assert.equal(header.node, 'node-1')
  assert.deepEqual(
    header.threads.map(({ name }) => name),
    ['main', 'reactor-0'],
  )
  assert.deepEqual(header.threads[1]!.tags, ['wake', 'nbd recv'])
  assert.deepEqual(
    events[0]!.map(({ code }) => code),
    [FlightEvent.START_STAGE, FlightEvent.DUMPED],
  )
  assert.deepEqual(events[1], [{ timeUs: 999_500, code: FlightEvent.COMPLETION, a: 1, b: 7, c: 4096 }])
})

test('only the newest files are kept, and nothing else is removed', (t) => {
  const dir = directory(t)
  writeFileSync(join(dir, 'disks.json'), '{}')
  for (let i = 10; i < 30; i++) writeFileSync(join(dir, `flight-20${i}-1.bin`), '')
  const dumped = recorders(dir).dump('')
  assert.ok('path' in dumped)
  const left = readdirSync(dir)
  assert.equal(left.filter((name) => name.startsWith('flight-')).length, 8)
  assert.ok(left.includes('disks.json'))
  assert.ok(left.includes('flight-2029-1.bin'))
})

test('a directory that cannot be written to is an answer, not an exception', () => {
  const dumped = recorders('/nowhere/at/all').dump('')
  assert.ok('error' in dumped && dumped.error.includes('/nowhere/at/all'))
})

test('files that are none, cut off or damaged are refused by name', (t) => {
  const dir = directory(t)
  const dumped = recorders(dir).dump('x')
  assert.ok('path' in dumped)
  const good = readFileSync(dumped.path)
  assert.throws(() => readFlightFile(join(dir, 'none')), /cannot read .*none/)
  const bad = join(dir, 'bad')
  writeFileSync(bad, 'hello')
  assert.throws(() => readFlightFile(bad), /this is no flight recorder/)
  const length = Buffer.from(good)
  length.writeUInt32LE(0xffffffff, 8)
  writeFileSync(bad, length)
  assert.throws(() => readFlightFile(bad), /its header is damaged/)
  truncateSync(dumped.path, good.length - 100)
  assert.throws(() => readFlightFile(dumped.path), /main: .*cut off/)
})
