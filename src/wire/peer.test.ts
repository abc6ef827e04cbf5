import assert from 'node:assert/strict'
import test from 'node:test'
import {
  Ack,
  Forward,
  FRAME_BYTES,
  FrameHeader,
  frameInvalid,
  frameName,
  HEAD_BYTES_MAX,
  Hello,
  PAYLOAD_BYTES_MAX,
  PeerFrame,
  paddedText,
  putFrame,
  textOf,
} from './peer.ts'

const view = new DataView(new ArrayBuffer(4096))

test('every frame type passes with the head it needs, and with no other', () => {
  for (const type of Object.values(PeerFrame)) {
    const heads: number[] = []
    for (let headBytes = 0; headBytes < 400; headBytes++) {
      putFrame(view, 0, type, headBytes, 0)
      if (frameInvalid(view, 0) === null) heads.push(headBytes)
    }
    assert.ok(heads.length >= 1, `${frameName(type)} has a head`)
    assert.ok(heads[0]! >= FRAME_BYTES)
  }
  putFrame(view, 0, PeerFrame.ACKS, FRAME_BYTES + 3 * Ack.size, 0)
  assert.equal(frameInvalid(view, 0), null)
  putFrame(view, 0, PeerFrame.ACKS, FRAME_BYTES + 3 * Ack.size + 1, 0)
  assert.match(frameInvalid(view, 0)!, /head of 65 bytes/)
})

test('lengths above the limits, unknown types and versions, and other protocols are refused with the reason', () => {
  putFrame(view, 0, PeerFrame.FORWARD, FRAME_BYTES + Forward.size, PAYLOAD_BYTES_MAX)
  assert.equal(frameInvalid(view, 0), null)
  putFrame(view, 0, PeerFrame.FORWARD, FRAME_BYTES + Forward.size, PAYLOAD_BYTES_MAX + 1)
  assert.match(frameInvalid(view, 0)!, /payload of/)
  putFrame(view, 0, PeerFrame.HELLO, FRAME_BYTES + Hello.size, 1)
  assert.match(frameInvalid(view, 0)!, /payload of 1 bytes/)
  putFrame(view, 0, PeerFrame.CALL, HEAD_BYTES_MAX + 1, 0)
  assert.match(frameInvalid(view, 0)!, /head of/)
  putFrame(view, 0, 99 as PeerFrame, FRAME_BYTES, 0)
  assert.match(frameInvalid(view, 0)!, /unknown/)
  putFrame(view, 0, PeerFrame.WELCOME, FRAME_BYTES, 0)
  FrameHeader.set.version(view, 0, 2)
  assert.match(frameInvalid(view, 0)!, /version 2/)
  FrameHeader.set.magic(view, 0, 0x4854)
  assert.match(frameInvalid(view, 0)!, /not an XSAN data frame/)
})

test('padded text comes back, cut at its field', () => {
  assert.equal(textOf(paddedText('cluster', 64)), 'cluster')
  assert.equal(textOf(paddedText('x'.repeat(80), 64)).length, 64)
})
