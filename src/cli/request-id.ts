/** --request-id: a change whose answer got lost can be asked for again, also at another node, without being made twice. */
import { Option } from 'commander'
import type { Message } from '../env/control.ts'

export interface RequestIdOptions {
  requestId?: string
}

export function requestIdOption(): Option {
  return new Option('--request-id <id>', 'any name for this change: asked for again under it, it is not made twice, and answers as the first time')
}

export function requestIdOf({ requestId }: RequestIdOptions): Message {
  return requestId === undefined ? {} : { requestId }
}
