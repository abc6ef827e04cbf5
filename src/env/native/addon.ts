/**
 * The native addon (native/addon, built by `tools/build-native`): its types, and loading it with an error that says what to do.
 * Loaded once per thread, lazily, so that what needs no engine (the commands, the simulator) runs without it.
 */
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

/** Must equal `layout::ABI` of native/io: both change when a word of the shared memory moves or a call changes. */
const IO_ABI = 5
const ADDON_PATH = fileURLToPath(new URL('../../../native/addon/xsan.node', import.meta.url))

export interface NativeQueueOptions {
  readonly arenaPages: number
  readonly providedCount: number
  readonly providedPages: number
  readonly handlesMax: number
  readonly opsMax: number
  readonly crcsMax: number
  readonly hugePages: boolean
}

/** Byte offsets of the parts of `control()`. */
export interface ControlOffsets {
  readonly clock: number
  readonly descriptors: number
  readonly segments: number
  readonly completions: number
  readonly live: number
  readonly meta: number
  readonly sendBusy: number
  readonly taken: number
  readonly crcs: number
}

/** Errors have a Node-style `code`. Use on the thread that made it. */
export interface NativeQueue {
  /** For the `queue...` functions of {@link NativeAddon}. */
  id(): number
  arena(): ArrayBuffer
  control(): ArrayBuffer
  offsets(): ControlOffsets
  wakeId(): number
  listenTcp(host: string, port: number, backlog: number): { handle: number; port: number }
  listenUnix(path: string, mode: number, backlog: number): number
  socketTcp(host: string, port: number): number
  socketUnix(path: string): number
  openFile(
    path: string,
    createBytes: number,
    lock: boolean,
    readOnly: boolean,
  ): { handle: number; sizeBytes: number; isBlockDevice: boolean; direct: boolean; alignmentBytes: number; volatile: boolean }
  inUse(): { handles: number; operations: number }
  usesHugePages(): boolean
  destroy(): void
}

export interface NativeAddon {
  readonly NativeQueue: new (options: NativeQueueOptions) => NativeQueue
  ioAbi(): number
  // What is called per turn or oftener: bare callbacks, 0.07 us a call (native/addon/src/per_turn.rs).
  queueTurn(id: number, descriptors: number, timeoutMs: number): number
  queueFlush(id: number, descriptors: number): void
  queueSampleClock(id: number): number
  queueSilentMs(id: number, handle: number): number
  /** As a signed number. */
  queueCrc32c(id: number, page: number, deltaBytes: number, lengthBytes: number): number
  /** Boot-time clock in ms. */
  bootTimeMs(): number
  /** From any thread; false when the queue with this wake id is gone. */
  wakeQueue(wakeId: number): boolean
  /** A datagram to the service manager's socket (sd_notify); throws when it cannot be sent. */
  notifyService(socket: string, message: string): void
  /** CRC-32C of JavaScript memory. */
  crc32c(bytes: Uint8Array): number
}

let loaded: NativeAddon | undefined

export function loadAddon(): NativeAddon {
  if (loaded) return loaded
  let addon: NativeAddon
  try {
    addon = createRequire(import.meta.url)(ADDON_PATH) as NativeAddon
  } catch (error) {
    const reason = error instanceof Error ? error.message.split('\n')[0] : String(error)
    throw new Error(`the native addon cannot be loaded (${reason}). Build it: tools/bootstrap`, { cause: error })
  }
  const abi = typeof addon.ioAbi === 'function' ? addon.ioAbi() : 0
  if (abi !== IO_ABI) {
    throw new Error(`the native addon ${ADDON_PATH} is of another version (${abi}, this source needs ${IO_ABI}). Build it again: tools/bootstrap`)
  }
  loaded = addon
  return addon
}
