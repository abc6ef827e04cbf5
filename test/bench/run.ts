/** `npm run bench [-- NAME...]`: runs the benchmarks named, or all of them. Figures for people, never a timed test. */

/** A benchmark module exports `main(args)`: it prints its figures, cleans up after itself, and throws when it cannot run. */
interface Benchmark {
  main(args: readonly string[]): void | Promise<void>
}

const BENCHMARKS: Readonly<Record<string, { readonly about: string; readonly load: () => Promise<Benchmark> }>> = {
  placement: { about: 'imbalance and movement of replicas over clusters of 3 to 200 disks', load: () => import('./placement.ts') },
  store: { about: 'the store of one disk by itself: [DIR], default /dev/shm', load: () => import('./store.ts') },
  nbd: { about: 'one copy in tmpfs against nbdkit', load: () => import('./nbd.ts') },
  replication: { about: 'three copies in tmpfs against qemu quorum', load: () => import('./replication.ts') },
  durable: { about: 'three copies on the real file system against qemu quorum with cache=writethrough', load: () => import('./durable.ts') },
  failover: { about: 'kill -9 of leader and head under load: the longest stall', load: () => import('./failover.ts') },
  coldstart: { about: 'three nodes from nothing to serving', load: () => import('./coldstart.ts') },
}

const argv = process.argv.slice(2)
const firstOption = argv.findIndex((arg) => arg.startsWith('-'))
const names = argv.slice(0, firstOption < 0 ? argv.length : firstOption)
const options = argv.slice(names.length)
const unknown = names.filter((name) => !(name in BENCHMARKS))
if (unknown.length > 0 || options.includes('--help')) {
  for (const name of unknown) console.error(`There is no benchmark "${name}".`)
  console.error('Usage: npm run bench -- [NAME]... [--seconds S] [--rounds R] [--json]\n')
  for (const [name, { about }] of Object.entries(BENCHMARKS)) console.error(`  ${name.padEnd(14)}${about}`)
  process.exitCode = unknown.length > 0 ? 2 : 0
} else {
  for (const name of names.length > 0 ? names : Object.keys(BENCHMARKS)) {
    try {
      await (await BENCHMARKS[name]!.load()).main(options)
    } catch (error) {
      console.error(`${name}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
      process.exitCode = 1
    }
  }
}
