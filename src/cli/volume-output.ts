/** A volume as the commands print it. */
import type { Message } from '../env/control.ts'
import { type Output, properties, sizeCell, table } from './output.ts'

export function volumeOutput(volume: Message): Output {
  const reasons = volume['reasons'] as string[]
  const uris = volume['uris'] as string[]
  return {
    data: volume,
    table: () =>
      properties([
        ['Volume', String(volume['name'])],
        ['ID', Number(volume['id'])],
        ['Size', sizeCell(volume['sizeBytes'])],
        ['Replicas', Number(volume['replicas'])],
        ['State', String(volume['state'])],
        ['Health', String(volume['health'])],
        ...reasons.map((reason, index) => [index === 0 ? 'Because' : '', reason] as const),
        ['Acknowledged', volume['syncWhenWrite'] ? 'when on stable storage' : 'from memory; on stable storage after a flush'],
        ['Allocated', sizeCell(volume['allocatedBytes'])],
        ...uris.map((uri, index) => [index === 0 ? 'URI' : '', uri] as const),
      ]),
  }
}

export function volumeTable(volumes: readonly Message[]): string {
  return table(
    ['volume', 'id', 'size', 'allocated', 'replicas', 'state', 'health'],
    volumes.map((volume) => [
      String(volume['name']),
      Number(volume['id']),
      sizeCell(volume['sizeBytes']),
      sizeCell(volume['allocatedBytes']),
      Number(volume['replicas']),
      String(volume['state']),
      String(volume['health']),
    ]),
  )
}
