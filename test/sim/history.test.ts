import assert from 'node:assert/strict'
import test from 'node:test'
import { Prng } from '../../src/base/prng.ts'
import { BLOCK_BYTES, PAGE_BYTES } from '../../src/base/units.ts'
import { History, type OpenOp, shownOf, writeStamps } from './history.ts'

const SECTOR = 512

/** A history written by hand: times are given, contents come from a page of bytes. */
class Script {
  readonly history = new History()
  readonly bytes = new Uint8Array(4096)

  write(
    client: string,
    from: number,
    to: number,
    options: { sector?: number; sectors?: number; outcome?: 'ok' | 'failed' | 'open'; durable?: boolean; zero?: boolean } = {},
  ): OpenOp {
    const { sector = 0, sectors = 8, outcome = 'ok', durable = true, zero = false } = options
    const op = this.history.beginWrite({ client, volume: 1, offsetBytes: sector * SECTOR, lengthBytes: sectors * SECTOR, nowMs: from, zero })
    if (outcome !== 'open') this.history.endWrite(op, outcome, to, durable)
    return op
  }

  /** Reads what `of` wrote in each sector (undefined: zeros). */
  read(client: string, from: number, to: number, of: OpenOp | undefined | Array<OpenOp | undefined>): void {
    const list = Array.isArray(of) ? of : Array.from({ length: 8 }, () => of)
    const op = this.history.beginRead({ client, volume: 1, offsetBytes: 0, lengthBytes: 4096, nowMs: from })
    this.bytes.fill(0)
    const one = new Uint8Array(4096)
    list.forEach((written, s) => {
      if (!written) return
      writeStamps(one, 0, { ...written, offsetBytes: 0, lengthBytes: 4096 })
      this.bytes.set(one.subarray(s * SECTOR, (s + 1) * SECTOR), s * SECTOR)
    })
    this.history.endRead(op, this.bytes, 0, to)
  }

  get valid(): boolean {
    const { violations, undecided } = this.history.check()
    assert.equal(undecided, 0)
    return violations.length === 0
  }
}

test('a read during a write may see either content, one after it only the new', () => {
  const s = new Script()
  const a = s.write('c1', 0, 10)
  s.read('c2', 5, 6, undefined)
  s.read('c2', 7, 8, a)
  s.read('c2', 11, 12, a)
  assert.ok(s.valid)
  s.read('c2', 13, 14, undefined)
  assert.ok(!s.valid)
})

test('reads never go back in time, not even while the write is under way', () => {
  const s = new Script()
  const a = s.write('c1', 0, 100)
  s.read('c2', 10, 11, a)
  s.read('c3', 12, 13, undefined)
  assert.ok(!s.valid)
})

test('a write that failed took effect before it was said to have failed, or never', () => {
  for (const [at, valid] of [
    [5, true],
    [20, true],
    [30, false],
  ] as const) {
    const s = new Script()
    const a = s.write('c1', 0, 10, { outcome: 'failed' })
    if (at === 30) s.read('c2', 15, 16, undefined)
    s.read('c2', at, at + 1, a)
    assert.equal(s.valid, valid, `read at ${at}`)
  }
  const never = new Script()
  never.write('c1', 0, 10, { outcome: 'failed' })
  never.read('c2', 20, 21, undefined)
  assert.ok(never.valid)
})

test('a write of a client that died takes effect before any write that was called after the end of its life, or never', () => {
  const make = () => {
    const s = new Script()
    const a = s.write('c1', 0, 0, { outcome: 'open' })
    s.history.clientDied('c1', 4000)
    s.read('c2', 100, 101, undefined)
    return { s, a }
  }
  const late = make()
  late.s.read('c2', 3000, 3001, late.a)
  assert.ok(late.s.valid)
  // Ordered in time, it had to wait for its chain
  const waited = make()
  waited.s.read('c2', 4500, 4501, undefined)
  waited.s.read('c2', 5000, 5001, waited.a)
  assert.ok(waited.s.valid)
  const tooLate = make()
  const b = tooLate.s.write('c2', 4500, 4501)
  tooLate.s.read('c2', 4600, 4601, b)
  tooLate.s.read('c2', 5000, 5001, tooLate.a)
  assert.ok(!tooLate.s.valid)
  // Nobody has looked between the two: the newer one is lost all the same
  const unseen = make()
  unseen.s.write('c2', 4500, 4501)
  unseen.s.read('c2', 5000, 5001, unseen.a)
  assert.ok(!unseen.s.valid)
  // The newer one waits for the chain too, behind it
  const waitedLong = make()
  const c = waitedLong.s.write('c2', 4500, 4600)
  waitedLong.s.read('c2', 4510, 4511, undefined)
  waitedLong.s.read('c2', 4520, 4521, waitedLong.a)
  waitedLong.s.read('c2', 4700, 4701, c)
  assert.ok(waitedLong.s.valid)
})

test('a write applied twice is found: the older content comes back', () => {
  const s = new Script()
  const a = s.write('c1', 0, 10)
  const b = s.write('c1', 20, 30)
  s.read('c2', 40, 41, b)
  assert.ok(s.valid)
  s.read('c2', 50, 51, a)
  assert.ok(!s.valid)
})

test('writes of parts of a page are merged, and none tears another', () => {
  const s = new Script()
  const a = s.write('c1', 0, 10)
  const b = s.write('c1', 20, 30, { sector: 2, sectors: 3 })
  s.read('c2', 40, 41, [a, a, b, b, b, a, a, a])
  assert.ok(s.valid)
  s.read('c2', 50, 51, [a, a, b, a, b, a, a, a])
  assert.ok(!s.valid, 'a torn mixture')
})

test('with unflushed writes, a loss of all power goes back to some content since the flush, not further', () => {
  const make = () => {
    const s = new Script()
    const a = s.write('c1', 0, 10, { durable: false })
    s.history.flushed(1, 15)
    const b = s.write('c1', 20, 30, { durable: false })
    const c = s.write('c1', 40, 50, { durable: false })
    s.history.allPowerLost(60)
    return { s, a, b, c }
  }
  for (const name of ['a', 'b', 'c'] as const) {
    const made = make()
    made.s.read('c2', 100, 101, made[name])
    assert.ok(made.s.valid, name)
  }
  const later = make()
  later.s.history.flushed(1, 200)
  later.s.read('c2', 210, 211, later.b)
  assert.ok(later.s.valid, 'a flush after the loss covers nothing from before')
  const lost = make()
  lost.s.read('c2', 100, 101, undefined)
  assert.ok(!lost.s.valid, 'what was flushed is gone')
  const back = make()
  back.s.read('c2', 100, 101, back.a)
  back.s.read('c2', 110, 111, back.b)
  assert.ok(!back.s.valid, 'it comes back after having been gone')
})

test('a flush after a loss says that nothing is lost to who is on the same seat, has been there, and has not been told', () => {
  const make = (flushedOn: 'same seat' | 'another' | undefined, told = false) => {
    const s = new Script()
    const seat = {}
    s.history.seated('c1', seat)
    s.write('c1', 0, 10, { durable: false })
    s.history.allPowerLost(20)
    if (told) s.history.toldOfLoss(1, seat)
    if (flushedOn) s.history.flushed(1, 30, flushedOn === 'same seat' ? seat : {})
    s.read('c2', 40, 41, undefined)
    return s.valid
  }
  assert.ok(!make('same seat'))
  assert.ok(make('another') && make(undefined) && make('same seat', true))
})

test('nobody is told of a loss of a volume that has lost nothing', () => {
  const s = new Script()
  s.write('c1', 0, 10, { durable: false })
  s.history.allPowerLost(20, (volume) => volume === 2)
  assert.ok(s.valid)
  s.history.assertLoss(1, BLOCK_BYTES, 30)
  assert.deepEqual(
    s.history.check().violations.map(({ promise }) => promise),
    ['who is told of a loss has lost something'],
  )
  const lost = new Script()
  lost.write('c1', 0, 10, { durable: false })
  lost.history.allPowerLost(20)
  lost.history.assertLoss(1, BLOCK_BYTES, 30)
  assert.ok(lost.valid)
  const givenUp = new Script()
  givenUp.history.givenUp()
  givenUp.history.assertLoss(1, BLOCK_BYTES, 30)
  assert.ok(givenUp.valid)
})

test('a write that was under way when all power was lost may be gone, whenever it is acknowledged; one that is durable then may not', () => {
  const make = (durable: boolean) => {
    const s = new Script()
    const a = s.write('c1', 0, 10)
    const open = s.history.beginWrite({ client: 'c1', volume: 1, offsetBytes: 0, lengthBytes: PAGE_BYTES, nowMs: 20 })
    s.history.allPowerLost(30)
    s.history.endWrite(open, 'ok', 40, durable)
    s.history.flushed(1, 50)
    s.read('c2', 60, 61, a)
    return s.valid
  }
  assert.ok(make(false))
  assert.ok(!make(true))
})

test('what was read and never acknowledged may be gone when the last server comes back without it; what was acknowledged may not', () => {
  const make = (read: 'a' | 'b', isLost = true) => {
    const s = new Script()
    const a = s.write('c1', 0, 10)
    const open = s.history.beginWrite({ client: 'c1', volume: 1, offsetBytes: 0, lengthBytes: PAGE_BYTES, nowMs: 20 })
    s.read('c2', 30, 31, open)
    s.history.unacknowledgedLost(40, () => isLost, true)
    s.read('c2', 50, 51, a)
    // its retry
    s.history.endWrite(open, 'ok', 70)
    s.read('c2', 80, 81, read === 'a' ? a : open)
    return s.valid
  }
  assert.ok(make('b'))
  assert.ok(!make('b', false), 'another slot')
  assert.ok(!make('a'), 'acknowledged since')
  const s = new Script()
  const a = s.write('c1', 0, 10)
  s.write('c1', 20, 30)
  s.history.unacknowledgedLost(40, () => true, true)
  s.read('c2', 50, 51, a)
  assert.ok(!s.valid, 'acknowledged before')
})

test('what was acknowledged from memory is there when the last server comes back without what was not, unless its host lost its power', () => {
  const make = (keepsAcknowledged: boolean, read: 'a' | 'b') => {
    const s = new Script()
    const a = s.write('c1', 0, 10, { durable: false })
    const b = s.write('c1', 20, 30, { durable: false })
    const open = s.history.beginWrite({ client: 'c1', volume: 1, offsetBytes: 0, lengthBytes: PAGE_BYTES, nowMs: 35 })
    s.read('c2', 36, 37, open)
    s.history.unacknowledgedLost(40, () => true, keepsAcknowledged)
    s.read('c2', 50, 51, read === 'a' ? a : b)
    return s
  }
  assert.ok(make(true, 'b').valid)
  assert.ok(!make(true, 'a').valid)
  assert.ok(make(false, 'a').valid)
  const later = make(true, 'b')
  later.history.allPowerLost(60)
  later.read('c2', 70, 71, undefined)
  assert.ok(later.valid, 'it was not flushed')
})

test('a write that failed long before the last server came back does not take effect since, however often that happens', () => {
  const make = (atMs: number) => {
    const s = new Script()
    const a = s.write('c1', 0, 10)
    const failed = s.write('c1', 20, 30, { outcome: 'failed' })
    s.read('c2', 40, 41, a)
    for (let ms = 50; ms < 54; ms++) s.history.unacknowledgedLost(ms, () => true, true)
    s.read('c2', atMs, atMs + 1, failed)
    return s
  }
  assert.ok(!make(45).valid)
  assert.ok(!make(60).valid)
  assert.equal(
    make(60)
      .history.describePage('1:0')
      .filter((text) => text.startsWith('write ')).length,
    3,
    'once more, not once for each',
  )
})

test('a loss of the power of other slots is none: what is read from memory then may be lost later', () => {
  const make = ({ isLost, mayBeNone }: { isLost?: () => boolean; mayBeNone?: boolean }, back: 'a' | 'nothing' = 'a') => {
    const s = new Script()
    const a = s.write('c1', 0, 10, { durable: false })
    s.history.flushed(1, 15)
    s.write('c1', 20, 30, { durable: false })
    const b = s.write('c1', 40, 50, { durable: false })
    s.history.allPowerLost(60, isLost, mayBeNone)
    s.read('c2', 70, 71, b)
    s.history.allPowerLost(80)
    s.read('c2', 90, 91, back === 'a' ? a : undefined)
    return s.valid
  }
  assert.ok(make({ isLost: () => false }))
  assert.ok(!make({}), 'what was read after all power was gone is on disks')
  assert.ok(make({ mayBeNone: true }), 'somebody had kept it in memory')
  assert.ok(!make({ isLost: () => false }, 'nothing'), 'what was flushed is gone')
})

test('a write that waits for its successors takes effect behind writes that were refused meanwhile', () => {
  const make = (refused: 'ok' | 'failed') => {
    const s = new Script()
    s.read('c2', 1, 2, undefined)
    const a = s.write('c1', 5, 10)
    const late = s.history.beginWrite({ client: 'dead', volume: 1, offsetBytes: 0, lengthBytes: PAGE_BYTES, nowMs: 20 })
    s.history.clientDied('dead', 30)
    s.history.endWrite(s.history.beginWrite({ client: 'c1', volume: 1, offsetBytes: 0, lengthBytes: PAGE_BYTES, nowMs: 40, zero: true }), refused, 41)
    if (refused === 'failed') s.read('c2', 50, 51, a)
    s.read('c2', 60, 61, late)
    return s.valid
  }
  assert.ok(make('failed'))
  assert.ok(!make('ok'))
})

test('of a promise that breaks in many places people are shown three, and how many there are more', () => {
  const broken = (promise: string, count: number) => Array.from({ length: count }, (_, i) => ({ promise, detail: `page ${i}` }))
  assert.deepEqual(
    shownOf([...broken('a', 5), ...broken('b', 3)]).map(({ promise, detail }) => `${promise} ${detail}`),
    ['a page 0', 'a page 1', 'a page 2', 'a and 2 more', 'b page 0', 'b page 1', 'b page 2'],
  )
})

test('bytes nobody wrote there are named', () => {
  const s = new Script()
  const op = s.history.beginRead({ client: 'c', volume: 1, offsetBytes: 0, lengthBytes: 512, nowMs: 0 })
  s.history.endRead(op, new Uint8Array(512).fill(7), 0, 1)
  assert.match(s.history.check().violations[0]!.detail, /nobody wrote/)
  const moved = new Script()
  const w = moved.write('c', 0, 1)
  const bytes = new Uint8Array(4096)
  writeStamps(bytes, 0, { ...w, offsetBytes: 4096 })
  const r = moved.history.beginRead({ client: 'c', volume: 1, offsetBytes: 0, lengthBytes: 512, nowMs: 2 })
  moved.history.endRead(r, bytes, 0, 3)
  assert.match(moved.history.check().violations[0]!.detail, /nobody wrote/)
})

/** Clients on one true register of sectors, with a bug planted by name. */
function simulate(seed: number, bug: 'none' | 'stale read' | 'lost write' | 'late write' | 'torn write'): boolean {
  const random = new Prng(seed)
  const s = new Script()
  const h = s.history
  let truth: Array<OpenOp | undefined> = Array.from({ length: 8 }, () => undefined)
  let older = truth
  interface Running {
    op: OpenOp
    read: boolean
    effectMs: number
    endMs: number
    seen?: Array<OpenOp | undefined>
    effected: boolean
    client: string
    mask: number
  }
  const running: Running[] = []
  const late: Running[] = []
  for (let now = 0; now < 3000; now++) {
    for (const r of [...running]) {
      if (!r.effected && now >= r.effectMs) {
        r.effected = true
        if (r.read) r.seen = bug === 'stale read' && random.chance(0.1) ? older : truth
        else if (bug === 'lost write' && random.chance(0.05)) continue
        else {
          if (bug === 'late write' && random.chance(0.05)) {
            late.push({ ...r, effectMs: r.endMs + 50 })
            continue
          }
          older = truth
          const mask = bug === 'torn write' && random.chance(0.1) ? r.mask & 0x55 : r.mask
          truth = truth.map((old, i) => (mask & (1 << i) ? r.op : old))
        }
      }
      if (now >= r.endMs) {
        running.splice(running.indexOf(r), 1)
        if (r.read) {
          s.bytes.fill(0)
          const one = new Uint8Array(4096)
          r.seen!.forEach((w, i) => {
            if (!w) return
            writeStamps(one, 0, { ...w, offsetBytes: 0, lengthBytes: 4096 })
            s.bytes.set(one.subarray(i * SECTOR, (i + 1) * SECTOR), i * SECTOR)
          })
          h.endRead(r.op, s.bytes, 0, now)
        } else h.endWrite(r.op, 'ok', now)
      }
    }
    for (const r of [...late]) {
      if (now < r.effectMs) continue
      late.splice(late.indexOf(r), 1)
      truth = truth.map((old, i) => (r.mask & (1 << i) ? r.op : old))
    }
    for (const client of ['a', 'b', 'c', 'd']) {
      if (running.some((r) => r.client === client) || !random.chance(0.2)) continue
      const read = random.chance(0.5)
      const sector = read ? 0 : random.below(8)
      const sectors = read ? 8 : random.between(1, 8 - sector)
      const begin = { client, volume: 1, offsetBytes: sector * SECTOR, lengthBytes: sectors * SECTOR, nowMs: now }
      const effectMs = now + random.between(1, 5)
      running.push({
        op: read ? h.beginRead(begin) : h.beginWrite(begin),
        read,
        effectMs,
        endMs: effectMs + random.between(1, 5),
        effected: false,
        client,
        mask: ((1 << sectors) - 1) << sector,
      })
    }
  }
  return s.valid
}

test('correct histories pass, and each planted bug is found', { timeout: 60_000 }, () => {
  for (let seed = 1; seed <= 10; seed++) assert.ok(simulate(seed, 'none'), `seed ${seed}`)
  for (const bug of ['stale read', 'lost write', 'late write', 'torn write'] as const) {
    let found = 0
    for (let seed = 1; seed <= 10; seed++) if (!simulate(seed, bug)) found++
    assert.ok(found >= 9, `${bug}: found in ${found} of 10`)
  }
})

test('a page that is too much work as a whole is decided sector by sector, losses of power included', () => {
  const make = (shown: 'newest' | 'older', isLost: boolean) => {
    const s = new Script()
    // all at once, seen in the order that is tried last
    const writes = Array.from({ length: 8 }, (_, sector) => s.write(`c${sector}`, 0, 100, { sector, sectors: 1, durable: !isLost }))
    for (let n = 1; n <= 8; n++) {
      s.read(
        'r',
        n * 10,
        n * 10 + 1,
        writes.map((write, sector) => (sector >= 8 - n ? write : undefined)),
      )
    }
    if (isLost) s.history.allPowerLost(110)
    s.read(
      'r',
      120,
      121,
      writes.map((write, sector) => (shown === 'older' && sector === 5 ? undefined : write)),
    )
    return s.history
  }
  const whole = make('newest', false)
  assert.ok(whole.check(8).undecided > 0, 'not even its sectors within so little')
  assert.deepEqual(whole.check(60), { violations: [], undecided: 0, pages: 1 })
  assert.deepEqual(make('older', true).check(60), { violations: [], undecided: 0, pages: 1 })
  const [violation] = make('older', false).check(60).violations
  assert.match(violation?.detail ?? '', /sector 5/)
})
