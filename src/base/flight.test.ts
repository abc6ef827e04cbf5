import assert from 'node:assert/strict'
import test from 'node:test'
import { decodeFlight, FLIGHT_EVENT_NAMES, FlightEvent, FlightRecorder, flightBytes } from './flight.ts'

const bytesOf = (recorder: FlightRecorder) => new Uint8Array(recorder.memory)

test('events come back in order, with their time and numbers, negative ones too', () => {
  const recorder = new FlightRecorder(new SharedArrayBuffer(flightBytes(8)))
  recorder.setTime(5_000_000_000.25)
  recorder.record(FlightEvent.TURN, 3)
  recorder.setTime(5_000_000_001)
  recorder.record(FlightEvent.COMPLETION, 1, 2, -5)
  assert.deepEqual(decodeFlight(bytesOf(recorder)), [
    { timeUs: 5_000_000_000_250, code: FlightEvent.TURN, a: 3, b: 0, c: 0 },
    { timeUs: 5_000_000_001_000, code: FlightEvent.COMPLETION, a: 1, b: 2, c: -5 },
  ])
})

test('a full ring keeps the newest', () => {
  const recorder = new FlightRecorder(new ArrayBuffer(flightBytes(8)))
  for (let i = 1; i <= 29; i++) {
    recorder.setTime(i)
    recorder.record(FlightEvent.TURN, i)
  }
  assert.deepEqual(
    decodeFlight(bytesOf(recorder)).map(({ a }) => a),
    [22, 23, 24, 25, 26, 27, 28, 29],
  )
})

test('the count of events may pass 2^32', () => {
  const recorder = new FlightRecorder(new ArrayBuffer(flightBytes(8)))
  new Int32Array(recorder.memory)[3] = -4
  for (let i = 1; i <= 9; i++) {
    recorder.setTime(i)
    recorder.record(FlightEvent.TURN, i)
  }
  assert.deepEqual(
    decodeFlight(bytesOf(recorder)).map(({ a }) => a),
    [2, 3, 4, 5, 6, 7, 8, 9],
  )
})

test('what is no ring is refused with its reason', () => {
  const good = bytesOf(new FlightRecorder(new ArrayBuffer(flightBytes(8))))
  assert.throws(() => decodeFlight(good.subarray(0, good.length - 4)), /cut off/)
  assert.throws(() => decodeFlight(new Uint8Array(3)), /3 bytes are no flight recorder/)
  assert.throws(() => decodeFlight(new Uint8Array(good.length)), /magic/)
  const newer = good.slice()
  newer[4] = 9
  assert.throws(() => decodeFlight(newer), /format version 9/)
})

test('every event has a name of its own', () => {
  for (const code of Object.values(FlightEvent)) assert.ok(FLIGHT_EVENT_NAMES[code], `code ${code}`)
  const names = Object.values(FLIGHT_EVENT_NAMES).map(([name]) => name)
  assert.equal(new Set(names).size, names.length)
})
