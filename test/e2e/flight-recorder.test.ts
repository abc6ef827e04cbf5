/** What a dying process leaves behind: the last events of each thread, in a file that decodes. */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { bin, endChild, must, sleep, until } from '../support/commands.ts'
import { DevCluster, isAlive } from '../support/dev-cluster.ts'

const TEST_MS = 180_000

interface Shown {
  node: string
  reason: string
  threads: string[]
  events: Array<{ time: string; thread: string; event: string; [number: string]: unknown }>
}

const flightFiles = (dataDir: string) => readdirSync(dataDir).filter((name) => name.startsWith('flight-'))
const show = async (path: string, ...args: string[]) =>
  JSON.parse((await must(bin('xsan-debug'), ['flight-recorder', 'show', path, '-o', 'json', ...args])).stdout) as Shown

async function oneNode(t: TestContext): Promise<DevCluster> {
  const cluster = await DevCluster.up({ nodes: 1, replicas: 1, diskSize: '512M' })
  t.after(() => cluster.end())
  return cluster
}

test('a running node writes its recorder when asked by a command or by SIGQUIT, and goes on', { timeout: TEST_MS }, async (t) => {
  const cluster = await oneNode(t)
  const { grpc, data_dir: dataDir, pid } = cluster.node('node-1')
  await cluster.createVolume('db', '64M')
  const client = await cluster.nbd('node-1', 'db')
  await client.write(0, Buffer.alloc(4096, 1))
  const dumped = JSON.parse((await must(bin('xsan-debug'), ['--server', grpc, 'flight-recorder', 'dump', '-o', 'json'])).stdout) as { path: string }
  const { node, threads, events } = await show(dumped.path, '--last', '100000')
  assert.equal(node, 'node-1')
  assert.deepEqual(threads, ['main', 'reactor-0'])
  const write = events.find(({ event, command }) => event === 'nbd request' && command === 'WRITE')
  assert.ok(write !== undefined && write['sectors'] === 8, 'the write is among the events')
  const reply = events.find(({ event, request }) => event === 'nbd reply' && request === write['request'])
  assert.equal(reply?.['status'], 'SUCCESS')
  assert.ok(reply.time >= write.time && Math.abs(Date.parse(write.time) - Date.now()) < 120_000, write.time)
  for (const name of ['completion', 'lease', 'table applied', 'message received', 'update ordered', 'committed'])
    assert.ok(
      events.some(({ event }) => event === name),
      name,
    )
  process.kill(pid, 'SIGQUIT')
  await until('SIGQUIT wrote a second file', 20_000, () => flightFiles(dataDir).length === 2)
  await client.write(4096, Buffer.alloc(4096, 2))
  await client.close()
  assert.ok(isAlive(pid))
})

for (const [where, condition] of [
  ['a reactor', '!isMainThread && workerData?.flight'],
  ['the main thread', 'isMainThread && process.argv[1]?.endsWith("xsand.ts")'],
] as const) {
  test(`an uncaught error in ${where} ends the process, and its recorder is left in the data directory`, { timeout: TEST_MS }, async (t) => {
    const cluster = await oneNode(t)
    await cluster.down()
    const { data_dir: dataDir } = cluster.node('node-1')
    const planted = join(cluster.dir, 'planted.mjs')
    writeFileSync(
      planted,
      `import { isMainThread, workerData } from 'node:worker_threads'
       if (${condition}) setTimeout(() => { throw new Error('planted by the test') }, 3000)`,
    )
    const config = join(cluster.dir, 'node-1/xsan.json')
    const child: ChildProcess = spawn(bin('xsand'), ['--config', config], {
      env: { ...process.env, NODE_OPTIONS: `--import=${planted}` },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    t.after(() => endChild(child))
    let stderr = ''
    child.stderr!.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
    const code = await Promise.race([new Promise<number | null>((resolve) => child.once('exit', resolve)), sleep(60_000).then(() => 'still runs')])
    assert.equal(code, 2, stderr)
    const [file, ...more] = flightFiles(dataDir)
    assert.ok(file !== undefined && more.length === 0, stderr)
    assert.match(stderr, /"level":"FATAL"/)
    assert.match(stderr, new RegExp(`xsan-debug flight-recorder show .*${file}`))
    const { reason, events } = await show(join(dataDir, file))
    assert.match(reason, /planted by the test/)
    assert.ok(events.some(({ thread }) => thread === 'reactor-0'))
    assert.ok(events.some(({ thread }) => thread === 'main'))
    // what died has let go of everything: the node starts again
    await cluster.resume()
    assert.ok(!readFileSync(config, 'utf8').includes('planted'))
  })
}
