/** Messages of simulated calls go through the real encoding of proto/: defaults appear, unknown fields are refused, as with gRPC. */
import { fileURLToPath } from 'node:url'
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js'
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader'
import { AssertionError } from '../../src/base/assert.ts'
import type { Message } from '../../src/env/control.ts'
import type { RpcCodec } from '../../src/env/sim/control.ts'

const PROTO_DIRECTORY = fileURLToPath(new URL('../../proto', import.meta.url))

let shared: RpcCodec | undefined

/** One for all clusters of this process: definitions never change. */
export function protoCodec(): RpcCodec {
  shared ??= makeCodec()
  return shared
}

function makeCodec(): RpcCodec {
  const definitions = loadSync(['xsan/v1/admin.proto', 'xsan/v1/peer.proto'], { includeDirs: [PROTO_DIRECTORY], longs: Number, enums: String, defaults: true })
  const methods = new Map<string, MethodDefinition<Message, Message>>()
  for (const [service, definition] of Object.entries(definitions)) {
    if ('format' in definition) continue
    for (const [name, method] of Object.entries(definition as unknown as ServiceDefinition))
      methods.set(`${service}/${name}`, method as MethodDefinition<Message, Message>)
  }
  const knownFields = new Map<object, ReadonlySet<string>>()
  const checkFields = (type: object, name: string, side: string, message: Message): void => {
    let known = knownFields.get(type)
    if (!known) {
      const { field: fields } = (type as MessageTypeDefinition<object, object>).type as { field: ReadonlyArray<{ name: string }> }
      known = new Set(fields.flatMap(({ name: field }) => [field, camelCase(field)]))
      knownFields.set(type, known)
    }
    for (const field in message) if (!known.has(field)) throw new AssertionError(`${name}: its ${side} has no field ${field}`)
  }
  const methodOf = (name: string) => {
    const method = methods.get(name)
    if (method === undefined) throw new AssertionError(`proto/ has no method ${name}`)
    return method
  }
  return {
    request(name, message) {
      const method = methodOf(name)
      checkFields(typeOf(method, 'requestType'), name, 'request', message)
      return method.requestDeserialize(method.requestSerialize(message))
    },
    response(name, message) {
      const method = methodOf(name)
      checkFields(typeOf(method, 'responseType'), name, 'response', message)
      return method.responseDeserialize(method.responseSerialize(message))
    },
  }
}

function typeOf(method: MethodDefinition<Message, Message>, side: 'requestType' | 'responseType'): object {
  return (method as unknown as Record<typeof side, object>)[side]
}

function camelCase(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
}
