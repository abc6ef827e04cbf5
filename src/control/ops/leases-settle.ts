import type { Operation } from './operation.ts'

/**
 * No lease is out any more that was granted for longer than the registered processes would: the leader has led for longer than any could last, and takes part
 * in that itself. From now on a new leader waits no longer than the longest of those.
 */
export const leasesSettle: Operation<Record<string, never>, { leaseMsMax: number }> = {
  feature: 2,
  apply(state) {
    const longestMs = state.longestRegisteredLeaseMs
    if (longestMs !== undefined) state.settleLeases(longestMs)
    return { leaseMsMax: state.leaseMsMax }
  },
}
