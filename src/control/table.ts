/** The table that reactors see, cut out of the replicated state: everything, or what changed since a revision. */
import type { SlotIndex, TableRevision } from '../base/ids.ts'
import { packChains } from '../placement/chain.ts'
import type { TableDisk, TableMessage, TableNode, TableVolume } from '../placement/messages.ts'
import type { ClusterState } from './state.ts'
import type { ToldLosses } from './told-losses.ts'

/** `since` 0: everything. Undefined: nothing changed since. `toldLosses`: for the first table of a process. */
export function tableSince(state: ClusterState, since: number, toldLosses?: ToldLosses): TableMessage | undefined {
  if (state.cluster === undefined || (since > 0 && state.revision <= since)) return undefined
  const changed: Array<{ slot: SlotIndex; chain: (typeof state.chains)[number] }> = []
  state.chains.forEach((chain, at) => {
    const slot = at as SlotIndex
    if (state.slotRevision(slot) > since) changed.push({ slot, chain })
  })
  return {
    type: 'table',
    revision: state.revision as TableRevision,
    slotCount: state.cluster.slotCount,
    chains: packChains(changed),
    ...(since === 0 || state.nodesRevision > since ? { nodes: tableNodes(state) } : {}),
    ...(since === 0 || state.disksRevision > since ? { disks: tableDisks(state) } : {}),
    ...(since === 0 || state.volumesRevision > since
      ? { volumes: tableVolumes(state, toldLosses), nextVolume: state.nextVolume, leaseMsMax: state.leaseMsMax }
      : {}),
  }
}

function tableNodes(state: ClusterState): TableNode[] {
  return [...state.nodes.values()].sort((a, b) => a.node - b.node).map(({ node, id, incarnation, data }) => ({ node, id, incarnation, dataAddress: data }))
}

function tableDisks(state: ClusterState): TableDisk[] {
  return [...state.disks.values()].sort((a, b) => a.disk - b.disk).map(({ disk, node }) => ({ disk, node }))
}

function tableVolumes(state: ClusterState, toldLosses: ToldLosses | undefined): TableVolume[] {
  return [...state.volumes.values()]
    .sort((a, b) => a.volume - b.volume)
    .map(({ volume, name, sizeBytes, replicas, minCopies, syncWhenWrite, readOnly, losses }) => ({
      volume,
      name,
      sizeBytes,
      replicas,
      syncWhenWrite,
      readOnly,
      minCopies,
      ...(losses === undefined ? {} : { losses }),
      ...(toldLosses === undefined ? {} : { lossesTold: toldLosses.of(volume) }),
    }))
}
