/**
 * Thread of one reactor: mounts its disks, puts the data plane together and runs it (design 2). The worker entry of `data-plane.ts`.
 *
 * Order: io queue -> disks (waiting for their locks, then replay) -> data plane -> exports -> `ready`. A stage that fails is named in a
 * `failed` message and ends the process: the process is the failure unit.
 */
import { createHmac, randomBytes } from 'node:crypto'
import { type MessagePort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { messageOf, XsanError } from '../base/errors.ts'
import { DataPlane } from '../chain/data-plane.ts'
import { type MountedStore, StoreRelay } from '../chain/store-relay.ts'
import { AsyncIo } from '../env/async-io.ts'
import { IoError } from '../env/ioqueue.ts'
import { NativeIoQueue } from '../env/node/ioqueue.ts'
import { NodeLog } from '../env/node/log.ts'
import { runReactor } from '../env/node/reactor-loop.ts'
import { NbdServer } from '../export/nbd/server.ts'
import type { ControlToReactor, ReactorPort, ReactorToControl } from '../placement/messages.ts'
import { formatStore, mountStore } from '../store/mount.ts'
import { VolumeLayer } from '../volume/volume.ts'
import type { ReactorDisk, ReactorStart, ReactorUp } from './reactor-start.ts'

const start = workerData as ReactorStart
const log = new NodeLog({ level: start.logLevel, fields: { node: start.registration.nodeId, tag: 'reactor' } })
const queue = new NativeIoQueue({ arenaBytes: start.arenaBytes })
const asyncIo = new AsyncIo(queue)
const port = wakingPort(start.port)
start.port.postMessage({ wakeId: queue.wakeId } satisfies ReactorUp)
runReactor(queue, { counters: start.counters })

let stage = 'starting'
try {
  await run()
} catch (error) {
  const known = error instanceof XsanError ? error : undefined
  if (!known && !(error instanceof IoError)) throw error
  port.send({ type: 'failed', message: `${stage}: ${messageOf(error)}`, nextStep: known?.nextStep ?? '' })
}

async function run(): Promise<void> {
  const { registration } = start
  const stores: MountedStore[] = []
  for (const disk of start.disks) {
    stage = `mounting ${disk.path}`
    stores.push(await mount(disk))
  }
  stage = 'starting the data plane'
  const dataPlane = new DataPlane({
    queue,
    asyncIo,
    port,
    stores,
    identity: { clusterId: registration.clusterUuid, node: registration.node, incarnation: registration.incarnation, reactor: 0 },
    listen: start.data,
    hmac: (bytes) => createHmac('sha256', registration.clusterKey).update(bytes).digest(),
    randomBytes: (count) => randomBytes(count),
    limits: {},
  })
  const dataPort = await dataPlane.start()
  const volumes = new VolumeLayer(dataPlane.client, queue.arena)
  dataPlane.addCounters(() => volumes.stats.snapshot())
  stage = 'opening the NBD export'
  const nbd = new NbdServer({ queue, asyncIo, volumes, log, connectionsMax: start.nbd.connectionsMax })
  const nbdPort = nbd.listenTcp(start.nbd.host, start.nbd.port)
  if (start.nbd.socket !== '') nbd.listenUnix(start.nbd.socket)
  dataPlane.onStop(() => nbd.stop())
  port.send({ type: 'ready', dataPort, nbdPort })
}

/** A blank disk is formatted first; anything else that is not ours is refused by the store, with its reason. */
async function mount(disk: ReactorDisk): Promise<MountedStore> {
  const { registration, bootId } = start
  const relay = new StoreRelay()
  const identity = { clusterId: registration.clusterUuid, nodeId: registration.nodeId }
  if (disk.isBlank) {
    await formatStore(asyncIo, {
      path: disk.path,
      ...(disk.createBytes === undefined ? {} : { createBytes: disk.createBytes }),
      identity,
      diskUuid: disk.uuid,
      journalUuid: randomBytes(16).toString('hex'),
      disk: disk.disk,
      slotCount: registration.slotCount,
    })
  }
  const store = await mountStore({
    io: asyncIo,
    path: disk.path,
    identity,
    slotCount: registration.slotCount,
    events: relay,
    bootId,
    wallMs: () => Date.now(),
    disk: disk.disk,
    onNote: (message, fields) => log.log('INFO', message, { disk: disk.path, ...fields }),
  })
  return { store, relay }
}

/** The control plane posts and wakes; between turns the messages are taken, in order. */
function wakingPort(channel: MessagePort): ReactorPort {
  const handlers: Array<(message: ControlToReactor) => void> = []
  const early: ControlToReactor[] = []
  queue.onWake(() => {
    for (let next = receiveMessageOnPort(channel); next !== undefined; next = receiveMessageOnPort(channel)) {
      const message = next.message as ControlToReactor
      if (handlers.length === 0) early.push(message)
      else for (const handler of handlers) handler(message)
    }
  })
  return {
    send: (message: ReactorToControl) => channel.postMessage(message),
    onMessage(handler) {
      handlers.push(handler)
      for (const message of early.splice(0)) handler(message)
    },
  }
}
