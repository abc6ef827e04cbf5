/**
 * `npm run demo`: three real nodes, a real file system, a node killed in the middle, nothing lost. No root, under two minutes, leaves nothing behind
 * (`npm run demo -- --keep` leaves the nodes running and says where).
 * What it claims is compared byte by byte at the end.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { copyFile, readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { formatSize, MiB } from '../src/base/units.ts'
import { bin, endChild, endRunning, must, type Ran, ROOT, run, sleep } from '../test/support/commands.ts'
import { DevCluster, type Status } from '../test/support/dev-cluster.ts'
import { VerifiedLoad } from '../test/support/verified-load.ts'

const NODES = 3
/** Files of the host that go into the image: what every clone has installed. */
const SOURCE = join(ROOT, 'node_modules')
/** So many of them, about, whichever comes first. */
const IMAGE_BYTES = 320 * MiB
const IMAGE_FILES = 8000
const GATHER_MS_MAX = 20_000
const IMAGE_VOLUME = 'image'
const PROBE_VOLUME = 'probe'
const FIO_VOLUME = 'fio'
const PROBE_BYTES = 32 * MiB
const FIO_BYTES = 64 * MiB
const BEFORE_MS = 3000
const DEAD_MS = 5000
const PATIENCE_MS = 30_000
const RESYNC_POLL_MS = 50
const FIO_MS_MAX = 60_000
const KEEP = process.argv.includes('--keep')

interface Summary {
  readonly victim: string
  readonly stallMs: number
  readonly errors: number
  readonly requests: number
  readonly resyncMs: number
  readonly bytesMoved: number
  readonly bytesNeeded: number
  readonly imageBytes: number
  readonly blocks: number
}

/** Adds up what resync moves; a node counts from 0 again with each round. */
class ResyncWatch {
  bytesMoved = 0
  bytesNeeded = 0
  readonly #done: Promise<void>
  #ended = false

  constructor(cluster: DevCluster, from: string) {
    this.#done = this.#watch(cluster, from)
  }

  async end(): Promise<{ bytesMoved: number; bytesNeeded: number }> {
    await sleep(1500)
    this.#ended = true
    await this.#done
    return this
  }

  async #watch(cluster: DevCluster, from: string): Promise<void> {
    let last = { bytesMoved: 0, bytesNeeded: 0 }
    while (!this.#ended) {
      const resync = await cluster.status([cluster.node(from)]).then(
        (status) => status.resync,
        () => last,
      )
      const again = resync.bytesMoved < last.bytesMoved
      this.bytesMoved += resync.bytesMoved - (again ? 0 : last.bytesMoved)
      this.bytesNeeded += resync.bytesNeeded - (again ? 0 : last.bytesNeeded)
      last = resync
      await sleep(RESYNC_POLL_MS)
    }
  }
}

const began = performance.now()
const parent = mkdtempSync(join(tmpdir(), 'xsan-demo-'))
let cluster: DevCluster | undefined
let starting: Promise<DevCluster> | undefined
let probe: VerifiedLoad | undefined
let fioProcess: ChildProcess | undefined

let interrupted = false
for (const [signal, number] of [
  ['SIGINT', 2],
  ['SIGTERM', 15],
  ['SIGHUP', 1],
] as const) {
  // again and again: a second one must not leave the nodes behind
  process.on(signal, () => {
    if (interrupted) return
    interrupted = true
    console.error(`\n${signal}: ending the nodes, removing the files`)
    cleanUp().finally(() => process.exit(128 + number))
  })
}

let exitCode = 1
try {
  starting = step(`start ${NODES} nodes on this host, three copies of everything`, () => DevCluster.up({ nodes: NODES, replicas: 3, parent }))
  cluster = await starting
  report(await demo(cluster))
  exitCode = 0
} catch (error) {
  // whoever interrupted it ends the process
  if (interrupted) await new Promise(() => {})
  console.error(`\nThe demo failed: ${error instanceof Error ? error.message : String(error)}`)
  for (const { id } of cluster?.nodes ?? []) console.error(`--- the end of the log of ${id}\n${cluster!.log(id).trimEnd().split('\n').slice(-8).join('\n')}`)
} finally {
  await cleanUp()
}
process.exit(exitCode)

async function demo(cluster: DevCluster): Promise<Summary> {
  const first = cluster.nodes[0]!
  const image = join(parent, 'image')
  const imageBytes = await step(`build an ext4 image from the files in ${SOURCE}`, () => buildImage(image))
  await step(`copy its ${formatSize(imageBytes)} into a volume (nbdcopy, through ${first.id})`, async () => {
    await cluster.createVolume(IMAGE_VOLUME, String(imageBytes), '--replicas', '3')
    await cluster.createVolume(PROBE_VOLUME, String(PROBE_BYTES), '--replicas', '3')
    await cluster.createVolume(FIO_VOLUME, String(FIO_BYTES), '--replicas', '3')
    await must('nbdcopy', ['--flush', image, cluster.uri(first.id, IMAGE_VOLUME)], { timeoutMs: 120_000 })
  })

  const status = await cluster.healthy()
  const victim = status.leader
  const [survivor] = cluster.others(victim)
  let fio!: Promise<Ran>
  probe = await step(`write and read through ${survivor!.id}, everything verified: fio --verify, and a probe that times every request`, async () => {
    const load = new VerifiedLoad({
      endpoints: [cluster.endpoint(survivor!.id), cluster.endpoint(victim)],
      exportName: PROBE_VOLUME,
      sizeBytes: PROBE_BYTES,
      seed: 1,
      depth: 2,
      patienceMs: PATIENCE_MS,
      requestBytesMax: 16 * 1024,
    })
    load.start()
    fio = startFio(cluster.uri(survivor!.id, FIO_VOLUME))
    await sleep(BEFORE_MS)
    return load
  })
  const load = probe

  await step(`kill -9 ${victim}, the Raft leader, head of ${headedBy(status, victim)} chains; go on for ${DEAD_MS / 1000} s`, async () => {
    load.mark()
    await cluster.kill(victim)
    await sleep(DEAD_MS)
  })
  const resync = new ResyncWatch(cluster, survivor!.id)
  const restarted = performance.now()
  const resyncMs = await step(`start ${victim} again; it fetches what it missed while the load goes on`, async () => {
    await cluster.start(victim)
    await cluster.healthy(PATIENCE_MS)
    return performance.now() - restarted
  })
  const stallMs = load.longestMs
  await load.stop(PATIENCE_MS)
  const { bytesMoved, bytesNeeded } = await resync.end()

  const ran = await step('let fio finish and verify what it wrote', () => within(fio, FIO_MS_MAX, 'fio did not end'))
  if (ran.code !== 0) throw new Error(`fio found errors:\n${ran.stderr}`)
  const job = (
    JSON.parse(ran.stdout.slice(ran.stdout.indexOf('{'))) as { jobs: [{ error: number; read: { total_ios: number }; write: { total_ios: number } }] }
  ).jobs[0]

  await step(`read everything back through ${victim}: the probe's sectors, nbdcopy + cmp, e2fsck -f`, async () => {
    await load.verify(1)
    const copy = join(parent, 'copy')
    await must('nbdcopy', [cluster.uri(victim, IMAGE_VOLUME), copy], { timeoutMs: 120_000 })
    await must('cmp', [image, copy])
    await must('e2fsck', ['-f', '-n', copy])
  })
  if (load.violations.length > 0) throw new Error(`the probe found: ${load.violations.slice(0, 3).join('; ')}`)

  const blocks = await step('compare version and checksum of the three copies of every block', async () => {
    let count = 0
    for (const volume of [IMAGE_VOLUME, PROBE_VOLUME, FIO_VOLUME]) count += await cluster.assertReplicasEqual(volume)
    return count
  })
  const errors = job.error + Object.values(load.stats.errors).reduce((sum, count) => sum + count, 0)
  const requests = load.stats.reads + load.stats.writes + job.read.total_ios + job.write.total_ios
  return { victim, stallMs, errors, requests, resyncMs, bytesMoved, bytesNeeded, imageBytes, blocks }
}

/** Room for the files and a quarter more; whole blocks of the volume. */
async function buildImage(path: string): Promise<number> {
  const files = join(parent, 'files')
  const bytes = await gather(SOURCE, files)
  const megabytes = Math.ceil(((bytes / MiB) * 1.25) / 4) * 4 + 32
  await must('mke2fs', ['-q', '-t', 'ext4', '-d', files, path, `${megabytes}M`], { timeoutMs: 60_000 })
  return statSync(path).size
}

/**
 * Copies files that anybody may read, whole directories after one another, until there are enough of them or it has taken long enough: from a cold disk tens of
 * thousands of small files take minutes. Returns their space in whole pages of the file system.
 */
async function gather(from: string, to: string): Promise<number> {
  const endMs = performance.now() + GATHER_MS_MAX
  let bytes = 0
  let files = 0
  const directories: Array<readonly [string, string]> = [[from, to]]
  for (let next = directories.pop(); next !== undefined; next = directories.pop()) {
    const [source, target] = next
    mkdirSync(target, { recursive: true })
    for (const entry of await readdir(source, { withFileTypes: true })) {
      if (entry.isDirectory() && !entry.name.startsWith('.')) directories.push([join(source, entry.name), join(target, entry.name)])
      if (!entry.isFile()) continue
      try {
        await copyFile(join(source, entry.name), join(target, entry.name))
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error
        continue
      }
      bytes += Math.ceil(statSync(join(target, entry.name)).size / 4096 + 1) * 4096
      if (bytes >= IMAGE_BYTES || ++files >= IMAGE_FILES || performance.now() > endMs) return bytes
    }
  }
  return bytes
}

/** Writes its whole range at random, slowly enough to last through everything, then reads it back and compares. */
function startFio(uri: string): Promise<Ran> {
  const writes = FIO_BYTES / 4096
  const seconds = (BEFORE_MS + DEAD_MS) / 1000 + 3
  const args = [
    '--name=demo',
    '--ioengine=nbd',
    `--uri=${uri}`,
    '--rw=randwrite',
    '--bs=4k',
    '--iodepth=16',
    `--size=${FIO_BYTES}`,
    `--rate_iops=${Math.ceil(writes / seconds)}`,
  ]
  const child = spawn('fio', [...args, '--verify=crc32c', '--verify_fatal=1', '--do_verify=1', '--randrepeat=0', '--output-format=json'], {
    cwd: parent,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  fioProcess = child
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  return new Promise((resolve) => {
    child.on('error', (error) => resolve({ code: -1, stdout, stderr: error.message }))
    child.on('close', (code) => resolve({ code: code ?? -1, stdout, stderr }))
  })
}

async function within<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  const late = sleep(timeoutMs).then((): never => {
    throw new Error(`${what} within ${timeoutMs / 1000} s`)
  })
  return Promise.race([promise, late])
}

function headedBy(status: Status, id: string): string {
  const headed = status.nodes.find((node) => node.id === id)?.chainsHeaded ?? 0
  return `${headed} of ${status.chains.total}`
}

async function step<T>(title: string, body: () => Promise<T>): Promise<T> {
  // a step that begins now would start again what is being ended
  if (interrupted) await new Promise(() => {})
  const from = performance.now()
  process.stdout.write(`- ${title} ... `)
  const result = await body()
  process.stdout.write(`${((performance.now() - from) / 1000).toFixed(1)} s\n`)
  return result
}

function report(summary: Summary): void {
  const rows: ReadonlyArray<readonly [string, string]> = [
    ['longest stall seen by a client', `${Math.round(summary.stallMs)} ms`],
    ['errors seen by clients', `${summary.errors} of ${summary.requests} requests`],
    [
      'resync',
      `${formatSize(summary.bytesMoved)} moved, ${formatSize(summary.bytesNeeded)} had changed; all copies complete ${(summary.resyncMs / 1000).toFixed(1)} s after the start`,
    ],
    ['read back through the returned node', `${formatSize(summary.imageBytes)} compared, file system clean`],
    ['copies of every block equal', `yes, ${summary.blocks} blocks`],
    ['time', `${((performance.now() - began) / 1000).toFixed(0)} s`],
  ]
  console.log(`\n${rows.map(([name, value]) => `  ${name.padEnd(38)}${value}`).join('\n')}`)
  console.log(`
Play on by hand:
  npx xsan dev up --nodes 3 --dir /tmp/play                 three nodes; prints their addresses
  export XSAN_SERVER=...                                    one of the grpc addresses
  npx xsan volume create db1 10G --replicas 3               prints the URIs
  qemu-img info nbd://...   nbdcopy, fio --ioengine=nbd     use it
  npx xsan dev kill node-1 --dir /tmp/play                  and watch: npx xsan cluster status --watch
  npx xsan dev start node-1 --dir /tmp/play
  npx xsan dev down --wipe --dir /tmp/play
Or keep these three nodes, with what is on them: npm run demo -- --keep`)
}

async function cleanUp(): Promise<void> {
  probe?.close()
  if (fioProcess) await endChild(fioProcess)
  if (KEEP && cluster && !interrupted) {
    console.log(`\nThe nodes go on: npx xsan dev status --dir ${cluster.dir}\nEnd them with:   npx xsan dev down --wipe --dir ${cluster.dir}; rm -r ${parent}`)
    return
  }
  await endRunning()
  // a start that is cut short ends what it started by a command of its own
  await starting?.catch(() => {})
  await cluster?.end().catch((error: unknown) => console.error(String(error)))
  // interrupted while the nodes were being started: their playground is known only from its files
  for (const name of existsSync(parent) ? readdirSync(parent) : []) {
    const dir = join(parent, name)
    if (existsSync(join(dir, 'dev.json'))) await run(bin('xsan'), ['dev', 'down', '--wipe', '--dir', dir])
  }
  rmSync(parent, { recursive: true, force: true })
}
