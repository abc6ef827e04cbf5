/** What the chain layer of one reactor counts (checklist 0.14-0.16, 0.28, 0.36, 4.19): plain numbers, summed up by whoever reads them. */
export class Counters {
  /** Updates of clients ordered here, their payload, and how long they took from receipt to answer (sum, ms). */
  updates = 0
  updateBytes = 0
  updateMs = 0
  /** Updates answered without ordering: known from the channel row, refused as old, waited for their channel. */
  updatesCached = 0
  updatesDuplicate = 0
  updatesWaitedForChannel = 0
  updatesMerged = 0
  mergesRestarted = 0
  updatesRefused = 0
  updatesExpired = 0
  /** Reads answered here, their payload, and how long they took (sum, ms); reads that waited for a commit. */
  reads = 0
  readBytes = 0
  readMs = 0
  readsWaited = 0
  readsRefused = 0
  readsLocal = 0
  readsRemote = 0
  readsRepaired = 0
  /** Records sent to successors, with payload bytes; again after a new version or connection; to SYNCING successors. */
  forwards = 0
  forwardBytes = 0
  reforwards = 0
  syncingForwardBytes = 0
  forwardsReceived = 0
  forwardsRefused = 0
  forwardsWaitedForCredit = 0
  acks = 0
  /** Updates sent to heads on other nodes. */
  remoteUpdates = 0
  clientRetries = 0
  cancels = 0
  flushes = 0
  flushesJoined = 0
  networkBytesSent = 0
  networkBytesReceived = 0
  connectionsRefused = 0
  sessionsStarted = 0
  sessionsLost = 0
  resyncBytesMoved = 0
  resyncBytesNeeded = 0
  resyncSlotsDone = 0

  snapshot(): Record<string, number> {
    return { ...this } as unknown as Record<string, number>
  }
}
