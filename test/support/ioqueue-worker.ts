/**
 * A worker thread with an io queue of its own, in the state that `workerData.mode` names:
 *   echo      runs the reactor loop; every wake copies shared[0] to shared[1] and notifies
 *   busy      like echo, with operations of every kind in flight
 *   throw     like busy; the first wake throws
 *   messages  like echo; answers messages through promises and timers of Node
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { parentPort, workerData } from 'node:worker_threads'
import { AsyncIo } from '../../src/env/async-io.ts'
import type { Handle } from '../../src/env/ioqueue.ts'
import { NativeIoQueue } from '../../src/env/node/ioqueue.ts'
import { runReactor } from '../../src/env/node/reactor-loop.ts'

const { mode, shared, counters } = workerData as { mode: string; shared: Int32Array; counters: SharedArrayBuffer }
const port = parentPort!
const queue = new NativeIoQueue({ arenaBytes: 32 * 1024 * 1024 })
const io = new AsyncIo(queue)
const loop = runReactor(queue, { counters })

queue.onWake(() => {
  if (mode === 'throw') throw new Error('a handler fails')
  queue.asyncPending = true
  Atomics.store(shared, 1, Atomics.load(shared, 0))
  Atomics.notify(shared, 1)
})

async function beBusy(): Promise<void> {
  const { handle: listener, port: tcpPort } = queue.listenTcp({ host: '127.0.0.1', port: 0 })
  const accepted = io.accept(listener)
  const { handle: client } = await io.connectTcp({ host: '127.0.0.1', port: tcpPort })
  const server = (await accepted) as Handle
  const tag = queue.register('busy', () => {})
  const page = queue.arena.alloc(16 * 1024 * 1024)
  if (page < 0) throw new Error('no room')
  const dir = mkdtempSync(join(workerData.dir, 'busy-'))
  const { handle: file } = queue.openFile({ path: join(dir, 'data'), createBytes: 64 * 1024 * 1024, lock: true })
  rmSync(dir, { recursive: true })
  queue.accept(listener, tag, 1)
  queue.recv(server, page, 0, 4096, true, tag, 2)
  queue.recvMultishot(client, tag, 3)
  queue.send(client, page, 8192, 8 * 1024 * 1024, tag, 4)
  queue.timeout(1e9, tag, 5)
  for (let i = 0; i < 200; i++) queue.write(file, i * 65536, page + 16, 0, 65536, tag, 100 + i)
  for (let i = 0; i < 20; i++) queue.fdatasync(file, tag, 10 + i)
}

port.on('message', (message: { stop?: boolean; n?: number }) => {
  if (message.stop) {
    void loop.stop().then(() => {
      queue.destroy()
      process.exit(0)
    })
    return
  }
  setTimeout(() => {
    void Promise.resolve(message.n! * 2).then(async (n) => {
      await io.sleep(1)
      port.postMessage({ n })
    })
  }, 1)
})

if (mode === 'busy' || mode === 'throw') await beBusy()
port.postMessage({ wakeId: queue.wakeId })
