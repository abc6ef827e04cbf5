/**
 * A process that serves NbdServer over volumes in memory, on the native io queue: the NBD export alone, for clients nobody here wrote.
 * Prints one JSON line {"port":...} when it listens; ends by a signal.
 *
 *   node test/support/nbd-memory-server.ts [--connections N] [--socket PATH] NAME:BYTES[:ro] ...
 */
import { parseArgs } from 'node:util'
import { AsyncIo } from '../../src/env/async-io.ts'
import { NativeIoQueue } from '../../src/env/node/ioqueue.ts'
import { runReactor } from '../../src/env/node/reactor-loop.ts'
import { NbdServer } from '../../src/export/nbd/server.ts'
import { VolumeLayer } from '../../src/volume/volume.ts'
import { MemoryBlockClient } from './memory-block-client.ts'

const { values, positionals } = parseArgs({ allowPositionals: true, options: { connections: { type: 'string' }, socket: { type: 'string' } } })
const queue = new NativeIoQueue({ arenaBytes: 128 * 1024 * 1024 })
const client = new MemoryBlockClient(queue)
for (const text of positionals) {
  const [name, bytes, mode] = text.split(':')
  client.add(name ?? '', Number(bytes), mode === 'ro')
}
const log = {
  log: (level: string, message: string, fields?: object) => void process.stderr.write(`${level} ${message} ${JSON.stringify(fields ?? {})}\n`),
  child: () => log,
}
const server = new NbdServer({
  queue,
  asyncIo: new AsyncIo(queue),
  volumes: new VolumeLayer(client, queue.arena),
  log,
  connectionsMax: Number(values.connections ?? 100),
})
const port = server.listenTcp('127.0.0.1', 0)
if (values.socket) server.listenUnix(values.socket)
process.stdout.write(`${JSON.stringify({ port })}\n`)
runReactor(queue)
