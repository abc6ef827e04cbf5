import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { fileURLToPath } from 'node:url'
import { kvConformance } from '../../../test/conformance/kv.ts'
import type { XsanError } from '../../base/errors.ts'
import { LevelKv } from './kv.ts'

const tempDir = () => mkdtempSync(join(tmpdir(), 'xsan-kv-'))
const is = (status: string, reason: RegExp) => (error: unknown) => (error as XsanError).status === status && reason.test((error as XsanError).message)

kvConformance('LevelDB', async () => {
  const path = tempDir()
  return {
    open: () => LevelKv.open(join(path, 'kv')),
    run: (promise) => promise,
    close: async () => rmSync(path, { recursive: true }),
  }
})

test('a file in the place of the store, a locked and a damaged one are refused with the reason', async (t) => {
  const path = tempDir()
  t.after(() => rmSync(path, { recursive: true }))
  writeFileSync(join(path, 'file'), 'x')
  await assert.rejects(LevelKv.open(join(path, 'file')), is('INVALID_PARAM', /file/))
  const kv = await LevelKv.open(join(path, 'kv'))
  await assert.rejects(LevelKv.open(join(path, 'kv')), is('BUSY', /another process/))
  await kv.batch([{ type: 'put', key: 'k', value: new Uint8Array(1000) }])
  await kv.close()
  await assert.rejects(kv.batch([]), is('STOPPING', /closed/))
  const manifest = readdirSync(join(path, 'kv')).find((name) => name.startsWith('MANIFEST'))!
  const bytes = readFileSync(join(path, 'kv', manifest))
  bytes[10]! ^= 0xff
  writeFileSync(join(path, 'kv', manifest), bytes)
  await assert.rejects(LevelKv.open(join(path, 'kv')), is('DISK_CORRUPTED', /damaged/))
})

test('what is stored, the keys of the cluster among it, is for the owner alone, also where the directory was there before', async (t) => {
  const path = tempDir()
  t.after(() => rmSync(path, { recursive: true }))
  mkdirSync(join(path, 'old'))
  chmodSync(join(path, 'old'), 0o755)
  for (const name of ['old', 'new']) {
    const kv = await LevelKv.open(join(path, name))
    await kv.close()
    assert.equal(statSync(join(path, name)).mode & 0o777, 0o700)
  }
})

test('a directory that may not be written is refused with the reason', { skip: process.getuid?.() === 0 ? 'root may write everywhere' : false }, async (t) => {
  const path = tempDir()
  t.after(() => rmSync(path, { recursive: true }))
  chmodSync(path, 0o500)
  await assert.rejects(LevelKv.open(join(path, 'kv')), is('PERMISSION_DENIED', /cannot be written/))
})

test('what was acknowledged before a SIGKILL is there after it, in an unbroken sequence', { timeout: 60_000 }, async (t) => {
  const path = tempDir()
  t.after(() => rmSync(path, { recursive: true }))
  const source = fileURLToPath(new URL('./kv.ts', import.meta.url))
  const writer = `
    const { LevelKv } = await import(${JSON.stringify(source)})
    const kv = await LevelKv.open(${JSON.stringify(join(path, 'kv'))})
    for (let i = 0; ; i++) {
      const number = i
      kv.batch([{ type: 'put', key: 'n/' + String(number).padStart(8, '0'), value: new Uint8Array(100) }]).then(() => process.stdout.write(number + '\\n'))
      if (i % 8 === 7) await new Promise((resolve) => setImmediate(resolve))
    }`
  const child = spawn(process.execPath, ['--input-type=module', '-e', writer], { stdio: ['ignore', 'pipe', 'inherit'] })
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => {
    printed += chunk.toString()
    if (printed.length > 2000) child.kill('SIGKILL')
  })
  await new Promise((resolve) => child.on('close', resolve))
  const acknowledged = printed.slice(0, printed.lastIndexOf('\n')).split('\n').map(Number)
  const kv = await LevelKv.open(join(path, 'kv'))
  const stored = (await kv.scan('n/')).map(({ key }) => Number(key.slice(2)))
  assert.deepEqual(
    stored,
    stored.map((_, i) => i),
  )
  assert.ok(stored.length > Math.max(...acknowledged))
  await kv.close()
})

test('ten thousand entries are scanned whole', async (t) => {
  const path = tempDir()
  t.after(() => rmSync(path, { recursive: true }))
  const kv = await LevelKv.open(join(path, 'kv'))
  const key = (i: number) => `log/${String(i).padStart(6, '0')}`
  await kv.batch(Array.from({ length: 10_000 }, (_, i) => ({ type: 'put', key: key(i), value: Uint8Array.of(i & 255, i >> 8) }) as const))
  const entries = await kv.scan('log/')
  assert.equal(entries.length, 10_000)
  for (const [i, entry] of entries.entries()) assert.deepEqual([entry.key, ...entry.value], [key(i), i & 255, i >> 8])
  await kv.close()
})
