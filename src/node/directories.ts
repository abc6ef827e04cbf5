/** Making directories, with an error that names what is wrong. */
import { accessSync, constants, mkdirSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { messageOf, XsanError } from '../base/errors.ts'

/**
 * Makes `path` and its parents; it can be written to when this returns. Throws INVALID_PARAM, calling it `what`.
 * Returns those that were not there before, the outermost first.
 * One by one: `mkdirSync` of Node with `recursive` goes round in circles where a parent exists and takes no directories (/proc).
 */
export function makeDirectory(path: string, what: string): string[] {
  try {
    const made = make(path)
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK)
    return made
  } catch (error) {
    throw new XsanError('INVALID_PARAM', `${what}, ${path}, cannot be used: ${messageOf(error)}`, 'Name a directory that this user may write to.', {
      cause: error,
    })
  }
}

function make(path: string): string[] {
  const found = statSync(path, { throwIfNoEntry: false })
  if (found?.isDirectory()) return []
  if (found !== undefined) throw new Error('it is not a directory')
  const above = dirname(path) === path ? [] : make(dirname(path))
  try {
    mkdirSync(path, { mode: 0o750 })
    return [...above, path]
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    return above
  }
}
