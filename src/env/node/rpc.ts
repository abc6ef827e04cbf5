/**
 * Rpc over gRPC (HTTP/2, no TLS yet) with the services of proto/. One server, one kept-alive connection per address called. The small calls
 * between nodes share one stream of it (rpc-link.ts).
 *
 * Invariants:
 * - Every call has a deadline; every message has a largest size, and every request a largest number of fields.
 * - Only XsanError leaves `call`; whatever a handler throws reaches the caller as one (grpc-errors.ts).
 * - A message may only have the fields of its type: a misspelt one is our bug, not silence.
 */
import { fileURLToPath } from 'node:url'
import {
  Client,
  credentials,
  type Deadline,
  type Metadata as GrpcMetadata,
  type handleUnaryCall,
  logVerbosity,
  Metadata,
  type MethodDefinition,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServiceDefinition,
  setLogVerbosity,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js'
import { loadSync, type MessageTypeDefinition, type PackageDefinition } from '@grpc/proto-loader'
import { assert } from '../../base/assert.ts'
import { messageOf, XsanError } from '../../base/errors.ts'
import { MiB } from '../../base/units.ts'
import type { CallContext, CallOptions, Log, Message, MethodHandler, Rpc } from '../control.ts'
import { fromServiceError, toGrpcStatus } from './grpc-errors.ts'
import { portHolder } from './port-holder.ts'
import { LINK_BODY_BYTES_MAX, type LinkAnswers, type LinkCalls, LinkClient, type LinkDefinition, LinkServer } from './rpc-link.ts'

/** A Raft snapshot of a large cluster fits; nothing a stranger sends may take more memory than this. */
const MESSAGE_BYTES_MAX = 64 * MiB
/** All other requests, and the fields of each: a stranger's two bytes would become an object of a hundred. */
const REQUEST_BYTES_MAX = 4 * MiB
const REQUEST_FIELDS_MAX = 65_536
/** Requests that may be as long as any message. */
const LONG_REQUESTS: ReadonlySet<string> = new Set(['xsan.v1.Peer/RaftStep', 'xsan.v1.Link/Calls'])
/** Connections to other nodes kept at one time. */
const CLIENTS_MAX = 512
/** Calls under way on one connection. */
const STREAMS_PER_CONNECTION_MAX = 256
/** A call is worked on for no longer, whatever its caller says; and for so long when it says nothing: it may be gone, and what it asked for come to pass hours later. */
const DEADLINE_MS_MAX = 10 * 60_000
const DEADLINE_MS_DEFAULT = 60_000
/** Time that calls under way get to end in `close`. */
const CLOSE_GRACE_MS = 500
const PROTO_DIRECTORY = fileURLToPath(new URL('../../../proto', import.meta.url))

const COMMON_OPTIONS = {
  'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
  'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
}
const SERVER_OPTIONS = {
  ...COMMON_OPTIONS,
  'grpc.max_concurrent_streams': STREAMS_PER_CONNECTION_MAX,
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 10_000,
}
const CLIENT_OPTIONS = {
  ...COMMON_OPTIONS,
  'grpc.keepalive_time_ms': 5_000,
  'grpc.keepalive_timeout_ms': 3_000,
  'grpc.initial_reconnect_backoff_ms': 50,
  'grpc.min_reconnect_backoff_ms': 50,
  'grpc.max_reconnect_backoff_ms': 100,
  'grpc.use_local_subchannel_pool': 1,
  'grpc.service_config_disable_resolution': 1,
  'grpc.enable_retries': 0,
  'grpc.enable_http_proxy': 0,
}

/** Its calls are frequent and small: they go over a link. */
const LINKED_SERVICE = 'xsan.v1.Peer'

type Definition = MethodDefinition<Message, Message>
/** Of a handler of ours: checks the answer, logs what is our bug. */
type Answer = (request: Message, context: CallContext) => Promise<Message>

interface Connection {
  readonly client: Client
  link: LinkClient | undefined
}

export class GrpcRpc implements Rpc {
  readonly #log: Log
  readonly #definitions: PackageDefinition
  /** Names of the fields of each message type, in both spellings. */
  readonly #fields = new Map<object, ReadonlySet<string>>()
  readonly #server = new Server(SERVER_OPTIONS)
  readonly #linked = new Map<string, { readonly definition: Definition; readonly answer: Answer }>()
  readonly #links = new Set<LinkServer>()
  /** In order of last use. */
  readonly #clients = new Map<string, Connection>()
  #listening = false
  #closed = false

  constructor({ log }: { log: Log }) {
    this.#log = log
    this.#definitions = loadDefinitions()
    // Its own lines are not of the form of ours; what matters reaches us as an error
    setLogVerbosity(logVerbosity.NONE)
  }

  serve(service: string, methods: Readonly<Record<string, MethodHandler>>): void {
    assert(!this.#listening, `serve ${service}: already listening`)
    const definition = this.#service(service)
    const implementation: UntypedServiceImplementation = {}
    const served: Record<string, Definition> = {}
    for (const [name, handler] of Object.entries(methods)) {
      const declared = definition[name] as unknown as Definition | undefined
      assert(declared !== undefined, `proto/ has no method ${service}/${name}`)
      const method = this.#bounded(`${service}/${name}`, declared)
      served[name] = method
      const answer = this.#checked(`${service}/${name}`, method, handler)
      implementation[name] = adapt(answer)
      if (service === LINKED_SERVICE) this.#linked.set(`${service}/${name}`, { definition: method, answer })
    }
    this.#server.addService(served as ServiceDefinition, implementation)
    if (service === LINKED_SERVICE) this.#serveLinks()
  }

  async listen({ host, port }: { host: string; port: number }): Promise<{ port: number }> {
    this.#listening = true
    return new Promise((resolve, reject) => {
      this.#server.bindAsync(`${host}:${port}`, ServerCredentials.createInsecure(), (error, boundPort) => {
        if (error === null) resolve({ port: boundPort })
        else reject(bindError(error, host, port))
      })
    })
  }

  async call(address: string, method: string, request: Message, { timeoutMs, metadata = {}, oneWay = false }: CallOptions): Promise<Message> {
    if (this.#closed) throw new XsanError('STOPPING', `${method}: this process is stopping`)
    const [service = '', name = ''] = method.split('/')
    const definition = this.#service(service)[name] as unknown as Definition | undefined
    assert(definition !== undefined, `proto/ has no method ${method}`)
    this.#assertFields(definition, 'requestType', method, request)
    if (service === LINKED_SERVICE) {
      const body = definition.requestSerialize(request)
      if (body.length <= LINK_BODY_BYTES_MAX && oneWay) {
        const over = this.#connection(address).link?.error
        await this.#link(address).tell(method, body, timeoutMs)
        if (over !== undefined) throw fromServiceError(over, { address, method, timeoutMs })
        return {}
      }
      if (body.length <= LINK_BODY_BYTES_MAX) return decoded(definition.responseDeserialize, await this.#link(address).call(method, body, timeoutMs), method)
    }
    const sent = new Metadata()
    for (const [key, value] of Object.entries(metadata)) sent.set(key, value)
    const { client } = this.#connection(address)
    return new Promise((resolve, reject) => {
      client.makeUnaryRequest(
        definition.path,
        definition.requestSerialize,
        definition.responseDeserialize,
        request,
        sent,
        { deadline: Date.now() + timeoutMs },
        (error, response) => {
          if (error !== null) reject(fromServiceError(error, { address, method, timeoutMs }))
          else resolve(response ?? {})
        },
      )
    })
  }

  /** Calls under way get a moment to end. A second close is a no-op. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    for (const { link } of this.#clients.values()) link?.cancel()
    for (const link of this.#links) link.close()
    await new Promise<void>((resolve) => {
      const cut = setTimeout(() => {
        this.#server.forceShutdown()
        resolve()
      }, CLOSE_GRACE_MS)
      this.#server.tryShutdown(() => {
        clearTimeout(cut)
        resolve()
      })
    })
    for (const { client } of this.#clients.values()) client.close()
    this.#clients.clear()
  }

  #service(name: string): ServiceDefinition {
    const definition = this.#definitions[name]
    assert(definition !== undefined && !('format' in definition), `proto/ has no service ${name}`)
    return definition as unknown as ServiceDefinition
  }

  #assertFields(definition: Definition, side: 'requestType' | 'responseType', method: string, message: Message): void {
    const type = (definition as unknown as Record<typeof side, MessageTypeDefinition<object, object>>)[side]
    let fields = this.#fields.get(type)
    if (fields === undefined) {
      fields = new Set((type.type as { field: ReadonlyArray<{ name: string }> }).field.flatMap(({ name }) => [name, camelCase(name)]))
      this.#fields.set(type, fields)
    }
    for (const name of Object.keys(message)) assert(fields.has(name), `${method}: its ${side} has no field ${name}`)
  }

  /** `definition` with a look at each request before it is decoded. gRPC tells the caller only that it could not be; why is in our log, once per method. */
  #bounded<D extends { readonly requestDeserialize: (bytes: Buffer) => unknown }>(name: string, definition: D): D {
    const bytesMax = LONG_REQUESTS.has(name) ? MESSAGE_BYTES_MAX : REQUEST_BYTES_MAX
    let isLogged = false
    const refuse = (reason: string): never => {
      if (!isLogged) this.#log.log('WARN', 'a request was refused (more of the kind are not reported)', { method: name, reason })
      isLogged = true
      throw new XsanError('REQUEST_TOO_LARGE', `${name}: ${reason}`)
    }
    return {
      ...definition,
      requestDeserialize: (bytes: Buffer) => {
        if (bytes.length > bytesMax) refuse(`${bytes.length} bytes, at most ${bytesMax} are taken`)
        if (hasMoreFields(bytes, REQUEST_FIELDS_MAX)) refuse(`more than ${REQUEST_FIELDS_MAX} fields`)
        return definition.requestDeserialize(bytes)
      },
    }
  }

  #checked(method: string, definition: Definition, handler: MethodHandler): Answer {
    return async (request, context) => {
      try {
        const response = await handler(request, context)
        this.#assertFields(definition, 'responseType', method, response)
        return response
      } catch (error) {
        if (!(error instanceof XsanError)) this.#log.log('ERROR', `${method} failed`, { error, peer: context.peer })
        throw error
      }
    }
  }

  #linkDefinition(): { readonly definition: LinkDefinition; readonly service: ServiceDefinition } {
    const service = this.#service('xsan.v1.Link')
    const definition = this.#bounded('xsan.v1.Link/Calls', service['Calls'] as unknown as LinkDefinition)
    return { definition, service: { Calls: definition } }
  }

  #serveLinks(): void {
    this.#server.addService(this.#linkDefinition().service, {
      Calls: (stream: ServerDuplexStream<LinkCalls, LinkAnswers>) => {
        const link: LinkServer = new LinkServer(
          stream,
          async (method, body, { peer, timeoutMs }) => {
            const known = this.#linked.get(method)
            if (known === undefined) throw new XsanError('NOT_SUPPORTED', `there is no call ${method}`, 'See whether that node runs the same version.')
            const request = decoded(known.definition.requestDeserialize, body, method)
            return known.definition.responseSerialize(await known.answer(request, { peer, timeoutMs: Math.min(timeoutMs, DEADLINE_MS_MAX), metadata: {} }))
          },
          () => this.#links.delete(link),
        )
        this.#links.add(link)
        if (this.#closed) link.close()
      },
    })
  }

  #link(address: string): LinkClient {
    const connection = this.#connection(address)
    if (connection.link === undefined || connection.link.error !== undefined)
      connection.link = new LinkClient(connection.client, this.#linkDefinition().definition, address)
    return connection.link
  }

  #connection(address: string): Connection {
    let connection = this.#clients.get(address)
    if (connection === undefined) {
      connection = { client: new Client(address, credentials.createInsecure(), CLIENT_OPTIONS), link: undefined }
      const [oldest] = this.#clients
      if (this.#clients.size >= CLIENTS_MAX && oldest !== undefined) {
        oldest[1].link?.cancel()
        oldest[1].client.close()
        this.#clients.delete(oldest[0])
      }
    } else {
      this.#clients.delete(address)
    }
    this.#clients.set(address, connection)
    return connection
  }
}

/** Protobuf: a tag (number << 3 | wire type), then a varint (0), 8 bytes (1), a length and as many bytes (2), or 4 bytes (5). Stops at what is none of it. */
function hasMoreFields(bytes: Buffer, max: number): boolean {
  let at = 0
  const varint = () => {
    let value = 0
    for (let shift = 0; at < bytes.length && shift < 70; shift += 7) {
      const byte = bytes[at++]!
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) break
    }
    return value
  }
  for (let fields = 0; at < bytes.length; fields++) {
    if (fields >= max) return true
    const wireType = varint() & 7
    if (wireType === 0) varint()
    else if (wireType === 1) at += 8
    else if (wireType === 2) at += varint()
    else if (wireType === 5) at += 4
    else return false
  }
  return false
}

/** What the other side sent may be anything. */
function decoded(deserialize: (bytes: Buffer) => Message, bytes: Buffer, method: string): Message {
  try {
    return deserialize(bytes)
  } catch (error) {
    throw new XsanError('PROTOCOL_ERROR', `${method}: the message cannot be read: ${messageOf(error)}`, 'Use one version on all nodes.', { cause: error })
  }
}

function adapt(answer: Answer): handleUnaryCall<Message, Message> {
  return (call, respond) => {
    answer(call.request, { peer: call.getPeer(), timeoutMs: remainingMs(call.getDeadline()), metadata: textMetadata(call.metadata) }).then(
      (response) => respond(null, response),
      (error: unknown) => respond(toGrpcStatus(error)),
    )
  }
}

/** u64 as numbers, names in camelCase, absent fields with their defaults. */
function loadDefinitions(): PackageDefinition {
  return loadSync(['xsan/v1/admin.proto', 'xsan/v1/peer.proto'], {
    includeDirs: [PROTO_DIRECTORY],
    longs: Number,
    enums: String,
    defaults: true,
  })
}

function camelCase(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
}

function remainingMs(deadline: Deadline): number {
  const atMs = deadline instanceof Date ? deadline.getTime() : deadline
  return atMs === Number.POSITIVE_INFINITY ? DEADLINE_MS_DEFAULT : Math.max(0, Math.min(DEADLINE_MS_MAX, atMs - Date.now()))
}

function textMetadata(metadata: GrpcMetadata): Record<string, string> {
  const text: Record<string, string> = Object.create(null)
  for (const [key, value] of Object.entries(metadata.getMap())) if (typeof value === 'string') text[key] = value
  return text
}

function bindError(error: Error, host: string, port: number): XsanError {
  const cause = messageOf(error)
  if (cause.includes('EADDRINUSE') || portHolder(port) !== undefined) {
    const holder = portHolder(port)
    return new XsanError(
      'BUSY',
      `port ${port} on ${host} is taken${holder ? ` by ${holder}` : ''}`,
      'Stop that process, or choose another cluster.bind_port.',
      { cause: error },
    )
  }
  if (cause.includes('EADDRNOTAVAIL')) {
    return new XsanError('INVALID_PARAM', `${host} is not an address of this host`, 'Set cluster.bind_ip to one that `ip addr` shows.', { cause: error })
  }
  return new XsanError('INVALID_PARAM', `cannot listen on ${host}:${port}: ${cause}`, 'Look at cluster.bind_ip and cluster.bind_port.', { cause: error })
}
