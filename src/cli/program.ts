/** What all commands share: options, the connection, output, errors and exit codes. A command is one file that gives `Command`s to `commander`. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { Command, CommanderError, Option } from 'commander'
import { formatError, messageOf, XsanError } from '../base/errors.ts'
import { parseSize } from '../base/units.ts'
import { AdminClient } from '../node/admin-client.ts'
import { DEFAULT_CONFIG_PATH, loadConfig } from '../node/config.ts'
import { EXIT_CODES, ExitCode } from './exit-codes.ts'
import { OUTPUT_FORMATS, type Output, type OutputFormat, render } from './output.ts'

export const VERSION = '0.1.0'
const DEFAULT_SERVER = '127.0.0.1:8080'
const WATCH_MS = 1000
const CLEAR_SCREEN = '\x1b[H\x1b[2J'

export interface Context<O> {
  readonly options: O
  readonly args: readonly string[]
  /** Connected at the first use, closed by the runner. */
  readonly client: AdminClient
  readonly progress: (line: string) => void
}

export interface CommandSpec<O> {
  /** As commander writes it: `create <name> <size>`. */
  readonly usage: string
  readonly description: string
  readonly options?: readonly Option[]
  readonly examples?: readonly string[]
  /** false: JSON without `format_version` (the form of `xsan dev` is fixed). */
  readonly versioned?: boolean
  /** Adds --watch: printed again every second until interrupted. */
  readonly watchable?: boolean
  run(context: Context<O>): Promise<Output | undefined>
}

export function command<O = Record<string, never>>(spec: CommandSpec<O>): Command {
  const made = configure(new Command(spec.usage.split(' ')[0])).description(spec.description)
  for (const argument of spec.usage.split(' ').slice(1)) made.argument(argument)
  for (const option of spec.options ?? []) made.addOption(option)
  const hasOwnTimeout = made.options.some(({ long }) => long === '--timeout')
  if (spec.watchable) made.addOption(new Option('--watch', 'print again every second until interrupted'))
  for (const option of commonOptions()) if (!made.options.some(({ long }) => long === option.long)) made.addOption(option)
  if (spec.examples) made.addHelpText('after', `\nExamples:\n${spec.examples.map((example) => `  ${example}`).join('\n')}`)
  made.action(async () => {
    let client: AdminClient | undefined
    try {
      const context: Context<O> = {
        // commander gives an option that the nouns have too to the first of them
        options: { ...made.opts(), ...(hasOwnTimeout && { timeout: callTimeoutMs(made) ?? made.getOptionValue('timeout') }) } as O,
        args: made.processedArgs.flat() as string[],
        get client() {
          client ??= connect(given(made, 'server') ?? (process.env['XSAN_SERVER'] || serverOfThisHost()), hasOwnTimeout ? undefined : callTimeoutMs(made))
          return client
        },
        progress: (line) => void process.stderr.write(`${line}\n`),
      }
      const format = (given(made, 'output') ?? 'table') as OutputFormat
      const versioned = spec.versioned ?? true
      while (spec.watchable && made.getOptionValue('watch') === true) {
        print(`${format === 'table' && process.stdout.isTTY ? CLEAR_SCREEN : ''}${render((await spec.run(context))!, format, { versioned, oneLine: true })}`)
        await sleep(WATCH_MS)
      }
      const output = await spec.run(context)
      if (output) page(render(output, format, { versioned }))
      if (output?.problem) throw output.problem
    } finally {
      await client?.close()
    }
  })
  return made
}

function print(text: string): void {
  process.stdout.write(`${text}\n`)
}

/** Through the pager of XSAN_PAGER or PAGER when a terminal is too small for it; a script gets it as it is. */
function page(text: string): void {
  const pager = process.env['XSAN_PAGER'] ?? process.env['PAGER'] ?? ''
  const isTooLong = process.stdout.isTTY && text.split('\n').length >= process.stdout.rows
  const isPaged = isTooLong && pager !== '' && pager !== 'cat'
  if (!isPaged || !runPager(pager, text)) print(text)
}

function runPager(pager: string, text: string): boolean {
  const env = { LESS: 'FRSX', ...process.env }
  return spawnSync('/bin/sh', ['-c', pager], { input: `${text}\n`, stdio: ['pipe', 'inherit', 'inherit'], env }).error === undefined
}

/** A noun: `xsan volume`, with its verbs. */
export function group(name: string, description: string, commands: readonly Command[]): Command {
  const made = configure(new Command(name)).description(description)
  for (const option of commonOptions()) made.addOption(option)
  for (const child of commands) made.addCommand(child)
  return made
}

export function program(name: string, description: string, commands: readonly Command[]): Command {
  return group(name, description, commands).version(VERSION)
}

/** What becomes of a command whose output nobody reads: it ends, with `closed`. */
export function watchStreams(name: string, closed: ExitCode): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    // whoever read it has seen enough
    if (error.code === 'EPIPE') process.exit(closed)
    process.exit(report(new XsanError('WRITE_FAILED', `standard output cannot be written: ${error.message}`, 'See where it goes to.'), name))
  })
  process.stderr.on('error', () => {})
}

/** Runs the command line and sets the exit code. Never throws. */
export async function main(root: Command, argv: readonly string[] = process.argv): Promise<void> {
  watchStreams(root.name(), ExitCode.OK)
  try {
    if (argv[2] === 'help' && !argv[3]?.startsWith('-')) commandOf(root, argv.slice(3)).outputHelp()
    else await root.parseAsync(argv)
  } catch (error) {
    // options that all commands have are read, and found wrong, by the first of the words
    const named = error instanceof CommandLineError ? new CommandLineError(error, wordsOf(commandIn(root, argv.slice(2)))) : error
    process.exitCode = report(named, root.name())
  }
}

/** The command that a command line means, with options and arguments in between. */
function commandIn(root: Command, words: readonly string[]): Command {
  return words.reduce((above, word) => above.commands.find((child) => child.name() === word) ?? above, root)
}

/** Of `help volume create`; commander's own `help` knows the first word only. */
function commandOf(root: Command, words: readonly string[]): Command {
  return words.reduce((above, word) => {
    const found = above.commands.find((child) => child.name() === word)
    if (found === undefined) throw new UsageError(`unknown command '${word}'`, `${wordsOf(above)} --help`)
    return found
  }, root)
}

/** Prints what went wrong and returns the exit code. */
export function report(error: unknown, name: string): ExitCode {
  if (error instanceof CommanderError) {
    // Help and version are asked for, and commander has printed them
    if (error.exitCode === 0) return ExitCode.OK
    if (error.code !== 'commander.help') {
      const message = error.message.replace(/^error: /, '').replace(/\n.*$/s, '')
      const suggestion = /\(Did you mean (.+)\?\)/.exec(error.message)?.[1]
      const help = `${error instanceof CommandLineError ? error.command : name} --help`
      process.stderr.write(`${formatError(new XsanError('INVALID_PARAM', message, suggestion ? `${suggestion}, or ${help}` : help))}\n`)
    }
    return ExitCode.USAGE
  }
  if (error instanceof UsageError) {
    process.stderr.write(`${formatError(error)}\n`)
    return ExitCode.USAGE
  }
  if (error instanceof XsanError) {
    process.stderr.write(`${formatError(error)}\n`)
    return EXIT_CODES[error.status]
  }
  const ofTheWorld = systemError(error)
  if (ofTheWorld !== undefined) {
    process.stderr.write(`${formatError(ofTheWorld)}\n`)
    return EXIT_CODES[ofTheWorld.status]
  }
  process.stderr.write(
    `${formatError(new XsanError('INTERNAL', messageOf(error), `Report this, with: ${error instanceof Error ? (error.stack ?? '') : ''}`))}\n`,
  )
  return ExitCode.FAULT
}

/** What the system says of a file or a process: no bug of ours, mostly. */
function systemError(error: unknown): XsanError | undefined {
  const { code, syscall } = error as NodeJS.ErrnoException
  if (!(error instanceof Error) || code === undefined || syscall === undefined) return undefined
  if (code === 'ENOSPC' || code === 'EDQUOT') return new XsanError('INSUFFICIENT_SPACE', error.message, 'Free some space there.', { cause: error })
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
    return new XsanError('PERMISSION_DENIED', error.message, 'Do it as a user who may, or elsewhere.', { cause: error })
  if (code === 'EMFILE' || code === 'ENFILE' || code === 'ENOMEM' || code === 'EAGAIN')
    return new XsanError('NOMEM', error.message, 'Raise the limits of this user (ulimit -a), or end something else.', { cause: error })
  return undefined
}

/** What commander finds wrong, with the words of the command it was given to. */
class CommandLineError extends CommanderError {
  readonly command: string
  constructor({ exitCode, code, message }: CommanderError, command: string) {
    super(exitCode, code, message)
    this.command = command
  }
}

/** The command line itself is wrong. */
export class UsageError extends XsanError {
  override name = 'UsageError'
  constructor(message: string, nextStep: string) {
    super('INVALID_PARAM', message, nextStep)
  }
}

/** Timers count milliseconds in 31 bits. */
const DURATION_MS_MAX = 500 * 3_600_000

/** `500ms`, `60s`, `5m`, `2h`; a bare number is seconds. */
export function parseDuration(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text.trim())
  if (!match) throw new UsageError(`"${text}" is not a duration`, 'Write 500ms, 60s, 5m or 2h.')
  const ms = Number(match[1]) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[(match[2] ?? 's') as 'ms' | 's' | 'm' | 'h']
  if (ms > DURATION_MS_MAX) throw new UsageError(`"${text}" is too long a time`, 'Write at most 500h.')
  return ms
}

/** As large as the 32 bits it travels in. */
export function parseCount(text: string): number {
  if (!/^\d+$/.test(text)) throw new UsageError(`"${text}" is not a whole number`, 'Write digits only.')
  if (Number(text) > 0xffffffff) throw new UsageError(`${text} is too large a number`, 'Write one below 4294967296.')
  return Number(text)
}

export function parsePositive(text: string): number {
  const count = parseCount(text)
  if (count === 0) throw new UsageError('0 is too small a number', 'Write 1 or more.')
  return count
}

/** What a library refuses of the command line is a usage error. */
export function usage<T>(body: () => T): T {
  try {
    return body()
  } catch (error) {
    throw error instanceof XsanError ? new UsageError(error.message, error.nextStep) : error
  }
}

/** As {@link parseSize}, of an argument of the command line. */
export const parseSizeArgument = (text: string): number => usage(() => parseSize(text))

export const sleep = (delayMs: number) => new Promise<void>((resolve) => setTimeout(resolve, delayMs))

function configure(made: Command): Command {
  // commander's own lines are replaced by `report`
  made.exitOverride((error) => {
    throw new CommandLineError(error, wordsOf(made))
  })
  return made.configureOutput({ writeErr: (text) => void (text.startsWith('error:') ? '' : process.stderr.write(text)) })
}

/** `xsan volume create`. */
function wordsOf(made: Command): string {
  return made.parent === null ? made.name() : `${wordsOf(made.parent)} ${made.name()}`
}

function connect(address: string, timeoutMs: number | undefined): AdminClient {
  return usage(() => new AdminClient(address, timeoutMs))
}

function commonOptions(): Option[] {
  return [
    new Option('--timeout <time>', 'give up waiting for an answer after this long; default: 15s, more for what takes longer').argParser(parseDuration),
    new Option('-o, --output <format>', 'how to print').choices([...OUTPUT_FORMATS]),
    new Option('--server <host:port>', `node to ask; default: XSAN_SERVER, the node of ${DEFAULT_CONFIG_PATH}, ${DEFAULT_SERVER}`),
  ]
}

/** The option as written nearest to the command: after the verb, after the noun, or before it. */
function given(from: Command, name: string): string | undefined {
  for (let at: Command | null = from; at !== null; at = at.parent) {
    const value: unknown = at.getOptionValue(name)
    if (typeof value === 'string') return value
  }
  return undefined
}

/** Of the --timeout nearest to the command. */
function callTimeoutMs(from: Command): number | undefined {
  for (let at: Command | null = from; at !== null; at = at.parent) {
    if (at.getOptionValueSource('timeout') === 'cli') return at.getOptionValue('timeout') as number
  }
  return undefined
}

function serverOfThisHost(): string {
  if (!existsSync(DEFAULT_CONFIG_PATH)) return DEFAULT_SERVER
  try {
    const { cluster } = loadConfig(DEFAULT_CONFIG_PATH).config
    return `${cluster.bind_ip}:${cluster.bind_port}`
  } catch {
    return DEFAULT_SERVER
  }
}
