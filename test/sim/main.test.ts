/** `xsan sim` as a shell sees it: what strangers' scripts read. */
import assert from 'node:assert/strict'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { bin, makeDirectory, removeDirectory, run } from '../support/commands.ts'
import { CANARIES } from './canaries.ts'
import { runTasks, type TaskResult } from './pool.ts'
import { scheduleOf } from './run.ts'

const TIMEOUT_MS = 240_000
const sim = (...args: readonly string[]) => run(bin('xsan'), ['sim', ...args], { timeoutMs: TIMEOUT_MS })
/** A schedule so short that it runs in a moment. */
const short = () => ({ ...scheduleOf(1, 'calm'), clients: 1, opsPerClient: 5, durationMs: 50, faults: [] })

test('--canaries lists names, one a line, and as JSON what they are', async () => {
  const names = CANARIES.map(({ name }) => name)
  assert.deepEqual((await sim('--canaries')).stdout.trimEnd().split('\n'), names)
  const listed = JSON.parse((await sim('--canaries', '-o', 'json')).stdout) as Array<{ name: string; bug: string }>
  assert.deepEqual(
    listed.map(({ name }) => name),
    names,
  )
})

test('what is wrong is said in the words of all commands: code, cause, next step; and before anything runs', { timeout: TIMEOUT_MS }, async () => {
  for (const [args, pattern] of [
    [['--profile', 'wild'], /unknown profile "wild"\. Try: Use one of calm, /],
    [['--seed'], /argument missing/],
    [['--seed', '--seeds'], /argument is ambiguous/],
    [['extra'], /Unexpected argument 'extra'\. Try: xsan sim --help/],
    [['--seeds', '5..3'], /"5\.\.3" is empty\. Try: The smaller one first: 3\.\.5/],
    [['--seeds', '-1..3'], /"-1\.\.3" is not a range of seeds/],
    [['--seed', '1', '--jobs', '0'], /"0" is not a number of processes/],
    [['--seeds', '2', '--jobs', '-1'], /"-1" is not a number of processes/],
    [['--schedule', '/dev/zero'], /\/dev\/zero: not a schedule: more than \d+ bytes/],
    [['--schedule', '/tmp'], /\/tmp: EISDIR/],
    [['--picture', '/nonexistent/x.html'], /"\/nonexistent\/x\.html" cannot be written/],
    [['--shrink', '/tmp'], /"\/tmp" cannot be written: it is a directory/],
    [['--shrink', ''], /"" cannot be written: the name is empty/],
  ] as const) {
    const { code, stdout, stderr } = await sim(...args)
    assert.equal(code, 64, stderr)
    assert.match(stderr, /^error XSAN-002 INVALID_PARAM: .+ Try: .+\n$/)
    assert.match(stderr, pattern)
    assert.equal(stdout, '')
  }
})

test('a schedule is replayed from a file of any name, and refused by what is wrong with it', { timeout: TIMEOUT_MS }, async (t) => {
  const dir = makeDirectory()
  t.after(() => removeDirectory(dir))
  const file = join(dir, "my friend's.json")
  const replay = (schedule: unknown, ...args: readonly string[]) => {
    writeFileSync(file, typeof schedule === 'string' ? schedule : JSON.stringify(schedule))
    return sim('--schedule', file, ...args)
  }
  const { code, stdout } = await replay(short(), '-o', 'json')
  assert.equal(code, 0)
  assert.deepEqual((JSON.parse(stdout) as { violations: unknown }).violations, [])
  for (const [schedule, pattern] of [
    [{ ...short(), format: '2' }, /schedule format "2" is not 3/],
    [{ ...short(), format: 2 }, /schedule format 2 is not 3/],
    [{ ...short(), seed: 1.5 }, /seed is not a whole number/],
    [{ ...short(), seed: '18446744073709551616' }, /seed is not a whole number/],
    [[], /it names no format/],
    ['', /not a schedule/],
    ['\x1b[31m\0{', /not a schedule/],
  ] as const) {
    const ran = await replay(schedule)
    assert.equal(ran.code, 64)
    assert.match(ran.stderr, pattern)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: a terminal would obey them
    assert.doesNotMatch(ran.stderr, /[\x00\x1b]/)
  }
})

test('a failure is shrunk and replayed by the printed command, spaces and quotes in its name or not', { timeout: TIMEOUT_MS }, async (t) => {
  const dir = makeDirectory()
  t.after(() => removeDirectory(dir))
  const file = join(dir, "it's small.json")
  let ran = await sim('--canary', 'ack-before-tail', '--shrink', file)
  for (let seed = 2; ran.code === 0 && seed <= 20; seed++) ran = await sim('--canary', 'ack-before-tail', '--shrink', file, '--seed', String(seed))
  assert.equal(ran.code, 1, ran.stdout + ran.stderr)
  const lines = ran.stdout.trimEnd().split('\n')
  assert.match(lines[0]!, /^seed \d+ commit \w+ /)
  assert.match(lines.at(-2)!, /^violated: /)
  const promises = lines.at(-2)!.slice('violated: '.length).split('; ')
  assert.equal(new Set(promises).size, promises.length, 'each promise once')
  const [, command] = /^replay: npx (xsan sim --schedule .*)$/.exec(lines.find((line) => line.includes('--schedule'))!)!
  const again = await run('/bin/sh', ['-c', `${command!.replace('xsan', bin('xsan'))} -o json`], { timeoutMs: TIMEOUT_MS })
  assert.equal(again.code, 1, again.stderr)
  assert.ok((JSON.parse(again.stdout) as { violations: unknown[] }).violations.length > 0)
})

test('a picture is one well-formed page that needs nothing else', { timeout: TIMEOUT_MS }, async (t) => {
  const dir = makeDirectory()
  t.after(() => removeDirectory(dir))
  const file = join(dir, 'run.html')
  assert.equal((await sim('--seed', '3', '--profile', 'brutal', '--picture', file)).code, 0)
  assert.ok(existsSync(file))
  const html = readFileSync(file, 'utf8')
  assert.doesNotMatch(html, /\b(src|href)=|NaN|undefined|Infinity/)
  const svg = html.slice(html.indexOf('<svg'), html.indexOf('</svg>'))
  const open: string[] = []
  for (const [, end, name, empty] of svg.matchAll(/<(\/?)(\w+)(?:\s[^>]*?)?(\/?)>/g)) {
    if (end) assert.equal(open.pop(), name)
    else if (!empty) open.push(name!)
  }
  assert.deepEqual(open, ['svg'])
})

test('what cannot be saved hides nothing of what the run has found', { timeout: TIMEOUT_MS }, async () => {
  const ran = await sim('--seed', '1', '--focus', 'fua', '--picture', '/dev/full', '-o', 'json')
  assert.equal(ran.code, 2)
  assert.match(ran.stderr, /^error XSAN-301 WRITE_FAILED: \/dev\/full cannot be written: ENOSPC/m)
  assert.deepEqual((JSON.parse(ran.stdout) as { violations: unknown }).violations, [])
})

test('a range ends with one object; a run whose process dies is a failed seed and the others go on', { timeout: TIMEOUT_MS }, async () => {
  // a number alone counts from 1
  const ran = await sim('--seeds', '0x2', '--jobs', '2', '--profile', 'calm', '-o', 'json')
  assert.equal(ran.code, 0, ran.stderr)
  const { seeds, failed, first_failure: first } = JSON.parse(ran.stdout.trimEnd().split('\n').at(-1)!) as Record<string, unknown>
  assert.deepEqual([seeds, failed, first], [2, 0, null])

  const results: TaskResult[] = []
  const plan = { focus: 'leases' } as const
  const tasks = [
    { seed: 1, plan, canary: 'none such' },
    { seed: 2, plan },
  ]
  await runTasks(tasks, 1, (_, result) => results.push(result))
  assert.deepEqual(
    results.map(({ seed, violations }) => [seed, violations.map(({ promise }) => promise)]),
    [
      [1, ['a run ends']],
      [2, []],
    ],
  )
})

test('when nobody reads on, it ends', { timeout: TIMEOUT_MS }, async () => {
  const { code, stderr } = await run('/bin/bash', ['-c', `set -o pipefail; ${bin('xsan')} sim --seed 1 --profile calm --trace 2>&1 | head -1 >/dev/null`], {
    timeoutMs: TIMEOUT_MS,
  })
  assert.equal(stderr, '')
  assert.notEqual(code, -1)
})
