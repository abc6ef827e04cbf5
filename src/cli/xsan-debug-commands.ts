/** `xsan-debug`: what a cluster is made of, for those who look for a fault; as a tree (see xsan-commands.ts). */

import { completion } from './completion.ts'
import { debugBlockLocation } from './debug-block-location.ts'
import { debugClusterStatus } from './debug-cluster-status.ts'
import { debugFlightRecorder } from './debug-flight-recorder.ts'
import { debugPerfStats } from './debug-perf-stats.ts'
import { debugVolumeInfo } from './debug-volume-info.ts'
import { program } from './program.ts'

export const xsanDebugProgram = () =>
  program('xsan-debug', 'look inside a cluster', [debugClusterStatus, debugVolumeInfo, debugBlockLocation, debugPerfStats, debugFlightRecorder, completion()])
