/** What every IoQueue must do: run on the native engine and on the simulated one. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { PAGE_BYTES } from '../../src/base/units.ts'
import { AsyncIo } from '../../src/env/async-io.ts'
import {
  ALLOCATE_BYTES_MAX,
  COMPLETIONS_PER_TURN,
  Errno,
  errnoName,
  type Handle,
  IoError,
  type IoQueue,
  MORE,
  SEGMENTS_MAX,
  type Tag,
} from '../../src/env/ioqueue.ts'

/** One process with one queue that talks to itself. `turn` with a timeout lets the world go on. */
export interface IoQueueFixture {
  readonly queue: IoQueue
  /** An address of this process. */
  readonly host: string
  /** Path of a file that does not exist yet. */
  path(name: string): string
  /** What another thread of this process does. */
  wake(): void
  close(): Promise<void>
}

interface Completion {
  row: number
  result: number
  extra: number
}

const TURNS_MAX = 2000

/** Collects completions, and runs turns until something holds. */
class Bench {
  readonly queue: IoQueue
  readonly tag: Tag
  readonly seen: Completion[] = []

  constructor(queue: IoQueue) {
    this.queue = queue
    this.tag = queue.register('test', (row, result, extra) => {
      this.seen.push({ row, result, extra })
    })
  }

  until(what: string, condition: () => boolean): void {
    for (let turns = 0; !condition(); turns++) {
      if (turns === TURNS_MAX) assert.fail(`${what}: not after ${TURNS_MAX} turns; seen ${JSON.stringify(this.seen.slice(-10))}`)
      this.queue.turn(10)
    }
  }

  of(row: number): Completion | undefined {
    return this.seen.find((c) => c.row === row)
  }

  /** Result of the operation prepared with `row`, which must not have been used before. */
  result(row: number): number {
    this.until(`completion of row ${row}`, () => this.of(row) !== undefined)
    return this.of(row)!.result
  }

  /** A result that must be a success. */
  ok(row: number): number {
    const result = this.result(row)
    assert.ok(result >= 0, `row ${row}: ${errnoName(result)}`)
    return result
  }

  alloc(bytes: number): number {
    const page = this.queue.arena.alloc(bytes)
    assert.ok(page >= 0, 'the arena is full')
    return page
  }

  fill(page: number, bytes: number, salt: number): void {
    const { bytes: memory } = this.queue.arena
    for (let i = 0; i < bytes; i++) memory[page * PAGE_BYTES + i] = (i * 7 + (i >> 8) + salt) & 255
  }

  check(page: number, bytes: number, salt: number, from = 0): void {
    const { bytes: memory } = this.queue.arena
    for (let i = 0; i < bytes; i++) {
      const at = i + from
      if (memory[page * PAGE_BYTES + i] !== ((at * 7 + (at >> 8) + salt) & 255)) assert.fail(`byte ${at} is wrong`)
    }
  }

  pair(host: string, rows = 900): { client: Handle; server: Handle; listener: Handle } {
    const { handle: listener, port } = this.queue.listenTcp({ host, port: 0 })
    this.queue.accept(listener, this.tag, rows)
    const client = this.queue.connectTcp({ host, port }, this.tag, rows + 1)
    const server = this.ok(rows) as Handle
    assert.equal(this.result(rows + 1), 0)
    return { client, server, listener }
  }

  /** Receives exactly `bytes` bytes. */
  receive(socket: Handle, page: number, bytes: number, firstRow: number): void {
    let got = 0
    for (let row = firstRow; got < bytes; row++) {
      this.queue.recv(socket, page, got, bytes - got, false, this.tag, row)
      const n = this.ok(row)
      assert.ok(n > 0, 'closed early')
      got += n
    }
  }

  close(...handles: Handle[]): void {
    let closed = 0
    const tag = this.queue.register('closing', (_row, result) => {
      assert.equal(result, 0)
      closed++
    })
    for (const handle of handles) this.queue.close(handle, tag, 0)
    this.until('closing', () => closed === handles.length)
  }
}

function chunks(total: number, most: number): number[] {
  const list: number[] = []
  for (let left = total; left > 0; left -= most) list.push(Math.min(left, most))
  return list
}

export function ioQueueConformance(name: string, create: () => Promise<IoQueueFixture>): void {
  const scenario = (title: string, body: (bench: Bench, fixture: IoQueueFixture) => void | Promise<void>) =>
    test(`${name}: ${title}`, { timeout: 30_000 }, async () => {
      const fixture = await create()
      try {
        const { queue } = fixture
        await body(new Bench(queue), fixture)
        for (let i = 0; i < 20 && queue.inFlight > 0; i++) queue.turn(10)
        assert.equal(queue.inFlight, 0, 'operations in flight at the end')
      } finally {
        await fixture.close()
      }
    })

  // ---- time ------------------------------------------------------------------------------------------------------------

  scenario('a timeout completes once, with 0, not before its delay and never inside the call', (b) => {
    const beganMs = b.queue.sampleClockMs()
    b.queue.timeout(15, b.tag, 1)
    b.queue.timeout(0, b.tag, 2)
    assert.equal(b.seen.length, 0)
    assert.equal(b.queue.inFlight, 2)
    assert.equal(b.result(1), 0)
    assert.ok(b.queue.nowMs - beganMs >= 15)
    assert.equal(b.result(2), 0)
    b.queue.turn(5)
    assert.equal(b.seen.length, 2)
    assert.equal(b.queue.inFlight, 0)
  })

  scenario('timeouts fire by deadline', (b) => {
    const delays = [40, 5, 25, 15, 60, 1]
    for (const delay of delays) b.queue.timeout(delay, b.tag, delay)
    const beganMs = b.queue.nowMs
    const firedMs = new Map<number, number>()
    b.until('all timeouts', () => {
      for (const c of b.seen) if (!firedMs.has(c.row)) firedMs.set(c.row, b.queue.nowMs)
      return b.seen.length === delays.length
    })
    for (const delay of delays) assert.ok(firedMs.get(delay)! - beganMs >= delay - 1e-6, `${delay} ms fired after ${firedMs.get(delay)! - beganMs}`)
  })

  scenario('a cancelled timeout completes with ECANCELED, others of the tag do not', (b) => {
    b.queue.timeout(10_000, b.tag, 1)
    b.queue.timeout(20, b.tag, 2)
    b.queue.timeout(10_000, b.tag, 3)
    b.queue.turn(0)
    b.queue.cancelTimeout(b.tag, 1)
    assert.equal(b.result(1), -Errno.ECANCELED)
    assert.equal(b.result(2), 0)
    b.queue.cancelTimeout(b.tag, 3)
    b.queue.cancelTimeout(b.tag, 77)
    assert.equal(b.result(3), -Errno.ECANCELED)
    assert.equal(b.seen.length, 3)
  })

  scenario('the clock never goes back, and a turn that waits in vain returns 0', (b) => {
    let last = b.queue.sampleClockMs()
    for (let i = 0; i < 10; i++) {
      assert.equal(b.queue.turn(2), 0)
      assert.ok(b.queue.nowMs >= last)
      last = b.queue.sampleClockMs()
      assert.equal(b.queue.nowMs, last)
    }
  })

  // ---- turns -----------------------------------------------------------------------------------------------------------

  scenario('at most 256 completions are dispatched in one turn, and none is lost', (b) => {
    const total = 700
    for (let row = 0; row < total; row++) b.queue.timeout(0, b.tag, row)
    b.until('all completions', () => {
      const before = b.seen.length
      const count = b.queue.turn(5)
      assert.ok(count <= COMPLETIONS_PER_TURN)
      assert.equal(b.seen.length, before + count)
      return b.seen.length === total
    })
    assert.equal(new Set(b.seen.map((c) => c.row)).size, total)
  })

  scenario('an error of a handler leaves turn; the other completions come with the next turns', (b) => {
    let thrown = 0
    const tag = b.queue.register('throws', () => {
      thrown++
      throw new Error('from a handler')
    })
    b.queue.timeout(0, b.tag, 1)
    b.queue.timeout(0, tag, 2)
    b.queue.timeout(0, b.tag, 3)
    assert.throws(() => {
      for (let i = 0; i < 100; i++) b.queue.turn(5)
    }, /from a handler/)
    assert.equal(thrown, 1)
    assert.equal(b.result(1), 0)
    assert.equal(b.result(3), 0)
  })

  scenario('turn-end handlers run in order after the completions of every turn', (b) => {
    const order: string[] = []
    const tag = b.queue.register('order', () => {
      assert.equal(b.queue.dispatching, true)
      order.push('completion')
    })
    assert.equal(b.queue.dispatching, false)
    b.queue.onTurnEnd(() => {
      assert.equal(b.queue.dispatching, false, 'what the end handlers begin must not wait for them')
      order.push('first')
    })
    b.queue.onTurnEnd(() => void order.push('second'))
    b.queue.timeout(0, tag, 1)
    b.until('the completion', () => order.includes('completion'))
    const at = order.indexOf('completion')
    assert.deepEqual(order.slice(at, at + 3), ['completion', 'first', 'second'])
    assert.equal(order.filter((x) => x === 'first').length, order.filter((x) => x === 'second').length)
  })

  scenario('operations prepared by handlers run', (b) => {
    let left = 50
    const tag = b.queue.register('chain', () => {
      if (--left > 0) b.queue.timeout(0, tag, left)
    })
    b.queue.timeout(0, tag, left)
    b.until('the chain', () => left === 0)
  })

  scenario('a wake from outside calls the handler in a turn, at least once for any number of wakes', (b, fixture) => {
    let woken = 0
    b.queue.onWake(() => woken++)
    for (let round = 1; round <= 5; round++) {
      const before = woken
      fixture.wake()
      fixture.wake()
      assert.equal(woken, before)
      b.until('the wake', () => woken > before)
    }
    assert.ok(woken <= 10)
  })

  // ---- sockets ---------------------------------------------------------------------------------------------------------

  scenario('bytes cross a TCP connection both ways', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const from = b.alloc(3000)
    const to = b.alloc(3000)
    b.fill(from, 3000, 1)
    b.queue.send(client, from, 0, 3000, b.tag, 1)
    b.receive(server, to, 3000, 1000)
    b.check(to, 3000, 1)
    assert.equal(b.result(1), 3000)
    b.queue.send(server, from, 100, 10, b.tag, 2)
    b.receive(client, to, 10, 2000)
    b.check(to, 10, 1, 100)
    assert.equal(b.result(2), 10)
    b.close(client, server, listener)
  })

  scenario('a UNIX socket listens, refuses a second listener, and connects', (b, fixture) => {
    const path = fixture.path('sock')
    const listener = b.queue.listenUnix({ path })
    assert.throws(
      () => b.queue.listenUnix({ path }),
      (error) => error instanceof IoError && error.code === 'EADDRINUSE',
    )
    b.queue.accept(listener, b.tag, 1)
    const client = b.queue.connectUnix({ path }, b.tag, 2)
    const server = b.ok(1) as Handle
    assert.equal(b.result(2), 0)
    const page = b.alloc(100)
    b.fill(page, 50, 5)
    b.queue.send(client, page, 0, 50, b.tag, 3)
    const to = b.alloc(100)
    b.receive(server, to, 50, 1000)
    b.check(to, 50, 5)
    b.close(client, server, listener)
  })

  scenario('a port in use is EADDRINUSE; a port nobody listens on refuses', (b, { host }) => {
    const { handle, port } = b.queue.listenTcp({ host, port: 0 })
    assert.ok(port > 0)
    assert.throws(
      () => b.queue.listenTcp({ host, port }),
      (error) => error instanceof IoError && error.code === 'EADDRINUSE',
    )
    b.close(handle)
    const client = b.queue.connectTcp({ host, port }, b.tag, 1)
    assert.equal(b.result(1), -Errno.ECONNREFUSED)
    b.close(client)
  })

  scenario('waitAll completes only when full; a plain receive with what is there', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const to = b.alloc(1000)
    const from = b.alloc(1000)
    b.fill(from, 1000, 3)
    b.queue.recv(server, to, 0, 1000, true, b.tag, 1)
    for (const [i, at] of [0, 250, 500, 750].entries()) {
      b.queue.send(client, from, at, 250, b.tag, 10 + i)
      assert.equal(b.result(10 + i), 250)
      if (at < 750) {
        b.queue.turn(3)
        assert.equal(b.of(1), undefined, 'completed early')
      }
    }
    assert.equal(b.result(1), 1000)
    b.check(to, 1000, 3)
    b.queue.send(client, from, 0, 7, b.tag, 20)
    b.queue.recv(server, to, 0, 1000, false, b.tag, 21)
    assert.ok(b.ok(21) >= 1 && b.ok(21) <= 7)
    b.result(20)
    b.close(client, server, listener)
  })

  scenario('when the peer closes, waitAll gives what came and the next receive 0', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const from = b.alloc(100)
    const to = b.alloc(1000)
    b.queue.recv(server, to, 0, 1000, true, b.tag, 1)
    b.queue.send(client, from, 0, 100, b.tag, 2)
    assert.equal(b.result(2), 100)
    b.close(client)
    assert.equal(b.result(1), 100)
    b.queue.recv(server, to, 0, 1000, false, b.tag, 3)
    assert.equal(b.result(3), 0)
    b.close(server, listener)
  })

  scenario('a gathered send keeps the order of its segments and is complete even beyond the socket buffers', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const total = 6 * 1024 * 1024
    const from = b.alloc(total)
    const to = b.alloc(total)
    b.fill(from, total, 9)
    const pieces = chunks(total, Math.ceil(total / (SEGMENTS_MAX - 1)) + 13)
    let at = 0
    for (const bytes of pieces) {
      b.queue.segment(from + Math.floor(at / PAGE_BYTES), at % PAGE_BYTES, bytes)
      at += bytes
    }
    b.queue.sendSegments(client, b.tag, 1)
    b.receive(server, to, total, 1000)
    b.check(to, total, 9)
    assert.equal(b.result(1), total)
    b.close(client, server, listener)
  })

  scenario('a lazy send arrives; its success comes with what completes next, at the latest when a turn has waited', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const page = b.alloc(200)
    b.fill(page, 100, 4)
    for (let row = 1; row <= 20; row++) {
      const hasReceiver = row % 2 === 0
      if (hasReceiver) b.queue.recv(server, page, 100, 100, true, b.tag, 100 + row)
      b.queue.segment(page, 0, 50)
      b.queue.segment(page, 50, 50)
      b.queue.sendSegments(client, b.tag, row, true)
      assert.throws(() => b.queue.send(client, page, 0, 10, b.tag, 2), 'a second one')
      assert.equal(b.result(row), 100)
      if (!hasReceiver) b.queue.recv(server, page, 100, 100, true, b.tag, 100 + row)
      assert.equal(b.result(100 + row), 100)
    }
    b.close(server)
    let last = 300
    do {
      b.queue.segment(page, 0, 100)
      b.queue.sendSegments(client, b.tag, ++last, true)
      assert.ok(last < 400, 'sends to nobody succeed')
    } while (b.result(last) >= 0)
    b.close(client, listener)
  })

  scenario('a second send while one is in flight is refused, after its completion accepted', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const page = b.alloc(100)
    b.queue.send(client, page, 0, 10, b.tag, 1)
    assert.throws(() => b.queue.send(client, page, 0, 10, b.tag, 2))
    assert.equal(b.result(1), 10)
    b.queue.send(client, page, 0, 10, b.tag, 3)
    assert.equal(b.result(3), 10)
    b.close(client, server, listener)
  })

  scenario('a peer that has closed is noticed before what it had sent is received; without that, the look ends with the handle', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const page = b.alloc(100)
    b.queue.hangup(server, b.tag, 1)
    b.queue.hangup(client, b.tag, 2)
    b.queue.send(client, page, 0, 10, b.tag, 3)
    assert.equal(b.result(3), 10)
    for (let i = 0; i < 5; i++) b.queue.turn(1)
    assert.equal(b.of(1), undefined)
    b.close(client)
    assert.equal(b.result(2), -Errno.ECANCELED)
    assert.equal(b.result(1), 0)
    b.receive(server, page, 10, 10)
    b.queue.recv(server, page, 0, 10, false, b.tag, 90)
    assert.equal(b.result(90), 0)
    b.close(server, listener)
  })

  scenario('a connection whose other host is there is not silent, whether anybody reads or not', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const page = b.alloc(100)
    b.queue.send(client, page, 0, 10, b.tag, 1)
    assert.equal(b.result(1), 10)
    for (const socket of [client, server]) assert.ok(b.queue.silentMs(socket) < 3000)
    assert.throws(() => b.queue.silentMs(listener))
    b.close(client, server, listener)
    assert.throws(() => b.queue.silentMs(server))
  })

  scenario('multishot receives bring every byte in order into provided buffers, and end with 0 when the peer closes', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const total = 2 * 1024 * 1024
    const from = b.alloc(total)
    b.fill(from, total, 4)
    let got = 0
    let ended: number | undefined
    const expected = b.queue.arena.bytes.slice(from * PAGE_BYTES, from * PAGE_BYTES + total)
    const tag = b.queue.register('pieces', (_row, result, extra) => {
      if (result > 0) {
        const start = b.queue.providedPage(extra >> 1) * PAGE_BYTES
        assert.ok(Buffer.compare(b.queue.arena.bytes.subarray(start, start + result), expected.subarray(got, got + result)) === 0, `bytes from ${got}`)
        got += result
        b.queue.releaseProvided(extra >> 1)
      } else if (result !== -Errno.ENOBUFS) {
        ended = result
        return
      }
      if (!(extra & MORE)) b.queue.recvMultishot(server, tag, 0)
    })
    b.queue.recvMultishot(server, tag, 0)
    b.queue.send(client, from, 0, total, b.tag, 1)
    b.until('all bytes', () => got === total)
    assert.equal(b.result(1), total)
    b.close(client)
    b.until('the end', () => ended !== undefined)
    assert.equal(ended, 0)
    b.close(server, listener)
  })

  scenario('without free provided buffers a multishot receive ends with ENOBUFS and loses nothing', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const total = 8 * 1024 * 1024
    const from = b.alloc(total)
    b.fill(from, total, 6)
    const held: Array<{ id: number; bytes: number }> = []
    let exhausted = 0
    let got = 0
    const tag = b.queue.register('pieces', (_row, result, extra) => {
      if (result > 0) held.push({ id: extra >> 1, bytes: result })
      else if (result === -Errno.ENOBUFS) exhausted++
      else assert.equal(result, -Errno.ECANCELED)
      if (!(extra & MORE) && result > 0) b.queue.recvMultishot(server, tag, 0)
    })
    b.queue.recvMultishot(server, tag, 0)
    b.queue.send(client, from, 0, total, b.tag, 1)
    const memory = b.queue.arena.bytes
    b.until('all bytes', () => {
      // A slow reader: takes what it was given only when it gets no more.
      if (exhausted > 0 || got + held.reduce((sum, x) => sum + x.bytes, 0) === total) {
        for (const { id, bytes } of held.splice(0)) {
          const page = b.queue.providedPage(id)
          assert.ok(
            Buffer.compare(
              memory.subarray(page * PAGE_BYTES, page * PAGE_BYTES + bytes),
              memory.subarray(from * PAGE_BYTES + got, from * PAGE_BYTES + got + bytes),
            ) === 0,
          )
          got += bytes
          b.queue.releaseProvided(id)
        }
        if (exhausted > 0 && got < total) {
          exhausted = 0
          b.queue.recvMultishot(server, tag, 0)
        }
      }
      return got === total
    })
    assert.equal(b.result(1), total)
    b.close(client, server, listener)
  })

  scenario('a provided buffer can be released once', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    let id = -1
    const tag = b.queue.register('pieces', (_row, result, extra) => {
      if (result > 0) id = extra >> 1
    })
    b.queue.recvMultishot(server, tag, 0)
    b.queue.send(client, b.alloc(10), 0, 10, b.tag, 1)
    b.until('the piece', () => id >= 0)
    b.queue.releaseProvided(id)
    assert.throws(() => b.queue.releaseProvided(id))
    assert.throws(() => b.queue.releaseProvided(-1))
    assert.throws(() => b.queue.releaseProvided(1_000_000))
    b.result(1)
    b.close(client, server, listener)
  })

  scenario('a send to a peer that is gone fails, never succeeds in part', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const bytes = 8 * 1024 * 1024
    const page = b.alloc(bytes)
    b.queue.send(client, page, 0, bytes, b.tag, 1)
    b.queue.turn(5)
    b.close(server)
    const result = b.result(1)
    assert.ok([-Errno.EPIPE, -Errno.ECONNRESET].includes(result as never), errnoName(result))
    b.close(client, listener)
  })

  // ---- cancel and close ------------------------------------------------------------------------------------------------

  scenario('cancel ends what is under way on the handle and leaves it usable', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const page = b.alloc(1000)
    b.queue.recv(server, page, 0, 100, false, b.tag, 1)
    b.queue.accept(listener, b.tag, 2)
    b.queue.turn(1)
    b.queue.cancel(server)
    assert.equal(b.result(1), -Errno.ECANCELED)
    assert.equal(b.of(2), undefined)
    b.queue.cancel(listener)
    assert.equal(b.result(2), -Errno.ECANCELED)
    b.queue.cancel(listener)
    b.queue.send(client, page, 0, 20, b.tag, 3)
    b.receive(server, b.alloc(100), 20, 1000)
    assert.equal(b.result(3), 20)
    b.close(client, server, listener)
  })

  scenario('close cancels the operations of the handle, completes after them, and retires the handle', (b, { host }) => {
    const { client, server, listener } = b.pair(host)
    const page = b.alloc(8 * 1024 * 1024)
    b.queue.recv(server, page, 0, 100, true, b.tag, 1)
    b.queue.recvMultishot(client, b.tag, 2)
    b.queue.accept(listener, b.tag, 3)
    b.queue.send(server, b.alloc(100), 0, 100, b.tag, 4)
    b.queue.turn(1)
    for (const [i, handle] of [server, client, listener].entries()) {
      b.queue.close(handle, b.tag, 11 + i)
      assert.throws(() => b.queue.cancel(handle))
      assert.throws(() => b.queue.close(handle, b.tag, 99))
    }
    for (const row of [11, 12, 13]) assert.equal(b.result(row), 0)
    const rows = b.seen.map((c) => c.row)
    assert.ok(rows.indexOf(1) >= 0 && rows.indexOf(1) < rows.indexOf(11))
    assert.ok(rows.indexOf(3) >= 0 && rows.indexOf(3) < rows.indexOf(13))
    assert.equal(b.result(1), -Errno.ECANCELED)
    assert.equal(b.result(3), -Errno.ECANCELED)
    const last = b.seen.filter((c) => c.row === 2).at(-1)!
    assert.equal(last.extra & MORE, 0)
    b.result(4)
    for (const c of b.seen) if (c.row === 2 && c.result > 0) b.queue.releaseProvided(c.extra >> 1)
    assert.equal(b.queue.inFlight, 0)
    assert.throws(() => b.queue.recv(server, page, 0, 10, false, b.tag, 20))
    assert.throws(() => b.queue.accept(listener, b.tag, 20))
  })

  scenario('a connection attempt can be closed', (b, { host }) => {
    const { handle: listener, port } = b.queue.listenTcp({ host, port: 0 })
    const client = b.queue.connectTcp({ host, port }, b.tag, 1)
    b.queue.close(client, b.tag, 2)
    assert.equal(b.result(2), 0)
    const result = b.result(1)
    assert.ok(result === 0 || result === -Errno.ECANCELED, errnoName(result))
    b.close(listener)
  })

  scenario('handles of closed sockets are told apart from those that take their place', (b, { host }) => {
    const used = new Set<Handle>()
    const page = b.alloc(10)
    for (let i = 0; i < 30; i++) {
      const { client, server, listener } = b.pair(host, 5000 + 10 * i)
      b.close(client, server, listener)
      for (const handle of [client, server, listener]) {
        assert.ok(!used.has(handle))
        used.add(handle)
      }
    }
    const { client, server, listener } = b.pair(host)
    for (const handle of used) assert.throws(() => b.queue.recv(handle, page, 0, 10, false, b.tag, 1))
    b.close(client, server, listener)
  })

  // ---- misuse ----------------------------------------------------------------------------------------------------------

  scenario('a range outside the arena, a handle of another kind or never given is refused in the call', (b, fixture) => {
    const { client, server, listener } = b.pair(fixture.host)
    const file = b.queue.openFile({ path: fixture.path('f'), createBytes: 1 << 20, lock: true }).handle
    const pages = b.queue.arena.totalPages
    const before = b.queue.inFlight
    for (const [page, delta, length] of [
      [-1, 0, 4096],
      [0, -4096, 4096],
      [pages, 0, 4096],
      [pages - 1, 0, 8192],
      [pages - 1, 4096, 4096],
      [0, 0, -4096],
      [1.5, 0, 4096],
      [Number.NaN, 0, 4096],
      [0, 0, 2 ** 31],
      [2 ** 31, 0, 4096],
      [0, 2 ** 40, 4096],
    ] as const) {
      const text = `${page} ${delta} ${length}`
      assert.throws(() => b.queue.recv(server, page, delta, length, false, b.tag, 1), text)
      assert.throws(() => b.queue.send(client, page, delta, length, b.tag, 1), text)
      assert.throws(() => b.queue.read(file, 0, page, delta, length, -1, b.tag, 1), text)
      assert.throws(() => b.queue.write(file, 0, page, delta, length, b.tag, 1), text)
      assert.throws(() => b.queue.segment(page, delta, length), text)
    }
    const page = b.alloc(4096)
    assert.throws(() => b.queue.recv(file, page, 0, 4096, false, b.tag, 1))
    assert.throws(() => b.queue.recv(listener, page, 0, 4096, false, b.tag, 1))
    assert.throws(() => b.queue.read(client, 0, page, 0, 4096, -1, b.tag, 1))
    assert.throws(() => b.queue.accept(client, b.tag, 1))
    for (const handle of [0, -1, 12345, 2 ** 31 - 1, -(2 ** 31), 0.5]) assert.throws(() => b.queue.cancel(handle as Handle), `${handle}`)
    assert.throws(() => b.queue.sendSegments(client, b.tag, 1), 'no segments')
    assert.equal(b.queue.inFlight, before)
    b.close(client, server, listener, file)
  })

  scenario('a checksum index that was not reserved is refused', (b, fixture) => {
    const file = b.queue.openFile({ path: fixture.path('f'), createBytes: 1 << 20, lock: true }).handle
    const page = b.alloc(8192)
    const first = b.queue.reserveCrcs(2)
    for (const index of [first + 1, first + 2, -2, 2 ** 31 - 1]) assert.throws(() => b.queue.read(file, 0, page, 0, 8192, index, b.tag, 1), `${index}`)
    assert.throws(() => b.queue.reserveCrcs(2 ** 31))
    b.close(file)
  })

  // ---- files -----------------------------------------------------------------------------------------------------------

  scenario('what is written is read back, gathered or not, with the checksum of each page', (b, fixture) => {
    const opened = b.queue.openFile({ path: fixture.path('data'), createBytes: 1 << 20, lock: true })
    assert.equal(opened.sizeBytes, 1 << 20)
    assert.ok(opened.alignmentBytes >= 1 && opened.alignmentBytes <= 4096)
    const file = opened.handle
    const from = b.alloc(5 * 4096)
    const to = b.alloc(5 * 4096)
    b.fill(from, 5 * 4096, 11)
    let row = 1
    const whole = (bytes: number, prepare: (row: number) => void) => {
      // A short result is as good as none here: do it again.
      for (let i = 0; i < 50; i++) {
        prepare(row++)
        if (b.ok(row - 1) === bytes) return
      }
      assert.fail('always short')
    }
    whole(3 * 4096, (r) => b.queue.write(file, 8192, from, 0, 3 * 4096, b.tag, r))
    whole(3 * 4096, (r) => {
      b.queue.segment(from + 4, 0, 4096)
      b.queue.segment(from, 0, 8192)
      b.queue.writeSegments(file, 5 * 4096, false, b.tag, r)
    })
    b.queue.fdatasync(file, b.tag, 900)
    assert.equal(b.result(900), 0)
    const crcs = b.queue.reserveCrcs(3)
    whole(3 * 4096, (r) => b.queue.read(file, 8192, to, 0, 3 * 4096, crcs, b.tag, r))
    b.check(to, 3 * 4096, 11)
    for (let i = 0; i < 3; i++) assert.equal(b.queue.crcs[crcs + i], b.queue.arena.crc32c(from + i, 0, 4096))
    whole(3 * 4096, (r) => b.queue.read(file, 5 * 4096, to, 0, 3 * 4096, -1, b.tag, r))
    b.check(to, 4096, 11, 4 * 4096)
    b.check(to + 1, 8192, 11)
    whole(4096, (r) => b.queue.read(file, 0, to, 0, 4096, -1, b.tag, r))
    assert.ok(
      b.queue.arena.bytes.subarray(to * 4096, to * 4096 + 4096).every((x) => x === 0),
      'never written reads as zeros',
    )
    b.close(file)
  })

  scenario('a read across the end of a file is short, beyond it 0', (b, fixture) => {
    const { handle: file } = b.queue.openFile({ path: fixture.path('short'), createBytes: 3 * 4096, lock: true })
    const page = b.alloc(4 * 4096)
    b.queue.read(file, 4096, page, 0, 4 * 4096, -1, b.tag, 1)
    assert.ok(b.ok(1) <= 2 * 4096)
    b.queue.read(file, 1 << 20, page, 0, 4096, -1, b.tag, 2)
    assert.equal(b.result(2), 0)
    b.close(file)
  })

  scenario('a missing file is ENOENT; a locked one EWOULDBLOCK until it is closed; createBytes never shortens', (b, fixture) => {
    const path = fixture.path('locked')
    const code = (expected: string) => (error: unknown) => error instanceof IoError && error.code === expected
    assert.throws(() => b.queue.openFile({ path, lock: true }), code('ENOENT'))
    const first = b.queue.openFile({ path, createBytes: 1 << 20, lock: true })
    assert.throws(() => b.queue.openFile({ path, lock: true }), code('EWOULDBLOCK'))
    b.close(first.handle)
    const second = b.queue.openFile({ path, createBytes: 4096, lock: true })
    assert.equal(second.sizeBytes, 1 << 20)
    b.close(second.handle)
  })

  scenario('on a file opened direct, what is not aligned is refused in the call', (b, fixture) => {
    const opened = b.queue.openFile({ path: fixture.path('aligned'), createBytes: 1 << 20, lock: true })
    const page = b.alloc(8192)
    if (opened.direct) {
      assert.throws(() => b.queue.write(opened.handle, 1, page, 0, 4096, b.tag, 1))
      assert.throws(() => b.queue.write(opened.handle, 0, page, 1, 4096, b.tag, 1))
      assert.throws(() => b.queue.read(opened.handle, 0, page, 0, 4095, -1, b.tag, 1))
      assert.throws(() => {
        b.queue.segment(page, 0, 4096)
        b.queue.segment(page, 4096, 100)
        b.queue.writeSegments(opened.handle, 0, true, b.tag, 1)
      })
    }
    b.close(opened.handle)
  })

  scenario('space that is allocated changes neither size nor content; a range that makes no sense is refused in the call', (b, fixture) => {
    const path = fixture.path('allocated')
    const { handle: file } = b.queue.openFile({ path, createBytes: 1 << 20, lock: true })
    const page = b.alloc(8192)
    b.fill(page, 4096, 9)
    let row = 1
    do b.queue.write(file, 8192, page, 0, 4096, b.tag, ++row)
    while (b.ok(row) !== 4096)
    for (const [offset, length] of [
      [0, 1 << 20],
      [4096, 8192],
      [1 << 20, 1 << 20],
    ] as const) {
      b.queue.allocate(file, offset, length, b.tag, ++row)
      assert.ok([0, -Errno.EOPNOTSUPP].includes(b.result(row)))
    }
    do b.queue.read(file, 8192, page + 1, 0, 4096, -1, b.tag, ++row)
    while (b.ok(row) !== 4096)
    b.check(page + 1, 4096, 9)
    b.queue.read(file, 1 << 20, page, 0, 4096, -1, b.tag, 900)
    assert.equal(b.result(900), 0, 'the file has not grown')
    for (const [offset, length] of [
      [0, 0],
      [-4096, 4096],
      [0, -1],
      [0.5, 4096],
      [0, ALLOCATE_BYTES_MAX + 1],
      [Number.NaN, 4096],
    ] as const) {
      assert.throws(() => b.queue.allocate(file, offset, length, b.tag, 1), `${offset} ${length}`)
    }
    const listener = b.queue.listenTcp({ host: fixture.host, port: 0 }).handle
    assert.throws(() => b.queue.allocate(listener, 0, 4096, b.tag, 1))
    b.close(file, listener)
  })

  scenario('closing a file waits for its writes', (b, fixture) => {
    const path = fixture.path('closing')
    const { handle: file } = b.queue.openFile({ path, createBytes: 1 << 20, lock: true })
    const page = b.alloc(64 * 4096)
    b.fill(page, 64 * 4096, 2)
    for (let i = 0; i < 64; i++) b.queue.write(file, i * 4096, page + i, 0, 4096, b.tag, i)
    b.queue.close(file, b.tag, 100)
    assert.equal(b.result(100), 0)
    const rows = b.seen.map((c) => c.row)
    assert.equal(rows.length, 65)
    assert.equal(rows.at(-1), 100)
  })

  // ---- plain async code --------------------------------------------------------------------------------------------------

  scenario('AsyncIo settles one promise per operation and says so', async (b, fixture) => {
    const io = new AsyncIo(b.queue)
    const page = b.alloc(4096)
    b.fill(page, 4096, 8)
    let done = false
    const work = async () => {
      const { handle } = b.queue.openFile({ path: fixture.path('async'), createBytes: 1 << 20, lock: true })
      while ((await io.write(handle, 4096, page, 0, 4096)) !== 4096);
      assert.equal(await io.fdatasync(handle), 0)
      b.queue.arena.bytes.fill(0, page * 4096, page * 4096 + 4096)
      while ((await io.read(handle, 4096, page, 0, 4096)) !== 4096);
      b.check(page, 4096, 8)
      await io.sleep(2)
      assert.equal(await io.close(handle), 0)
      done = true
    }
    const finished = work()
    for (let i = 0; i < TURNS_MAX && !done; i++) {
      const before = b.queue.asyncPending
      b.queue.turn(10)
      if (b.queue.asyncPending && !before) b.queue.asyncPending = false
      await new Promise(setImmediate)
    }
    await finished
  })
}
