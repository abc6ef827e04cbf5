/** The traces that broke earlier drafts of the protocol, against the code. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Replay } from './replay.ts'
import { savedTraces, TRACES } from './traces.ts'

const saved = savedTraces()

for (const { title } of TRACES) {
  test(`a trace that broke an earlier draft: ${title}`, { timeout: 120_000 }, async () => {
    const schedule = saved.get(title)
    assert.ok(schedule, 'it is not in traces.txt: node test/sim/model/traces.ts')
    await new Replay(schedule).run()
  })
}
