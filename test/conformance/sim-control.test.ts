/** The simulated control environment through the suites that the real one passes too. */
import { type RpcCodec, type SimControlEnv, SimControlNetwork } from '../../src/env/sim/control.ts'
import { SimHost } from '../../src/env/sim/host.ts'
import { SimNetwork } from '../../src/env/sim/network.ts'
import { World } from '../../src/env/sim/world.ts'
import { protoCodec } from '../sim/codec.ts'
import { clockConformance } from './clock.ts'
import { datagramConformance } from './datagram.ts'
import type { Fixture } from './fixture.ts'
import { kvConformance } from './kv.ts'
import { rpcConformance } from './rpc.ts'

const SETTLE_MS = 60_000

function simulated<T>(pick: (env: SimControlEnv) => T, codec?: RpcCodec) {
  return async (): Promise<Fixture<T>> => {
    const world = new World({ seed: 1 })
    const shared = new SimControlNetwork(new SimNetwork(world), codec)
    const host = new SimHost(shared.network, { name: 'h', address: '10.0.0.1' })
    let count = 0
    return {
      async create() {
        count++
        return { subject: pick(shared.env(host.start(`p${count}`), { kvName: `kv${count}` })), host: '10.0.0.1' }
      },
      run: (promise) => world.settle(promise, SETTLE_MS),
      async close() {
        world.assertNothingReal()
      },
    }
  }
}

rpcConformance(
  'simulated calls',
  simulated((env) => env.rpc),
)
rpcConformance(
  'simulated calls in the encoding of proto/',
  simulated((env) => env.rpc, protoCodec()),
)
datagramConformance(
  'simulated datagrams',
  simulated((env) => env.datagram),
  '239.255.88.10:48088',
)
clockConformance(
  'simulated clock',
  simulated((env) => env.clock),
)
kvConformance('simulated store', async () => {
  const world = new World({ seed: 1 })
  const shared = new SimControlNetwork(new SimNetwork(world))
  const process = new SimHost(shared.network, { name: 'h', address: '10.0.0.1' }).start('p')
  return {
    open: async () => shared.env(process, { kvName: 'kv' }).kv,
    run: (promise) => world.settle(promise, SETTLE_MS),
    close: async () => {},
  }
})
