/** What the kernel lets this process have. */
import { readFileSync } from 'node:fs'

/** Files that a node opens for itself: disks, metadata, listeners, other nodes. */
const OWN_FILES = 128

/** What to say at the start when not all clients that may come can have a descriptor, or undefined. `limits` is the text of /proc/self/limits. */
export function tooFewFiles(connectionsMax: number, limits: string = readFileSync('/proc/self/limits', 'utf8')): string | undefined {
  // Max open files            1024                 524288               files
  const soft = /^Max open files\s+(\d+)/m.exec(limits)?.[1]
  const wanted = connectionsMax + OWN_FILES
  if (soft === undefined || Number(soft) >= wanted) return undefined
  return `this process may open ${soft} files, network.max_connections (${connectionsMax}) takes ${wanted}`
}
