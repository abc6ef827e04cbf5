/** `xsan-debug`: what a cluster is made of, for those who look for a fault. */
import { main } from './program.ts'
import { xsanDebugProgram } from './xsan-debug-commands.ts'

await main(xsanDebugProgram())
