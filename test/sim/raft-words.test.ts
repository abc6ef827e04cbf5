/** What counts as said in Raft too early; that honest nodes never do so is the matter of every run. */
import assert from 'node:assert/strict'
import test from 'node:test'
import { brokenWord } from './raft-words.ts'

const stored = { node: 1, term: 5, vote: 2, truncated: { index: 10 }, members: { voters: [1, 2, 3], votersOutgoing: [] } }
const why = (message: Readonly<Record<number, number>>, { voters }: { readonly voters: readonly number[] } = stored.members) =>
  brokenWord(
    new Map(Object.entries(message).map(([field, value]) => [Number(field), value])),
    { ...stored, members: { voters, votersOutgoing: [] } },
    (index) => index <= 12,
  )

test('terms, votes and acknowledged entries have to be stored when they are told', () => {
  assert.match(why({ 1: 9, 2: 3, 4: 6 }), /of term 6, and term 5 is stored/)
  assert.match(why({ 1: 4, 2: 3, 4: 5, 6: 13 }), /entry 13 is acknowledged/)
  assert.match(why({ 1: 5, 2: 3, 4: 5 }), /a vote for node 1 in term 5, and one for node 2 is stored/)
  assert.match(why({ 1: 6, 2: 3, 4: 5 }), /a vote for node 3 in term 5/)
})

test('what is stored may be told, and refusals, what would be, and what was said in an earlier term', () => {
  assert.equal(why({ 1: 4, 2: 3, 4: 5, 6: 12 }), '')
  assert.equal(why({ 1: 6, 2: 2, 4: 5 }), '')
  assert.equal(why({ 1: 6, 2: 3, 4: 5, 10: 1 }), '')
  assert.equal(why({ 1: 17, 2: 3, 4: 6 }), '')
  assert.match(why({ 1: 3, 2: 3, 4: 6 }), /of term 6/)
  assert.equal(why({ 1: 3, 2: 3, 4: 6 }, { voters: [1] }), '', 'nobody else can lead in that term')
  assert.equal(why({ 1: 4, 2: 3, 4: 4, 6: 13 }), '')
})
