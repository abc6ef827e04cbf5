/** What each kind of fault does to a simulated cluster, and how it ends. */
import { ReplicaState } from '../../src/placement/chain.ts'
import type { SimCluster, SimNode } from './cluster.ts'
import { describeFault, type Fault } from './faults.ts'
import type { History } from './history.ts'

/** Longer ones are a dead disk by design, which stays out until it is replaced: that is `disk-gone`. */
const DISK_HANG_MAX_MS = 1000

/** Some copy of every slot serves on a running node other than these: what was not flushed is still in its memory. */
function servedElsewhere(cluster: SimCluster, lost: readonly SimNode[]): boolean {
  const { state } = cluster
  if (!state) return false
  return state.chains.every((chain) =>
    chain.entries.some((entry) => {
      const node = cluster.nodes.find((candidate) => candidate.control?.member?.node === entry.node)
      return entry.state === ReplicaState.SERVING && node?.running === true && !lost.includes(node)
    }),
  )
}

export function inject(cluster: SimCluster, history: History, fault: Fault): void {
  const { world, network } = cluster
  const node = cluster.nodes[fault.node]!
  const other = cluster.nodes[fault.other]!
  world.note('fault', () => describeFault(fault))
  const later = (fn: () => void) => world.schedule(fault.durationMs, 'fault ends', fn)
  const losePower = (lost: readonly SimNode[]) => {
    if (!servedElsewhere(cluster, lost)) history.allPowerLost(world.nowMs)
    for (const each of lost) each.host.losePower(fault.unflushed)
    later(() => {
      for (const each of lost) each.restart()
    })
  }
  switch (fault.kind) {
    case 'kill':
      node.process?.kill()
      later(() => node.restart())
      return
    case 'freeze': {
      const { process } = node
      process?.freeze()
      later(() => process?.thaw())
      return
    }
    case 'power':
      losePower([node])
      return
    case 'power-all':
      losePower(cluster.nodes)
      return
    case 'isolate':
      node.isolate()
      later(() => node.rejoin())
      return
    case 'cut':
      network.cut(node.host, other.host)
      later(() => network.heal(node.host, other.host))
      return
    case 'slow-link': {
      const link = network.link(node.host, other.host)
      link.extraDelayMs = fault.amount
      later(() => {
        link.extraDelayMs = 0
      })
      return
    }
    case 'disk-slow': {
      const { faults } = node.disk
      faults.slow = 0.3
      faults.slowMs = fault.amount
      later(() => {
        faults.slow = 0
      })
      return
    }
    case 'disk-hang':
      node.disk.hang()
      world.schedule(Math.min(fault.durationMs, DISK_HANG_MAX_MS), 'fault ends', () => node.disk.resume())
      return
    case 'disk-eio': {
      const { faults } = node.disk
      faults.readEio = faults.writeEio = faults.flushEio = fault.amount
      later(() => {
        faults.readEio = faults.writeEio = faults.flushEio = 0
      })
      return
    }
    case 'bit-rot':
      node.rot(fault.amount)
      return
    case 'drift':
      node.host.setDrift(fault.amount)
      return
    case 'pauses': {
      const { queue } = node
      if (!queue) return
      queue.faults.pauses = 0.01
      queue.faults.pauseMs = fault.amount
      later(() => {
        queue.faults.pauses = 0
      })
      return
    }
    case 'datagram-loss': {
      const { datagramFaults } = cluster.control
      datagramFaults.loss = fault.amount
      datagramFaults.duplicate = datagramFaults.late = fault.amount / 2
      later(() => {
        datagramFaults.loss = datagramFaults.duplicate = datagramFaults.late = 0
      })
      return
    }
  }
}
