import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import test from 'node:test'
import { completionScript } from './completion.ts'
import { xsanProgram } from './xsan-commands.ts'
import { xsanDebugProgram } from './xsan-debug-commands.ts'

const xsan = completionScript('bash', xsanProgram())

/** What bash offers for the last of `words`. */
function offered(script: string, ...words: string[]): string[] {
  const program = words[0]!.replace(/-/g, '_')
  const list = words.map((word) => `'${word}'`).join(' ')
  const { stdout, stderr, status } = spawnSync(
    'bash',
    ['-c', `${script}\nCOMP_WORDS=(${list}); COMP_CWORD=${words.length - 1}; _${program}; printf '%s\\n' "\${COMPREPLY[@]}"`],
    {
      encoding: 'utf8',
    },
  )
  assert.equal(status, 0, stderr)
  return stdout.split('\n').filter(Boolean).sort()
}

test('bash completes nouns, verbs, options and the values of options', () => {
  assert.ok(offered(xsan, 'xsan', '').includes('volume'))
  assert.deepEqual(offered(xsan, 'xsan', 'vol'), ['volume'])
  assert.deepEqual(offered(xsan, 'xsan', 'volume', ''), ['create', 'delete', 'info', 'list', 'resize'])
  assert.deepEqual(offered(xsan, 'xsan', 'volume', 'create', 'db1', '10G', '--rep'), ['--replicas'])
  assert.deepEqual(offered(xsan, 'xsan', 'volume', 'create', '--sync', 'o'), ['off', 'on'])
  assert.deepEqual(offered(xsan, 'xsan', '--server', 'a:1', 'volume', 'list', '-o', ''), ['json', 'table', 'yaml'])
  assert.deepEqual(offered(xsan, 'xsan', 'completion', ''), ['bash', 'fish', 'zsh'])
  const debug = completionScript('bash', xsanDebugProgram())
  assert.deepEqual(offered(debug, 'xsan-debug', 'flight-recorder', ''), ['dump', 'show'])
})

test('zsh and fish know the same commands, each with its description', () => {
  for (const shell of ['zsh', 'fish'] as const) {
    const script = completionScript(shell, xsanProgram())
    for (const word of ['volume', 'create a thin volume', 'dry-run', 'table']) assert.ok(script.includes(word), `${shell}: ${word}`)
    assert.ok(!script.includes('undefined'))
  }
})
