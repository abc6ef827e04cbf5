/**
 * Fixed newstyle negotiation of one connection (proto "Negotiation"), plain async code on a bounded buffer.
 * Every length is checked before it is believed; a peer that sends nonsense or takes too long is refused with a reason.
 */
import { PAGE_BYTES, SECTOR_BYTES } from '../../base/units.ts'
import type { AsyncIo } from '../../env/async-io.ts'
import type { Handle } from '../../env/ioqueue.ts'
import type { OpenVolume, VolumeLayer } from '../../volume/volume.ts'
import {
  HandshakeFlag,
  IHAVEOPT,
  InfoType,
  NBD_MAGIC,
  NbdGreeting,
  NbdInfoBlockSize,
  NbdInfoExport,
  NbdOption,
  NbdOptionReply,
  OPTION_REPLY_MAGIC,
  Option,
  OptionReplyType,
  TransmissionFlag,
} from '../../wire/nbd.ts'

/** Longest option a client may send: a name of at most 4096 bytes (proto "String encoding") and its information requests. */
const OPTION_BYTES_MAX = 8192
const NAME_BYTES_MAX = 4096
/** Options of one negotiation; a client that asks for more is not getting anywhere. */
const OPTIONS_MAX = 64
/** One that has asked for the names may then ask about each (nbdinfo --list does). */
const OPTIONS_PER_VOLUME = 4

export interface Negotiated {
  readonly volume: OpenVolume
  readonly name: string
  readonly structuredReplies: boolean
}

/** Where negotiation may read and write: four pages of the arena from `page` on, the connection's own. */
export interface NegotiationPeer {
  readonly io: AsyncIo
  readonly socket: Handle
  readonly page: number
  /** Set when this connection is one too many: its options are answered with this text. */
  readonly refuse: string | undefined
  /** Largest payload of a request, for NBD_INFO_BLOCK_SIZE. */
  readonly requestBytesMax: number
  /** The client has got the names of `volumes` volumes, and may ask about each: once for a connection. */
  readonly listed: (volumes: number) => void
}

/** The connection cannot go on; `reason` for the log, empty when the client merely left. */
export class NegotiationEnded extends Error {
  override name = 'NegotiationEnded'
}

/** SEND_DF only with structured replies (proto "Transmission flags"). */
export function transmissionFlags(volume: OpenVolume, structuredReplies: boolean): number {
  const f = TransmissionFlag
  const always = f.HAS_FLAGS | f.SEND_FLUSH | f.SEND_FUA | f.SEND_TRIM | f.SEND_WRITE_ZEROES | f.CAN_MULTI_CONN
  return always | (structuredReplies ? f.SEND_DF : 0) | (volume.readOnly ? f.READ_ONLY : 0)
}

export async function negotiate(peer: NegotiationPeer, volumes: VolumeLayer): Promise<Negotiated> {
  const { io, socket, page } = peer
  const { bytes, view } = io.queue.arena
  const inAt = page * PAGE_BYTES
  const outPage = page + 3
  const outAt = outPage * PAGE_BYTES

  const receive = async (lengthBytes: number) => {
    for (let got = 0; got < lengthBytes; ) {
      const n = await io.recv(socket, page, got, lengthBytes - got, true)
      if (n <= 0) throw new NegotiationEnded('')
      got += n
    }
  }
  const send = async (lengthBytes: number) => {
    const result = await io.send(socket, outPage, 0, lengthBytes)
    if (result < 0) throw new NegotiationEnded('')
  }
  const reply = async (option: number, type: number, dataBytes = 0) => {
    NbdOptionReply.encode(view, outAt, { magic: { hi: OPTION_REPLY_MAGIC.high, lo: OPTION_REPLY_MAGIC.low }, option, type, length: dataBytes })
    await send(NbdOptionReply.size + dataBytes)
  }
  const replyText = (option: number, type: number, text: string) => {
    const { written } = new TextEncoder().encodeInto(text, bytes.subarray(outAt + NbdOptionReply.size, outAt + PAGE_BYTES))
    return reply(option, type, written)
  }

  NbdGreeting.encode(view, outAt, {
    magic: { hi: NBD_MAGIC.high, lo: NBD_MAGIC.low },
    optionMagic: { hi: IHAVEOPT.high, lo: IHAVEOPT.low },
    flags: HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES,
  })
  await send(NbdGreeting.size)
  await receive(4)
  const clientFlags = view.getUint32(inAt)
  if ((clientFlags & ~(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)) !== 0)
    throw new NegotiationEnded(`unknown client flags 0x${clientFlags.toString(16)}`)

  let structuredReplies = false
  let optionsMax = OPTIONS_MAX
  for (let n = 0; n < optionsMax; n++) {
    await receive(NbdOption.size)
    if (NbdOption.get.magicHi(view, inAt) !== IHAVEOPT.high || NbdOption.get.magicLo(view, inAt) !== IHAVEOPT.low)
      throw new NegotiationEnded('an option without the magic IHAVEOPT')
    const option = NbdOption.get.option(view, inAt)
    const length = NbdOption.get.length(view, inAt)
    if (length > OPTION_BYTES_MAX) throw new NegotiationEnded(`an option of ${length} bytes (at most ${OPTION_BYTES_MAX})`)
    await receive(length)
    if (peer.refuse !== undefined) {
      // every option is answered so, until the client leaves: closing with unread bytes would reset the connection before it has read why
      if (option === Option.ABORT || option === Option.EXPORT_NAME) throw new NegotiationEnded('')
      await replyText(option, OptionReplyType.ERR_POLICY, peer.refuse)
      continue
    }
    switch (option) {
      case Option.EXPORT_NAME: {
        const name = text(bytes, inAt, length)
        const volume = volumes.open(name)
        if (!volume) throw new NegotiationEnded(`no volume "${name}"`) // this option has no way to say so
        view.setUint32(outAt, Math.floor(volume.sizeBytes / 0x1_0000_0000))
        view.setUint32(outAt + 4, volume.sizeBytes >>> 0)
        view.setUint16(outAt + 8, transmissionFlags(volume, structuredReplies))
        const zeroes = clientFlags & HandshakeFlag.NO_ZEROES ? 0 : 124
        bytes.fill(0, outAt + 10, outAt + 10 + zeroes)
        await send(10 + zeroes)
        return { volume, name, structuredReplies }
      }
      case Option.ABORT:
        await reply(option, OptionReplyType.ACK)
        throw new NegotiationEnded('')
      case Option.LIST:
        if (length !== 0) {
          await reply(option, OptionReplyType.ERR_INVALID)
          break
        }
        if (optionsMax === OPTIONS_MAX) {
          const count = volumes.volumeNames().length
          optionsMax += OPTIONS_PER_VOLUME * count
          peer.listed(count)
        }
        for (const name of volumes.volumeNames()) {
          const { written } = new TextEncoder().encodeInto(name, bytes.subarray(outAt + NbdOptionReply.size + 4, outAt + PAGE_BYTES))
          view.setUint32(outAt + NbdOptionReply.size, written)
          await reply(option, OptionReplyType.SERVER, 4 + written)
        }
        await reply(option, OptionReplyType.ACK)
        break
      case Option.STRUCTURED_REPLY:
        if (length !== 0) {
          await reply(option, OptionReplyType.ERR_INVALID)
          break
        }
        structuredReplies = true
        await reply(option, OptionReplyType.ACK)
        break
      case Option.INFO:
      case Option.GO: {
        const asked = parseInfo(bytes, view, inAt, length)
        if (asked === undefined) {
          await replyText(option, OptionReplyType.ERR_INVALID, 'the lengths inside the option do not add up')
          break
        }
        const volume = volumes.open(asked.name)
        if (!volume) {
          await replyText(option, OptionReplyType.ERR_UNKNOWN, `no volume "${asked.name}"; xsan volume list shows what there is`)
          break
        }
        const at = outAt + NbdOptionReply.size
        NbdInfoExport.encode(view, at, { type: InfoType.EXPORT, size: volume.sizeBytes, flags: transmissionFlags(volume, structuredReplies) })
        await reply(option, OptionReplyType.INFO, NbdInfoExport.size)
        NbdInfoBlockSize.encode(view, at, { type: InfoType.BLOCK_SIZE, minimum: SECTOR_BYTES, preferred: PAGE_BYTES, maximum: peer.requestBytesMax })
        await reply(option, OptionReplyType.INFO, NbdInfoBlockSize.size)
        if (asked.wantsName) {
          view.setUint16(at, InfoType.NAME)
          const { written } = new TextEncoder().encodeInto(asked.name, bytes.subarray(at + 2, outAt + PAGE_BYTES))
          await reply(option, OptionReplyType.INFO, 2 + written)
        }
        await reply(option, OptionReplyType.ACK)
        if (option === Option.GO) return { volume, name: asked.name, structuredReplies }
        break
      }
      default:
        await reply(option, OptionReplyType.ERR_UNSUP)
    }
  }
  throw new NegotiationEnded(`more than ${optionsMax} options`)
}

/** The data of INFO and GO: name length, name, count of information requests, requests (proto "NBD_OPT_INFO"). */
function parseInfo(bytes: Uint8Array, view: DataView, at: number, length: number): { name: string; wantsName: boolean } | undefined {
  if (length < 6) return undefined
  const nameBytes = view.getUint32(at)
  if (nameBytes > NAME_BYTES_MAX || nameBytes > length - 6) return undefined
  const requests = view.getUint16(at + 4 + nameBytes)
  if (length !== 6 + nameBytes + 2 * requests) return undefined
  let wantsName = false
  for (let i = 0; i < requests; i++) if (view.getUint16(at + 6 + nameBytes + 2 * i) === InfoType.NAME) wantsName = true
  return { name: text(bytes, at + 4, nameBytes), wantsName }
}

function text(bytes: Uint8Array, at: number, length: number): string {
  return new TextDecoder().decode(bytes.slice(at, at + length))
}
