/**
 * Request tables of the hot path: a fixed number of rows, one typed array per column, LIFO free list, generations.
 * A freed row comes back with the next generation, so that a late completion that names (row, generation) is told apart.
 *
 *   const writes = columns('write', WRITES_MAX, { connection: i32, lengthBytes: i32, offsetBytes: f64 })
 *   const w = writes.alloc(); writes.lengthBytes[w] = 4096; writes.free(w)
 *
 * `alloc` returns -1 when the table is full: every queue has a named maximum and the caller must have a plan.
 */
import { assert } from './assert.ts'

export const i32 = (n: number) => new Int32Array(n)
export const u32 = (n: number) => new Uint32Array(n)
export const u8 = (n: number) => new Uint8Array(n)
/** Integers up to 2^53 (byte offsets, sequence numbers, times in ms). */
export const f64 = (n: number) => new Float64Array(n)

type ColumnMaker = (n: number) => Int32Array | Uint32Array | Uint8Array | Float64Array
type Cols<S extends Record<string, ColumnMaker>> = { readonly [K in keyof S]: ReturnType<S[K]> }

export interface Rows {
  readonly tableName: string
  readonly rowsMax: number
  /** Rows in use. */
  inUse: number
  /** Generation of each row, changed at each free. */
  readonly generation: Int32Array
  /** A row in use from now on, or -1 when all are. Columns keep what the last owner left. */
  alloc(): number
  free(row: number): void
  isUsed(row: number): boolean
}

export function columns<S extends Record<string, ColumnMaker>>(tableName: string, rowsMax: number, spec: S): Cols<S> & Rows {
  const generation = new Int32Array(rowsMax)
  const freeRows = new Int32Array(rowsMax)
  const used = new Uint8Array(rowsMax)
  for (let i = 0; i < rowsMax; i++) freeRows[i] = rowsMax - 1 - i
  const rows: Rows = {
    tableName,
    rowsMax,
    inUse: 0,
    generation,
    alloc(): number {
      const n = rowsMax - table.inUse
      if (n === 0) return -1
      const row = freeRows[n - 1]!
      used[row] = 1
      table.inUse++
      return row
    },
    free(row: number): void {
      if (used[row] !== 1) assert(false, `${tableName}: row ${row} freed twice`)
      used[row] = 0
      generation[row] = (generation[row]! + 1) | 0
      table.inUse--
      freeRows[rowsMax - table.inUse - 1] = row
    },
    isUsed(row: number): boolean {
      return used[row] === 1
    },
  }
  const names = Object.keys(spec)
  for (const name of names) {
    assert(/^[A-Za-z_][A-Za-z0-9_]*$/.test(name), `${tableName}: "${name}" cannot name a column`)
    assert(!(name in rows), `${tableName}: column name ${name} is taken`)
  }
  // one literal: properties added one by one would turn the object into a dictionary, and each access into a look-up
  const fields = [...Object.keys(rows).map((name) => `${name}: rows.${name}`), ...names.map((name, i) => `${name}: columns[${i}]`)]
  const make = new Function('rows', 'columns', `'use strict'; return { ${fields.join(', ')} }`)
  const table: Cols<S> & Rows = make(
    rows,
    names.map((name) => spec[name]!(rowsMax)),
  )
  return table
}
