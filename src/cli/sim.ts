/** `xsan sim`: the simulator lives with the tests (it needs every layer, and nothing needs it); it is loaded only when asked for. */

const MAIN = new URL('../../test/sim/main.ts', import.meta.url).href

/** `argv` without "xsan sim". Returns the exit code: 0 only when no promise was broken; 1 one was; 64 wrong options. */
export async function simMain(argv: readonly string[]): Promise<number> {
  const { simMain: run } = (await import(MAIN)) as { simMain: (argv: readonly string[]) => Promise<number> }
  return run(argv)
}
