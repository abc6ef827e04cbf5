/** What the main thread gives to a reactor's thread at its start. Structured-clonable. */

import type { StatusName } from '../base/status.ts'
import type { LogLevelName } from '../env/control.ts'
import type { ControlToReactor, ReactorToControl } from '../placement/messages.ts'
import type { FoundDisk } from './disks.ts'

export interface ReactorConfig {
  readonly clusterId: string
  readonly clusterUuid: string
  readonly clusterKey: Uint8Array
  readonly node: number
  readonly nodeId: string
  readonly incarnation: number
  readonly slotCount: number
  /** With the number the cluster gave to each. */
  readonly disks: ReadonlyArray<FoundDisk & { readonly number: number }>
  /** Of the running kernel: tells a power loss from a mere kill. */
  readonly bootId: string
  readonly data: { readonly host: string; readonly port: number }
  /** `socket` '': none. */
  readonly nbd: { readonly host: string; readonly port: number; readonly socket: string; readonly connectionsMax: number; readonly connectionRowsMax: number }
  readonly arenaBytes: number
  readonly credits: number
  /** At the start; hot. */
  readonly spinUs: number
  readonly logLevel: LogLevelName
}

export interface ReactorStart {
  readonly config: ReactorConfig
  /** See `REACTOR_COUNTERS_BYTES`. */
  readonly counters: SharedArrayBuffer
  /** Of this thread's flight recorder: outlives it. */
  readonly flight: SharedArrayBuffer
}

/** A message on its way in, with the boot-time clock of the moment it was posted: how long it waited is counted. */
export interface Posted {
  readonly atMs: number
  readonly message: ControlToReactor
}

/** `running`: the io queue turns; wake it with this id after posting a message. `tags`: of the io queue, by number, for the flight recorder. */
export type ReactorMessage =
  | ReactorToControl
  | { readonly type: 'running'; readonly wakeId: number }
  | { readonly type: 'tags'; readonly tags: readonly string[] }
  | { readonly type: 'failed'; readonly message: string; readonly nextStep: string; readonly status?: StatusName }

/** Numbers of the messages in the flight recorder. */
export const MESSAGE_TYPES: ReadonlyArray<(ControlToReactor | ReactorMessage)['type']> = [
  'running',
  'tags',
  'table',
  'lease',
  'peerDown',
  'settings',
  'stop',
  'query',
  'ready',
  'tableApplied',
  'needTable',
  'upToDate',
  'lastIds',
  'peerRefused',
  'diskFailed',
  'stopped',
  'failed',
  'log',
  'stats',
  'answer',
  'unreachable',
]
