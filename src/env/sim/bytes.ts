/** Without a `subarray` object for the small pieces. */
export function copyBytes(target: Uint8Array, targetStart: number, source: Uint8Array, sourceStart: number, lengthBytes: number): void {
  if (sourceStart === 0 && lengthBytes === source.length) {
    target.set(source, targetStart)
    return
  }
  if (lengthBytes <= 64) for (let i = 0; i < lengthBytes; i++) target[targetStart + i] = source[sourceStart + i]!
  else target.set(source.subarray(sourceStart, sourceStart + lengthBytes), targetStart)
}
