/** What the layers of the data path pass down with a request, whatever the layer. */

/** Told the outcome (a Status) of the caller's request `row`; called exactly once, never inside the call that was given it. */
export type Done = (row: number, status: number) => void

export const WriteFlag = {
  NONE: 0,
  /** Durable on every replica before success, whatever the volume's mode. */
  FUA: 1,
  /** What is zeroed keeps its space, so that writing it again cannot fail for want of some. */
  NO_HOLE: 2,
} as const
