/** Builds and runs the protocol model (test/model). */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { type ModelSchedule, parseSchedule } from './schedule.ts'

const manifest = fileURLToPath(new URL('../../model/Cargo.toml', import.meta.url))
const targetDir = fileURLToPath(new URL('../../../target/model', import.meta.url))
let binary: string | undefined

/** Path of the built model; cargo decides whether anything is to do. */
export function modelBinary(): string {
  if (binary === undefined) {
    const env = { ...process.env, PATH: `${process.env['PATH']}:${process.env['HOME']}/.cargo/bin` }
    execFileSync('cargo', ['build', '--release', '--locked', '--quiet', '--manifest-path', manifest, '--target-dir', targetDir], {
      env,
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    binary = `${targetDir}/release/xsan-model`
  }
  return binary
}

/** Bounds and budgets of a walk, by the model's names (test/model/README.md). */
export type Mix = Readonly<Record<string, number>>

export function printLines(mix: Mix): string[] {
  const options = Object.entries(mix).map(([name, value]) => `${name}=${value}`)
  const text = execFileSync(modelBinary(), ['print', ...options], { encoding: 'utf8', maxBuffer: 1 << 30 })
  return text.split('\n').filter((line) => line.length > 0)
}

export function printSchedules(mix: Mix): ModelSchedule[] {
  return printLines(mix).map(parseSchedule)
}
