import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type TestContext } from 'node:test'
import { XsanError } from '../base/errors.ts'
import { assignment, describeKey, loadConfig, resolveConfig } from './config.ts'

const SAMPLE = new URL('../../conf/sample-004.json', import.meta.url).pathname
const MINIMAL = { cluster: { cluster_id: 'c', node_id: 'n', bind_ip: '127.0.0.1' } }

const resolveOne = (json: unknown) => resolveConfig([{ file: 'xsan.json', json }], '/base')
const withKey = (text: string) => resolveConfig([{ file: 'xsan.json', json: MINIMAL }, assignment(text)], '/base')

function messageOfRefusal(fn: () => unknown): string {
  try {
    fn()
  } catch (error) {
    assert.ok(error instanceof XsanError, String(error))
    return error.message
  }
  return assert.fail('was accepted')
}

function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'xsan-config-'))
  t.after(() => rmSync(path, { recursive: true }))
  return path
}

test('the sample of the product documents is accepted as it stands', () => {
  const { config } = loadConfig(SAMPLE)
  assert.equal(config.cluster.cluster_id, 'xsan-cluster-001')
  assert.equal(config.cluster.bind_port, 8080)
  assert.deepEqual(
    config.storage.devices.map(({ path, type, role }) => [path, type, role]),
    [
      ['/dev/nvme0n1', 'ssd', 'cache'],
      ['/dev/sda', 'hdd', 'capacity'],
    ],
  )
  assert.equal(config.storage.block_size, 4194304)
  assert.equal(config.storage.default_replica_count, 2)
  assert.deepEqual([config.network.heartbeat_interval, config.network.election_timeout, config.network.max_connections], [1000, 5000, 1000])
})

test("the ports and addresses left out get the documents' defaults", () => {
  const { config } = resolveOne(MINIMAL)
  assert.deepEqual(
    [
      config.cluster.bind_port,
      config.network.data_port,
      config.network.admin_port,
      config.nbd.port,
      config.network.heartbeat_group,
      config.network.heartbeat_port,
    ],
    [8080, 8000, 9000, 10809, '239.255.88.10', 8088],
  )
  assert.equal(config.storage.sync_when_write, true)
})

test('an unknown key is refused with its place, its file and the nearest known key', () => {
  const json = { ...MINIMAL, network: { heartbeat_intervall: 500 } }
  assert.match(
    messageOfRefusal(() => resolveOne(json)),
    /unknown key network\.heartbeat_intervall; did you mean network\.heartbeat_interval\? \(xsan\.json\)/,
  )
})

test('a key in the wrong section is found by its name', () => {
  const json = { ...MINIMAL, cluster: { ...MINIMAL.cluster, heartbeat_interval: 500 } }
  assert.match(
    messageOfRefusal(() => resolveOne(json)),
    /unknown key cluster\.heartbeat_interval; did you mean network\.heartbeat_interval\?/,
  )
})

test('an unknown section, and a key that resembles nothing, are refused too', () => {
  assert.match(
    messageOfRefusal(() => resolveOne({ ...MINIMAL, netwrok: {} })),
    /unknown key netwrok; did you mean network\?/,
  )
  assert.match(
    messageOfRefusal(() => resolveOne({ ...MINIMAL, zzzzzzzz: 1 })),
    /unknown key zzzzzzzz \(/,
  )
})

test('a misspelt key inside a device names the device', () => {
  const json = { ...MINIMAL, storage: { devices: [{ path: '/a', type: 'ssd', rol: 'capacity' }] } }
  assert.match(
    messageOfRefusal(() => resolveOne(json)),
    /unknown key storage\.devices\[0\]\.rol; did you mean storage\.devices\[\]\.role\?/,
  )
})

test('a value of the wrong type is refused, with what was expected and what was found', () => {
  assert.match(
    messageOfRefusal(() => withKey('cluster.bind_port="x"')),
    /cluster\.bind_port: expected number, .*found "x" \(--set cluster\.bind_port="x"\)/,
  )
  assert.match(
    messageOfRefusal(() => withKey('cluster.bind_port=70000')),
    /cluster\.bind_port: .*65535/,
  )
  assert.match(
    messageOfRefusal(() => withKey('storage.block_size=65536')),
    /storage\.block_size: must be 4194304/,
  )
  assert.match(
    messageOfRefusal(() => withKey('reactor.arena_size=lots')),
    /reactor\.arena_size: must be a size/,
  )
  assert.match(
    messageOfRefusal(() => withKey('cluster=5')),
    /cluster: expected object/,
  )
  assert.match(
    messageOfRefusal(() => withKey('network.heartbeat_group="10.0.0.1"')),
    /multicast address/,
  )
})

test('a missing key is named', () => {
  assert.match(
    messageOfRefusal(() => resolveOne({ ...MINIMAL, cluster: { cluster_id: 'c', bind_ip: '127.0.0.1' } })),
    /cluster\.node_id: is missing \(xsan\.json\)/,
  )
  assert.match(
    messageOfRefusal(() => resolveOne({})),
    /cluster: is missing/,
  )
})

test('all that is wrong is told at once', () => {
  const message = messageOfRefusal(() => resolveOne({ ...MINIMAL, nbd: { prot: 1 }, log: { level: 'LOUD' } }))
  assert.match(message, /nbd\.prot/)
  assert.match(message, /log\.level/)
})

test('settings that contradict each other are refused', () => {
  assert.match(
    messageOfRefusal(() => withKey('network.election_timeout=500')),
    /must be more than network\.heartbeat_interval/,
  )
  assert.match(
    messageOfRefusal(() => withKey('network.data_port=8080')),
    /port 8080 is already cluster\.bind_port/,
  )
  assert.match(
    messageOfRefusal(() => withKey('cluster.bind_ip=0.0.0.0')),
    /cluster\.bind_ip: the other nodes are told it, so it must be one address of this host/,
  )
  const devices = (second: object) => ({ ...MINIMAL, storage: { devices: [{ path: '/a', type: 'ssd', role: 'cache' }, second] } })
  assert.match(
    messageOfRefusal(() => resolveOne(devices({ path: '/a', type: 'hdd', role: 'capacity' }))),
    /devices\[1\]\.path: \/a is already storage\.devices\[0\]/,
  )
  assert.match(
    messageOfRefusal(() => resolveOne(devices({ path: '/b', type: 'ssd', role: 'cache' }))),
    /none has the role capacity/,
  )
  assert.match(
    messageOfRefusal(() => withKey(`nbd.socket=/${'x'.repeat(120)}`)),
    /at most 107 bytes/,
  )
})

test('files of xsan.json.d override in name order, and each value knows the file it comes from', (t) => {
  const dir = directory(t)
  const main = join(dir, 'xsan.json')
  writeFileSync(main, JSON.stringify({ ...MINIMAL, network: { heartbeat_interval: 100 } }))
  mkdirSync(`${main}.d`)
  writeFileSync(`${main}.d/20-b.json`, '{"network":{"heartbeat_interval":300}}')
  writeFileSync(`${main}.d/10-a.json`, '{"network":{"heartbeat_interval":200,"max_connections":7}}')
  writeFileSync(`${main}.d/notes.txt`, 'not read')
  const { config, items } = loadConfig(main)
  assert.equal(config.network.heartbeat_interval, 300)
  assert.equal(config.network.max_connections, 7)
  const item = (key: string) => items.find((candidate) => candidate.key === key)
  assert.equal(item('network.heartbeat_interval')?.origin, `${main}.d/20-b.json`)
  assert.equal(item('network.max_connections')?.origin, `${main}.d/10-a.json`)
  assert.equal(item('cluster.node_id')?.origin, main)
  assert.equal(item('nbd.port')?.origin, 'default')
})

test('an error in an override names the override', (t) => {
  const dir = directory(t)
  const main = join(dir, 'xsan.json')
  writeFileSync(main, JSON.stringify(MINIMAL))
  mkdirSync(`${main}.d`)
  writeFileSync(`${main}.d/a.json`, '{"nbd":{"port":-1}}')
  assert.ok(messageOfRefusal(() => loadConfig(main)).includes(`(${main}.d/a.json)`))
  writeFileSync(`${main}.d/a.json`, '{"nbd":{"port":1,}}')
  assert.ok(messageOfRefusal(() => loadConfig(main)).startsWith(`${main}.d/a.json is not JSON`))
})

test('a file that is not there is NOT_FOUND', () => {
  assert.throws(() => loadConfig('/nonexistent/xsan.json'), { status: 'NOT_FOUND', message: /\/nonexistent\/xsan\.json/ })
})

test('sizes may be text, relative paths are taken from the directory of the file', () => {
  const { config } = resolveOne({
    ...MINIMAL,
    cluster: { ...MINIMAL.cluster, data_dir: 'data' },
    storage: { devices: [{ path: 'disk', type: 'ssd', role: 'capacity', size: '4G' }] },
  })
  assert.equal(config.storage.devices[0]?.size, 4 * 1024 ** 3)
  assert.equal(config.storage.devices[0]?.path, '/base/disk')
  assert.equal(config.cluster.data_dir, '/base/data')
})

test('every key has a description and says whether it may change at run time', () => {
  const { items } = resolveOne(MINIMAL)
  for (const item of items) assert.ok(item.description.length > 0, item.key)
  const hot = (key: string) => items.find((item) => item.key === key)?.hot
  assert.equal(hot('storage.read_only'), true)
  assert.equal(hot('log.level'), true)
  assert.equal(hot('cluster.bind_port'), false)
})

test('a single key is checked alone, as `config set` needs it', () => {
  assert.equal(describeKey('network.max_connections').parse(5), 5)
  assert.throws(() => describeKey('network.max_connections').parse(0), { status: 'INVALID_PARAM' })
  assert.throws(() => describeKey('network.max_conections'), { status: 'NOT_FOUND', message: /did you mean network\.max_connections/ })
})

test('the prototype cannot be reached through a key', () => {
  const json = JSON.parse('{"__proto__": {"x": 1}}')
  assert.match(
    messageOfRefusal(() => resolveOne({ ...MINIMAL, constructor: {} })),
    /unknown key constructor/,
  )
  assert.match(
    messageOfRefusal(() =>
      resolveConfig(
        [
          { file: 'a', json: MINIMAL },
          { file: 'b', json },
        ],
        '/',
      ),
    ),
    /unknown key __proto__/,
  )
})
