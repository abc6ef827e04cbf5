/**
 * Commands of the Raft log: UTF-8 JSON `{v, op, feature, id?, args}`, one operation each (`ops/`).
 *
 * Invariants: an operation of a higher feature level than the cluster's is refused; one this program does not know halts the node, it is
 * never skipped. A command with an id is applied once: its repetition gets the first one's result.
 */
import { assert } from '../base/assert.ts'
import { XsanError } from '../base/errors.ts'
import { chainsCreate } from './ops/chains-create.ts'
import { chainsStep } from './ops/chains-step.ts'
import { clusterInit } from './ops/cluster-init.ts'
import { diskFailed } from './ops/disk-failed.ts'
import { featureRaise } from './ops/feature-raise.ts'
import { leasesSettle } from './ops/leases-settle.ts'
import { nodeAddresses } from './ops/node-addresses.ts'
import { nodeAdmit } from './ops/node-admit.ts'
import { nodeLeave } from './ops/node-leave.ts'
import { nodeRegister } from './ops/node-register.ts'
import { nodeRemove } from './ops/node-remove.ts'
import { nodeStay } from './ops/node-stay.ts'
import { nodesAway } from './ops/nodes-away.ts'
import type { Operation } from './ops/operation.ts'
import { settingsSet } from './ops/settings-set.ts'
import { tokenAdd } from './ops/token-add.ts'
import { volumeCreate } from './ops/volume-create.ts'
import { volumeDelete } from './ops/volume-delete.ts'
import { volumeResize } from './ops/volume-resize.ts'
import type { ClusterState, CommandResult } from './state.ts'

const COMMAND_VERSION = 1

export const OPERATIONS = {
  'cluster.init': clusterInit,
  'feature.raise': featureRaise,
  'token.add': tokenAdd,
  'node.admit': nodeAdmit,
  'node.register': nodeRegister,
  'node.addresses': nodeAddresses,
  'node.leave': nodeLeave,
  'node.stay': nodeStay,
  'node.remove': nodeRemove,
  'nodes.away': nodesAway,
  'disk.failed': diskFailed,
  'leases.settle': leasesSettle,
  'volume.create': volumeCreate,
  'volume.resize': volumeResize,
  'volume.delete': volumeDelete,
  'settings.set': settingsSet,
  'chains.create': chainsCreate,
  'chains.step': chainsStep,
} as const

export type OperationName = keyof typeof OPERATIONS
export type ArgsOf<N extends OperationName> = (typeof OPERATIONS)[N] extends Operation<infer A, unknown> ? A : never
export type ResultOf<N extends OperationName> = (typeof OPERATIONS)[N] extends Operation<never, infer V> ? V : never

interface Envelope {
  readonly v: number
  readonly op: string
  readonly feature: number
  readonly id?: string
  readonly args: unknown
}

/** `id`: unique per request, the same in its repetitions. */
export function encodeCommand<N extends OperationName>(op: N, args: ArgsOf<N>, id?: string): Uint8Array {
  const envelope: Envelope = { v: COMMAND_VERSION, op, feature: OPERATIONS[op].feature, ...(id === undefined ? {} : { id }), args }
  return new TextEncoder().encode(JSON.stringify(envelope))
}

/** Throws NOT_SUPPORTED for a command that some node may not know: one that meets it in the log halts. */
export function refuseAboveLevel(state: ClusterState, op: string, feature: number): void {
  if (feature <= state.featureLevel) return
  throw new XsanError('NOT_SUPPORTED', `${op} takes feature level ${feature}, the cluster is at ${state.featureLevel}`, 'Upgrade every node first.')
}

/** Throws only what must halt the node. */
export function applyCommand(state: ClusterState, index: number, command: Uint8Array): CommandResult {
  const envelope = JSON.parse(new TextDecoder().decode(command)) as Envelope
  const operation = (OPERATIONS as Readonly<Record<string, Operation<unknown, unknown> | undefined>>)[envelope.op]
  if (envelope.v !== COMMAND_VERSION || operation === undefined || operation.feature !== envelope.feature || operation.feature > state.featureMax) {
    throw new XsanError(
      'NOT_SUPPORTED',
      `the log holds a command this program does not know: ${envelope.op}, feature level ${envelope.feature}, version ${envelope.v}`,
      'Install the version the other nodes run.',
    )
  }
  state.begin(index)
  if (envelope.id !== undefined) {
    const first = state.recentResult(envelope.id)
    if (first !== undefined) return first
  }
  let result: CommandResult
  try {
    refuseAboveLevel(state, envelope.op, operation.feature)
    result = { value: operation.apply(state, envelope.args) ?? null }
  } catch (error) {
    if (!(error instanceof XsanError)) throw error
    result = { error: { status: error.status, message: error.message, nextStep: error.nextStep } }
  }
  if (envelope.id !== undefined) state.remember(envelope.id, result)
  return result
}

/** The value, or the operation's error thrown. */
export function resultValue<N extends OperationName>(_op: N, result: unknown): ResultOf<N> {
  const { value, error } = result as CommandResult
  if (error !== undefined) throw new XsanError(error.status, error.message, error.nextStep)
  assert(value !== undefined, 'a result without value')
  return value as ResultOf<N>
}
