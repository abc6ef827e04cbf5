/** --dry-run: what a command would do, or why it would be refused; nothing changes. */
import { Option } from 'commander'
import type { Output } from './output.ts'

export function dryRunOption(): Option {
  return new Option('--dry-run', 'only say what it would do, or why not')
}

/** Says so to people and to scripts. */
export function asDryRun(dryRun: boolean | undefined, output: Output): Output {
  if (!dryRun) return output
  return { data: { ...output.data, dryRun: true }, table: () => `dry run, nothing was changed:\n${output.table()}` }
}
