import { resolve } from 'node:path'
import { Option } from 'commander'
import { parseDuration } from '../program.ts'

export function dirOption(): Option {
  return new Option('--dir <dir>', 'directory of the playground').argParser((path: string) => resolve(path)).makeOptionMandatory()
}

export function timeoutOption(byDefault: string): Option {
  return new Option('--timeout <time>', 'how long to wait').argParser(parseDuration).default(parseDuration(byDefault), byDefault)
}
