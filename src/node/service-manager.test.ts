import assert from 'node:assert/strict'
import test from 'node:test'
import { ServiceManager } from './service-manager.ts'

function make(env: Record<string, string>, overrides: { send?: () => void } = {}) {
  const sent: string[] = []
  const logged: string[] = []
  const about = { alive: true, status: 'starting: raft' }
  const manager = new ServiceManager({
    env,
    pid: 77,
    send: overrides.send ?? ((socket, message) => void sent.push(`${socket} ${message}`)),
    log: { log: (_: string, message: string) => void logged.push(message) } as never,
    isAlive: () => about.alive,
    status: () => about.status,
  })
  return { manager, sent, logged, about }
}

test('without a service manager nothing is said', () => {
  const { manager, sent } = make({ WATCHDOG_USEC: '3000000' })
  manager.ready()
  manager.stopping()
  manager.end()
  assert.deepEqual(sent, [])
})

test('ready, status when it changes, watchdog while all is well, stopping', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] })
  const { manager, sent, about } = make({ NOTIFY_SOCKET: '@x', WATCHDOG_USEC: '3000000', WATCHDOG_PID: '77' })
  manager.ready()
  t.mock.timers.tick(1000)
  about.status = 'ready'
  about.alive = false
  t.mock.timers.tick(1000)
  manager.stopping()
  manager.end()
  t.mock.timers.tick(10_000)
  assert.deepEqual(sent, ['@x READY=1\nSTATUS=starting: raft\nMAINPID=77', '@x WATCHDOG=1', '@x STATUS=ready', '@x STOPPING=1\nSTATUS=stopping'])
})

test('a watchdog meant for another process is left to it', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] })
  const { manager, sent } = make({ NOTIFY_SOCKET: '/s', WATCHDOG_USEC: '3000000', WATCHDOG_PID: '1' })
  manager.ready()
  t.mock.timers.tick(5000)
  assert.equal(sent.filter((message) => message.includes('WATCHDOG')).length, 0)
  manager.end()
})

test('a manager that cannot be told is mentioned once', () => {
  const { manager, logged } = make(
    { NOTIFY_SOCKET: '/s' },
    {
      send: () => {
        throw new Error('no such file')
      },
    },
  )
  manager.ready()
  manager.stopping()
  manager.end()
  assert.equal(logged.length, 1)
})
