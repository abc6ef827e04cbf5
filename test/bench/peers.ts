/**
 * The peers XSAN is compared with, as their users run them:
 *   one copy      nbdkit's file plug-in, over loopback TCP
 *   three copies  qemu's quorum driver (vote threshold 2) over three nbdkit, exported by qemu-nbd; UNIX sockets everywhere, because over
 *                 loopback TCP qemu 7.2 waits 40 ms for delayed acknowledgements (reads at depth 32: 0.4k instead of 6k IOPS)
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { endChild, run, until } from '../support/commands.ts'
import type { Target } from './fio.ts'

export interface Peer {
  readonly target: Target
  end(): Promise<void>
}

export async function nbdkitFile(directory: string, sizeBytes: number): Promise<Peer> {
  const children: ChildProcess[] = []
  try {
    const uri = await nbdkit(children, join(directory, 'nbdkit.img'), sizeBytes, { port: await freePort() })
    return peer(children, { uri, sizeBytes, pids: pids(children) })
  } catch (error) {
    await Promise.all(children.map(endChild))
    throw error
  }
}

/** `writethrough`: every write is on stable storage of all three before it is acknowledged. */
export async function quorum(directory: string, sizeBytes: number, cache: 'writeback' | 'writethrough'): Promise<Peer> {
  const children: ChildProcess[] = []
  try {
    const sockets = [0, 1, 2].map((i) => join(directory, `quorum-${i}.sock`))
    for (const [i, path] of sockets.entries()) await nbdkit(children, join(directory, `quorum-${i}.img`), sizeBytes, { path })
    const socket = join(directory, 'quorum.sock')
    const options = ['driver=quorum', 'vote-threshold=2']
    for (const [i, path] of sockets.entries()) options.push(`children.${i}.driver=nbd`, `children.${i}.server.type=unix`, `children.${i}.server.path=${path}`)
    children.push(start('qemu-nbd', [`--cache=${cache}`, '--persistent', '--shared=8', `--socket=${socket}`, '--image-opts', options.join(',')]))
    const uri = `nbd+unix:///?socket=${socket}`
    await until('qemu-nbd serves', 10_000, async () => existsSync(socket) && (await run('nbdinfo', ['--size', uri])).code === 0)
    return peer(children, { uri, sizeBytes, pids: pids(children) })
  } catch (error) {
    await Promise.all(children.map(endChild))
    throw error
  }
}

/** Returns its URI. */
async function nbdkit(children: ChildProcess[], file: string, sizeBytes: number, at: { port: number } | { path: string }): Promise<string> {
  writeFileSync(file, '')
  truncateSync(file, sizeBytes)
  const listen = 'port' in at ? ['--ipaddr=127.0.0.1', `--port=${at.port}`] : [`--unix=${at.path}`]
  const uri = 'port' in at ? `nbd://127.0.0.1:${at.port}` : `nbd+unix:///?socket=${at.path}`
  children.push(start('nbdkit', ['--foreground', '--exit-with-parent', ...listen, 'file', file]))
  await until('nbdkit serves', 10_000, async () => (await run('nbdinfo', ['--size', uri])).code === 0)
  return uri
}

function start(command: string, args: readonly string[]): ChildProcess {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  child.on('error', () => {})
  return child
}

const pids = (children: readonly ChildProcess[]) => children.map((child) => child.pid!)

function peer(children: readonly ChildProcess[], target: Target): Peer {
  return {
    target,
    async end() {
      await Promise.all(children.map(endChild))
    },
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}
