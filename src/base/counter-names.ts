/**
 * The names that the product documents give to what we count under names of our own (checklist 0.14-0.16, 0.28, 0.36): `perf-stats` shows both,
 * the metrics name them in their HELP text. Of the documents' operation recorders we count operations and the sum of their times.
 */
import { BUCKET_NAME } from './latency.ts'

/** Documents' name -> ours. Those that are not here are counted under the documents' name itself (latencies of queues, aio_enqueue, wait_*). */
export const DOCUMENT_NAMES: Readonly<Record<string, string>> = {
  'storage.read.count': 'replica_read',
  'storage.read.bytes': 'replica_read_bytes',
  'storage.req_write.bytes': 'reliable_update_bytes',
  'storage.reliable_update': 'reliable_update',
  'storage.reliable_update.waited': 'wait_channel_lock',
  'storage.reliable_update.duplicate': 'reliable_update_duplicate',
  'storage.reliable_update.cached': 'reliable_update_cached',
  'storage.wait_channel_lock': 'wait_channel_lock',
  'storage.reliable_forward': 'reliable_forward',
  'storage.syncing_read': 'syncing_read',
  'storage.update_remote': 'update_remote',
  'storage.forward.write_bytes': 'forward_write_bytes',
  'storage.forward.write_dist.to_4k': 'forward_write_to_4k',
  'storage.forward.write_dist.to_64k': 'forward_write_to_64k',
  'storage.forward.write_dist.to_1m': 'forward_write_to_1m',
  'storage.forward.syncing_bytes': 'forward_syncing_bytes',
}

type Values = Readonly<Record<string, number>>

/** With the documents' names beside ours. */
export function withDocumentNames(counters: Values): Record<string, number> {
  const all: Record<string, number> = { ...counters }
  for (const [name, own] of Object.entries(DOCUMENT_NAMES)) {
    const value = counters[own]
    if (value !== undefined) all[name] = value
  }
  return all
}

/** The documents' names of one of ours; mostly none. */
export function documentNamesOf(name: string): string[] {
  return Object.keys(DOCUMENT_NAMES).filter((document) => DOCUMENT_NAMES[document] === name)
}

export interface Histogram {
  readonly name: string
  /** Ascending; `count`: all up to `us`. */
  readonly buckets: ReadonlyArray<{ readonly us: number; readonly count: number }>
  readonly count: number
  readonly sumUs: number
}

/** Takes the histograms out of a set of counters; `rest` is what is none. */
export function splitHistograms(counters: Values): { readonly histograms: Histogram[]; readonly rest: Record<string, number> } {
  const buckets = new Map<string, Array<{ us: number; count: number }>>()
  const rest: Record<string, number> = {}
  for (const [key, count] of Object.entries(counters)) {
    const match = BUCKET_NAME.exec(key)
    if (match === null) rest[key] = count
    else buckets.set(match[1]!, [...(buckets.get(match[1]!) ?? []), { us: Number(match[2]), count }])
  }
  const histograms = [...buckets].map(([name, unordered]) => {
    const [count, sumUs] = [rest[`${name}.count`] ?? 0, rest[`${name}.sum_us`] ?? 0]
    delete rest[`${name}.count`]
    delete rest[`${name}.sum_us`]
    return { name, buckets: unordered.sort((a, b) => a.us - b.us), count, sumUs }
  })
  return { histograms: histograms.sort((a, b) => (a.name < b.name ? -1 : 1)), rest }
}

/** The end of the bucket below which `part` (0 to 1) of the values lie; Infinity above the last bucket; 0 when there are none. */
export function quantileUs({ buckets, count }: Histogram, part: number): number {
  if (count === 0) return 0
  return buckets.find((bucket) => bucket.count >= part * count)?.us ?? Number.POSITIVE_INFINITY
}
