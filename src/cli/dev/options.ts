import { resolve } from 'node:path'
import { Option } from 'commander'
import { parseDuration, UsageError } from '../program.ts'

export function dirOption(): Option {
  return new Option('--dir <dir>', 'directory of the playground').argParser(parseDirectory).makeOptionMandatory()
}

/** An empty name (an unset variable of a script, mostly) is not the working directory. */
function parseDirectory(path: string): string {
  if (path === '') throw new UsageError('--dir is empty', 'Name the directory of the playground: --dir /tmp/play')
  return resolve(path)
}

export function timeoutOption(byDefault: string): Option {
  return new Option('--timeout <time>', 'how long to wait').argParser(parseDuration).default(parseDuration(byDefault), byDefault)
}
