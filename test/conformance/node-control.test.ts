/** The real control environment through the suites that the simulated one passes too. */
import { NodeClock } from '../../src/env/node/clock.ts'
import { NodeDatagram } from '../../src/env/node/datagram.ts'
import { NodeLog } from '../../src/env/node/log.ts'
import { GrpcRpc } from '../../src/env/node/rpc.ts'
import { clockConformance } from './clock.ts'
import { datagramConformance } from './datagram.ts'
import type { Fixture } from './fixture.ts'
import { rpcConformance } from './rpc.ts'

const log = new NodeLog({ level: 'FATAL' })

function fixture<T>(make: () => T, closeOne: (subject: T) => Promise<void>): Fixture<T> {
  const made: T[] = []
  return {
    async create() {
      const subject = make()
      made.push(subject)
      return { subject, host: '127.0.0.1' }
    },
    run: (promise) => promise,
    async close() {
      await Promise.all(made.map(closeOne))
    },
  }
}

rpcConformance('gRPC', async () =>
  fixture(
    () => new GrpcRpc({ log }),
    (rpc) => rpc.close(),
  ),
)
datagramConformance(
  'UDP',
  async () =>
    fixture(
      () => new NodeDatagram({ log }),
      (datagram) => datagram.close(),
    ),
  '239.255.88.10:48088',
)
clockConformance('system clock', async () =>
  fixture(
    () => new NodeClock(() => Number(process.hrtime.bigint()) / 1e6),
    async () => {},
  ),
)
