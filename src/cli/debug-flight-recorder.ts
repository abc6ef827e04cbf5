import { Option } from 'commander'
import { type FlightFile, readFlightFile } from '../node/flight-file.ts'
import { flightNumber } from '../node/flight-names.ts'
import { properties, table } from './output.ts'
import { command, group, parseCount } from './program.ts'

const LAST_DEFAULT = 1000

const dump = command({
  usage: 'dump [node]',
  description: 'write the last events of a node to a file in its data directory',
  examples: ['xsan-debug flight-recorder dump node-2'],
  async run({ client, args }) {
    const made = await client.call('Debug/FlightRecorder', { nodeId: args[0] ?? '' })
    return { data: made, table: () => `${String(made['nodeId'])} wrote ${String(made['path'])}` }
  },
})

interface ShowOptions {
  last: number
  thread?: string
}

const show = command<ShowOptions>({
  usage: 'show <file>',
  description: 'the events of such a file, or of one that a dying xsand left, by name and time',
  options: [
    new Option('--last <n>', 'the newest n events').argParser(parseCount).default(LAST_DEFAULT),
    new Option('--thread <name>', 'of this thread only, for example reactor-0'),
  ],
  async run({ options, args }) {
    const file = readFlightFile(args[0]!)
    const { version, node, pid, reason, wallMs, threads } = file.header
    const events = inOrder(file, options)
    return {
      data: { version, node, pid, reason, writtenAt: new Date(wallMs).toISOString(), threads: threads.map(({ name }) => name), events },
      table: () =>
        `${properties([
          ['Node', `${node} (PID ${pid}, version ${version})`],
          ['Written', new Date(wallMs).toISOString()],
          ['Because', reason],
        ])}\n\n${table(
          ['time', 'thread', 'event', ''],
          events.map(({ time, thread, event, ...numbers }) => [
            time,
            thread,
            event,
            Object.entries(numbers)
              .map(([name, value]) => `${name}=${value}`)
              .join(' '),
          ]),
        )}`,
    }
  },
})

export const debugFlightRecorder = group('flight-recorder', 'the last events of a process: write them to a file, show such a file', [dump, show])

interface ShownEvent {
  readonly time: string
  readonly thread: string
  readonly event: string
  /** By the names of the event. */
  readonly [number: string]: string | number
}

function inOrder({ header, events }: FlightFile, options: ShowOptions): ShownEvent[] {
  const all = header.threads.flatMap((thread, index) =>
    options.thread === undefined || options.thread === thread.name ? events[index]!.map((event) => ({ thread, event })) : [],
  )
  // stable: events of one thread and time stay in their order
  all.sort((a, b) => a.event.timeUs - b.event.timeUs)
  const wallOffsetUs = (header.wallMs - header.bootMs) * 1000
  return all.slice(-options.last).map(({ thread, event }) => {
    const [name, ...numbers] = header.events[event.code] ?? [`event ${event.code}`, 'a', 'b', 'c']
    const shown: Record<string, string | number> = { time: timeText(event.timeUs + wallOffsetUs), thread: thread.name, event: name }
    numbers.forEach((what, i) => {
      if (what !== '') shown[what] = flightNumber(what, [event.a, event.b, event.c][i]!, thread.tags)
    })
    return shown as unknown as ShownEvent
  })
}

function timeText(wallUs: number): string {
  const micros = String(Math.floor(wallUs % 1000)).padStart(3, '0')
  return new Date(wallUs / 1000).toISOString().replace('Z', `${micros}Z`)
}
