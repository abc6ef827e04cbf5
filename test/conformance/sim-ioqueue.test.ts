/** The simulated io queue through the suite that the native one passes too: calm, and as nasty as it gets, from several seeds. */
import { SimHost } from '../../src/env/sim/host.ts'
import { SimIoQueue } from '../../src/env/sim/ioqueue.ts'
import { SimNetwork } from '../../src/env/sim/network.ts'
import { World } from '../../src/env/sim/world.ts'
import { ioQueueConformance } from './ioqueue.ts'

function simulated(seed: number, nasty: boolean): void {
  ioQueueConformance(`simulated, seed ${seed}${nasty ? ', nasty' : ''}`, async () => {
    const world = new World({ seed })
    const network = new SimNetwork(world, nasty ? { fragment: 0.5, slow: 0.05 } : {})
    const host = new SimHost(network, { name: 'h', address: '10.0.0.1' })
    const disk = host.addDisk({ name: 'd', mount: '/d/', direct: seed % 2 === 0, alignmentBytes: 512 })
    if (nasty) disk.faults.short = 0.3
    const queue = new SimIoQueue({
      process: host.start('p'),
      name: 'q',
      arenaBytes: 64 * 1024 * 1024,
      ...(nasty ? { faults: { late: 0.2, reorder: 1, shortRecv: 0.5, pauses: 0.01, pauseMs: 5 } } : {}),
    })
    return {
      queue,
      host: '10.0.0.1',
      path: (name) => `/d/${name}`,
      wake: () => queue.wake(),
      close: async () => world.assertNothingReal(),
    }
  })
}

for (const seed of [1, 2]) simulated(seed, false)
for (const seed of [3, 4]) simulated(seed, true)
