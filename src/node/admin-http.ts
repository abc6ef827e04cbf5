/** The admin port: /metrics (Prometheus text), /healthz (the process runs), /readyz (it serves). Nothing here changes anything. */
import { createServer, type Server } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { messageOf, XsanError } from '../base/errors.ts'
import { portHolder } from '../env/node/port-holder.ts'

const CONNECTIONS_MAX = 64
const REQUEST_MS_MAX = 10_000
const CHECK_MS = 1000

export interface AdminHttpOptions {
  readonly host: string
  readonly port: number
  /** Why it is not ready, or undefined when it is. */
  readonly notReady: () => string | undefined
  readonly metrics: () => Promise<string>
}

export interface AdminHttp {
  readonly port: number
  close(): Promise<void>
}

export async function serveAdminHttp(options: AdminHttpOptions): Promise<AdminHttp> {
  const server = createServer({ connectionsCheckingInterval: CHECK_MS }, (request, response) => {
    const reply = (code: number, type: string, body: string) => {
      response.writeHead(code, { 'content-type': type, 'cache-control': 'no-store' })
      response.end(request.method === 'HEAD' ? undefined : body)
    }
    const text = (code: number, body: string) => reply(code, 'text/plain; charset=utf-8', `${body}\n`)
    if (request.method !== 'GET' && request.method !== 'HEAD') return text(405, 'only GET')
    switch (request.url?.split('?')[0]) {
      case '/healthz':
        return text(200, 'ok')
      case '/readyz': {
        const reason = options.notReady()
        return reason === undefined ? text(200, 'ready') : text(503, reason)
      }
      case '/metrics':
        options.metrics().then(
          (body) => reply(200, 'text/plain; version=0.0.4; charset=utf-8', body),
          (error: unknown) => text(500, messageOf(error)),
        )
        return
      default:
        return text(404, 'there are /metrics, /healthz and /readyz')
    }
  })
  // a probe must get through whoever holds connections and says nothing: the oldest goes
  const open = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
    const [oldest] = open
    if (open.size > CONNECTIONS_MAX) oldest?.destroy()
  })
  server.requestTimeout = REQUEST_MS_MAX
  server.headersTimeout = REQUEST_MS_MAX
  server.on('clientError', (_, socket) => socket.destroy())
  await listen(server, options.host, options.port)
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const holder = error.code === 'EADDRINUSE' ? portHolder(port) : undefined
      const message =
        error.code === 'EADDRINUSE'
          ? `admin port ${port} on ${host} is taken${holder ? ` by ${holder}` : ''}`
          : `cannot listen on ${host}:${port}: ${error.message}`
      const nextStep =
        error.code === 'EADDRNOTAVAIL' ? 'Set cluster.bind_ip or network.admin_ip to an address of this host.' : 'Choose another network.admin_port.'
      reject(new XsanError(error.code === 'EADDRINUSE' ? 'BUSY' : 'INVALID_PARAM', message, nextStep, { cause: error }))
    })
    server.listen({ host, port, exclusive: true }, () => resolve())
  })
}
