//! What must hold whatever comes.

mod common;

use common::{hello_frame, next_key};
use proptest::collection::vec;
use proptest::prelude::*;
use vmgr_agent::flow::{INITIAL, Input, OUTPUT_WINDOW, Output};
use vmgr_agent::frame::{self, HEADER, Header, Kind};
use vmgr_agent::receiver::{FIRST_KEY, Incoming, Patience, Receiver};
use vmgr_agent::{account, launch, task, wire};

/// What came out of a receiver.
#[derive(Debug, Clone, PartialEq)]
enum Found {
    Marker,
    Frame(Header, Vec<u8>),
    Violation,
}

/// Feed the pieces; keys rotate as `common::hello_frame` offers them.
fn receive<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Found> {
    let mut receiver = Receiver::new(FIRST_KEY);
    let mut found = Vec::new();
    let mut take = |receiver: &mut Receiver, patience| loop {
        let one = match receiver.next(patience) {
            None => break,
            Some(Incoming::Marker) => Found::Marker,
            Some(Incoming::Violation(_)) => Found::Violation,
            Some(Incoming::Frame(header, payload)) => Found::Frame(header, payload.to_vec()),
        };
        if let Found::Frame(header, payload) = &one
            && header.kind == Kind::Hello
            && let Ok(hello) = wire::host_hello(payload)
        {
            receiver.set_key(hello.next_key);
        }
        found.push(one);
    };
    for piece in pieces {
        receiver.feed(piece);
        take(&mut receiver, Patience::Hold);
    }
    take(&mut receiver, Patience::Over);
    found
}

/// `bytes` cut at the given places (taken modulo what is left).
fn cut<'a>(bytes: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for place in places {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(1 + place % rest.len());
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

fn data_frame() -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), 0..300), 1..9u32).prop_map(|(payload, channel)| {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, Kind::Data, channel, 0, &payload);
        bytes
    })
}

/// Sessions one after the other, each but the last cut off at some byte.
fn sessions() -> impl Strategy<Value = (Vec<u8>, usize)> {
    vec(
        (vec(data_frame(), 0..5), any::<prop::sample::Index>()),
        1..5,
    )
    .prop_map(|sessions| {
        let mut bytes = Vec::new();
        let mut key = FIRST_KEY;
        let (count, mut complete) = (sessions.len(), 0);
        for (at, (frames, end)) in sessions.into_iter().enumerate() {
            bytes.extend(hello_frame(key, [1; 16]));
            key = next_key(key);
            let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
            let body = frames.concat();
            let end = if at + 1 == count {
                body.len()
            } else {
                end.index(body.len() + 1)
            };
            bytes.extend(&body[..end]);
            let mut so_far = 0;
            complete += lengths
                .into_iter()
                .take_while(|length| {
                    so_far += length;
                    so_far <= end
                })
                .count();
        }
        (bytes, complete)
    })
}

proptest! {
    #[test]
    fn cutting_the_stream_changes_nothing(
        (bytes, complete) in sessions(),
        places in vec(any::<usize>(), 0..60),
    ) {
        let whole = receive(std::iter::once(bytes.as_slice()));
        let pieces = cut(&bytes, &places);
        prop_assert_eq!(&receive(pieces.into_iter()), &whole);
        prop_assert_eq!(&receive(bytes.chunks(1)), &whole);
        let is_data = |f: &&Found| matches!(f, Found::Frame(header, _) if header.kind == Kind::Data);
        prop_assert_eq!(whole.iter().filter(is_data).count(), complete);
        prop_assert!(!whole.contains(&Found::Violation));
    }

    #[test]
    fn no_bytes_do_harm(
        noise in vec(any::<u8>(), 0..2_000),
        places in vec(any::<usize>(), 0..20),
        greets in any::<bool>(),
    ) {
        let mut bytes = if greets { hello_frame(FIRST_KEY, [2; 16]) } else { Vec::new() };
        bytes.extend(&noise);
        let key = if greets { next_key(FIRST_KEY) } else { FIRST_KEY };
        bytes.extend(hello_frame(key, [3; 16]));
        frame::put(&mut bytes, Kind::Ping, 0, 0, b"after");
        let found = receive(cut(&bytes, &places).into_iter());
        // Whatever came before, the marker is found and what follows it is read.
        let is_ping = matches!(found.last(), Some(Found::Frame(_, payload)) if payload == b"after");
        prop_assert!(is_ping, "{found:?}");
    }

    #[test]
    fn a_header_says_what_it_was_made_of(bytes in any::<[u8; HEADER]>()) {
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn no_payload_does_harm(payload in vec(any::<u8>(), 0..500)) {
        let _ = wire::request(&payload);
        let _ = wire::host_hello(&payload);
        let _ = wire::control(&payload);
        let _ = launch::verdict(&payload);
        let _ = task::verdict(&payload);
    }

    #[test]
    fn no_changed_byte_of_a_request_does_harm(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        fields in vec((".{0,8}", any::<i64>()), 0..6),
    ) {
        let mut map: Vec<(&str, rmpv::Value)> = vec![
            ("op", "exec".into()),
            ("argv", rmpv::Value::Array(vec!["sh".into(), rmpv::Value::Binary(vec![0xff])])),
            ("tty", rmpv::Value::Map(vec![("rows".into(), 1.into()), ("cols".into(), 1.into())])),
        ];
        map.extend(fields.iter().map(|(name, value)| (name.as_str(), (*value).into())));
        let mut payload = wire::map(map);
        let at = at.index(payload.len());
        payload[at] = byte;
        let _ = wire::request(&payload);
    }

    #[test]
    fn accounts_are_found_in_any_text(spec in ".{0,20}", passwd in ".{0,200}", group in ".{0,200}") {
        if let Ok(found) = account::resolve(&spec, &passwd, &group) {
            prop_assert!(found.uid != u32::MAX && !found.shell.is_empty() && !found.home.is_empty());
        }
    }
}

/// What may happen to an output.
#[derive(Debug, Clone)]
enum Step {
    Write(usize),
    Send(usize),
    Credit(u64, u64),
    Attach(u64),
    Overflow(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(
        prop_oneof![
            (0..100_000usize).prop_map(Step::Write),
            (0..100_000usize).prop_map(Step::Send),
            (0..400_000u64, 0..400_000u64).prop_map(|(a, l)| Step::Credit(a, l)),
            (0..400_000u64).prop_map(Step::Attach),
            (0..100_000usize).prop_map(Step::Overflow),
        ],
        0..60,
    )
}

/// Byte `offset` of the flow that the model writes.
#[allow(clippy::cast_possible_truncation, reason = "any pattern does")]
fn pattern(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)) as u8
}

proptest! {
    // Each moves megabytes, byte by byte.
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A model consumer: it gets every byte once and in order, from where its channel began, never more
    /// than it has granted; the agent never keeps more than a window.
    #[test]
    fn output_arrives_once_and_in_order(steps in steps()) {
        let mut output = Output::new();
        let (mut written, mut received, mut limit) = (0u64, 0u64, INITIAL);
        for step in steps {
            match step {
                Step::Write(count) => {
                    let count = count.min(output.space());
                    let bytes: Vec<u8> = (written..).take(count).map(pattern).collect();
                    output.push(&bytes);
                    written += count as u64;
                }
                Step::Send(count) => {
                    let count = count.min(output.sendable());
                    let mut bytes = Vec::new();
                    output.send(count, |piece| bytes.extend_from_slice(piece));
                    let expected: Vec<u8> = (received..).take(count).map(pattern).collect();
                    prop_assert_eq!(bytes, expected);
                    received += count as u64;
                    prop_assert!(received <= limit && received <= written);
                }
                Step::Credit(acked, new_limit) => {
                    let valid = output.credit(acked, new_limit).is_ok();
                    if valid {
                        prop_assert!(acked <= received && new_limit >= limit);
                        prop_assert!(new_limit - acked <= OUTPUT_WINDOW);
                        limit = new_limit;
                    }
                }
                Step::Attach(offset) => match output.attach(offset) {
                    Some(from) => {
                        prop_assert!(from >= offset && from <= written);
                        received = from;
                        limit = from + INITIAL;
                    }
                    None => prop_assert!(offset > written),
                },
                // Nobody is attached: the oldest goes, and someone attaches.
                Step::Overflow(count) => {
                    output.make_room(count);
                    let bytes: Vec<u8> = (written..).take(count).map(pattern).collect();
                    output.push(&bytes);
                    written += count as u64;
                    received = output.attach(0).unwrap();
                    limit = received + INITIAL;
                    prop_assert!(written - received <= OUTPUT_WINDOW);
                }
            }
            prop_assert!(output.space() <= usize::try_from(OUTPUT_WINDOW).unwrap());
            prop_assert!(output.dropped() <= written);
        }
    }

    /// A model host that uses all of its credit: what it is granted never falls, never exceeds the
    /// window, and all bytes come out once.
    #[test]
    fn input_is_granted_as_it_is_taken(takes in vec((0..40_000usize, any::<bool>()), 1..60)) {
        let mut input = Input::new();
        let (mut sent, mut limit, mut taken) = (0u64, INITIAL, 0u64);
        for (count, attaches) in takes {
            let room = usize::try_from(limit - sent).unwrap();
            let bytes: Vec<u8> = (sent..).take(room).map(pattern).collect();
            prop_assert!(input.receive(&bytes).is_ok());
            sent = limit;
            let count = count.min(input.front().len());
            let expected: Vec<u8> = (taken..).take(count).map(pattern).collect();
            prop_assert_eq!(&input.front()[..count], expected.as_slice());
            input.wrote(count);
            taken += count as u64;
            if let Some((acked, granted)) = input.credit_due() {
                prop_assert!(acked == taken && granted >= limit && granted - acked <= 1_048_576);
                limit = granted;
            }
            if attaches {
                // The new consumer sends again what was not kept.
                sent = input.attach();
                prop_assert!(sent >= taken);
                limit = sent + INITIAL;
                prop_assert!(limit - taken <= 1_048_576);
            }
        }
    }
}
