/** A playground as its commands print it. The form is fixed: strangers' scripts read it. */
import { XsanError } from '../../base/errors.ts'
import { AdminClient } from '../../node/admin-client.ts'
import { type Output, table } from '../output.ts'
import { sleep } from '../program.ts'
import type { DevCluster, DevNode } from './files.ts'
import { endedError, processState } from './processes.ts'

const ASK_TIMEOUT_MS = 700
const POLL_MS = 50

export interface DevNodeView {
  readonly id: string
  readonly pid: number
  /** ready | starting | uninitialized | stopping | failed: as the node says; unresponsive; frozen (SIGSTOP); dead */
  readonly state: string
  readonly grpc: string
  readonly data: string
  readonly nbd: string
  readonly nbd_socket: string
  readonly iscsi: null
  readonly admin: string
  readonly data_dir: string
}

export async function clusterOutput(cluster: DevCluster): Promise<Output> {
  const nodes = await Promise.all(cluster.nodes.map((node) => nodeView(cluster.dir, node)))
  return {
    data: { cluster_id: cluster.clusterId, nodes },
    table: () =>
      table(
        ['node', 'pid', 'state', 'grpc', 'nbd', 'admin', 'nbd socket'],
        nodes.map((node) => [node.id, node.pid, node.state, node.grpc, node.nbd, node.admin, node.nbd_socket]),
      ),
  }
}

async function nodeView(dir: string, node: DevNode): Promise<DevNodeView> {
  const { state, pid } = processState(dir, node.id)
  const said = state === 'running' ? await askState(node.grpc) : { state, stage: '' }
  // It may have ended while it was asked
  const shown = said.state === 'unresponsive' && processState(dir, node.id).state === 'dead' ? 'dead' : said.state
  const { id, grpc, data, nbd, admin } = node
  return { id, pid, state: shown, grpc, data, nbd, nbd_socket: node.nbdSocket, iscsi: null, admin, data_dir: node.dataDir }
}

export interface NodeAnswer {
  readonly state: string
  readonly stage: string
}

/** "unresponsive" when nothing answers. */
export async function askState(address: string): Promise<NodeAnswer> {
  const client = new AdminClient(address)
  try {
    const local = await client.call('Node/Local', {}, ASK_TIMEOUT_MS)
    return { state: String(local['state']), stage: [local['stage'], local['detail']].filter(Boolean).join(': ') }
  } catch (error) {
    if (!(error instanceof XsanError)) throw error
    return { state: 'unresponsive', stage: error.message }
  } finally {
    await client.close()
  }
}

/** Asks until `accept` likes the answer. Throws when the process ends, says it failed, or the time is over. */
export async function waitState(dir: string, node: DevNode, timeoutMs: number, accept: (answer: NodeAnswer) => boolean): Promise<NodeAnswer> {
  const endMs = performance.now() + timeoutMs
  for (;;) {
    const answer = await askState(node.grpc)
    if (processState(dir, node.id).state === 'dead') throw endedError(dir, node.id)
    if (accept(answer)) return answer
    if (answer.state === 'failed')
      throw new XsanError('CLUSTER_NOT_READY', `${node.id} failed to start: ${answer.stage}`, `Look at ${dir}/${node.id}/xsand.log`)
    if (performance.now() >= endMs) {
      throw new XsanError(
        'NETWORK_TIMEOUT',
        `${node.id} is ${answer.state} after ${(timeoutMs / 1000).toFixed(1)} s${answer.stage ? ` (${answer.stage})` : ''}`,
        `Look at ${dir}/${node.id}/xsand.log`,
      )
    }
    await sleep(POLL_MS)
  }
}
