import { XsanError } from '../../base/errors.ts'
import type { DiskNumber } from '../../base/ids.ts'
import { firstChain } from '../../placement/chain.ts'
import type { Operation } from './operation.ts'

export interface ChainsCreateArgs {
  /** Disks of each slot, head first. */
  readonly slots: ReadonlyArray<readonly DiskNumber[]>
}

/** The first chains: nobody has written anything, so all replicas serve. Done again it changes nothing. */
export const chainsCreate: Operation<ChainsCreateArgs, null> = {
  feature: 1,
  apply(state, { slots }) {
    if (state.chains.length > 0) return null
    if (slots.length !== state.theCluster.slotCount) throw new XsanError('INVALID_PARAM', `${slots.length} chains for ${state.theCluster.slotCount} slots`)
    state.createChains(
      slots.map((disks) =>
        firstChain(
          disks.map((disk) => {
            const node = state.disks.get(disk)?.node
            if (node === undefined) throw new XsanError('DISK_NOT_FOUND', `there is no disk ${disk}`)
            return { disk, node, incarnation: state.incarnation(node) }
          }),
        ),
      ),
    )
    return null
  },
}
