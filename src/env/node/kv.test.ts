import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { appendFileSync, chmodSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { ClassicLevel } from 'classic-level'
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

/** A store with `writes` acknowledged writes, closed; its log and its directory. */
async function written(t: TestContext, writes: number, valueBytes = 1000): Promise<{ path: string; log: () => string }> {
  const path = join(tempDir(), 'kv')
  t.after(() => rmSync(dirname(path), { recursive: true }))
  const kv = await LevelKv.open(path)
  for (let i = 0; i < writes; i++) await kv.batch([{ type: 'put', key: `key/${i}`, value: new Uint8Array(valueBytes).fill(i) }])
  await kv.close()
  return { path, log: () => join(path, readdirSync(path).find((name) => name.endsWith('.log'))!) }
}

function flip(path: string, at: number): void {
  const bytes = readFileSync(path)
  bytes[at < 0 ? bytes.length + at : at]! ^= 0x10
  writeFileSync(path, bytes)
}

test('rot anywhere in the log of the store is noticed, at its end too, where LevelDB drops what was acknowledged without a word', async (t) => {
  for (const at of [7, 40, 500, 20_000, 32_760, 40_000, 70_000, -3000, -1500, -900, -30, -1]) {
    const { path, log } = await written(t, 90)
    flip(log(), at)
    await assert.rejects(LevelKv.open(path), is('DISK_CORRUPTED', /has lost writes that were acknowledged/), `a bit at ${at}`)
  }
})

/** A store whose log was turned into a table and followed by another one; what was there of both before and after that. */
async function followed(t: TestContext) {
  const { path, log } = await written(t, 10)
  const older = { name: log(), bytes: readFileSync(log()) }
  const manifests = readdirSync(path).filter((name) => /^(CURRENT|MANIFEST)/.test(name))
  const before = manifests.map((name) => ({ name: join(path, name), bytes: readFileSync(join(path, name)) }))
  const kv = await LevelKv.open(path)
  await kv.batch([{ type: 'put', key: 'later', value: new Uint8Array(1) }])
  await kv.close()
  assert.notEqual(log(), older.name)
  return { path, older, before }
}

test('rot at the end of a log is noticed when another log follows it, and both count', async (t) => {
  for (const isRotten of [false, true]) {
    const { path, older, before } = await followed(t)
    // as after a loss of power before the table of the older log was noted
    for (const { name, bytes } of before) writeFileSync(name, bytes)
    if (isRotten) older.bytes[older.bytes.length - 1]! ^= 1
    writeFileSync(older.name, older.bytes)
    if (isRotten) {
      await assert.rejects(LevelKv.open(path), is('DISK_CORRUPTED', /has lost writes that were acknowledged/))
      continue
    }
    const kv = await LevelKv.open(path)
    assert.deepEqual([(await kv.scan('key/')).length, (await kv.scan('later')).length], [10, 1])
    await kv.close()
  }
})

test('a log whose content is in a table may come back in any state after a loss of power: the store opens', async (t) => {
  for (const tear of [(bytes: Buffer) => bytes.fill(0, 4096, 8192), (bytes: Buffer) => bytes.subarray(0, 5000)]) {
    const { path, older } = await followed(t)
    writeFileSync(older.name, tear(older.bytes))
    const kv = await LevelKv.open(path)
    assert.deepEqual([(await kv.scan('key/')).length, (await kv.scan('later')).length], [10, 1])
    await kv.close()
  }
})

test('of a manifest of many edits the last log number counts', async (t) => {
  const { path, log } = await written(t, 1)
  // each of these fills a log, which becomes a table while the store is open
  const kv = await LevelKv.open(path)
  for (let i = 0; i < 12; i++) await kv.batch([{ type: 'put', key: `large/${i}`, value: new Uint8Array(1_500_000).fill(i) }])
  await kv.close()
  const number = Number.parseInt(log().slice(-10), 10)
  assert.ok(number > 10, `log ${number}`)
  const name = join(path, `${String(number - 3).padStart(6, '0')}.log`)
  const bytes = readFileSync(log())
  writeFileSync(name, bytes.fill(0, 0, 50))
  const again = await LevelKv.open(path)
  assert.equal((await again.scan('large/')).length, 12)
  await again.close()
})

test('a log that ends in the middle of a write nobody was told of is fine', async (t) => {
  const { path, log } = await written(t, 50)
  appendFileSync(log(), Buffer.from([1, 2, 3, 4, 200, 0, 1, 9, 9, 9]))
  const kv = await LevelKv.open(path)
  assert.equal((await kv.scan('key/')).length, 50)
  await kv.close()
})

test('a write of many blocks that a loss of power has left in parts is fine, when nobody was told of it', async (t) => {
  for (const lost of [0, 1, 5, 20]) {
    const { path, log } = await written(t, 20)
    const mark = readFileSync(join(path, 'xsan.mark'))
    const kv = await LevelKv.open(path)
    await kv.batch([{ type: 'put', key: 'large', value: new Uint8Array(300_000).fill(7) }])
    await kv.close()
    writeFileSync(join(path, 'xsan.mark'), mark)
    const bytes = readFileSync(log())
    const page = Math.ceil((bytes.length - 300_000) / 4096) + lost
    bytes.fill(0, page * 4096, (page + 1) * 4096)
    writeFileSync(log(), bytes)
    const again = await LevelKv.open(path)
    assert.equal((await again.scan('key/')).length, 20, `page ${lost} of the write is lost`)
    assert.equal((await again.scan('large')).length, 0)
    await again.close()
  }
})

test('a store put back to an older copy of it, beside its mark, is refused', async (t) => {
  const { path } = await written(t, 3)
  const old = `${path}.old`
  cpSync(path, old, { recursive: true })
  const kv = await LevelKv.open(path)
  await kv.batch([{ type: 'put', key: 'vote', value: new Uint8Array(1) }])
  await kv.close()
  const mark = readFileSync(join(path, 'xsan.mark'))
  rmSync(path, { recursive: true })
  cpSync(old, path, { recursive: true })
  writeFileSync(join(path, 'xsan.mark'), mark)
  await assert.rejects(LevelKv.open(path), is('DISK_CORRUPTED', /it ends with write 3, and 4 were acknowledged/))
  // what the operator of a cluster without another node may do
  rmSync(join(path, 'xsan.mark'))
  const again = await LevelKv.open(path)
  assert.equal((await again.scan('key/')).length, 3)
  await again.close()
})

test('a value that has rotted in a table is named, and never handed out', async (t) => {
  const { path } = await written(t, 40, 5000)
  // opened again, the log becomes a table
  await (await LevelKv.open(path)).close()
  const table = readdirSync(path).find((name) => name.endsWith('.ldb'))!
  const bytes = readFileSync(join(path, table))
  let noticed = 0
  for (let at = 100; at < bytes.length - 3000; at += Math.ceil(bytes.length / 7)) {
    flip(join(path, table), at)
    const outcome = await LevelKv.open(path).then(
      async (kv) => {
        const found = await kv.scan('').catch((error: XsanError) => error)
        await kv.close()
        return found
      },
      (error: XsanError) => error,
    )
    if (Array.isArray(outcome))
      for (const { key, value } of outcome)
        assert.ok(
          value.every((byte) => byte === Number(key.slice(4))),
          `${key} is as it was stored`,
        )
    else {
      assert.equal((outcome as XsanError).status, 'DISK_CORRUPTED')
      noticed++
    }
    flip(join(path, table), at)
  }
  assert.ok(noticed > 0)
})

test('a store of a version that did not number its writes is taken over', async (t) => {
  const path = join(tempDir(), 'kv')
  t.after(() => rmSync(dirname(path), { recursive: true }))
  const level = new ClassicLevel<string, Uint8Array>(path, { keyEncoding: 'utf8', valueEncoding: 'view' })
  await level.put('a', new Uint8Array([1, 2, 3]))
  await level.close()
  for (let round = 0; round < 2; round++) {
    const kv = await LevelKv.open(path)
    assert.deepEqual(
      (await kv.scan('')).map(({ key, value }) => [key, ...value]),
      [['a', 1, 2, 3]],
    )
    await kv.close()
  }
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

test('after a write that failed none is acknowledged: what LevelDB appends behind its remains cannot be read again', { timeout: 60_000 }, async (t) => {
  const path = tempDir()
  t.after(() => rmSync(path, { recursive: true }))
  const source = fileURLToPath(new URL('./kv.ts', import.meta.url))
  const writer = `
    const { LevelKv } = await import(${JSON.stringify(source)})
    const { execFileSync } = await import('node:child_process')
    const limit = (bytes) => execFileSync('prlimit', ['--pid', String(process.pid), '--fsize=' + bytes + ':unlimited'])
    const kv = await LevelKv.open(${JSON.stringify(join(path, 'kv'))})
    const put = (key, length) => kv.batch([{ type: 'put', key, value: new Uint8Array(length) }]).then(() => key, (error) => error.status)
    const outcomes = [await put('before', 1000)]
    limit(50_000)
    outcomes.push(...(await Promise.all([put('large', 200_000), put('gathered', 1000)])))
    limit('unlimited')
    outcomes.push(await put('after', 1000))
    console.log(outcomes.join())`
  const child = spawn(process.execPath, ['--input-type=module', '-e', writer], { stdio: ['ignore', 'pipe', 'inherit'] })
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => {
    printed += chunk.toString()
  })
  await new Promise((resolve) => child.on('close', resolve))
  assert.equal(printed.trim(), 'before,WRITE_FAILED,WRITE_FAILED,WRITE_FAILED')
  const kv = await LevelKv.open(join(path, 'kv'))
  assert.deepEqual(
    (await kv.scan('')).map(({ key }) => key),
    ['before'],
  )
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
