/**
 * The flight recorders of a process, and the file in the data directory that they are written to when it dies.
 *
 *   "XSANFLR1" | header length u32 | header, JSON | ring of the first thread | ring of the second ...      little-endian; a ring as in base/flight.ts
 *
 * The header carries whatever a later version needs to show the events by name. Writing is synchronous and never throws: it is the last thing a
 * process does. The newest FILES_MAX files are kept.
 */
import { closeSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { messageOf, XsanError } from '../base/errors.ts'
import { type DecodedEvent, decodeFlight, FLIGHT_EVENT_NAMES, FlightEvent, FlightRecorder, flightBytes } from '../base/flight.ts'

const MAGIC = 'XSANFLR1'
const PREFIX = 'flight-'
const SUFFIX = '.bin'
const FILES_MAX = 8
const HEADER_BYTES_MAX = 1024 * 1024
/** Events of the main thread: few, so that they reach far back. */
const MAIN_EVENTS_MAX = 16_384

export interface FlightThread {
  readonly name: string
  readonly bytes: number
  /** Names of the io queue's tags, by number. */
  readonly tags: readonly string[]
}

export interface FlightHeader {
  readonly version: string
  readonly node: string
  readonly pid: number
  /** Why it was written; with the stack of an error. */
  readonly reason: string
  /** Both clocks at the moment of writing: what turns the events' boot-time clock into dates. */
  readonly wallMs: number
  readonly bootMs: number
  readonly threads: readonly FlightThread[]
  readonly events: typeof FLIGHT_EVENT_NAMES
}

export interface FlightFile {
  readonly header: FlightHeader
  /** As `header.threads`, oldest event first. */
  readonly events: ReadonlyArray<readonly DecodedEvent[]>
}

interface Thread {
  readonly name: string
  readonly memory: ArrayBufferLike
  tags: readonly string[]
}

export class FlightRecorders {
  /** Of the main thread; its time is set by `record` of this class. */
  readonly #main = new FlightRecorder(new ArrayBuffer(flightBytes(MAIN_EVENTS_MAX)))
  readonly #threads: Thread[] = [{ name: 'main', memory: this.#main.memory, tags: [] }]
  readonly #about: { readonly version: string; readonly node: string; readonly directory: string; readonly bootMs: () => number }

  constructor(about: { readonly version: string; readonly node: string; readonly directory: string; readonly bootMs: () => number }) {
    this.#about = about
  }

  /** On the main thread. */
  record(code: number, a = 0, b = 0, c = 0): void {
    this.#main.setTime(this.#about.bootMs())
    this.#main.record(code, a, b, c)
  }

  /** Memory for another thread; give its tags once they are all registered. */
  addThread(name: string): { readonly memory: SharedArrayBuffer; setTags(tags: readonly string[]): void } {
    const thread: Thread & { memory: SharedArrayBuffer } = { name, memory: new SharedArrayBuffer(flightBytes()), tags: [] }
    this.#threads.push(thread)
    return {
      memory: thread.memory,
      setTags(tags) {
        thread.tags = tags
      },
    }
  }

  /** Path of the file, or why there is none. */
  dump(reason: string): { readonly path: string } | { readonly error: string } {
    try {
      const { version, node, directory, bootMs } = this.#about
      this.record(FlightEvent.DUMPED)
      // bytes of memory that another thread writes to are copied first
      const rings = this.#threads.map(({ memory }) => new Uint8Array(memory).slice())
      const wallMs = Date.now()
      const header: FlightHeader = {
        version,
        node,
        pid: process.pid,
        reason,
        wallMs,
        bootMs: bootMs(),
        threads: this.#threads.map(({ name, tags }, index) => ({ name, bytes: rings[index]!.length, tags })),
        events: FLIGHT_EVENT_NAMES,
      }
      const text = Buffer.from(JSON.stringify(header))
      const head = Buffer.alloc(MAGIC.length + 4)
      head.write(MAGIC, 'latin1')
      head.writeUInt32LE(text.length, MAGIC.length)
      removeOldest(directory)
      const path = join(directory, `${PREFIX}${new Date(wallMs).toISOString().replace(/[:.]/g, '-')}-${process.pid}${SUFFIX}`)
      const fd = openSync(path, 'w', 0o640)
      try {
        for (const part of [head, text, ...rings]) writeAll(fd, part)
      } finally {
        closeSync(fd)
      }
      return { path }
    } catch (error) {
      return { error: messageOf(error) }
    }
  }
}

/** One byte short is a file cut off: so all of it, or an error. */
function writeAll(fd: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at)
}

/** Their names sort by time. */
function removeOldest(directory: string): void {
  const files = readdirSync(directory)
    .filter((name) => name.startsWith(PREFIX) && name.endsWith(SUFFIX))
    .sort()
  for (const name of files.slice(0, Math.max(0, files.length - FILES_MAX + 1))) rmSync(join(directory, name), { force: true })
}

/** Throws XsanError saying what is wrong with the file. */
export function readFlightFile(path: string): FlightFile {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (error) {
    throw new XsanError('NOT_FOUND', `cannot read ${path}: ${messageOf(error)}`, 'The files are called flight-*.bin, in cluster.data_dir of the node.', {
      cause: error,
    })
  }
  const refuse = (why: string) =>
    new XsanError('INVALID_PARAM', `${path}: ${why}`, 'Name a file that `xsan-debug flight-recorder dump` or a dying xsand has written.')
  const at = MAGIC.length + 4
  if (bytes.length < at || bytes.toString('latin1', 0, MAGIC.length) !== MAGIC) throw refuse('this is no flight recorder')
  const headerBytes = bytes.readUInt32LE(MAGIC.length)
  if (headerBytes > HEADER_BYTES_MAX || at + headerBytes > bytes.length) throw refuse('its header is damaged')
  let header: FlightHeader
  try {
    header = JSON.parse(bytes.toString('utf8', at, at + headerBytes)) as FlightHeader
  } catch (error) {
    throw refuse(`its header is damaged (${messageOf(error)})`)
  }
  if (!Array.isArray(header.threads)) throw refuse('its header is damaged (no threads)')
  let from = at + headerBytes
  const events = header.threads.map(({ name, bytes: length }) => {
    try {
      return decodeFlight(bytes.subarray(from, (from += length)))
    } catch (error) {
      throw refuse(`${name}: ${messageOf(error)}`)
    }
  })
  return { header, events }
}
