/** What every Datagram must do on a network that loses nothing. */
import assert from 'node:assert/strict'
import test from 'node:test'
import type { Datagram } from '../../src/env/control.ts'
import type { Fixture, MakeFixture } from './fixture.ts'

/** `group` is "address:port", free to use. */
export function datagramConformance(name: string, makeFixture: MakeFixture<Datagram>, group: string): void {
  const scenario = (title: string, body: (fixture: Fixture<Datagram>) => Promise<void>) =>
    test(`${name}: ${title}`, { timeout: 30_000 }, async () => {
      const fixture = await makeFixture()
      try {
        await body(fixture)
      } finally {
        await fixture.close()
      }
    })

  /** A bound participant with an inbox. */
  async function bound(fixture: Fixture<Datagram>, multicastGroup?: string) {
    const { subject, host } = await fixture.create()
    const waiting: Array<{ bytes: number[]; from: string }> = []
    const takers: Array<(message: { bytes: number[]; from: string }) => void> = []
    const { port, multicast } = await fixture.run(
      subject.bind({ host, port: 0, multicastGroup }, (bytes, from) => {
        const message = { bytes: [...bytes], from }
        const taker = takers.shift()
        if (taker) taker(message)
        else waiting.push(message)
      }),
    )
    const next = () => new Promise<{ bytes: number[]; from: string }>((resolve) => (waiting.length > 0 ? resolve(waiting.shift()!) : takers.push(resolve)))
    return { datagram: subject, address: `${host}:${port}`, multicast, next }
  }

  scenario('a datagram reaches the address it was sent to, and names its sender', async (fixture) => {
    const a = await bound(fixture)
    const b = await bound(fixture)
    a.datagram.send(Uint8Array.of(1, 2, 3), b.address)
    assert.deepEqual(await fixture.run(b.next()), { bytes: [1, 2, 3], from: a.address })
  })

  scenario('the receiver can answer to the sender it was told', async (fixture) => {
    const a = await bound(fixture)
    const b = await bound(fixture)
    a.datagram.send(Uint8Array.of(1), b.address)
    b.datagram.send(Uint8Array.of(2), (await fixture.run(b.next())).from)
    assert.deepEqual(await fixture.run(a.next()), { bytes: [2], from: b.address })
  })

  scenario('what is sent to the group reaches every member, from the address of the sender', async (fixture) => {
    const members = [await bound(fixture, group), await bound(fixture, group), await bound(fixture, group)]
    assert.ok(members.every((member) => member.multicast))
    members[0]!.datagram.send(Uint8Array.of(9), group)
    for (const member of members) assert.deepEqual(await fixture.run(member.next()), { bytes: [9], from: members[0]!.address })
  })

  scenario('a member of a group still receives unicast', async (fixture) => {
    const a = await bound(fixture, group)
    const b = await bound(fixture, group)
    a.datagram.send(Uint8Array.of(5), b.address)
    assert.deepEqual(await fixture.run(b.next()), { bytes: [5], from: a.address })
  })

  scenario('an address that is no multicast group leaves unicast working', async (fixture) => {
    const a = await bound(fixture, '10.255.255.1:9')
    const b = await bound(fixture)
    assert.equal(a.multicast, false)
    a.datagram.send(Uint8Array.of(5), b.address)
    assert.deepEqual(await fixture.run(b.next()), { bytes: [5], from: a.address })
  })

  scenario('sending to nobody, and after closing, is harmless', async (fixture) => {
    const a = await bound(fixture)
    const b = await bound(fixture)
    await fixture.run(b.datagram.close())
    a.datagram.send(Uint8Array.of(1), b.address)
    await fixture.run(a.datagram.close())
    a.datagram.send(Uint8Array.of(1), b.address)
    await fixture.run(a.datagram.close())
  })
}
