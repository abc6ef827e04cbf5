/**
 * Hosts of their own on one Ethernet, without root: network namespaces on a bridge, inside one user namespace.
 *
 *   host 1 (10.88.0.1) --veth--+
 *   host 2 (10.88.0.2) --veth--+-- bridge, in a namespace of its own
 *   host 3 (10.88.0.3) --veth--+
 *
 * A cut is silent, as a dead switch port is: the sender's neighbour table names a station that is not there. Files (UNIX sockets too) are shared.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { endChild, must, PATH } from './commands.ts'

const SUBNET = '10.88.0'
const NOBODY = '02:00:00:00:00:99'
const LIFE_S = 900

export class Lan {
  readonly #bridge: ChildProcess
  readonly #hosts: ChildProcess[] = []

  private constructor(bridge: ChildProcess) {
    this.#bridge = bridge
  }

  /** Null: this kernel or container gives users no namespaces. */
  static async make(hosts: number): Promise<Lan | null> {
    const script = `ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up && echo made && exec sleep ${LIFE_S}`
    const bridge = await started(['unshare', '-Urn', 'sh', '-c', script])
    if (bridge === null) return null
    const lan = new Lan(bridge)
    try {
      for (let host = 1; host <= hosts; host++) await lan.#add(host)
    } catch (error) {
      await lan.end()
      throw error
    }
    return lan
  }

  async #add(host: number): Promise<void> {
    const inBridge = entering(this.#bridge)
    const child = await started([...inBridge, 'unshare', '-n', 'sh', '-c', `echo made && exec sleep ${LIFE_S}`])
    if (child === null) throw new Error('a network namespace could not be made')
    this.#hosts.push(child)
    const port = `veth${host}`
    const setUp = `ip link add ${port} type veth peer name eth0 netns ${child.pid} && ip link set ${port} master br0 up`
    await must(inBridge[0]!, [...inBridge.slice(1), 'sh', '-c', setUp])
    await this.#run(host, `ip address add ${this.address(host)}/24 dev eth0 && ip link set lo up && ip link set eth0 up && ip route add 224.0.0.0/4 dev eth0`)
  }

  address(host: number): string {
    return `${SUBNET}.${host}`
  }

  /** Words before a command that runs on that host. */
  on(host: number): readonly string[] {
    return entering(this.#hosts[host - 1]!)
  }

  /** Nothing gets from one host to the other any more; the sender hears nothing of it. */
  async cut(from: number, to: number): Promise<void> {
    await this.#run(from, `ip neighbour replace ${this.address(to)} lladdr ${NOBODY} dev eth0 nud permanent`)
  }

  async heal(from: number, to: number): Promise<void> {
    await this.#run(from, `ip neighbour del ${this.address(to)} dev eth0`)
  }

  async end(): Promise<void> {
    for (const child of [...this.#hosts, this.#bridge]) await endChild(child)
  }

  async #run(host: number, script: string): Promise<void> {
    const [command, ...words] = this.on(host)
    await must(command!, [...words, 'sh', '-c', script])
  }
}

function entering({ pid }: ChildProcess): readonly string[] {
  return ['nsenter', '-t', String(pid), '-U', '-n', '--preserve-credentials', '--']
}

/** Running once it has said something; null when it ends before. */
async function started([command, ...words]: readonly string[]): Promise<ChildProcess | null> {
  const child = spawn(command!, words, { stdio: ['ignore', 'pipe', 'ignore'], env: { ...process.env, PATH } })
  const isMade = await Promise.race([
    once(child.stdout, 'data').then(() => true),
    once(child, 'exit').then(() => false),
    once(child, 'error').then(() => false),
  ])
  return isMade ? child : null
}
