/** The simulator itself: a few seeds of whole clusters, the same trace twice, and planted bugs found. Many seeds: test/sim/ci.ts. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { canaryOf } from './canaries.ts'
import { simMain } from './main.ts'
import { runSchedule, scheduleFor, scheduleOf } from './run.ts'

const TIMEOUT_MS = 240_000

for (const profile of ['calm', 'rough', 'brutal', 'swarm'] as const) {
  test(`a ${profile} seed breaks no promise, and gives the same trace twice`, { timeout: TIMEOUT_MS }, async () => {
    const first = await runSchedule(scheduleOf(1, profile))
    assert.deepEqual(first.violations, [])
    assert.equal(first.undecided, 0)
    assert.ok(first.succeeded > 200, `${first.succeeded} operations succeeded`)
    const second = await runSchedule(scheduleOf(1, profile))
    assert.equal(second.hash, first.hash)
    assert.equal(second.events, first.events)
  })
}

test('a trace tells in words what nodes know, order and commit, and what clients begin and see; the hash is the same without one', async () => {
  const schedule = { ...scheduleOf(1, 'calm'), clients: 2, opsPerClient: 30, durationMs: 300, faults: [] }
  const lines: string[] = []
  const { hash } = await runSchedule(schedule, { trace: (line) => lines.push(line) })
  assert.equal((await runSchedule(schedule)).hash, hash)
  for (const told of [
    /^ *\d+\.\d{3} turn, node-1$/,
    /^ *\d+\.\d{3} data \d+ \d+, node-\d -> node-\d$/,
    / node-\d knows slot \d+ in version \d+: disk \d SERVING, /,
    / node-\d orders record 1 of slot \d+ \(version \d+\): WRITE pages \d+ to \d+ of block 1:\d, seq \d+ of channel \d+ of client \d+\.\d+$/,
    / node-\d stages record 1 of slot /,
    / node-\d commits slot \d+ up to 1$/,
    / node-\d is answered SUCCESS about block 1:\d in slot \d+/,
    / c\d\.1 begins write \d+: \d+ bytes at \d+ of volume 1, pages 1:\d+/,
    / write \d+ of c\d\.1 ends: ok/,
    / page 1:\d+: read \d+ by c\d\.1 \[[\d. ]+\] /,
  ])
    assert.ok(
      lines.some((line) => told.test(line)),
      String(told),
    )
})

test('a disk that lies about its flushes is found out', { timeout: TIMEOUT_MS }, async () => {
  const canary = canaryOf('flush-does-nothing')!
  const undo = canary.plant()
  try {
    for (let seed = 1; seed <= canary.seedsMax; seed++) {
      if ((await runSchedule(scheduleFor(seed, canary.plan))).violations.length > 0) return
    }
    assert.fail(`not found in ${canary.seedsMax} seeds`)
  } finally {
    undo()
  }
})

test('wrong options are a clear error and exit code 64', async () => {
  for (const argv of [
    ['--profile', 'wild'],
    ['--seed', 'x'],
    ['--seed', '18446744073709551616'],
    ['--seed', '1.5'],
    ['--seed', ''],
    ['--seeds', '5..1'],
    ['--seeds', '1..18446744073709551616'],
    ['--seeds', '-1..3'],
    ['--seeds', '1..2', '--jobs', '0'],
    ['--seeds', '1..2', '--seed', '1'],
    ['--seeds', '1..2', '--shrink', '/tmp/x'],
    ['--focus', 'nothing'],
    ['--focus', 'churn', '--profile', 'calm'],
    ['extra'],
    ['--canary', 'none'],
    ['--schedule', '/nonexistent'],
    ['--nonsense'],
  ]) {
    assert.equal(await simMain(argv), 64, argv.join(' '))
  }
})
