/** Model and code agree, continued: power losses, where journals are synced by steps of the schedule, joining members, two slots. */
import { followsModel } from './follows.ts'

followsModel('power losses, one slot', 450, {
  slots: 1,
  mx: 2,
  blocks: 2,
  power: 2,
  kill: 1,
  expire: 1,
  leader: 1,
  brk: 1,
  cancel: 1,
  dup: 1,
  drain: 1,
  ops: 3,
  lag: 1,
})
followsModel('power losses, two slots', 300, {
  slots: 2,
  mx: 2,
  my: 2,
  blocks: 2,
  power: 2,
  kill: 1,
  expire: 1,
  brk: 1,
  cancel: 1,
  dup: 1,
  drain: 1,
  ops: 3,
  lag: 1,
})
followsModel('power losses while members join, under writes', 150, { slots: 1, mx: 1, blocks: 2, power: 1, expire: 1, brk: 1, ops: 7, len: 120, lag: 1 })
followsModel('joining members', 300, { slots: 1, mx: 2, blocks: 2, kill: 1, expire: 2, brk: 1, cancel: 1, dup: 1, drain: 1, ops: 3, lag: 1 })
followsModel('two slots that share their disks', 300, {
  slots: 2,
  mx: 2,
  blocks: 2,
  kill: 2,
  expire: 1,
  leader: 1,
  brk: 1,
  cancel: 1,
  dup: 1,
  drain: 1,
  ops: 3,
  lag: 1,
})
