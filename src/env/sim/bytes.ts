/** What events do all the time, without an object for it: copies of bytes, and short lists. */

/** Without a `subarray` object for the small pieces. */
export function copyBytes(target: Uint8Array, targetStart: number, source: Uint8Array, sourceStart: number, lengthBytes: number): void {
  if (sourceStart === 0 && lengthBytes === source.length) {
    target.set(source, targetStart)
    return
  }
  if (lengthBytes <= 64) for (let i = 0; i < lengthBytes; i++) target[targetStart + i] = source[sourceStart + i]!
  else target.set(source.subarray(sourceStart, sourceStart + lengthBytes), targetStart)
}

/** Takes it out of a short list whose order matters; one that is not in it is no matter. */
export function removeFrom<T>(list: T[], item: T): void {
  const at = list.indexOf(item)
  if (at < 0) return
  for (let i = at + 1; i < list.length; i++) list[i - 1] = list[i]!
  list.length--
}
