import { command } from '../program.ts'
import { type DevCluster, type DevNode, findNode, readCluster } from './files.ts'
import { dirOption, timeoutOption } from './options.ts'
import { processState, startProcess } from './processes.ts'
import { clusterOutput, waitState } from './view.ts'

/** Time in which a process opens its gRPC port. */
const OPEN_MS = 30_000

export const devStart = command<{ dir: string; timeout: number }>({
  usage: 'start <id...>',
  description: 'start the process of a node again; returns when it is ready, or when it waits for others that are dead',
  options: [dirOption(), timeoutOption('60s')],
  versioned: false,
  async run({ options, args }) {
    const cluster = readCluster(options.dir)
    const nodes = args.map((id) => findNode(cluster, id))
    await startNodes(cluster, nodes, options.timeout)
    return clusterOutput(cluster)
  },
})

/** Starts them all, then waits. Without a majority alive no node becomes ready: then it is enough that they answer. */
export async function startNodes(cluster: DevCluster, nodes: readonly DevNode[], timeoutMs: number): Promise<void> {
  const endMs = performance.now() + timeoutMs
  await Promise.all(nodes.map((node) => startProcess(cluster.dir, node)))
  await Promise.all(nodes.map((node) => waitState(cluster.dir, node, Math.min(OPEN_MS, timeoutMs), ({ state }) => state !== 'unresponsive')))
  const majority = () => cluster.nodes.filter((node) => processState(cluster.dir, node.id).state === 'running').length * 2 > cluster.nodes.length
  await Promise.all(nodes.map((node) => waitState(cluster.dir, node, Math.max(0, endMs - performance.now()), ({ state }) => state === 'ready' || !majority())))
}
