/** `xsan`: the command of the people who run a cluster. */
import { ExitCode } from './exit-codes.ts'
import { main, report, watchStreams } from './program.ts'
import { simMain } from './sim.ts'
import { xsanProgram } from './xsan-commands.ts'

// The simulator has options of its own, among them an -o that also says how much is printed
if (process.argv[2] === 'sim') {
  // it has not shown that nothing was violated
  watchStreams('xsan', ExitCode.FAILED)
  process.exitCode = await simMain(process.argv.slice(3)).catch((error: unknown) => report(error, 'xsan'))
} else await main(xsanProgram())
