/**
 * The peers XSAN is compared with, as their users run them:
 *   one copy      nbdkit's file plug-in, over loopback TCP; and its null plug-in, to see what the client can drive
 *   three copies  qemu's quorum driver (vote threshold 2) over three nbdkit on loopback TCP, exported by qemu-nbd on a UNIX socket (over TCP,
 *                 qemu-nbd 7.2 waits 40 ms at low depth). nbdkit's answers to block status are switched off (noextents): qemu-nbd asks for it
 *                 before each read, and the search for a hole in tmpfs makes that 1 ms
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
    const port = await nbdkit(children, join(directory, 'nbdkit.img'), sizeBytes)
    return peer(children, { uri: `nbd://127.0.0.1:${port}`, sizeBytes, pids: pids(children) })
  } catch (error) {
    await Promise.all(children.map(endChild))
    throw error
  }
}

/** A server that does nothing: it reads zeros and forgets what is written. What it reaches is what the client and the sockets between allow. */
export async function nbdkitNull(sizeBytes: number): Promise<Peer> {
  const children: ChildProcess[] = []
  try {
    const port = await serve(children, ['null', String(sizeBytes)])
    return peer(children, { uri: `nbd://127.0.0.1:${port}`, sizeBytes, pids: pids(children) })
  } catch (error) {
    await Promise.all(children.map(endChild))
    throw error
  }
}

/** `writethrough`: every write is on stable storage of all three before it is acknowledged. */
export async function quorum(directory: string, sizeBytes: number, cache: 'writeback' | 'writethrough'): Promise<Peer> {
  const children: ChildProcess[] = []
  try {
    const ports: number[] = []
    for (let i = 0; i < 3; i++) ports.push(await nbdkit(children, join(directory, `quorum-${i}.img`), sizeBytes, ['--filter=noextents']))
    const socket = join(directory, 'quorum.sock')
    const options = ['driver=quorum', 'vote-threshold=2']
    for (const [i, port] of ports.entries()) {
      options.push(`children.${i}.driver=nbd`, `children.${i}.server.type=inet`, `children.${i}.server.host=127.0.0.1`, `children.${i}.server.port=${port}`)
    }
    children.push(start('qemu-nbd', [`--cache=${cache}`, '--persistent', '--shared=8', `--socket=${socket}`, '--image-opts', options.join(',')]))
    const uri = `nbd+unix:///?socket=${socket}`
    await until('qemu-nbd serves', 10_000, async () => existsSync(socket) && (await run('nbdinfo', ['--size', uri])).code === 0)
    return peer(children, { uri, sizeBytes, pids: pids(children) })
  } catch (error) {
    await Promise.all(children.map(endChild))
    throw error
  }
}

/** Returns its port. */
async function nbdkit(children: ChildProcess[], file: string, sizeBytes: number, options: readonly string[] = []): Promise<number> {
  writeFileSync(file, '')
  truncateSync(file, sizeBytes)
  return serve(children, [...options, 'file', file])
}

/** nbdkit with that plug-in and its parameters. Returns its port. */
async function serve(children: ChildProcess[], plugin: readonly string[]): Promise<number> {
  const port = await freePort()
  children.push(start('nbdkit', ['--foreground', '--exit-with-parent', '--ipaddr=127.0.0.1', `--port=${port}`, ...plugin]))
  await until('nbdkit serves', 10_000, async () => (await run('nbdinfo', ['--size', `nbd://127.0.0.1:${port}`])).code === 0)
  return port
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
