/**
 * The flight recorder: the last events of one thread, in memory that another thread can read after this one has died.
 *
 *   int32 0      1        2           3          4 ... 15   16
 *   | magic     | version | eventsMax | recorded | zeros    | event | event | ...          eventsMax events, then over again
 *
 *   event: | time low | time high | code | a | b | c |      time in us of the boot-time clock
 *
 * Invariants: one thread writes a ring. An event costs six stores and no allocation. `recorded` counts modulo 2^32; event n lies at n % eventsMax.
 * Codes are never used again for something else: a file is read by later versions.
 */
import { assert } from './assert.ts'

export const FLIGHT_MAGIC = 0x58464c52
export const FLIGHT_VERSION = 1
/** Events of one thread. */
export const FLIGHT_EVENTS_MAX = 65_536
const HEADER_WORDS = 16
const EVENT_WORDS = 6

const MAGIC = 0
const VERSION = 1
const EVENTS_MAX = 2
const RECORDED = 3

export const FlightEvent = {
  TURN: 1,
  COMPLETION: 2,
  START_STAGE: 3,
  MESSAGE_IN: 4,
  MESSAGE_OUT: 5,
  LEASE: 6,
  TABLE: 7,
  NBD_OPENED: 16,
  NBD_REFUSED: 17,
  NBD_CLOSED: 18,
  NBD_REQUEST: 19,
  NBD_REPLY: 20,
  NBD_STANDSTILL: 21,
  PEER_UP: 32,
  PEER_DOWN: 33,
  UPDATE_ORDERED: 48,
  UPDATE_ANSWERED: 49,
  FORWARDED: 50,
  FORWARD_RECEIVED: 51,
  COMMITTED: 52,
  JOURNAL_BATCH: 64,
  DISK_FAILED: 65,
  MAIN_TURN_LATE: 80,
  LOGGED: 81,
  FATAL: 82,
  DUMPED: 83,
} as const
export type FlightEvent = (typeof FlightEvent)[keyof typeof FlightEvent]

/** Of each code: its name, and what its three numbers are ('' = not used). `tag`, `message`, `stage`, `command`, `status`, `level` are shown by name. */
export const FLIGHT_EVENT_NAMES: Readonly<Record<number, readonly [name: string, a: string, b: string, c: string]>> = {
  [FlightEvent.TURN]: ['turn', 'completions', '', ''],
  [FlightEvent.COMPLETION]: ['completion', 'tag', 'row', 'result'],
  [FlightEvent.START_STAGE]: ['start stage', 'stage', '', ''],
  [FlightEvent.MESSAGE_IN]: ['message received', 'message', 'late_us', ''],
  [FlightEvent.MESSAGE_OUT]: ['message sent', 'message', '', ''],
  [FlightEvent.LEASE]: ['lease', 'left_ms', 'revision', ''],
  [FlightEvent.TABLE]: ['table applied', 'revision', 'chains', ''],
  [FlightEvent.NBD_OPENED]: ['nbd connection opened', 'connection', 'volume', ''],
  [FlightEvent.NBD_REFUSED]: ['nbd connection refused', 'connections', '', ''],
  [FlightEvent.NBD_CLOSED]: ['nbd connection closed', 'connection', 'requests', ''],
  [FlightEvent.NBD_REQUEST]: ['nbd request', 'request', 'command', 'sectors'],
  [FlightEvent.NBD_REPLY]: ['nbd reply', 'request', 'status', ''],
  [FlightEvent.NBD_STANDSTILL]: ['nbd connections closed after a standstill', 'standstill_ms', 'connections', ''],
  [FlightEvent.PEER_UP]: ['peer up', 'node', 'incarnation', ''],
  [FlightEvent.PEER_DOWN]: ['peer down', 'node', 'incarnation', ''],
  [FlightEvent.UPDATE_ORDERED]: ['update ordered', 'slot', 'version', 'sequence'],
  [FlightEvent.UPDATE_ANSWERED]: ['update answered', 'slot', 'status', ''],
  [FlightEvent.FORWARDED]: ['forwarded', 'slot', 'version', 'sequence'],
  [FlightEvent.FORWARD_RECEIVED]: ['forward received', 'slot', 'version', 'sequence'],
  [FlightEvent.COMMITTED]: ['committed', 'slot', 'sequence', ''],
  [FlightEvent.JOURNAL_BATCH]: ['journal batch', 'batch', 'records', 'pages'],
  [FlightEvent.DISK_FAILED]: ['disk failed', 'disk', '', ''],
  [FlightEvent.MAIN_TURN_LATE]: ['turn too long', 'ms', '', ''],
  [FlightEvent.LOGGED]: ['line logged', 'level', '', ''],
  [FlightEvent.FATAL]: ['fatal error', '', '', ''],
  [FlightEvent.DUMPED]: ['recorder written', '', '', ''],
}

export function flightBytes(eventsMax: number = FLIGHT_EVENTS_MAX): number {
  return (HEADER_WORDS + eventsMax * EVENT_WORDS) * 4
}

export class FlightRecorder {
  readonly memory: ArrayBufferLike
  readonly #words: Int32Array
  readonly #mask: number
  #timeLow = 0
  #timeHigh = 0

  /** `memory`: `flightBytes(n)` bytes for n events, n a power of two; shared when another thread is to read it. */
  constructor(memory: ArrayBufferLike = new ArrayBuffer(flightBytes(64))) {
    const eventsMax = (memory.byteLength / 4 - HEADER_WORDS) / EVENT_WORDS
    assert(Number.isInteger(eventsMax) && eventsMax > 0 && (eventsMax & (eventsMax - 1)) === 0, `a flight recorder for ${eventsMax} events`)
    this.memory = memory
    this.#words = new Int32Array(memory)
    this.#mask = eventsMax - 1
    this.#words[MAGIC] = FLIGHT_MAGIC
    this.#words[VERSION] = FLIGHT_VERSION
    this.#words[EVENTS_MAX] = eventsMax
  }

  /** The time of the events from now on; once per turn. Boot-time clock, ms. */
  setTime(nowMs: number): void {
    const us = nowMs * 1000
    const high = (us / 0x1_0000_0000) | 0
    this.#timeHigh = high
    this.#timeLow = (us - high * 0x1_0000_0000) | 0
  }

  record(code: number, a = 0, b = 0, c = 0): void {
    const words = this.#words
    const n = words[RECORDED]!
    const at = HEADER_WORDS + (n & this.#mask) * EVENT_WORDS
    words[at] = this.#timeLow
    words[at + 1] = this.#timeHigh
    words[at + 2] = code
    words[at + 3] = a
    words[at + 4] = b
    words[at + 5] = c
    words[RECORDED] = n + 1
  }
}

export interface DecodedEvent {
  /** Boot-time clock. */
  readonly timeUs: number
  readonly code: number
  readonly a: number
  readonly b: number
  readonly c: number
}

/** Oldest first. Throws Error with the reason when the bytes are not a ring. What the writer overwrote while it was copied is left out. */
export function decodeFlight(bytes: Uint8Array): DecodedEvent[] {
  if (bytes.length < HEADER_WORDS * 4 || bytes.length % 4 !== 0) throw new Error(`${bytes.length} bytes are no flight recorder`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const word = (index: number) => view.getInt32(index * 4, true)
  if (word(MAGIC) !== FLIGHT_MAGIC) throw new Error('this is no flight recorder (magic number)')
  if (word(VERSION) !== FLIGHT_VERSION) throw new Error(`format version ${word(VERSION)}, this program reads ${FLIGHT_VERSION}`)
  const eventsMax = word(EVENTS_MAX)
  if (bytes.length !== flightBytes(eventsMax)) throw new Error(`${bytes.length} bytes for ${eventsMax} events: the file is cut off`)
  const recorded = word(RECORDED) >>> 0
  // once the count has passed 2^32 it looks small again: an event at the far end tells
  const isFull = recorded >= eventsMax || word(HEADER_WORDS + (eventsMax - 1) * EVENT_WORDS + 2) !== 0
  const count = isFull ? eventsMax : recorded
  const events: DecodedEvent[] = []
  for (let i = 0; i < count; i++) {
    const at = HEADER_WORDS + ((recorded - count + i) & (eventsMax - 1)) * EVENT_WORDS
    const event = {
      timeUs: (word(at + 1) >>> 0) * 0x1_0000_0000 + (word(at) >>> 0),
      code: word(at + 2),
      a: word(at + 3),
      b: word(at + 4),
      c: word(at + 5),
    }
    events.push(event)
  }
  // an event written while the oldest was copied is newer than what follows it
  while (events.length > 1 && events[0]!.timeUs > events[1]!.timeUs) events.shift()
  return events
}
