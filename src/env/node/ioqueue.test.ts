import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ioQueueConformance } from '../../../test/conformance/ioqueue.ts'
import { loadAddon } from '../native/addon.ts'
import { NativeIoQueue } from './ioqueue.ts'

for (const [name, base] of [
  ['native on disk', tmpdir()],
  ['native on tmpfs', '/dev/shm'],
] as const) {
  ioQueueConformance(name, async () => {
    const queue = new NativeIoQueue({ arenaBytes: 64 * 1024 * 1024 })
    const dir = mkdtempSync(join(base, 'xsan-ioqueue-'))
    return {
      queue,
      host: '127.0.0.1',
      path: (file) => join(dir, file),
      wake: () => void loadAddon().wakeQueue(queue.wakeId),
      close: async () => {
        queue.destroy()
        rmSync(dir, { recursive: true, force: true })
      },
    }
  })
}
