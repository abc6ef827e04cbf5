/** Who holds a TCP or UDP port of this host: for the error that says a port is taken. Best effort; needs /proc. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { basename } from 'node:path'

/** States of sockets that hold a port: TCP listens; UDP that receives from everybody is "closed". */
const HOLDING = { tcp: '0A', udp: '07' } as const

/** "PID 123 (nginx)", or undefined when it cannot be found out (another user's process). */
export function portHolder(port: number, protocol: keyof typeof HOLDING = 'tcp'): string | undefined {
  const inodes = new Set([`/proc/net/${protocol}`, `/proc/net/${protocol}6`].flatMap((path) => holdingInodes(path, HOLDING[protocol], port)))
  if (inodes.size === 0) return undefined
  for (const pid of entries('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    for (const fd of entries(`/proc/${pid}/fd`)) {
      const inode = /^socket:\[(\d+)\]$/.exec(attempt(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) ?? '')?.[1]
      if (inode !== undefined && inodes.has(inode)) return `PID ${pid} (${programOf(pid)})`
    }
  }
  return undefined
}

/** Node's processes are all called "MainThread" or "node": there the script tells more, and of xsand its configuration. */
function programOf(pid: string): string {
  const name = attempt(() => readFileSync(`/proc/${pid}/comm`, 'utf8').trim()) ?? 'unknown'
  if (name !== 'MainThread' && name !== 'node') return name
  const [, ...args] = (attempt(() => readFileSync(`/proc/${pid}/cmdline`, 'utf8')) ?? '').split('\0')
  const at = args.findIndex((arg) => arg !== '' && !arg.startsWith('-'))
  if (at < 0) return 'node'
  const script = basename(args[at]!).replace(/\.[cm]?[jt]s$/, '')
  return script === 'xsand' ? [script, ...args.slice(at + 1)].join(' ').trim() : `node ${script}`
}

/** Columns of /proc/net/tcp and its like: sl, local address:port in hex, remote, state, ..., inode as the 10th. */
function holdingInodes(path: string, state: string, port: number): string[] {
  const lines = (attempt(() => readFileSync(path, 'utf8')) ?? '').split('\n').slice(1)
  return lines
    .map((line) => line.trim().split(/\s+/))
    .filter((columns) => columns[3] === state && Number.parseInt(columns[1]?.split(':')[1] ?? '', 16) === port)
    .map((columns) => columns[9] ?? '')
}

function entries(path: string): string[] {
  return attempt(() => readdirSync(path)) ?? []
}

function attempt<T>(fn: () => T): T | undefined {
  try {
    return fn()
  } catch {
    return undefined
  }
}
