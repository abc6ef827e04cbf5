/** The one table from the data path's Status to NBD error numbers. */
import { Status } from '../../base/status.ts'
import { NbdErrno } from '../../wire/nbd.ts'

export function nbdErrno(status: number): number {
  switch (status) {
    case Status.SUCCESS:
      return NbdErrno.OK
    case Status.INSUFFICIENT_SPACE:
      return NbdErrno.ENOSPC
    case Status.INVALID_PARAM:
    case Status.REQUEST_TOO_LARGE:
      return NbdErrno.EINVAL
    case Status.READ_ONLY:
    case Status.PERMISSION_DENIED:
      return NbdErrno.EPERM
    case Status.NOT_SUPPORTED:
      return NbdErrno.ENOTSUP
    case Status.NOMEM:
    case Status.NO_BUFFER:
      return NbdErrno.ENOMEM
    case Status.STOPPING:
    case Status.VOLUME_NOT_FOUND:
      return NbdErrno.ESHUTDOWN
    default:
      return NbdErrno.EIO
  }
}
