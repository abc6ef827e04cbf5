/** A command's or a test's way to a node: the admin services over gRPC. */
import { XsanError } from '../base/errors.ts'
import type { Message } from '../env/control.ts'
import { NodeLog } from '../env/node/log.ts'
import { GrpcRpc } from '../env/node/rpc.ts'

export const DEFAULT_TIMEOUT_MS = 15_000
/** Rows asked for at a time. */
const PAGE_SIZE = 1000

export class AdminClient {
  readonly address: string
  readonly #rpc = new GrpcRpc({ log: new NodeLog({ level: 'FATAL' }) })

  readonly #timeoutMs: number | undefined

  /** `timeoutMs`: of every call, whatever the caller thinks right. */
  constructor(address: string, timeoutMs?: number) {
    const port = Number(/^[^:\s]+:(\d{1,5})$/.exec(address)?.[1] ?? 0)
    if (port < 1 || port > 65_535)
      throw new XsanError('INVALID_PARAM', `"${address}" is not an address of the form HOST:PORT`, 'For example: --server 127.0.0.1:8080')
    this.address = address
    this.#timeoutMs = timeoutMs
  }

  /** `method` as in "Volume/Create", of the admin services. */
  call(method: string, request: Message = {}, timeoutMs = DEFAULT_TIMEOUT_MS): Promise<Message> {
    return this.#rpc.call(this.address, `xsan.v1.${method}`, request, { timeoutMs: this.#timeoutMs ?? timeoutMs })
  }

  /** All rows of a paged listing. */
  async list(method: string, field: string, request: Message = {}): Promise<Message[]> {
    const rows: Message[] = []
    let pageToken = ''
    do {
      const page = await this.call(method, { ...request, pageSize: PAGE_SIZE, pageToken })
      rows.push(...(page[field] as Message[]))
      pageToken = String(page['nextPageToken'] ?? '')
    } while (pageToken !== '')
    return rows
  }

  close(): Promise<void> {
    return this.#rpc.close()
  }
}

export { portHolder } from '../env/node/port-holder.ts'
