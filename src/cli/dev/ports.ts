/** Free ports for a playground: TCP all of them, UDP the first of each node (heartbeats). Below the range from which the kernel takes the ports of outgoing connections, so that none is taken in between. */
import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'
import { XsanError } from '../../base/errors.ts'
import { portHolder } from '../../node/admin-client.ts'

export const PORTS_PER_NODE = 4
const FIRST = 20_000
const LAST = 32_000
const TRIES = 200

/** `count` neighbouring ports, free at this moment on 127.0.0.1. */
export async function freePorts(count: number): Promise<number> {
  for (let i = 0; i < TRIES; i++) {
    const base = FIRST + Math.floor(Math.random() * (LAST - FIRST - count))
    if ((await firstTaken(base, count)) === undefined) return base
  }
  throw new XsanError('BUSY', `no ${count} neighbouring free ports between ${FIRST} and ${LAST}`, 'Choose them: --base-port P')
}

export async function requireFree(base: number, count: number): Promise<void> {
  const taken = await firstTaken(base, count)
  if (taken === undefined) return
  const holder = portHolder(taken.port, taken.kind === 'TCP' ? 'tcp' : 'udp')
  throw new XsanError(
    'BUSY',
    `${taken.kind} port ${taken.port} is taken${holder ? ` by ${holder}` : ''}`,
    `Choose another --base-port: ${count} ports from it on are needed.`,
  )
}

async function firstTaken(base: number, count: number): Promise<{ readonly kind: 'TCP' | 'UDP'; readonly port: number } | undefined> {
  for (let port = base; port < base + count; port += PORTS_PER_NODE) if (!(await isFreeForDatagrams(port))) return { kind: 'UDP', port }
  for (let port = base; port < base + count; port++) if (!(await isFree(port))) return { kind: 'TCP', port }
  return undefined
}

function isFreeForDatagrams(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createSocket('udp4')
    probe.once('error', () => {
      probe.close()
      resolve(false)
    })
    probe.bind({ address: '127.0.0.1', port, exclusive: true }, () => probe.close(() => resolve(true)))
  })
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer()
    probe.once('error', () => resolve(false))
    probe.listen({ host: '127.0.0.1', port, exclusive: true }, () => probe.close(() => resolve(true)))
  })
}
