/** `xsan`: the command of the people who run a cluster. */
import { main } from './program.ts'
import { simMain } from './sim.ts'
import { xsanProgram } from './xsan-commands.ts'

// The simulator has options of its own, among them an -o that also says how much is printed
if (process.argv[2] === 'sim') process.exitCode = await simMain(process.argv.slice(3))
else await main(xsanProgram())
