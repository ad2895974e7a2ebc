//! The vectors that both halves of the protocol share.

mod common;

use common::hex;
use serde_json::Value as Json;
use vmgr_agent::flow::{Input, OUTPUT_WINDOW, Output};
use vmgr_agent::frame::{self, HEADER, Header, Kind, STDIN, Violation};
use vmgr_agent::receiver::{Incoming, Patience, Receiver};
use vmgr_agent::wire;

fn vectors(name: &str) -> Json {
    let path = format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Json, name: &str) -> &'a Vec<Json> {
    value[name].as_array().unwrap()
}

fn text<'a>(value: &'a Json, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn named(kind: Kind) -> String {
    format!("{kind:?}").to_uppercase()
}

fn header(bytes: &[u8]) -> Result<Header, Violation> {
    Header::decode(bytes.first_chunk().unwrap())
}

#[test]
fn valid_frames_are_read_and_written_the_same() {
    for vector in list(&vectors("frames"), "frames") {
        let bytes = hex(text(vector, "hex"));
        let found = header(&bytes).unwrap();
        let name = text(vector, "name");
        assert_eq!(named(found.kind), text(vector, "type"), "{name}");
        assert_eq!(u64::from(found.flow), vector["flow"], "{name}");
        assert_eq!(u64::from(found.channel), vector["channel"], "{name}");
        let payload = hex(text(vector, "payload"));
        assert_eq!(found.length, payload.len(), "{name}");
        let mut again = Vec::new();
        frame::put(&mut again, found.kind, found.channel, found.flow, &payload);
        assert_eq!(again, bytes, "{name}");
        if found.kind == Kind::Credit {
            let (acked, limit) = frame::credit(&payload);
            assert_eq!(
                (acked.into(), limit.into()),
                (vector["acked"].clone(), vector["limit"].clone())
            );
        }
    }
}

#[test]
fn what_the_host_says_is_understood() {
    for vector in list(&vectors("frames"), "frames") {
        let (name, payload) = (text(vector, "name"), hex(text(vector, "payload")));
        if text(vector, "direction") != "host-to-agent" {
            continue;
        }
        match text(vector, "type") {
            "HELLO" => assert_eq!(wire::host_hello(&payload).unwrap().version, Some(1)),
            "OPEN" => assert!(wire::request(&payload).unwrap().is_ok(), "{name}"),
            "CONTROL" => assert!(wire::control(&payload).is_ok(), "{name}"),
            _ => {}
        }
    }
}

#[test]
fn an_exec_keeps_every_byte() {
    let all = vectors("frames");
    let find = |name| {
        list(&all, "frames")
            .iter()
            .find(|v| text(v, "name") == name)
            .unwrap()
    };
    let payload = hex(text(find("open-exec"), "payload"));
    let Ok(Ok(wire::Request::Exec(exec))) = wire::request(&payload) else {
        panic!("it is an exec")
    };
    assert_eq!(
        exec.argv,
        [b"sh".to_vec(), b"-c".to_vec(), b"echo \xff".to_vec()]
    );
    assert_eq!(exec.env, [b"LANG=C.UTF-8".to_vec()]);
    assert_eq!((exec.stdin, exec.cwd), (true, None));
}

#[test]
fn invalid_frames_are_refused_by_their_header() {
    for vector in list(&vectors("frames"), "invalid") {
        let bytes = hex(text(vector, "hex"));
        assert!(header(&bytes).is_err(), "{}", text(vector, "name"));
    }
}

#[test]
fn invalid_maps_are_refused() {
    for vector in list(&vectors("frames"), "invalid_maps") {
        let bytes = hex(text(vector, "hex"));
        let payload = &bytes[HEADER..];
        let name = text(vector, "name");
        match header(&bytes).unwrap().kind {
            Kind::Open => assert!(wire::request(payload).is_err(), "{name}"),
            Kind::Hello => assert!(wire::host_hello(payload).is_err(), "{name}"),
            // What only the host reads is the host's to test.
            _ => assert_eq!(text(vector, "direction"), "agent-to-host"),
        }
    }
}

#[test]
fn credit_sequences() {
    for sequence in list(&vectors("credit"), "sequences") {
        let name = text(sequence, "name");
        // The giver of stdin's credit is the agent itself: that the host checks it is the host's test.
        if text(sequence, "flow") == "stdin" {
            continue;
        }
        let start = sequence["start"].as_u64().unwrap();
        let mut output = Output::new();
        let mut written = 0;
        let mut push_to = |output: &mut Output, end: u64| {
            while written < end {
                let count = usize::try_from(end - written).unwrap().min(output.space());
                assert!(
                    count > 0,
                    "{name}: the window is enough for what may be sent"
                );
                output.push(&vec![0; count]);
                written += count as u64;
                if written <= start {
                    assert_eq!(output.attach(written), Some(written));
                }
            }
        };
        push_to(&mut output, start);
        assert_eq!(output.attach(start), Some(start));
        let mut sent = start;
        for step in list(sequence, "steps") {
            let ok = step["ok"].as_bool().unwrap();
            if let Some(count) = step["send"].as_u64() {
                if ok {
                    push_to(&mut output, sent + count);
                    let count = usize::try_from(count).unwrap();
                    assert!(output.sendable() >= count, "{name}: {step}");
                    output.send(count, |_| {});
                    sent += count as u64;
                } else {
                    assert_eq!(output.sendable(), 0, "{name}: {step}");
                }
            } else {
                let (acked, limit) = (
                    step["acked"].as_u64().unwrap(),
                    step["limit"].as_u64().unwrap(),
                );
                assert_eq!(output.credit(acked, limit).is_ok(), ok, "{name}: {step}");
            }
        }
        assert!(output.space() <= usize::try_from(OUTPUT_WINDOW).unwrap());
    }
}

#[test]
fn stdin_beyond_its_credit_is_refused() {
    let mut input = Input::new();
    input.receive(&vec![0; 65_536]).unwrap();
    assert!(input.receive(&[0]).is_err());
}

/// Feed `bytes` in pieces of `size`; what came out, as the vectors write it.
fn receive(key: [u8; 16], bytes: &[u8], size: usize) -> Vec<Json> {
    let mut receiver = Receiver::new(key);
    let mut found = Vec::new();
    let mut take = |receiver: &mut Receiver, patience| {
        loop {
            let mut key = None;
            match receiver.next(patience) {
                None => return,
                Some(Incoming::Marker) => found.push(serde_json::json!({"marker": true})),
                Some(Incoming::Violation(_)) => found.push(serde_json::json!({"violation": true})),
                Some(Incoming::Frame(header, payload)) => {
                    if header.kind == Kind::Hello {
                        key = Some(wire::host_hello(payload).unwrap().next_key);
                    }
                    let payload = payload.to_vec();
                    found.push(serde_json::json!({"frame": {
                        "type": named(header.kind), "channel": header.channel,
                        "flow": header.flow, "payload": common::to_hex(&payload),
                    }}));
                }
            }
            if let Some(key) = key {
                receiver.set_key(key);
            }
        }
    };
    for piece in bytes.chunks(size) {
        receiver.feed(piece);
        take(&mut receiver, Patience::Hold);
    }
    take(&mut receiver, Patience::Over);
    found
}

#[test]
fn the_marker_is_found_however_the_stream_is_cut() {
    for stream in list(&vectors("resync"), "agent") {
        let bytes = hex(text(stream, "hex"));
        let key = hex(text(stream, "key")).try_into().unwrap();
        for size in (1..40).chain([bytes.len()]) {
            let found = receive(key, &bytes, size);
            assert_eq!(
                &found,
                list(stream, "expect"),
                "{} by {size}",
                text(stream, "name")
            );
        }
    }
}

#[test]
fn the_beginning_of_a_frame_is_nothing_yet() {
    let start = receive(
        vmgr_agent::receiver::FIRST_KEY,
        &common::hello_frame(vmgr_agent::receiver::FIRST_KEY, [1; 16]),
        1,
    );
    for vector in list(&vectors("frames"), "incomplete") {
        let mut bytes = common::hello_frame(vmgr_agent::receiver::FIRST_KEY, [1; 16]);
        bytes.extend(hex(text(vector, "hex")));
        assert_eq!(
            receive(vmgr_agent::receiver::FIRST_KEY, &bytes, 7),
            start,
            "{}",
            text(vector, "name")
        );
    }
    assert_eq!(STDIN, 0);
}

#[test]
fn what_the_host_says_of_calls_is_understood() {
    for vector in list(&vectors("calls"), "requests") {
        let payload = hex(text(vector, "payload"));
        let understood = wire::request(&payload).unwrap().is_ok();
        assert_eq!(Json::from(understood), vector["ok"], "{}", vector["name"]);
    }
}
