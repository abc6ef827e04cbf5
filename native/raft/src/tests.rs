use super::*;

const COMMAND: &[u8] = b"command";

fn options(id: u64, voters: &[u64]) -> Options {
    Options {
        id,
        election_ticks_min: 10,
        election_ticks_max: 20,
        heartbeat_ticks: 2,
        random: 1 << 31,
        applied: 1,
        term: 1,
        vote: 0,
        commit: 1,
        members: Members { voters: voters.to_vec(), ..Members::default() },
        truncated_index: 1,
        truncated_term: 1,
        records: Vec::new(),
        message_bytes_max: 1 << 20,
        inflight_messages_max: 64,
        uncommitted_bytes_max: 1 << 26,
        committed_bytes_max: 1 << 22,
    }
}

/// Handles readies until there are none; returns records, messages and commands.
fn run(core: &mut RaftCore) -> (Vec<LogRecord>, Vec<Outgoing>, Vec<Vec<u8>>) {
    let (mut records, mut messages, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    while core.has_ready().unwrap() {
        let ready = core.ready().unwrap();
        records.extend(ready.entries);
        messages.extend(ready.messages);
        messages.extend(ready.persisted_messages);
        let light = core.advance().unwrap();
        messages.extend(light.messages);
        for entry in ready.committed.into_iter().chain(light.committed) {
            if entry.is_members {
                core.apply_members(&entry.data).unwrap();
            } else if !entry.data.is_empty() {
                commands.push(entry.data);
            }
        }
        core.advance_apply().unwrap();
    }
    (records, messages, commands)
}

fn exchange(cores: &mut [RaftCore]) -> Vec<Vec<u8>> {
    let mut commands = Vec::new();
    loop {
        let mut quiet = true;
        for from in 0..cores.len() {
            let (_, messages, applied) = run(&mut cores[from]);
            commands.extend(applied);
            for message in messages {
                quiet = false;
                cores[message.to as usize - 1].step(from as u64 + 1, &message.bytes, 0).unwrap();
            }
        }
        if quiet {
            return commands;
        }
    }
}

#[test]
fn three_cores_elect_and_commit() {
    let mut cores: Vec<RaftCore> = (1..=3).map(|id| RaftCore::new(&options(id, &[1, 2, 3])).unwrap()).collect();
    cores[0].campaign(0).unwrap();
    exchange(&mut cores);
    assert_eq!(cores[0].status().role, 2);
    let position = cores[0].propose(COMMAND.to_vec()).unwrap().unwrap();
    assert_eq!(position, Position { index: 3, term: 2 });
    assert_eq!(exchange(&mut cores), vec![COMMAND.to_vec(); 3]);
    assert!(cores[1].propose(COMMAND.to_vec()).unwrap().is_none());
}

#[test]
fn the_election_timeout_comes_from_the_caller() {
    let timeout = |core: &RaftCore| core.raw.raft.randomized_election_timeout();
    let mut core = RaftCore::new(&options(1, &[1, 2, 3])).unwrap();
    assert_eq!(timeout(&core), 15);
    for _ in 0..14 {
        core.tick(u32::MAX).unwrap();
        assert_eq!(timeout(&core), 15);
    }
    // The pre-vote draws nothing, whatever the crate did.
    core.tick(u32::MAX).unwrap();
    assert_eq!(core.status().role, 3);
    core.drop_leader(u32::MAX).unwrap();
    assert_eq!(timeout(&core), 19);
    core.drop_leader(0).unwrap();
    assert_eq!(timeout(&core), 10);
}

#[test]
fn records_load_again_and_damaged_ones_do_not() {
    let mut core = RaftCore::new(&options(1, &[1])).unwrap();
    core.campaign(0).unwrap();
    let (mut records, _, _) = run(&mut core);
    core.propose(COMMAND.to_vec()).unwrap();
    records.extend(run(&mut core).0);
    let stored = || Options {
        term: 2,
        vote: 1,
        commit: 3,
        applied: 2,
        records: records.iter().map(|r| r.record.clone()).collect(),
        ..options(1, &[1])
    };
    let mut again = RaftCore::new(&stored()).unwrap();
    assert_eq!(run(&mut again).2, vec![COMMAND.to_vec()]);

    let refused = |options: Options| match RaftCore::new(&options) {
        Err(Error::Damaged(text)) => text,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted"),
    };
    let mut flipped = stored();
    flipped.records[1][6] ^= 1;
    assert!(refused(flipped).starts_with("entry 3: checksum"));
    let mut short = stored();
    short.records[0].truncate(3);
    assert!(refused(short).contains("too few"));
    let mut swapped = stored();
    swapped.records.swap(0, 1);
    assert!(refused(swapped).contains("holds index 3"));
    assert!(refused(Options { commit: 4, ..stored() }).contains("commit index 4"));
    assert!(refused(Options { applied: 4, ..stored() }).contains("applied index 4"));
    assert!(refused(Options { term: 1, ..stored() }).contains("has term 2"));
}

#[test]
fn a_panic_of_the_crate_is_an_error_for_good() {
    let mut core = RaftCore::new(&options(1, &[1, 2, 3])).unwrap();
    // A leader that knows more committed than this log holds: this log lost entries.
    let mut heartbeat = Message { from: 2, to: 1, term: 3, commit: 99, ..Message::default() };
    heartbeat.set_msg_type(MessageType::MsgHeartbeat);
    let first = core.step(2, &seal(&heartbeat), 0).unwrap_err();
    assert!(matches!(first, Error::Broken(_)), "{first}");
    assert!(matches!(core.tick(0), Err(Error::Broken(_))));
}

#[test]
fn what_is_no_message_for_this_node_is_refused() {
    let mut core = RaftCore::new(&options(1, &[1, 2, 3])).unwrap();
    let refused = |core: &mut RaftCore, bytes: &[u8]| matches!(core.step(2, bytes, 0), Err(Error::Refused(_)));
    assert!(refused(&mut core, b""));
    assert!(refused(&mut core, &[0; 40]));
    let message = |from, to, kind| {
        let mut message = Message { from, to, term: 1, ..Message::default() };
        message.set_msg_type(kind);
        message
    };
    assert!(refused(&mut core, &seal(&message(3, 1, MessageType::MsgHeartbeat))));
    assert!(refused(&mut core, &seal(&message(2, 3, MessageType::MsgHeartbeat))));
    for kind in
        [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgCheckQuorum, MessageType::MsgReadIndex, MessageType::MsgSnapshot]
    {
        assert!(refused(&mut core, &seal(&message(2, 1, kind))), "{kind:?}");
    }
    let mut gap = message(2, 1, MessageType::MsgAppend);
    gap.index = 1;
    gap.entries = vec![Entry { index: 3, term: 1, ..Entry::default() }];
    assert!(refused(&mut core, &seal(&gap)));
    assert!(core.step(2, &seal(&message(2, 1, MessageType::MsgHeartbeat)), 0).is_ok());
}

/// To the crate, term 0 is "from this node itself": it would compare no terms, and a leader of no term would append, commit, and hand over.
#[test]
fn a_message_without_a_term_does_not_come_from_a_peer() {
    let mut core = RaftCore::new(&options(1, &[1, 2, 3])).unwrap();
    let without = |kind| {
        let mut message = Message { from: 2, to: 1, ..Message::default() };
        message.set_msg_type(kind);
        message
    };
    let mut snapshot = without(MessageType::MsgSnapshot);
    snapshot.mut_snapshot().mut_metadata().index = 9;
    let mut append = without(MessageType::MsgAppend);
    append.index = 1;
    append.log_term = 1;
    append.commit = 2;
    append.entries = vec![Entry { index: 2, term: 1, data: COMMAND.to_vec(), ..Entry::default() }];
    for message in [
        append,
        snapshot,
        without(MessageType::MsgTimeoutNow),
        without(MessageType::MsgHeartbeat),
        without(MessageType::MsgRequestVote),
        without(MessageType::MsgRequestPreVote),
        without(MessageType::MsgAppendResponse),
        without(MessageType::MsgHeartbeatResponse),
        without(MessageType::MsgRequestVoteResponse),
        without(MessageType::MsgRequestPreVoteResponse),
        without(MessageType::MsgReadIndexResp),
    ] {
        let kind = message.get_msg_type();
        assert!(matches!(core.step(2, &seal(&message), 0), Err(Error::Refused(_))), "{kind:?}");
    }
    assert_eq!(run(&mut core).0.len(), 0);
    assert_eq!((core.status().role, core.status().last_index, core.status().commit), (0, 1, 1));
    // the one kind that a follower sends without: it reads only
    let mut read = without(MessageType::MsgReadIndex);
    read.entries = vec![Entry { data: b"context".to_vec(), ..Entry::default() }];
    assert!(core.step(2, &seal(&read), 0).is_ok());
    read.term = 7;
    assert!(matches!(core.step(2, &seal(&read), 0), Err(Error::Refused(_))));
}

#[test]
fn entries_of_impossible_terms_are_refused() {
    let mut core = RaftCore::new(&options(1, &[1, 2, 3])).unwrap();
    let step = |core: &mut RaftCore, terms: &[u64]| {
        let mut message = Message { from: 2, to: 1, term: 3, index: 1, log_term: 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.entries = (2..).zip(terms).map(|(index, &term)| Entry { index, term, ..Entry::default() }).collect();
        core.step(2, &seal(&message), 0)
    };
    assert!(matches!(step(&mut core, &[4]), Err(Error::Refused(_))));
    assert!(matches!(step(&mut core, &[0]), Err(Error::Refused(_))));
    assert!(matches!(step(&mut core, &[3, 2]), Err(Error::Refused(_))));
    assert!(step(&mut core, &[2, 3]).is_ok());
    assert_eq!(run(&mut core).0.len(), 2);
    let mut last = Message { from: 2, to: 1, term: 3, index: u64::MAX, log_term: 3, ..Message::default() };
    last.set_msg_type(MessageType::MsgAppend);
    last.entries = vec![Entry { term: 3, ..Entry::default() }];
    assert!(matches!(core.step(2, &seal(&last), 0), Err(Error::Refused(_))));
}

#[test]
fn calls_out_of_order_are_refused() {
    let mut core = RaftCore::new(&options(1, &[1])).unwrap();
    assert!(matches!(core.advance(), Err(Error::Misuse(_))));
    core.campaign(0).unwrap();
    core.ready().unwrap();
    assert!(matches!(core.tick(0), Err(Error::Misuse(_))));
    assert!(matches!(core.ready(), Err(Error::Misuse(_))));
    core.advance().unwrap();
    assert!(matches!(core.has_ready(), Err(Error::Misuse(_))));
    core.advance_apply().unwrap();
    assert!(matches!(core.compact(99), Err(Error::Misuse(_))));
}

#[test]
fn compaction_keeps_the_count_of_bytes() {
    let mut core = RaftCore::new(&options(1, &[1])).unwrap();
    core.campaign(0).unwrap();
    for _ in 0..10 {
        core.propose(COMMAND.to_vec()).unwrap();
        run(&mut core);
    }
    assert_eq!(core.log_bytes(), 70);
    assert_eq!(core.compact(7).unwrap(), Position { index: 7, term: 2 });
    assert_eq!(core.log_bytes(), 35);
    assert_eq!((core.status().first_index, core.status().last_index), (8, 12));
}
