/**
 * UDP. Two sockets when a multicast group is given: one on the node's own address (sends everything, receives unicast; its port
 * is the node's alone), one on the group's address and port, shared by all members of the group on this host.
 */
import { createSocket, type Socket } from 'node:dgram'
import { messageOf, XsanError } from '../../base/errors.ts'
import type { Datagram, Log } from '../control.ts'
import { portHolder } from './port-holder.ts'

/** Links, not routers: the group stays in the local network. */
const MULTICAST_TTL = 1

type OnMessage = (bytes: Uint8Array, from: string) => void

export class NodeDatagram implements Datagram {
  readonly #log: Log
  #socket: Socket | undefined
  #group: Socket | undefined

  constructor({ log }: { log: Log }) {
    this.#log = log
  }

  /** `multicastGroup` is "address" or "address:port"; without a port the group uses `port`. */
  async bind(
    options: { host: string; port: number; multicastGroup?: string | undefined },
    onMessage: OnMessage,
  ): Promise<{ port: number; multicast: boolean }> {
    const socket = createSocket({ type: 'udp4' })
    try {
      await bound(socket, options.host, options.port)
    } catch (error) {
      socket.close()
      const isTaken = (error as NodeJS.ErrnoException).code === 'EADDRINUSE'
      const holder = isTaken ? portHolder(options.port, 'udp') : undefined
      throw new XsanError(
        isTaken ? 'BUSY' : 'INVALID_PARAM',
        isTaken
          ? `UDP port ${options.port} on ${options.host} is taken${holder ? ` by ${holder}` : ''}`
          : `cannot receive on UDP ${options.host}:${options.port}: ${messageOf(error)}`,
        'Stop what holds it, or choose another cluster.bind_port.',
        { cause: error },
      )
    }
    this.#socket = socket
    this.#receive(socket, onMessage)
    const port = socket.address().port
    if (options.multicastGroup === undefined) return { port, multicast: false }

    const [address = '', groupPort = String(port)] = options.multicastGroup.split(':')
    const group = createSocket({ type: 'udp4', reuseAddr: true })
    try {
      await bound(group, address, Number(groupPort))
      group.addMembership(address, options.host)
      socket.setMulticastInterface(options.host)
      socket.setMulticastTTL(MULTICAST_TTL)
      socket.setMulticastLoopback(true)
    } catch (error) {
      group.close()
      this.#log.log('WARN', 'multicast cannot be used here; heartbeats go to each node by unicast', { group: options.multicastGroup, error: messageOf(error) })
      return { port, multicast: false }
    }
    this.#group = group
    this.#receive(group, onMessage)
    return { port, multicast: true }
  }

  send(bytes: Uint8Array, to: string): void {
    const colon = to.lastIndexOf(':')
    // An unreachable peer is what heartbeats are there to notice
    this.#socket?.send(bytes, Number(to.slice(colon + 1)), to.slice(0, colon), () => {})
  }

  async close(): Promise<void> {
    const open = [this.#socket, this.#group].filter((socket) => socket !== undefined)
    this.#socket = undefined
    this.#group = undefined
    await Promise.all(open.map((socket) => new Promise<void>((resolve) => socket.close(() => resolve()))))
  }

  #receive(socket: Socket, onMessage: OnMessage): void {
    socket.on('message', (bytes, from) => onMessage(bytes, `${from.address}:${from.port}`))
    socket.on('error', (error) => this.#log.log('WARN', 'UDP socket', { error: error.message }))
  }
}

function bound(socket: Socket, address: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.bind({ address, port, exclusive: true }, () => {
      socket.off('error', reject)
      resolve()
    })
  })
}
