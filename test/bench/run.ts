/** `npm run bench [-- NAME...]`: runs the benchmarks named, or says which there are. Figures for people, never a timed test. */

/** A benchmark module exports `main(args)`: it prints its figures and throws when it cannot run. */
interface Benchmark {
  main(args: readonly string[]): void | Promise<void>
}

const BENCHMARKS: Readonly<Record<string, { readonly about: string; readonly load: () => Promise<Benchmark> }>> = {
  placement: { about: 'imbalance and movement of replicas over clusters of 3 to 200 disks', load: () => import('./placement.ts') },
}

const [name, ...args] = process.argv.slice(2)
const benchmark = name === undefined ? undefined : BENCHMARKS[name]
if (benchmark === undefined) {
  if (name !== undefined) console.error(`There is no benchmark "${name}".`)
  console.error('Usage: npm run bench -- NAME [ARGUMENT]...\n')
  for (const [known, { about }] of Object.entries(BENCHMARKS)) console.error(`  ${known.padEnd(14)}${about}`)
  process.exitCode = 2
} else {
  await (await benchmark.load()).main(args)
}
