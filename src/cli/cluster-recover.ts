import { Option } from 'commander'
import type { Message } from '../env/control.ts'
import { confirmed, yesOption } from './confirm.ts'
import { table } from './output.ts'
import { command } from './program.ts'

export const clusterRecover = command<{ acceptDataLoss?: boolean; dryRun?: boolean; yes?: boolean }>({
  usage: 'recover',
  description: 'go on without the nodes that held the last copies of something',
  options: [
    new Option('--accept-data-loss', 'also where what those nodes alone hold is given up'),
    new Option('--dry-run', 'only say what cannot be used, and what is waited for'),
    yesOption(),
  ],
  async run({ client, options }) {
    const dryRun = options.dryRun ?? false
    const acceptDataLoss = options.acceptDataLoss ?? false
    let shown: Message = {}
    if (!dryRun) {
      const { slots, waitsFor, olderCopies, unfinished } = await client.call('Cluster/Recover', { dryRun: true })
      const names = (waitsFor as string[]).join(', ')
      // an answer may take its time, in which others may go
      shown = { asShown: true, waitsFor, olderCopies }
      if (Number(slots) > 0) {
        const lost = acceptDataLoss ? 'What they alone hold is lost for good, acknowledged writes too.' : 'Writes that they alone hold may be lost.'
        const notes = acceptDataLoss ? notesOn({ olderCopies: olderCopies as string[], unfinished: unfinished as string[] }) : []
        await confirmed(options.yes, `Go on without ${names || 'the missing copies'}? ${[lost, ...notes].join(' ')}`)
      }
    }
    const made = await client.call('Cluster/Recover', { dryRun, acceptDataLoss, ...shown }, 60_000)
    return {
      data: made,
      table() {
        const slots = Number(made['slots'])
        if (slots === 0) return 'all data can be used: there is nothing to recover'
        const names = (made['waitsFor'] as string[]).join(', ')
        const missing = `${slots} of ${Number(made['slotsTotal'])} parts of the data cannot be used; ${names ? `their last copies are on ${names}` : 'no missing node holds them'}`
        const volumes = made['volumes'] as Message[]
        const list =
          volumes.length === 0
            ? ''
            : `\n\n${table(
                ['volume', 'blocks', 'of them not usable'],
                volumes.map((volume) => [String(volume['name']), Number(volume['blocks']), Number(volume['blocksMissing'])]),
              )}`
        const notes = notesOn({ olderCopies: made['olderCopies'] as string[], unfinished: made['unfinished'] as string[] })
        if (dryRun) return `${[missing, ...notes].join('\n')}${list}`
        return `${missing}; the cluster goes on without them. See: xsan cluster status --wait healthy`
      },
    }
  },
})

/** What else there is to know before a loss is accepted. */
function notesOn({ olderCopies, unfinished }: { readonly olderCopies: readonly string[]; readonly unfinished: readonly string[] }): string[] {
  return [
    ...(olderCopies.length === 0
      ? []
      : [
          `Older copies of some parts are on ${olderCopies.join(', ')}, not there either: without them these parts go on from a copy that is older still, or empty.`,
        ]),
    ...(unfinished.length === 0
      ? []
      : [`What is left of some parts, on ${unfinished.join(', ')}, is a copy that was being made: old and new content is mixed in it.`]),
  ]
}
