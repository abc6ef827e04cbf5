/** The layer table of the architecture, held against every import; and what may be used nowhere but at the edge. */
import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import test from 'node:test'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** Layer -> what it may import besides itself. The longest matching directory decides. */
const LAYERS: Readonly<Record<string, readonly string[]>> = {
  'src/base': [],
  'src/wire': ['src/base'],
  'src/env': ['src/base'],
  'src/env/native': ['src/base', 'src/env'],
  'src/env/node': ['src/base', 'src/env', 'src/env/native'],
  'src/env/sim': ['src/base', 'src/env', 'src/env/native'],
  'src/placement': ['src/base', 'src/wire'],
  'src/raft': ['src/base', 'src/env'],
  'src/store': ['src/base', 'src/wire', 'src/env'],
  'src/chain': ['src/base', 'src/wire', 'src/env', 'src/store', 'src/placement'],
  'src/volume': ['src/base', 'src/wire', 'src/env', 'src/store', 'src/placement', 'src/chain'],
  'src/export': ['src/base', 'src/wire', 'src/env', 'src/volume'],
  'src/control': ['src/base', 'src/wire', 'src/env', 'src/raft', 'src/placement'],
  'src/node': [
    'src/base',
    'src/wire',
    'src/env',
    'src/env/native',
    'src/env/node',
    'src/placement',
    'src/raft',
    'src/store',
    'src/chain',
    'src/volume',
    'src/export',
    'src/control',
  ],
  'src/cli': ['src/base', 'src/env', 'src/node'],
  'src/cli/sim': ['src/base', 'src/env', 'src/env/sim', 'src/node'],
}

/** At the edge the world is touched for real. */
const EDGE = ['src/env/node/', 'src/env/native/', 'src/node/', 'src/cli/', 'src/env/sim/macrotask.ts']

const BANNED: ReadonlyArray<readonly [what: string, pattern: RegExp]> = [
  ['Date', /\bDate\b/],
  ['Math.random', /\bMath\.random\b/],
  ['timers', /\b(setTimeout|setInterval|setImmediate)\b/],
  [
    'process',
    /(?<![.\w])process\s*\.\s*(argv|cwd|emit|emitWarning|env|exit|exitCode|hrtime|kill|memoryUsage|nextTick|off|on|once|pid|stderr|stdin|stdout|uptime|version)\b/,
  ],
  ['WeakRef, FinalizationRegistry', /\b(WeakRef|FinalizationRegistry)\b/],
  ['localeCompare', /\blocaleCompare\b/],
  ['performance', /\bperformance\./],
]

const sources = globSync('src/**/*.ts', { cwd: ROOT })
  .map((path) => normalize(path))
  .filter((path) => !path.endsWith('.test.ts'))
const codeOf = (path: string) => stripComments(readFileSync(join(ROOT, path), 'utf8'))

function layerOf(path: string): string | undefined {
  return Object.keys(LAYERS)
    .filter((layer) => path.startsWith(`${layer}/`))
    .sort((a, b) => b.length - a.length)[0]
}

interface Import {
  readonly from: string
  readonly to: string
  readonly isType: boolean
}

function importsOf(path: string): Import[] {
  return [...codeOf(path).matchAll(/^\s*(?:import|export)\s+(type\s)?[^'"]*?from\s+['"]([^'"]+)['"]|import\(\s*['"]([^'"]+)['"]\s*\)/gm)].map((match) => {
    const to = (match[2] ?? match[3])!
    return { from: path, to: to.startsWith('.') ? normalize(join(dirname(path), to)) : to, isType: match[1] !== undefined }
  })
}

/** Good enough for our own formatted code: no comment sign occurs in a string of it, but in URLs. */
function stripComments(code: string): string {
  return code.replace(/\/\*[\s\S]*?\*\//g, '').replace(/(^|\s)\/\/.*$/gm, '$1')
}

test('every source file belongs to a layer', () => {
  for (const path of sources) assert.ok(layerOf(path) !== undefined, path)
})

test('a layer imports only what stands in its row of the table', () => {
  const wrong = sources.flatMap(importsOf).filter(({ from, to }) => {
    if (!to.startsWith('src/')) return to.startsWith('test/') || to.startsWith('tools/')
    const [here, there] = [layerOf(from), layerOf(to)]
    return here !== there && !LAYERS[here!]!.includes(there ?? '')
  })
  assert.deepEqual(
    wrong.map(({ from, to }) => `${from} imports ${to}`),
    [],
  )
})

test('there are no import cycles', () => {
  const graph = new Map(
    sources.map((path) => [
      path,
      importsOf(path)
        .filter(({ isType }) => !isType)
        .map(({ to }) => to),
    ]),
  )
  const done = new Set<string>()
  const visit = (path: string, trail: readonly string[]): void => {
    assert.ok(!trail.includes(path), `cycle: ${[...trail.slice(trail.indexOf(path)), path].join(' -> ')}`)
    if (done.has(path)) return
    for (const next of graph.get(path) ?? []) visit(next, [...trail, path])
    done.add(path)
  }
  for (const path of sources) visit(path, [])
})

test('no file only passes on what others export', () => {
  for (const path of sources) {
    const rest = codeOf(path)
      .replace(/export\s+(type\s+)?(\*|\{[^}]*\})(\s+as\s+\w+)?\s+from\s+['"][^'"]+['"]/g, '')
      .trim()
    assert.ok(rest.length > 0, `${path} is a barrel file`)
  }
})

test('clock, randomness, timers and the process are touched only at the edge', () => {
  const inside = sources.filter((path) => !EDGE.some((edge) => path.startsWith(edge)))
  const found = inside.flatMap((path) => BANNED.filter(([, pattern]) => pattern.test(codeOf(path))).map(([what]) => `${path} uses ${what}`))
  assert.deepEqual(found, [])
})

test('node: modules and packages are imported only at the edge', () => {
  const inside = sources.filter((path) => !EDGE.some((edge) => path.startsWith(edge)))
  const found = inside.flatMap(importsOf).filter(({ to }) => !to.startsWith('src/'))
  assert.deepEqual(
    found.map(({ from, to }) => `${from} imports ${to}`),
    [],
  )
})

test('no module keeps mutable state of its own', () => {
  const inside = sources.filter((path) => !EDGE.some((edge) => path.startsWith(edge)))
  const found = inside.flatMap((path) => (/^(export\s+)?(let|var)\s/m.test(codeOf(path)) ? [path] : []))
  assert.deepEqual(found, [])
})

test('relative imports name the file with its ending', () => {
  const found = sources.flatMap(importsOf).filter(({ to }) => to.startsWith('src/') && !to.endsWith('.ts'))
  assert.deepEqual(found, [])
})
