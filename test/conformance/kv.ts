/** What every Kv must do. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { Kv, KvOp } from '../../src/env/control.ts'

export interface KvFixture {
  /** Opens the one store of this fixture; rejects while another has it open. */
  open(): Promise<Kv>
  run<R>(promise: Promise<R>): Promise<R>
  close(): Promise<void>
}

export function kvConformance(name: string, makeFixture: () => Promise<KvFixture>): void {
  const scenario = (title: string, body: (fixture: KvFixture) => Promise<void>) =>
    test(`${name}: ${title}`, { timeout: 30_000 }, async () => {
      const fixture = await makeFixture()
      try {
        await body(fixture)
      } finally {
        await fixture.close()
      }
    })
  const put = (key: string, text: string): KvOp => ({ type: 'put', key, value: new TextEncoder().encode(text) })
  const texts = (entries: Array<{ key: string; value: Uint8Array }>) => entries.map(({ key, value }) => `${key}=${new TextDecoder().decode(value)}`)

  scenario('a scan gives the entries of a prefix in the order of their bytes', async (fixture) => {
    const kv = await fixture.open()
    await fixture.run(
      kv.batch([
        put('b/2', 'two'),
        put('b/10', 'ten'),
        put('a/1', 'no'),
        put('b/ü', 'u'),
        put('b/\u{1f600}', 'smile'),
        put('b/\uffee', 'wide'),
        put('c', 'no'),
      ]),
    )
    assert.deepEqual(texts(await fixture.run(kv.scan('b/'))), ['b/10=ten', 'b/2=two', 'b/ü=u', 'b/\uffee=wide', 'b/\u{1f600}=smile'])
    assert.equal((await fixture.run(kv.scan(''))).length, 7)
    assert.deepEqual(await fixture.run(kv.scan('nothing')), [])
    await fixture.run(kv.close())
  })

  scenario('batches take effect in the order of the calls, within a batch in the order of its operations', async (fixture) => {
    const kv = await fixture.open()
    await fixture.run(
      Promise.all([
        kv.batch([put('x', '1'), { type: 'delete', key: 'x' }, put('y', '1')]),
        kv.batch([put('x', '2'), { type: 'delete', key: 'y' }]),
        kv.batch([put('x', '3')]),
      ]),
    )
    assert.deepEqual(texts(await fixture.run(kv.scan(''))), ['x=3'])
    await fixture.run(kv.close())
  })

  scenario('what a batch stored is there after closing and opening again', async (fixture) => {
    const first = await fixture.open()
    await fixture.run(first.batch([put('k', 'kept'), put('empty', '')]))
    await fixture.run(first.close())
    const second = await fixture.open()
    assert.deepEqual(texts(await fixture.run(second.scan(''))), ['empty=', 'k=kept'])
    await fixture.run(second.close())
  })

  scenario('the caller may change its bytes as soon as the call has returned, and those it was given', async (fixture) => {
    const kv = await fixture.open()
    const value = Uint8Array.of(1, 2, 3)
    const stored = kv.batch([{ type: 'put', key: 'k', value }])
    await fixture.run(stored)
    value.fill(9)
    const [entry] = await fixture.run(kv.scan('k'))
    assert.deepEqual([...entry!.value], [1, 2, 3])
    entry!.value.fill(7)
    assert.deepEqual([...(await fixture.run(kv.scan('k')))[0]!.value], [1, 2, 3])
    await fixture.run(kv.close())
  })

  scenario('a store that is open is refused to another', async (fixture) => {
    const kv = await fixture.open()
    await assert.rejects(fixture.open())
    await fixture.run(kv.close())
    await fixture.run((await fixture.open()).close())
  })

  scenario('an empty batch is fine', async (fixture) => {
    const kv = await fixture.open()
    await fixture.run(kv.batch([]))
    await fixture.run(kv.close())
  })
}
