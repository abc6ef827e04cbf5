/**
 * The control plane's store: LevelDB (classic-level), every write synced.
 *
 * Order: LevelDB writes on a pool of threads, which could overtake each other. So one write is under way at a time; the batches that
 * are called meanwhile gather into the next one (group commit), in call order, and share its fsync.
 *
 * The keys by which nodes know each other are in here: only the owner may enter the directory.
 *
 * A write that failed is the last: LevelDB would go on behind the part of it that has reached its log, at a place where a reader looks for no record, and lose
 * what it acknowledges from then on.
 *
 * A store that has lost acknowledged writes, or whose values have changed, is refused (kv-guard.ts): LevelDB itself would say nothing.
 */
import { chmodSync, mkdirSync, statSync } from 'node:fs'
import { ClassicLevel } from 'classic-level'
import { messageOf, XsanError } from '../../base/errors.ts'
import type { Kv, KvOp } from '../control.ts'
import { Mark, rotInLog, seal, unseal } from './kv-guard.ts'

type Level = ClassicLevel<string, Uint8Array>
type LevelBatch = ReturnType<Level['batch']>

/** Operations gathered behind a write that is under way. */
const GATHERED_OPS_MAX = 1_000_000
const SCAN_CHUNK = 1000
/** Number of the last write, in each of them. Behind all keys of users. */
const NUMBER_KEY = '~number'

interface Group {
  readonly batch: LevelBatch
  readonly waiters: Array<{ resolve: () => void; reject: (error: unknown) => void }>
}

export class LevelKv implements Kv {
  readonly #level: Level
  readonly #path: string
  readonly #mark: Mark
  /** Of the last write that was begun. */
  #number: number
  /** Takes the batches that are called while a write is under way. */
  #gathering: Group | undefined
  #writing: Promise<void> | undefined
  /** Why nothing is written any more. */
  #broken: XsanError | undefined
  #isClosed = false

  /**
   * Creates the directory `path` when there is none. Throws XsanError: BUSY (another process has it open), DISK_CORRUPTED, or
   * PERMISSION_DENIED / INVALID_PARAM for what else keeps it from opening.
   */
  static async open(path: string): Promise<LevelKv> {
    const level: Level = new ClassicLevel<string, Uint8Array>(path, { keyEncoding: 'utf8', valueEncoding: 'view' })
    let rot: string | undefined
    try {
      rot = rotInLog(path)
    } catch (error) {
      throw openError(path, error)
    }
    if (rot !== undefined) throw wentBack(path, `${rot} cannot be read, and what was written after it can`)
    try {
      keepPrivate(path)
      await level.open()
    } catch (error) {
      throw openError(path, error)
    }
    const mark = new Mark(path)
    try {
      const number = await storedNumber(level, path, mark.found > 0)
      if (number < mark.found) throw wentBack(path, `it ends with write ${number}, and ${mark.found} were acknowledged`)
      return new LevelKv(level, path, mark, number)
    } catch (error) {
      mark.close()
      await level.close()
      throw error
    }
  }

  private constructor(level: Level, path: string, mark: Mark, number: number) {
    this.#level = level
    this.#path = path
    this.#mark = mark
    this.#number = number
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
          if (key === NUMBER_KEY) continue
          const unsealed = unseal(key, value)
          if (unsealed === undefined) throw damaged(this.#path, `the value of ${key} is not what was stored`)
          found.push({ key, value: unsealed })
        }
      }
    } catch (error) {
      throw error instanceof XsanError ? error : this.#ioError(error)
    } finally {
      await iterator.close()
    }
  }

  batch(ops: readonly KvOp[]): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) throw new XsanError('STOPPING', `the store ${this.#path} is closed`)
      if (this.#broken !== undefined) throw this.#broken
      this.#gathering ??= { batch: this.#level.batch(), waiters: [] }
      const { batch, waiters } = this.#gathering
      if (batch.length + ops.length > GATHERED_OPS_MAX)
        throw new XsanError('BUSY', `the store ${this.#path} does not keep up`, 'Look at the latency of its device.')
      // Copied into native memory here: the caller's bytes are its own again.
      for (const op of ops) {
        if (op.type === 'put') batch.put(op.key, seal(op.key, op.value))
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
    this.#mark.close()
  }

  async #writeAll(): Promise<void> {
    while (this.#gathering !== undefined) {
      const { batch, waiters } = this.#gathering
      this.#gathering = undefined
      try {
        if (this.#broken !== undefined) throw this.#broken
        if (batch.length > 0) {
          const number = ++this.#number
          batch.put(NUMBER_KEY, numberBytes(number))
          await batch.write({ sync: true })
          this.#mark.set(number)
        } else await batch.close()
        for (const waiter of waiters) waiter.resolve()
      } catch (error) {
        this.#broken ??= this.#ioError(error)
        for (const waiter of waiters) waiter.reject(this.#broken)
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
      return damaged(this.#path, text, error)
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

function numberBytes(number: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setFloat64(0, number, true)
  return bytes
}

/** 0: of a new store. One of a version that did not number its writes is taken over as it is. */
async function storedNumber(level: Level, path: string, isNumbered: boolean): Promise<number> {
  const stored = await level.get(NUMBER_KEY)
  if (stored?.length === 8) return new DataView(stored.buffer, stored.byteOffset).getFloat64(0, true)
  if (stored !== undefined) throw damaged(path, 'the number of its last write cannot be read')
  const old = await level.iterator().all()
  if (old.length === 0 || isNumbered) return 0
  const batch = level.batch()
  for (const [key, value] of old) batch.put(key, seal(key, value))
  batch.put(NUMBER_KEY, numberBytes(1))
  await batch.write({ sync: true })
  return 1
}

function damaged(path: string, why: string, cause?: unknown): XsanError {
  return new XsanError('DISK_CORRUPTED', `the store ${path} is damaged: ${why}`, REJOIN, { cause })
}

/** To go on would be to forget promises: a vote given, an entry acknowledged. */
function wentBack(path: string, why: string): XsanError {
  return new XsanError(
    'DISK_CORRUPTED',
    `the store ${path} has lost writes that were acknowledged: ${why}`,
    `${REJOIN} See "metadata" in docs/operating.md for a cluster that has no other node.`,
  )
}

const LOCKED =
  'Stop the other xsand. If it was killed and does not end (state D of ps), a disk of it hangs: look at the kernel log; it ends when that disk answers, or with the host.'
const REJOIN = 'Remove this node from the cluster and let it join again with an empty data directory.'

function codeOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : undefined
}

/** LevelDB's reason is the cause of the error that `open` gives. */
function openError(path: string, error: unknown): XsanError {
  const cause = (error as { cause?: unknown }).cause ?? error
  const [code, text] = [codeOf(cause), messageOf(cause)]
  if (code === 'LEVEL_LOCKED') return new XsanError('BUSY', `the store ${path} is open in another process`, LOCKED, { cause })
  if (code === 'LEVEL_CORRUPTION' || /corruption/i.test(text)) {
    return damaged(path, text, cause)
  }
  if (/permission denied|not permitted|read-only/i.test(text)) {
    return new XsanError('PERMISSION_DENIED', `the store ${path} cannot be written: ${text}`, 'Let xsand own that directory.', { cause })
  }
  if (/no space/i.test(text)) return new XsanError('INSUFFICIENT_SPACE', `the file system of ${path} is full`, 'Free some space there.', { cause })
  return new XsanError('INVALID_PARAM', `the store ${path} cannot be opened: ${text}`, 'Check data_dir in the configuration.', { cause })
}
