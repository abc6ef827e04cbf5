import { XsanError } from '../../base/errors.ts'
import type { Message } from '../../env/control.ts'
import { number, text } from './service.ts'

const PAGE_SIZE_DEFAULT = 100
const PAGE_SIZE_MAX = 1000

/** One page of a list whose keys rise; the token is the key of the last item given. */
export function page<T>(items: readonly T[], keyOf: (item: T) => number, request: Message): { items: T[]; nextPageToken: string } {
  const size = Math.min(PAGE_SIZE_MAX, number(request, 'pageSize') || PAGE_SIZE_DEFAULT)
  const token = text(request, 'pageToken')
  const after = token === '' ? -1 : Number(token)
  if (!Number.isSafeInteger(after)) throw new XsanError('INVALID_PARAM', `"${token}" is no page token`, 'Begin again without one.')
  const rest = items.filter((item) => keyOf(item) > after)
  const part = rest.slice(0, size)
  return { items: part, nextPageToken: rest.length > size ? String(keyOf(part.at(-1)!)) : '' }
}
