/** The question before something that cannot be undone. */
import { createInterface } from 'node:readline/promises'
import { Option } from 'commander'
import { XsanError } from '../base/errors.ts'
import { UsageError } from './program.ts'

export function yesOption(): Option {
  return new Option('-y, --yes', 'do not ask')
}

/** Returns when the answer is yes; without a terminal only --yes is one. */
export async function confirmed(yes: boolean | undefined, question: string): Promise<void> {
  if (yes) return
  if (!process.stdin.isTTY) throw new UsageError('this cannot be undone, and there is no terminal to ask on', 'Add --yes.')
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  const answer = await terminal.question(`${question} [y/N] `)
  terminal.close()
  if (!/^y(es)?$/i.test(answer.trim())) throw new XsanError('INVALID_PARAM', 'nothing was done', 'Answer y to go on.')
}
