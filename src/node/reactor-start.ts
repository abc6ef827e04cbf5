/** What the main thread gives a reactor's thread at its start. Structured-clonable. */
import type { MessagePort } from 'node:worker_threads'
import type { DiskNumber } from '../base/ids.ts'
import type { Registration } from '../control/options.ts'
import type { LogLevelName } from '../env/control.ts'

export interface ReactorDisk {
  readonly path: string
  readonly disk: DiskNumber
  readonly uuid: string
  /** Nothing is on it yet: format it with this uuid. */
  readonly isBlank: boolean
  /** Create the file with this many bytes when it does not exist. */
  readonly createBytes?: number
}

export interface ReactorStart {
  readonly registration: Registration
  readonly disks: readonly ReactorDisk[]
  readonly arenaBytes: number
  /** Of the running kernel: tells a power loss from a mere kill. */
  readonly bootId: string
  readonly data: { readonly host: string; readonly port: number }
  /** `socket` '': none. */
  readonly nbd: { readonly host: string; readonly port: number; readonly socket: string; readonly connectionsMax: number }
  readonly logLevel: LogLevelName
  /** Turn counters that the main thread watches. */
  readonly counters: SharedArrayBuffer
  readonly port: MessagePort
}

/** The first message on the port, before any ReactorToControl: how to wake the reactor's io queue. */
export interface ReactorUp {
  readonly wakeId: number
}
