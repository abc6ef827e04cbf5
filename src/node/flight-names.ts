/** What the numbers of a flight recorder's events are called. */
import { statusName } from '../base/status.ts'
import { LogLevel } from '../env/control.ts'
import { Command } from '../wire/nbd.ts'
import { MESSAGE_TYPES } from './reactor-messages.ts'

/** `what`: as FLIGHT_EVENT_NAMES calls the number; `tags`: of the thread's io queue. */
export function flightNumber(what: string, value: number, tags: readonly string[]): string | number {
  const nameIn = (names: Readonly<Record<string, number>>) => Object.entries(names).find(([, number]) => number === value)?.[0] ?? value
  switch (what) {
    case 'tag':
      return tags[value] ?? value
    case 'message':
      return MESSAGE_TYPES[value] ?? value
    case 'command':
      return nameIn(Command)
    case 'status':
      return statusName(value)
    case 'level':
      return nameIn(LogLevel)
    default:
      return value
  }
}
