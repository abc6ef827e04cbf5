/**
 * Schedules of the protocol model (test/model), as its `print` mode writes them: one per line, fields separated by tabs.
 *
 *   xsan-schedule 1 | seed=7 slots=1 blocks=2 durable=0 | init FACT.. | STEP ARG.. FACT.. | .. | end OUTCOME..
 *
 * A step names what happens; the facts behind it are what it changed in the model, `name=value`. The format is described in test/model/README.md.
 */

export const SCHEDULE_FORMAT = 'xsan-schedule 1'

export interface Step {
  readonly name: string
  readonly args: readonly number[]
  /** Changed by this step. */
  readonly facts: ReadonlyMap<string, string>
  readonly text: string
}

export interface ModelSchedule {
  readonly seed: string
  readonly slots: number
  readonly blocks: number
  /** Power may be lost: what is acknowledged is durable, and journals are synced by steps of their own. */
  readonly durable: boolean
  readonly init: ReadonlyMap<string, string>
  readonly steps: readonly Step[]
  /** Per write `slot.channel.seq.block`: a acknowledged, f failed and never applied, c given up and applied all the same. */
  readonly outcomes: ReadonlyMap<string, string>
}

/** Throws on another format or version, and on lines that are cut short. */
export function parseSchedule(line: string): ModelSchedule {
  const fields = line.split('\t')
  const [format = '', header = '', init = ''] = fields
  if (format !== SCHEDULE_FORMAT) throw new Error(`a schedule of format "${format.slice(0, 40)}", this replay reads "${SCHEDULE_FORMAT}"`)
  const last = fields.at(-1)!
  if (fields.length < 4 || !init.startsWith('init ') || !/^end( |$)/.test(last)) throw new Error('a schedule that is cut short')
  const about = new Map(header.split(' ').map((pair) => pair.split('=') as [string, string]))
  return {
    seed: about.get('seed') ?? '?',
    slots: Number(about.get('slots')),
    blocks: Number(about.get('blocks')),
    durable: about.get('durable') === '1',
    init: parseStep(init).facts,
    steps: fields.slice(3, -1).map(parseStep),
    outcomes: new Map([...parseStep(last).facts].map(([name, value]) => [name.slice(1), value])),
  }
}

function parseStep(text: string): Step {
  const words = text.split(' ')
  const args: number[] = []
  const facts = new Map<string, string>()
  for (const word of words.slice(1)) {
    const at = word.indexOf('=')
    if (at < 0) args.push(Number(word))
    else facts.set(word.slice(0, at), word.slice(at + 1))
  }
  return { name: words[0]!, args, facts, text }
}
