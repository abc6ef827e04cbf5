/**
 * The shape of the source: who may import whom, no cycles, no barrel files, and no clock, randomness or I/O where logic lives.
 * Reads every file of src/; tests beside the code are free to import what they need, except that they too keep out of other people's clocks.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import test from 'node:test'

const SRC = new URL('../src/', import.meta.url).pathname

/** Layer -> layers it may import. A file may always import its own layer. The longest matching path is a file's layer. */
const LAYERS: Readonly<Record<string, readonly string[]>> = {
  base: [],
  wire: ['base'],
  env: ['base'],
  'env/native': ['base', 'env'],
  'env/node': ['base', 'env', 'env/native'],
  'env/sim': ['base', 'env', 'env/native'],
  placement: ['base', 'wire'],
  raft: ['base', 'env'],
  store: ['base', 'wire', 'env'],
  chain: ['base', 'wire', 'env', 'store', 'placement'],
  volume: ['base', 'wire', 'env', 'store', 'placement', 'chain'],
  export: ['base', 'wire', 'env', 'volume'],
  control: ['base', 'wire', 'env', 'raft', 'placement'],
  node: ['base', 'wire', 'env', 'env/native', 'env/node', 'placement', 'raft', 'store', 'chain', 'volume', 'export', 'control'],
  cli: ['base', 'env', 'node'],
  'cli/sim': ['base', 'wire', 'env', 'env/sim', 'placement', 'raft', 'store', 'chain', 'volume', 'export', 'control', 'node'],
}

/** Layers that touch the outside world. */
const IMPURE = ['env/node', 'env/native', 'node', 'cli', 'cli/sim']
/** Files elsewhere that do, each for the reason its head gives. */
const IMPURE_FILES = ['env/sim/macrotask.ts']
const isPure = (file: { readonly path: string; readonly layer: string }) => !IMPURE.includes(file.layer) && !IMPURE_FILES.includes(file.path)

/** Modules of Node that compute and nothing else, by what may be taken from them. */
const PURE_NODE_MODULES: Readonly<Record<string, readonly string[]>> = {
  'node:crypto': ['createHash', 'createHmac', 'timingSafeEqual', 'type Hash', 'type Hmac'],
}
/** Packages that compute and nothing else. Others are for {@link IMPURE} layers. */
const PURE_PACKAGES = ['yaml', 'zod']

/** What logic must take from `env` instead. Matched in code, not in comments or strings. */
const BANNED: ReadonlyArray<readonly [RegExp, string]> = [
  [/\bDate\b/, 'time comes from Clock or IoQueue.nowMs'],
  [/\bperformance\b/, 'time comes from Clock or IoQueue.nowMs'],
  [/\bhrtime\b/, 'time comes from Clock or IoQueue.nowMs'],
  [/\bMath\s*\.\s*random\b/, 'randomness comes from Entropy, or from a seeded Prng'],
  [/\bcrypto\s*\.\s*(?:getRandomValues|randomUUID)\b/, 'randomness comes from Entropy'],
  [/\b(?:setTimeout|setInterval|setImmediate)\b/, 'timers come from Clock or IoQueue.timeout'],
  [/\b(?:WeakRef|FinalizationRegistry|WeakMap)\b/, 'the garbage collector is not a clock'],
  [/\blocaleCompare\b|\bIntl\b|\btoLocale\w+/, 'order and text must not depend on the machine'],
  [
    /(?<![.#\w])process\s*\.\s*(?:abort|arch|argv|argv0|chdir|cpuUsage|cwd|emit|emitWarning|env|execArgv|execPath|exit|exitCode|getuid|kill|memoryUsage|nextTick|off|on|once|pid|platform|ppid|report|resourceUsage|send|stderr|stdin|stdout|title|umask|uptime|version|versions)\b/,
    'the process belongs to src/node',
  ],
  [/\b(?:fetch|XMLHttpRequest|WebSocket|Worker|SharedWorker)\s*\(/, 'I/O goes through env'],
  [/\bconsole\s*\./, 'lines go through Log'],
  [/\brequire\s*\(|\bimport\s*\(/, 'modules are imported at the top'],
]

interface SourceFile {
  /** Relative to src/. */
  readonly path: string
  readonly layer: string
  /** Comments blanked. */
  readonly code: string
  /** Comments and the text of strings blanked; lines are kept. */
  readonly bare: string
  readonly imports: ReadonlyArray<{ readonly from: string; readonly names: readonly string[]; readonly typesOnly: boolean }>
}

function layerOf(path: string): string {
  const layers = Object.keys(LAYERS).filter((layer) => path.startsWith(`${layer}/`) || path === `${layer}.ts`)
  return layers.sort((a, b) => b.length - a.length)[0] ?? '(none)'
}

/** Blanks comments, and with `strings` the text of strings, templates and regular expressions too. Keeps every line where it is. */
function blank(source: string, strings: boolean): string {
  let out = ''
  const keep = (text: string, isCode: boolean) => {
    out += isCode ? text : text.replace(/[^\n]/g, ' ')
  }
  /** Brace depth of the code inside each open template. */
  const templates: number[] = []
  let i = 0
  const template = (): void => {
    let end = i
    while (end < source.length && source[end] !== '`' && !source.startsWith('${', end)) end += source[end] === '\\' ? 2 : 1
    keep(source.slice(i, end), !strings)
    if (source.startsWith('${', end)) {
      templates.push(0)
      keep('${', true)
      i = end + 2
    } else {
      keep('`', true)
      i = end + 1
    }
  }
  while (i < source.length) {
    const c = source[i]!
    if (source.startsWith('//', i)) {
      const end = source.indexOf('\n', i)
      const to = end < 0 ? source.length : end
      keep(source.slice(i, to), false)
      i = to
    } else if (source.startsWith('/*', i)) {
      const end = source.indexOf('*/', i + 2) + 2
      keep(source.slice(i, end), false)
      i = end
    } else if (c === "'" || c === '"' || (c === '/' && /(?:^|[=(,:[!&|?{};+]|=>|\breturn)\s*$/.test(out))) {
      let end = i + 1
      let inClass = false
      while (end < source.length && (source[end] !== c || inClass)) {
        if (source[end] === '\\') end++
        else if (c === '/' && source[end] === '[') inClass = true
        else if (c === '/' && source[end] === ']') inClass = false
        end++
      }
      keep(c, true)
      keep(source.slice(i + 1, end), !strings)
      keep(c, true)
      i = end + 1
    } else if (c === '`') {
      keep(c, true)
      i++
      template()
    } else if (c === '}' && templates.at(-1) === 0) {
      templates.pop()
      keep(c, true)
      i++
      template()
    } else {
      if (templates.length > 0 && c === '{') templates[templates.length - 1]!++
      if (templates.length > 0 && c === '}') templates[templates.length - 1]!--
      keep(c, true)
      i++
    }
  }
  return out
}

function importsOf(code: string): SourceFile['imports'] {
  const imports: Array<{ from: string; names: string[]; typesOnly: boolean }> = []
  for (const match of code.matchAll(/^(?:import|export)\s+([^'"`;]*?)\s*from\s*['"]([^'"]+)['"]/gm)) {
    const names = /\{([^}]*)\}/.exec(match[1]!)?.[1] ?? match[1]!
    imports.push({
      from: match[2]!,
      typesOnly: /^(?:import|export)\s+type\b/.test(match[0]),
      names: names
        .split(',')
        .map((name) => name.trim().replace(/\s+as\s.*$/, ''))
        .filter((name) => name !== ''),
    })
  }
  for (const match of code.matchAll(/^import\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/gm)) {
    imports.push({ from: match[1] ?? match[2]!, names: [], typesOnly: false })
  }
  return imports
}

const files: readonly SourceFile[] = readdirSync(SRC, { recursive: true, encoding: 'utf8' })
  .filter((path) => path.endsWith('.ts') && !path.endsWith('.test.ts'))
  .sort()
  .map((path) => {
    const source = readFileSync(join(SRC, path), 'utf8')
    const code = blank(source, false)
    return { path, layer: layerOf(path), code, bare: blank(source, true), imports: importsOf(code) }
  })

const isRelative = (from: string) => from.startsWith('.')
const resolve = (file: SourceFile, from: string) => normalize(join(dirname(file.path), from))
const report = (problems: readonly string[]) => assert.equal(problems.length, 0, `\n${problems.join('\n')}\n`)

test('the scanner tells code from comments, strings, templates and regular expressions', () => {
  const open = '$' + '{'
  const source = `a // Date\nb('Date', "x\\"Date") /* Date\n */ + \`Date ${open}c + \`${open}Date}\`} Date\` + /Da[/]te'/.test(d) / e / f`
  const expected = `a \nb(' ', " ") \n + \` ${open}c + \`${open}Date}\`} \` + / /.test(d) / e / f`
  assert.equal(blank(source, true).replace(/ +/g, ' '), expected)
  assert.equal(blank(source, true).split('\n').length, source.split('\n').length)
  const imports = `import { a, type B as C } from './x.ts'\nexport * from './y.ts'\nimport './z.ts'\nconst q = import('./w.ts')\nimport type { D } from\n  './v.ts'`
  assert.deepEqual(
    importsOf(imports).map(({ from, names, typesOnly }) => [from, names.join(), typesOnly]),
    [
      ['./x.ts', 'a,type B', false],
      ['./y.ts', '*', false],
      ['./v.ts', 'D', true],
      ['./z.ts', '', false],
      ['./w.ts', '', false],
    ],
  )
})

test('every file belongs to a layer and imports only the layers below it', () => {
  const problems: string[] = []
  for (const file of files) {
    const allowed = LAYERS[file.layer]
    if (allowed === undefined) {
      problems.push(`src/${file.path} is in no layer`)
      continue
    }
    for (const { from } of file.imports) {
      if (!isRelative(from)) continue
      const target = resolve(file, from)
      if (!from.endsWith('.ts')) problems.push(`src/${file.path} imports "${from}": imports end in .ts`)
      else if (target.startsWith('..')) problems.push(`src/${file.path} imports ${from}, outside src/`)
      else if (!files.some(({ path }) => path === target)) problems.push(`src/${file.path} imports ${from}, which is no source file`)
      else if (layerOf(target) !== file.layer && !allowed.includes(layerOf(target)))
        problems.push(`src/${file.path} (${file.layer}) may not import src/${target} (${layerOf(target)})`)
    }
  }
  report(problems)
})

test('there are no import cycles (types, which are gone when the code runs, may know each other within a layer)', () => {
  const byPath = new Map(files.map((file) => [file.path, file]))
  const state = new Map<string, 'open' | 'done'>()
  const problems: string[] = []
  const visit = (path: string, trail: readonly string[]): void => {
    if (state.get(path) === 'done') return
    if (state.get(path) === 'open') {
      problems.push([...trail.slice(trail.indexOf(path)), path].map((step) => `src/${step}`).join(' -> '))
      return
    }
    state.set(path, 'open')
    const file = byPath.get(path)!
    for (const { from, typesOnly } of file.imports) {
      const target = resolve(file, from)
      if (!typesOnly && isRelative(from) && byPath.has(target)) visit(target, [...trail, path])
    }
    state.set(path, 'done')
  }
  for (const { path } of files) visit(path, [])
  report(problems)
})

test('there are no barrel files: everything is imported from where it is made', () => {
  const problems: string[] = []
  for (const file of files) {
    if (/(?:^|\/)index\.ts$/.test(file.path)) problems.push(`src/${file.path}`)
    file.bare.split('\n').forEach((line, i) => {
      if (/^export\s+(?:type\s+)?(?:\*|\{[^}]*\})\s*(?:as\s+\w+\s*)?from\b/.test(line))
        problems.push(`src/${file.path}:${i + 1} exports what another file makes`)
    })
  }
  report(problems)
})

test('logic has no clock, no randomness and no I/O of its own', () => {
  const problems: string[] = []
  for (const file of files) {
    if (!isPure(file)) continue
    for (const { from, names } of file.imports) {
      if (isRelative(from)) continue
      const pure = PURE_NODE_MODULES[from]
      const rest = pure === undefined ? names : names.filter((name) => !pure.includes(name))
      if (from.startsWith('node:') ? pure === undefined || rest.length > 0 : !PURE_PACKAGES.includes(from))
        problems.push(`src/${file.path} imports ${rest.join(', ')} from "${from}"`)
    }
    file.bare.split('\n').forEach((line, i) => {
      for (const [pattern, instead] of BANNED) if (pattern.test(line)) problems.push(`src/${file.path}:${i + 1}: ${line.trim()}   (${instead})`)
    })
  }
  report(problems)
})

test('logic keeps no state in modules: several nodes run in one process of the simulator', () => {
  const problems: string[] = []
  for (const file of files) {
    if (!isPure(file)) continue
    file.bare.split('\n').forEach((line, i) => {
      if (/^(?:export\s+)?(?:let|var)\b/.test(line)) problems.push(`src/${file.path}:${i + 1}: ${line.trim()}`)
      if (/^(?:export\s+)?const\s+\w+[^=]*=\s*(?:new\s+(?:Map|Set)\b[^(]*\(\s*\)|\[\]\s*(?:$|as\b)|\{\}\s*(?:$|as\b))/.test(line))
        problems.push(`src/${file.path}:${i + 1}: ${line.trim()}`)
    })
  }
  report(problems)
})
