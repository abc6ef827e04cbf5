import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadAddon } from '../../src/env/native/addon.ts'
import { NativeIoQueue } from '../../src/env/node/ioqueue.ts'
import { SimHost } from '../../src/env/sim/host.ts'
import { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import { SimNetwork } from '../../src/env/sim/network.ts'
import { World } from '../../src/env/sim/world.ts'
import { ioQueueConformance } from './ioqueue.ts'

const ARENA_BYTES = 64 * 1024 * 1024

for (const [name, base] of [
  ['native, disk', tmpdir()],
  ['native, memory file system', '/dev/shm'],
] as const) {
  ioQueueConformance(name, async () => {
    const queue = new NativeIoQueue({ arenaBytes: ARENA_BYTES })
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

for (const seed of [1, 2, 3]) {
  ioQueueConformance(`simulated, seed ${seed}`, async () => {
    const network = new SimNetwork(new World({ seed }))
    const host = new SimHost(network, { name: 'h', address: '10.0.0.1', bootOffsetMs: 1000 })
    const queue = new SimIoQueue({ process: host.start('xsand'), name: 'q', arenaBytes: ARENA_BYTES })
    return { queue, host: '10.0.0.1', path: (file) => `/disk/${file}`, wake: () => queue.wake(), close: async () => {} }
  })
}
