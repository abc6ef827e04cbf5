/**
 * The control plane's store: LevelDB (classic-level), every write synced.
 *
 * Order: LevelDB writes on a pool of threads, which could overtake each other. So one write is under way at a time; the batches that
 * are called meanwhile gather into the next one (group commit), in call order, and share its fsync.
 *
 * The keys by which nodes know each other are in here: only the owner may enter the directory.
 */
import { chmodSync, mkdirSync, statSync } from 'node:fs'
import { ClassicLevel } from 'classic-level'
import { messageOf, XsanError } from '../../base/errors.ts'
import type { Kv, KvOp } from '../control.ts'

type Level = ClassicLevel<string, Uint8Array>
type LevelBatch = ReturnType<Level['batch']>

/** Operations gathered behind a write that is under way. */
const GATHERED_OPS_MAX = 1_000_000
const SCAN_CHUNK = 1000

interface Group {
  readonly batch: LevelBatch
  readonly waiters: Array<{ resolve: () => void; reject: (error: unknown) => void }>
}

export class LevelKv implements Kv {
  readonly #level: Level
  readonly #path: string
  /** Takes the batches that are called while a write is under way. */
  #gathering: Group | undefined
  #writing: Promise<void> | undefined
  #isClosed = false

  /**
   * Creates the directory `path` when there is none. Throws XsanError: BUSY (another process has it open), DISK_CORRUPTED, or
   * PERMISSION_DENIED / INVALID_PARAM for what else keeps it from opening.
   */
  static async open(path: string): Promise<LevelKv> {
    const level: Level = new ClassicLevel<string, Uint8Array>(path, { keyEncoding: 'utf8', valueEncoding: 'view' })
    try {
      keepPrivate(path)
      await level.open()
    } catch (error) {
      throw openError(path, error)
    }
    return new LevelKv(level, path)
  }

  private constructor(level: Level, path: string) {
    this.#level = level
    this.#path = path
  }

  async scan(prefix: string): Promise<Array<{ key: string; value: Uint8Array }>> {
    const found: Array<{ key: string; value: Uint8Array }> = []
    const iterator = this.#level.iterator({ gte: prefix })
    try {
      for (;;) {
        const chunk = await iterator.nextv(SCAN_CHUNK)
        if (chunk.length === 0) return found
        for (const [key, value] of chunk) {
          if (!key.startsWith(prefix)) return found
          found.push({ key, value })
        }
      }
    } catch (error) {
      throw this.#ioError(error)
    } finally {
      await iterator.close()
    }
  }

  batch(ops: readonly KvOp[]): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) throw new XsanError('STOPPING', `the store ${this.#path} is closed`)
      this.#gathering ??= { batch: this.#level.batch(), waiters: [] }
      const { batch, waiters } = this.#gathering
      if (batch.length + ops.length > GATHERED_OPS_MAX)
        throw new XsanError('BUSY', `the store ${this.#path} does not keep up`, 'Look at the latency of its device.')
      // Copied into native memory here: the caller's bytes are its own again.
      for (const op of ops) {
        if (op.type === 'put') batch.put(op.key, op.value)
        else batch.del(op.key)
      }
      waiters.push({ resolve, reject })
      this.#writing ??= this.#writeAll()
    })
  }

  async close(): Promise<void> {
    this.#isClosed = true
    await this.#writing
    await this.#level.close()
  }

  async #writeAll(): Promise<void> {
    while (this.#gathering !== undefined) {
      const { batch, waiters } = this.#gathering
      this.#gathering = undefined
      try {
        if (batch.length > 0) await batch.write({ sync: true })
        else await batch.close()
        for (const waiter of waiters) waiter.resolve()
      } catch (error) {
        const reason = this.#ioError(error)
        for (const waiter of waiters) waiter.reject(reason)
      }
    }
    this.#writing = undefined
  }

  #ioError(error: unknown): XsanError {
    const text = messageOf(error)
    if (/no space/i.test(text)) {
      return new XsanError('INSUFFICIENT_SPACE', `the file system of ${this.#path} is full`, 'Free some space there.', { cause: error })
    }
    if (codeOf(error) === 'LEVEL_CORRUPTION' || /corruption/i.test(text)) {
      return new XsanError('DISK_CORRUPTED', `the store ${this.#path} is damaged: ${text}`, REJOIN, { cause: error })
    }
    return new XsanError('WRITE_FAILED', `the store ${this.#path} failed: ${text}`, 'Look at its device and file system.', { cause: error })
  }
}

/** A directory, new or old. What else is there is refused by LevelDB. */
function keepPrivate(path: string): void {
  const found = statSync(path, { throwIfNoEntry: false })
  if (found === undefined) mkdirSync(path, { mode: 0o700 })
  else if (found.isDirectory() && (found.mode & 0o077) !== 0) chmodSync(path, 0o700)
}

const REJOIN = 'Remove this node from the cluster and let it join again with an empty data directory.'

function codeOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : undefined
}

/** LevelDB's reason is the cause of the error that `open` gives. */
function openError(path: string, error: unknown): XsanError {
  const cause = (error as { cause?: unknown }).cause ?? error
  const [code, text] = [codeOf(cause), messageOf(cause)]
  if (code === 'LEVEL_LOCKED') return new XsanError('BUSY', `the store ${path} is open in another process`, 'Stop the other xsand.', { cause })
  if (code === 'LEVEL_CORRUPTION' || /corruption/i.test(text)) {
    return new XsanError('DISK_CORRUPTED', `the store ${path} is damaged: ${text}`, REJOIN, { cause })
  }
  if (/permission denied|not permitted|read-only/i.test(text)) {
    return new XsanError('PERMISSION_DENIED', `the store ${path} cannot be written: ${text}`, 'Let xsand own that directory.', { cause })
  }
  if (/no space/i.test(text)) return new XsanError('INSUFFICIENT_SPACE', `the file system of ${path} is full`, 'Free some space there.', { cause })
  return new XsanError('INVALID_PARAM', `the store ${path} cannot be opened: ${text}`, 'Check data_dir in the configuration.', { cause })
}
