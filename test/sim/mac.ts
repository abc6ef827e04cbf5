/**
 * A keyed digest of 32 bytes in place of HMAC-SHA-256: in a simulation nobody forges anything, and the real one was an eighth of its time.
 * Any change of key or bytes changes it, so a wrong key or a changed message is still refused.
 */
export function simulatedMac(key: Uint8Array, bytes: Uint8Array): Uint8Array {
  let a = 0x243f6a88 ^ key.length
  let b = 0x85a308d3 ^ bytes.length
  for (const part of [key, bytes]) {
    let i = 0
    for (; i + 4 <= part.length; i += 4) {
      a = Math.imul(a ^ (part[i]! | (part[i + 1]! << 8) | (part[i + 2]! << 16) | (part[i + 3]! << 24)), 0x9e3779b1)
      a ^= a >>> 15
      b = (Math.imul(b, 0x85ebca6b) + a) | 0
    }
    for (; i < part.length; i++) {
      a = Math.imul(a ^ part[i]!, 0x9e3779b1)
      a ^= a >>> 15
      b = (Math.imul(b, 0x85ebca6b) + a) | 0
    }
  }
  const mac = new Uint8Array(32)
  for (let i = 0; i < 32; i += 4) {
    a = Math.imul(a ^ (b >>> 13), 0xc2b2ae35)
    b = (Math.imul(b ^ (a >>> 16), 0x27d4eb2f) + i) | 0
    mac[i] = a
    mac[i + 1] = a >>> 8
    mac[i + 2] = b
    mac[i + 3] = b >>> 8
  }
  return mac
}
