import { XsanError } from '../../base/errors.ts'
import type { ChainVersion, DiskNumber, SlotIndex } from '../../base/ids.ts'
import { type Chain, DiskUse, invalidChain, ReplicaState } from '../../placement/chain.ts'
import type { Operation } from './operation.ts'

export interface ChainsCreateArgs {
  /** Disks of each slot, head first. */
  readonly slots: ReadonlyArray<readonly DiskNumber[]>
}

/**
 * The first chains, all replicas serving: nobody has written anything. While no volume was ever created that stays true, so the chains may be
 * made anew for the nodes that are there by then; after that this changes nothing. (A volume may be there before any chain: nobody can have written to it.)
 */
export const chainsCreate: Operation<ChainsCreateArgs, { changed: number }> = {
  feature: 1,
  apply(state, { slots }) {
    if (state.everHadVolumes && state.chains.length > 0) return { changed: 0 }
    if (slots.length !== state.theCluster.slotCount) throw new XsanError('INVALID_PARAM', `${slots.length} chains for ${state.theCluster.slotCount} slots`)
    const chains = slots.map((disks, slot) => {
      const version = ((state.chains[slot]?.version ?? 0) + 1) as ChainVersion
      const entries = disks.map((disk) => {
        const node = state.disks.get(disk)?.node
        if (node === undefined || state.diskUse(disk) !== DiskUse.NORMAL) throw new XsanError('DISK_NOT_FOUND', `there is no disk ${disk} to be used`)
        return { disk, node, state: ReplicaState.SERVING, since: version, incarnation: state.incarnation(node) }
      })
      const chain: Chain = { version, entries }
      const reason = invalidChain(chain)
      if (reason !== null) throw new XsanError('INVALID_PARAM', `chain of slot ${slot}: ${reason}`)
      return chain
    })
    if (state.chains.length === 0) {
      state.createChains(chains)
      return { changed: chains.length }
    }
    chains.forEach((chain, slot) => {
      state.setChain(slot as SlotIndex, chain)
    })
    return { changed: chains.length }
  },
}
