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
  /** Tries given back because the chain had fewer copies than the volume's min_copies. */
  updatesWaitedForCopies = 0
  /** Reads answered here, their payload, and how long they took (sum, ms); reads that waited for a commit. */
  reads = 0
  readBytes = 0
  readMs = 0
  readsWaited = 0
  readsRefused = 0
  /** Kept by a disk that hangs. */
  readsGivenUp = 0
  readsLocal = 0
  readsRemote = 0
  readsRepaired = 0
  /** Pages with a wrong checksum, or lost ones, whose content came from another replica; pages installed as lost. */
  pagesRepaired = 0
  pagesLost = 0
  /** Records sent to successors, with payload bytes; again after a new version or connection; to SYNCING successors. */
  forwards = 0
  forwardBytes = 0
  reforwards = 0
  /** Of the forwards with payload: by its size, up to. */
  forwardsTo4k = 0
  forwardsTo64k = 0
  forwardsTo1m = 0
  syncingForwardBytes = 0
  forwardsReceived = 0
  forwardsRefused = 0
  forwardsWaitedForCredit = 0
  acks = 0
  /** Updates sent to heads on other nodes. */
  remoteUpdates = 0
  clientRetries = 0
  cancels = 0
  /** Writes whose outcome nobody knew in time. */
  updatesUnknown = 0
  flushes = 0
  flushesJoined = 0
  networkBytesSent = 0
  networkBytesReceived = 0
  connectionsRefused = 0
  sessionsStarted = 0
  sessionsLost = 0
  /** Blocks given to returning replicas as their source. */
  syncingReads = 0
  syncingReadBytes = 0
  resyncBytesMoved = 0
  resyncBytesNeeded = 0
  resyncSlotsDone = 0

  /** By the documents' names where they have one; latencies are sums in microseconds. */
  snapshot(): Record<string, number> {
    return {
      network_bytes_sent: this.networkBytesSent,
      network_bytes_recv: this.networkBytesReceived,
      reliable_update: this.updates,
      reliable_update_bytes: this.updateBytes,
      reliable_update_latency_us: Math.round(this.updateMs * 1000),
      reliable_update_cached: this.updatesCached,
      reliable_update_duplicate: this.updatesDuplicate,
      reliable_update_merged: this.updatesMerged,
      reliable_update_merge_restarts: this.mergesRestarted,
      reliable_update_refused: this.updatesRefused,
      reliable_update_expired: this.updatesExpired,
      reliable_update_waited_for_copies: this.updatesWaitedForCopies,
      wait_channel_lock: this.updatesWaitedForChannel,
      update_remote: this.remoteUpdates,
      update_retries: this.clientRetries,
      update_cancels: this.cancels,
      updates_unknown: this.updatesUnknown,
      replica_read: this.reads,
      replica_read_bytes: this.readBytes,
      replica_read_latency_us: Math.round(this.readMs * 1000),
      replica_read_local: this.readsLocal,
      replica_read_remote: this.readsRemote,
      replica_read_waited: this.readsWaited,
      replica_read_refused: this.readsRefused,
      replica_read_given_up: this.readsGivenUp,
      replica_read_repaired: this.readsRepaired,
      replica_pages_repaired: this.pagesRepaired,
      replica_pages_lost: this.pagesLost,
      reliable_forward: this.forwards,
      reliable_forward_again: this.reforwards,
      reliable_forward_received: this.forwardsReceived,
      reliable_forward_refused: this.forwardsRefused,
      reliable_forward_waited_for_credit: this.forwardsWaitedForCredit,
      forward_write_bytes: this.forwardBytes,
      forward_write_to_4k: this.forwardsTo4k,
      forward_write_to_64k: this.forwardsTo64k,
      forward_write_to_1m: this.forwardsTo1m,
      forward_syncing_bytes: this.syncingForwardBytes,
      forward_acks: this.acks,
      syncing_read: this.syncingReads,
      syncing_read_bytes: this.syncingReadBytes,
      syncing_slots_done: this.resyncSlotsDone,
      syncing_moved_bytes: this.resyncBytesMoved,
      syncing_needed_bytes: this.resyncBytesNeeded,
      flush_rounds: this.flushes,
      flush_joined: this.flushesJoined,
      peer_sessions_started: this.sessionsStarted,
      peer_sessions_lost: this.sessionsLost,
      peer_connections_refused: this.connectionsRefused,
    }
  }
}
