/** What the main thread gives a reactor's thread at its start, and what crosses besides the control messages. Structured-clonable. */
import type { MessagePort } from 'node:worker_threads'
import type { DiskNumber } from '../base/ids.ts'
import type { LogLevelName } from '../env/control.ts'
import type { Registration } from '../control/options.ts'

export interface ReactorDisk {
  readonly path: string
  readonly disk: DiskNumber
  /** Create the file with this many bytes when it does not exist. */
  readonly createBytes?: number
  /** Of the disk, as registered with the cluster. */
  readonly uuid: string
}

export interface ReactorStart {
  readonly registration: Registration
  readonly disks: readonly ReactorDisk[]
  readonly arenaBytes: number
  readonly bootId: string
  readonly data: { readonly host: string; readonly port: number }
  readonly nbd: { readonly host: string; readonly port: number; readonly socket: string; readonly connectionsMax: number }
  readonly credits: number
  readonly logLevel: LogLevelName
  /** Turn counters that the main thread watches (REACTOR_COUNTERS_BYTES). */
  readonly counters: SharedArrayBuffer
  readonly port: MessagePort
}

/** First message of a reactor on its worker channel: how to wake it. */
export interface ReactorUp {
  readonly wakeId: number
}
