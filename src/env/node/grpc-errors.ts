/**
 * XsanError <-> gRPC, in one place. A failed call carries the error in its trailing metadata:
 *   xsan-status           name of the status; the code follows from it
 *   xsan-code             the number, for readers in other languages
 *   xsan-message-bin      UTF-8
 *   xsan-next-step-bin    UTF-8; left out when there is none
 */
import { status as GrpcStatus, Metadata, type ServiceError, type StatusObject } from '@grpc/grpc-js'
import { messageOf, XsanError } from '../../base/errors.ts'
import { Status, type StatusName } from '../../base/status.ts'

export const GRPC_CODES: Readonly<Record<StatusName, GrpcStatus>> = {
  SUCCESS: GrpcStatus.OK,
  NOMEM: GrpcStatus.RESOURCE_EXHAUSTED,
  INVALID_PARAM: GrpcStatus.INVALID_ARGUMENT,
  NOT_FOUND: GrpcStatus.NOT_FOUND,
  ALREADY_EXISTS: GrpcStatus.ALREADY_EXISTS,
  BUSY: GrpcStatus.FAILED_PRECONDITION,
  STOPPING: GrpcStatus.UNAVAILABLE,
  PERMISSION_DENIED: GrpcStatus.PERMISSION_DENIED,
  NOT_SUPPORTED: GrpcStatus.UNIMPLEMENTED,
  PROTOCOL_ERROR: GrpcStatus.INVALID_ARGUMENT,
  RESTART_REQUIRED: GrpcStatus.FAILED_PRECONDITION,
  INTERNAL: GrpcStatus.INTERNAL,
  BUFFER_SIZE_EXCEEDED: GrpcStatus.RESOURCE_EXHAUSTED,
  NO_BUFFER: GrpcStatus.RESOURCE_EXHAUSTED,
  UNAVAILABLE_IN_CURRENT_STATUS: GrpcStatus.FAILED_PRECONDITION,
  BUFFER_LOST: GrpcStatus.INTERNAL,
  NODE_UNREACHABLE: GrpcStatus.UNAVAILABLE,
  CLUSTER_NOT_READY: GrpcStatus.UNAVAILABLE,
  CONSENSUS_FAILED: GrpcStatus.ABORTED,
  NOT_LEADER: GrpcStatus.FAILED_PRECONDITION,
  WRONG_CLUSTER: GrpcStatus.FAILED_PRECONDITION,
  NODE_NOT_FOUND: GrpcStatus.NOT_FOUND,
  LEASE_EXPIRED: GrpcStatus.UNAVAILABLE,
  VOLUME_NOT_FOUND: GrpcStatus.NOT_FOUND,
  BLOCK_CORRUPTED: GrpcStatus.DATA_LOSS,
  INSUFFICIENT_SPACE: GrpcStatus.RESOURCE_EXHAUSTED,
  VOLUME_EXISTS: GrpcStatus.ALREADY_EXISTS,
  DISK_NOT_FOUND: GrpcStatus.NOT_FOUND,
  DISK_FOREIGN: GrpcStatus.FAILED_PRECONDITION,
  DISK_INCOMPATIBLE: GrpcStatus.FAILED_PRECONDITION,
  DISK_CORRUPTED: GrpcStatus.DATA_LOSS,
  READ_ONLY: GrpcStatus.FAILED_PRECONDITION,
  VOLUME_UNAVAILABLE: GrpcStatus.UNAVAILABLE,
  READ_FAILED: GrpcStatus.INTERNAL,
  WRITE_FAILED: GrpcStatus.INTERNAL,
  NETWORK_TIMEOUT: GrpcStatus.DEADLINE_EXCEEDED,
  NOT_HEAD: GrpcStatus.FAILED_PRECONDITION,
  ROUTING_STALE: GrpcStatus.FAILED_PRECONDITION,
  CHAIN_VERSION_MISMATCH: GrpcStatus.FAILED_PRECONDITION,
  REQUEST_REFUSED: GrpcStatus.FAILED_PRECONDITION,
  DUPLICATE_OLD: GrpcStatus.FAILED_PRECONDITION,
  WRITE_EXPIRED: GrpcStatus.DEADLINE_EXCEEDED,
  WRITE_CANCELLED: GrpcStatus.CANCELLED,
  CHECKSUM_MISMATCH: GrpcStatus.DATA_LOSS,
  NO_CREDIT: GrpcStatus.RESOURCE_EXHAUSTED,
  CONNECTION_LOST: GrpcStatus.UNAVAILABLE,
  REQUEST_TOO_LARGE: GrpcStatus.INVALID_ARGUMENT,
  NO_SUCCESSOR: GrpcStatus.FAILED_PRECONDITION,
}

/** What a handler threw, as the caller shall get it. Anything but an XsanError is our bug: INTERNAL. */
export function knownError(error: unknown): XsanError {
  return error instanceof XsanError ? error : new XsanError('INTERNAL', messageOf(error), "Look for this message in the node's log.")
}

/** An HTTP/2 peer takes headers of some KiB, and refuses the whole answer when there are more; a message may quote what the caller sent. */
const TEXT_CHARS_MAX = 1500

const cut = (text: string) => (text.length <= TEXT_CHARS_MAX ? text : `${text.slice(0, TEXT_CHARS_MAX)}... (${text.length} characters)`)

export function toGrpcStatus(error: unknown): Partial<StatusObject> {
  const known = knownError(error)
  const message = cut(known.message)
  const metadata = new Metadata()
  metadata.set('xsan-status', known.status)
  metadata.set('xsan-code', String(known.code))
  metadata.set('xsan-message-bin', Buffer.from(message))
  if (known.nextStep) metadata.set('xsan-next-step-bin', Buffer.from(cut(known.nextStep)))
  return { code: GRPC_CODES[known.status], details: `${known.status}: ${message}`, metadata }
}

/** What a failed call means. Without our metadata the answer did not come from a handler of ours. */
export function fromServiceError(error: ServiceError, call: { address: string; method: string; timeoutMs: number }): XsanError {
  const name = error.metadata?.get('xsan-status')[0]
  if (typeof name === 'string' && name !== 'SUCCESS' && Object.hasOwn(Status, name)) {
    const text = (key: string) => String(error.metadata.get(key)[0] ?? '')
    return new XsanError(name as StatusName, text('xsan-message-bin') || error.details, text('xsan-next-step-bin'))
  }
  const { address, method } = call
  switch (error.code) {
    case GrpcStatus.DEADLINE_EXCEEDED:
      return new XsanError(
        'NETWORK_TIMEOUT',
        `${address} did not answer ${method} within ${Math.round(call.timeoutMs)} ms`,
        'See whether that node runs and is not overloaded.',
      )
    case GrpcStatus.UNIMPLEMENTED:
      return new XsanError('NOT_SUPPORTED', `${address} does not know ${method}`, 'See whether that node runs the same version.')
    case GrpcStatus.RESOURCE_EXHAUSTED:
      return new XsanError('REQUEST_TOO_LARGE', `${method} at ${address}: ${error.details}`)
    case GrpcStatus.CANCELLED:
      return new XsanError('STOPPING', `${method} at ${address} was cut off: ${error.details}`, 'Try again.')
    case GrpcStatus.UNAVAILABLE:
      return unreachable(address, error.details)
    default:
      return new XsanError('INTERNAL', `${method} at ${address}: ${error.details}`)
  }
}

/** grpc-js wraps the reason of a failed connection in several sentences; the errno name in it is what a person looks for. */
function unreachable(address: string, details: string): XsanError {
  const errno = /\b(E[A-Z]{4,})\b/.exec(details)?.[1]
  if (errno === undefined && details.startsWith('Name resolution failed'))
    return new XsanError('NODE_UNREACHABLE', `the name in ${address} leads to no address`, 'See whether it is spelled right, or use an IP address.')
  const said = /Last error: (.*?)(?: \(\d{4}-.*)?$/.exec(details)?.[1] ?? ''
  if (errno === undefined && /^(Protocol error|Failed to connect)/.test(said))
    return new XsanError(
      'NODE_UNREACHABLE',
      `what answers at ${address} does not speak gRPC`,
      'Use the port of control (cluster.bind_port), not one for data, clients or metrics.',
    )
  return new XsanError(
    'NODE_UNREACHABLE',
    `nothing answers at ${address} (${errno ?? details})`,
    'See whether xsand runs there, and whether address and port are right.',
  )
}
