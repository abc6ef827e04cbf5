/** `xsan`: the commands of the people who run a cluster, as a tree: for the command line, for completion, for the manual. */
import { Command } from 'commander'
import { clusterAdd } from './cluster-add.ts'
import { clusterInit } from './cluster-init.ts'
import { clusterJoin } from './cluster-join.ts'
import { clusterRecover } from './cluster-recover.ts'
import { clusterRemove } from './cluster-remove.ts'
import { clusterStatus } from './cluster-status.ts'
import { completion } from './completion.ts'
import { configSet } from './config-set.ts'
import { configShow } from './config-show.ts'
import { configValidate } from './config-validate.ts'
import { devDown } from './dev/down.ts'
import { devKill } from './dev/kill.ts'
import { devStart } from './dev/start.ts'
import { devStatus } from './dev/status.ts'
import { devUp } from './dev/up.ts'
import { diskList } from './disk-list.ts'
import { exportList } from './export-list.ts'
import { nodeList } from './node-list.ts'
import { nodeLocal } from './node-local.ts'
import { group, program } from './program.ts'
import { volumeCreate } from './volume-create.ts'
import { volumeDelete } from './volume-delete.ts'
import { volumeInfo } from './volume-info.ts'
import { volumeList } from './volume-list.ts'
import { volumeResize } from './volume-resize.ts'

export const xsanProgram = () =>
  program('xsan', 'replicated block storage from ordinary servers', [
    group('cluster', 'make, grow and watch the cluster', [clusterInit, clusterAdd, clusterJoin, clusterStatus, clusterRemove, clusterRecover]),
    group('node', 'the nodes', [nodeList, nodeLocal]),
    group('disk', 'the disks', [diskList]),
    group('volume', 'create, look at and delete volumes', [volumeCreate, volumeList, volumeInfo, volumeResize, volumeDelete]),
    group('export', 'ways to reach the volumes', [exportList]),
    group('config', 'settings', [configValidate, configShow, configSet]),
    group('dev', 'a playground: real nodes on this host', [devUp, devStatus, devKill, devStart, devDown]),
    completion(),
    // For the list of commands only
    new Command('sim').description('whole clusters in one process, with faults, from a seed (xsan sim --help)'),
  ])
