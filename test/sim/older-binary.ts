/**
 * A node started with an older version, to which a form of what the newer one has written is unknown: it has to refuse to start, say why, and change
 * nothing, so that the newer version goes on as if nothing had been.
 */
import { kvStore, type SimKvStore } from '../../src/env/sim/control.ts'
import type { Bay } from './bay.ts'
import type { SimNode } from './node.ts'

/** What it does not know: a feature of the disks' format, or the form of either half of the metadata. */
export const NEWER_FORMS = ['disks', 'identity', 'state'] as const
export type NewerForm = (typeof NEWER_FORMS)[number]

const REASONS: Readonly<Record<NewerForm, RegExp>> = {
  disks: /another version of XSAN.*features/,
  identity: /has the form/,
  state: /metadata has format/,
}
const KEYS = { identity: 'node/identity', state: 'state/meta' } as const
const NEWER_FORMAT = 99

export class OlderBinary {
  /** It has refused to start, and said why. */
  refused = false
  readonly #node: SimNode
  readonly #form: NewerForm
  readonly #ends: Array<() => string>

  /** The node's process must have ended, and its disks be idle. Undefined: it has nothing yet that could be of a newer form. */
  static install(node: SimNode, form: NewerForm): OlderBinary | undefined {
    const { bays, host } = node
    const store = kvStore(host, 'kv')
    if (form === 'disks' ? !bays.every(({ formatted }) => formatted) : !store.entries.has(KEYS[form])) return undefined
    return new OlderBinary(node, form, form === 'disks' ? bays.map(withNewerDisk) : [withNewerMetadata(store, KEYS[form])])
  }

  private constructor(node: SimNode, form: NewerForm, ends: Array<() => string>) {
    this.#node = node
    this.#form = form
    this.#ends = ends
  }

  /** Its process has ended by itself. */
  onFatal({ message }: Error): void {
    if (REASONS[this.#form].test(message)) this.refused = true
  }

  /** The newer version is back, as the host's only one. Returns what the older one has done though it must not. */
  end(): string[] {
    const wrong = this.#ends.map((end) => end()).filter((what) => what !== '')
    return wrong.map((what) => `${this.#node.id} was started with a version that does not know the form of its ${this.#form}: ${what}`)
  }
}

function withNewerDisk(bay: Bay): () => string {
  const { uuid, mounted } = bay
  const undo = bay.formatOfTheFuture()
  return () => {
    // another disk stands there: that one may be used
    if (bay.uuid !== uuid) return ''
    if (!undo()) return 'it has written to the disk'
    return bay.mounted === mounted ? '' : 'it has mounted the disk'
  }
}

function withNewerMetadata({ entries }: SimKvStore, key: string): () => string {
  const own = entries.get(key)!
  const newer = { ...(JSON.parse(new TextDecoder().decode(own)) as object), format: NEWER_FORMAT }
  entries.set(key, new TextEncoder().encode(JSON.stringify(newer)))
  const before = new Map(entries)
  return () => {
    const isSame = entries.size === before.size && [...before].every(([of, value]) => entries.get(of) === value)
    entries.set(key, own)
    return isSame ? '' : 'it has written to the metadata'
  }
}
