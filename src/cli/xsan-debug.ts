/** `xsan-debug`: what a cluster is made of, for those who look for a fault. */
import { debugBlockLocation } from './debug-block-location.ts'
import { debugClusterStatus } from './debug-cluster-status.ts'
import { debugFlightRecorder } from './debug-flight-recorder.ts'
import { debugPerfStats } from './debug-perf-stats.ts'
import { debugVolumeInfo } from './debug-volume-info.ts'
import { main, program } from './program.ts'

await main(program('xsan-debug', 'look inside a cluster', [debugClusterStatus, debugVolumeInfo, debugBlockLocation, debugPerfStats, debugFlightRecorder]))
