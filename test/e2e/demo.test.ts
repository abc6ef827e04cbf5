/** The demo, interrupted: it must leave nothing behind. (That it runs through is shown by `npm run demo`.) */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { endChild, makeDirectory, ROOT, removeDirectory, sleep, until } from '../support/commands.ts'

const TEST_MS = 180_000

/** Processes of which an argument, or the working directory, lies in `dir`. */
function processesOf(dir: string): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .map((name) => {
      try {
        return readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ')
      } catch {
        return ''
      }
    })
    .filter((line) => line.includes(dir))
}

for (const [when, seen] of [
  ['while the nodes are being started', 'start 3 nodes'],
  ['in the middle of the load', 'kill -9'],
] as const) {
  test(`interrupted ${when}, the demo ends its nodes and removes its files`, { timeout: TEST_MS }, async (t) => {
    const dir = makeDirectory(undefined, 'xsan-demo-test-')
    t.after(() => removeDirectory(dir))
    const child = spawn(join(ROOT, 'node_modules/.bin/node'), ['--disable-warning=ExperimentalWarning', join(ROOT, 'tools/demo.ts')], {
      env: { ...process.env, TMPDIR: dir },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    t.after(() => endChild(child))
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (output += chunk.toString()))
    const exited = new Promise<number | null>((resolve) => child.once('exit', resolve))
    await until(`${seen}\n${output}`, 120_000, () => output.includes(seen))
    await sleep(1200)
    assert.ok(readdirSync(dir).length > 0, 'it works in this directory')
    child.kill('SIGINT')
    await sleep(200)
    // people press it twice
    child.kill('SIGINT')
    assert.equal(await exited, 130, output)
    assert.deepEqual(readdirSync(dir), [])
    assert.deepEqual(processesOf(dir), [])
    assert.ok(!output.includes('The demo failed'), output)
  })
}
