/** `xsand`: the daemon of a node. Runs in the foreground; logs to stderr. */
import { XsanError } from '../base/errors.ts'
import { loadConfig } from '../node/config.ts'
import { type RunningNode, startNode, writeFlight } from '../node/daemon.ts'
import { ExitCode } from './exit-codes.ts'
import { report } from './program.ts'
import { xsandProgram } from './xsand-options.ts'

/** A stop that takes longer than this ends the process all the same. */
const STOP_MS_MAX = 25_000

const program = xsandProgram()

// Nobody may listen any more: no reason to end
process.stderr.on('error', () => {})

try {
  program.parse()
  await run(program.opts<{ config: string }>().config)
} catch (error) {
  process.exit(report(error, 'xsand'))
}

async function run(file: string): Promise<void> {
  let node: RunningNode | undefined
  const die = (error: unknown): never => {
    if (node !== undefined) {
      node.log.log('FATAL', 'this process has to end', { error })
      // a known fault of the world tells all there is to tell
      if (!(error instanceof XsanError) || error.status === 'INTERNAL') dump(node, error instanceof Error ? (error.stack ?? error.message) : String(error))
    }
    if (node === undefined || error instanceof XsanError) process.exit(report(error, 'xsand'))
    process.exit(ExitCode.FAULT)
  }
  process.on('uncaughtException', die)
  process.on('unhandledRejection', die)
  let stopping = false
  const stop = (signal: NodeJS.Signals): void => {
    // Still starting: nothing is served yet, so nothing has to be drained
    if (node === undefined) process.exit(ExitCode.OK)
    if (stopping) return
    stopping = true
    node.log.log('INFO', `${signal} received`)
    setTimeout(
      () => die(new XsanError('NETWORK_TIMEOUT', `stopping took longer than ${STOP_MS_MAX / 1000} s`, 'Look at the lines before this one.')),
      STOP_MS_MAX,
    ).unref()
    node.stop().then(() => process.exit(ExitCode.OK), die)
  }
  process.on('SIGQUIT', () => {
    if (node !== undefined) dump(node, 'SIGQUIT')
  })
  // SIGHUP: the terminal it was started in is gone
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, stop)
  node = await startNode({ loaded: loadConfig(file), onFatal: die })
}

/** Best effort: what went wrong is in the log. */
function dump({ flight, log }: RunningNode, reason: string): void {
  try {
    writeFlight(flight, log, reason)
  } catch {
    // logged by writeFlight
  }
}
