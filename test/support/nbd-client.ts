/**
 * A small NBD client over node:net: fixed newstyle, NBD_OPT_GO, simple replies, any number of requests in flight. It stays plain on purpose:
 * the tests use it where they must know what was sent, when each answer came, and what a lost connection leaves open.
 *
 * A request whose connection is lost rejects with {@link ConnectionLost}: whether it took effect is then unknown.
 */
import { connect as connectSocket, type Socket } from 'node:net'

export type Endpoint = { readonly host: string; readonly port: number } | { readonly path: string }

/** An error number in an answer. */
export class NbdError extends Error {
  override name = 'NbdError'
  readonly errno: number
  constructor(errno: number, what: string) {
    super(`${what}: NBD error ${errno}`)
    this.errno = errno
  }
}

export class ConnectionLost extends Error {
  override name = 'ConnectionLost'
}

export const Errno = { EPERM: 1, EIO: 5, ENOMEM: 12, EINVAL: 22, ENOSPC: 28, EOVERFLOW: 75, ENOTSUP: 95, ESHUTDOWN: 108 } as const

const NBD_MAGIC = 0x4e42444d41474943n
const IHAVEOPT = 0x49484156454f5054n
const OPTION_REPLY_MAGIC = 0x3e889045565a9n
const REQUEST_MAGIC = 0x25609513
const REPLY_MAGIC = 0x67446698
const OPT_GO = 7
const INFO_EXPORT = 0
const REP_ACK = 1
const REP_INFO = 3
const REP_ERROR = 0x80000000
const HANDSHAKE_FLAGS = 0b11
const FLAG_FUA = 1
const Command = { READ: 0, WRITE: 1, DISCONNECT: 2, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const
const REQUEST_BYTES = 28
const REPLY_BYTES = 16

/** `nbd://127.0.0.1:10809` as the playground prints it. */
export function endpointOf(uri: string): Endpoint {
  const { hostname, port } = new URL(uri)
  return { host: hostname, port: Number(port || 10809) }
}

interface Pending {
  readonly what: string
  readonly readBytes: number
  readonly resolve: (data: Buffer) => void
  readonly reject: (error: Error) => void
}

export class NbdClient {
  readonly sizeBytes: number
  readonly flags: number
  readonly #socket: Socket
  readonly #pending = new Map<number, Pending>()
  #cookie = 0
  #lost: ConnectionLost | undefined
  #chunks: Buffer[] = []
  #bufferedBytes = 0

  private constructor(socket: Socket, info: { sizeBytes: number; flags: number }, rest: Buffer) {
    this.#socket = socket
    this.sizeBytes = info.sizeBytes
    this.flags = info.flags
    socket.on('data', (chunk: Buffer) => this.#received(chunk))
    socket.on('error', (error) => this.#end(error.message))
    socket.on('close', () => this.#end('closed by the server'))
    if (rest.length > 0) this.#received(rest)
  }

  /** Rejects with {@link ConnectionLost} when nobody answers in time, with an Error that says why when the export is refused. */
  static async connect(endpoint: Endpoint, exportName: string, timeoutMs = 5000): Promise<NbdClient> {
    const socket = connectSocket(endpoint)
    const timer = setTimeout(() => socket.destroy(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs)
    try {
      const reader = new Reader(socket)
      const greeting = await reader.take(18)
      if (greeting.readBigUInt64BE(0) !== NBD_MAGIC || greeting.readBigUInt64BE(8) !== IHAVEOPT) throw new Error('not a fixed newstyle NBD server')
      const name = Buffer.from(exportName)
      const hello = Buffer.alloc(4 + 16 + 4 + name.length + 2)
      hello.writeUInt32BE(greeting.readUInt16BE(16) & HANDSHAKE_FLAGS, 0)
      hello.writeBigUInt64BE(IHAVEOPT, 4)
      hello.writeUInt32BE(OPT_GO, 12)
      hello.writeUInt32BE(4 + name.length + 2, 16)
      hello.writeUInt32BE(name.length, 20)
      name.copy(hello, 24)
      socket.write(hello)
      let info: { sizeBytes: number; flags: number } | undefined
      for (;;) {
        const head = await reader.take(20)
        if (head.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw new Error('an option reply without its magic')
        const type = head.readUInt32BE(12)
        const data = await reader.take(head.readUInt32BE(16))
        if (type === REP_ACK) break
        if (type >= REP_ERROR) throw new Error(`export "${exportName}" refused (option error ${type - REP_ERROR}): ${data.toString()}`)
        if (type === REP_INFO && data.readUInt16BE(0) === INFO_EXPORT) info = { sizeBytes: Number(data.readBigUInt64BE(2)), flags: data.readUInt16BE(10) }
      }
      if (info === undefined) throw new Error('the server did not tell the size of the export')
      socket.setNoDelay(true)
      return new NbdClient(socket, info, reader.release())
    } catch (error) {
      socket.destroy()
      throw error
    } finally {
      clearTimeout(timer)
    }
  }

  get inFlight(): number {
    return this.#pending.size
  }

  get closed(): boolean {
    return this.#lost !== undefined
  }

  read(offsetBytes: number, lengthBytes: number): Promise<Buffer> {
    return this.#request(Command.READ, { offsetBytes, lengthBytes, readBytes: lengthBytes })
  }

  /** `data` belongs to the client until the promise settles. */
  async write(offsetBytes: number, data: Buffer, options: { fua?: boolean } = {}): Promise<void> {
    await this.#request(Command.WRITE, { offsetBytes, lengthBytes: data.length, data, flags: options.fua ? FLAG_FUA : 0 })
  }

  async flush(): Promise<void> {
    await this.#request(Command.FLUSH, { offsetBytes: 0, lengthBytes: 0 })
  }

  async trim(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#request(Command.TRIM, { offsetBytes, lengthBytes })
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#request(Command.WRITE_ZEROES, { offsetBytes, lengthBytes })
  }

  /** Cuts the connection; what is in flight rejects. */
  destroy(): void {
    this.#end('cut by the client')
    this.#socket.destroy()
  }

  /** Says good-bye. Call it with nothing in flight. */
  async close(): Promise<void> {
    if (this.#lost !== undefined) return
    const header = Buffer.alloc(REQUEST_BYTES)
    header.writeUInt32BE(REQUEST_MAGIC, 0)
    header.writeUInt16BE(Command.DISCONNECT, 6)
    this.#lost = new ConnectionLost('closed')
    await new Promise<void>((resolve) => {
      this.#socket.once('close', () => resolve())
      this.#socket.end(header)
      setTimeout(() => this.#socket.destroy(), 1000).unref()
    })
  }

  #request(command: number, request: { offsetBytes: number; lengthBytes: number; readBytes?: number; data?: Buffer; flags?: number }): Promise<Buffer> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost)
    const cookie = this.#cookie++
    const header = Buffer.alloc(REQUEST_BYTES)
    header.writeUInt32BE(REQUEST_MAGIC, 0)
    header.writeUInt16BE(request.flags ?? 0, 4)
    header.writeUInt16BE(command, 6)
    header.writeBigUInt64BE(BigInt(cookie), 8)
    header.writeBigUInt64BE(BigInt(request.offsetBytes), 16)
    header.writeUInt32BE(request.lengthBytes, 24)
    return new Promise((resolve, reject) => {
      this.#pending.set(cookie, {
        what: `command ${command} at ${request.offsetBytes}+${request.lengthBytes}`,
        readBytes: request.readBytes ?? 0,
        resolve,
        reject,
      })
      if (request.data !== undefined) {
        this.#socket.cork()
        this.#socket.write(header)
        this.#socket.write(request.data)
        this.#socket.uncork()
      } else {
        this.#socket.write(header)
      }
    })
  }

  #received(chunk: Buffer): void {
    this.#chunks.push(chunk)
    this.#bufferedBytes += chunk.length
    while (this.#bufferedBytes >= REPLY_BYTES) {
      const head = this.#peek(REPLY_BYTES)
      if (head.readUInt32BE(0) !== REPLY_MAGIC) {
        this.#abort('a reply without its magic')
        return
      }
      const errno = head.readUInt32BE(4)
      const cookie = Number(head.readBigUInt64BE(8))
      const pending = this.#pending.get(cookie)
      if (pending === undefined) {
        this.#abort(`a reply to a request that was not made (${cookie})`)
        return
      }
      const payloadBytes = errno === 0 ? pending.readBytes : 0
      if (this.#bufferedBytes < REPLY_BYTES + payloadBytes) return
      const data = this.#peek(REPLY_BYTES + payloadBytes).subarray(REPLY_BYTES)
      this.#drop(REPLY_BYTES + payloadBytes)
      this.#pending.delete(cookie)
      if (errno === 0) pending.resolve(data)
      else pending.reject(new NbdError(errno, pending.what))
    }
  }

  #peek(count: number): Buffer {
    if (this.#chunks[0]!.length < count) this.#chunks = [Buffer.concat(this.#chunks)]
    return this.#chunks[0]!.subarray(0, count)
  }

  #drop(count: number): void {
    this.#bufferedBytes -= count
    const left = this.#chunks[0]!.subarray(count)
    if (left.length > 0) this.#chunks[0] = left
    else this.#chunks.shift()
  }

  #abort(why: string): void {
    this.#end(why)
    this.#socket.destroy()
  }

  #end(why: string): void {
    this.#lost ??= new ConnectionLost(why)
    const all = [...this.#pending.values()]
    this.#pending.clear()
    for (const { reject } of all) reject(this.#lost)
  }
}

/** Exact amounts of bytes from a socket, before the connection has its form. */
class Reader {
  readonly #socket: Socket
  #buffer: Buffer = Buffer.alloc(0)
  #wanted: { count: number; resolve: (data: Buffer) => void; reject: (error: Error) => void } | undefined
  #error: Error | undefined
  readonly #onData = (chunk: Buffer) => {
    this.#buffer = Buffer.concat([this.#buffer, chunk])
    this.#serve()
  }
  readonly #onError = (error: Error) => this.#fail(new ConnectionLost(error.message))
  readonly #onClose = () => this.#fail(new ConnectionLost('closed by the server'))

  constructor(socket: Socket) {
    this.#socket = socket
    socket.on('data', this.#onData)
    socket.on('error', this.#onError)
    socket.on('close', this.#onClose)
  }

  take(count: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#wanted = { count, resolve, reject }
      this.#serve()
      if (this.#wanted !== undefined && this.#error !== undefined) this.#fail(this.#error)
    })
  }

  /** Lets go of the socket; what was read too much. */
  release(): Buffer {
    this.#socket.off('data', this.#onData)
    this.#socket.off('error', this.#onError)
    this.#socket.off('close', this.#onClose)
    return this.#buffer
  }

  #serve(): void {
    const wanted = this.#wanted
    if (wanted === undefined || this.#buffer.length < wanted.count) return
    this.#wanted = undefined
    const data = this.#buffer.subarray(0, wanted.count)
    this.#buffer = this.#buffer.subarray(wanted.count)
    wanted.resolve(data)
  }

  #fail(error: Error): void {
    this.#error ??= error
    const wanted = this.#wanted
    this.#wanted = undefined
    wanted?.reject(this.#error)
  }
}
