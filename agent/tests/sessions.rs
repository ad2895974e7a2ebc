//! Hosts that come and go, limits and refusals, on the agent's real binary.

mod common;

use std::io::Write;

use common::{Agent, Done, error_code, field, hello_frame, map, next_key, numbers, take, user};
use rmpv::Value;
use vmgr_agent::frame::{self, Kind, STDERR, STDIN};
use vmgr_agent::receiver::FIRST_KEY;
fn size(rows: u64, cols: u64) -> Value {
    Value::Map(vec![
        ("rows".into(), rows.into()),
        ("cols".into(), cols.into()),
    ])
}

fn stdin() -> Vec<(&'static str, Value)> {
    vec![("stdin", true.into())]
}

fn lines(done: &Done) -> Vec<&str> {
    std::str::from_utf8(&done.stdout).unwrap().lines().collect()
}

// -- hosts that come and go ---------------------------------------------------------------------------

#[test]
fn jobs_outlive_their_host() {
    let agent = Agent::start();
    let mut host = agent.host();
    assert_eq!(field(&host.hello, "version"), Value::from(1));
    let (channel, job) = host.job("seq 1 20000; read x; echo \"got $x\"", stdin());
    take(&mut host, channel, 65_536);
    drop(host);
    let mut host = agent.host_with(next_key(FIRST_KEY));
    let jobs = field(&host.hello, "jobs");
    assert_eq!(field(&jobs.as_array().unwrap()[0], "job"), Value::from(job));
    let channel = host.attach(job, 65_536);
    assert_eq!(
        field(&host.next_of(channel).map(), "stdout_from"),
        Value::from(65_536)
    );
    host.send(Kind::Data, channel, STDIN, b"word\n");
    let done = host.finish_from(channel, 65_536);
    let expected = numbers();
    assert_eq!(done.stdout, [&expected[65_536..], b"got word\n"].concat());
}

#[test]
fn a_host_that_is_cut_anywhere_leaves_nothing_behind() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("exec cat", stdin());
    // A whole DATA frame, and one that is cut after `cut` bytes.
    let mut bytes = Vec::new();
    frame::put(&mut bytes, Kind::Data, channel, STDIN, b"0123456789");
    let mut key = FIRST_KEY;
    let mut received = 0;
    let mut current = (host, channel);
    for cut in 0..bytes.len() {
        let (mut host, _) = current;
        host.write(&bytes[..cut]);
        drop(host);
        key = next_key(key);
        let mut host = agent.host_with(key);
        let channel = host.attach(job, received);
        let opened = host.next_of(channel);
        assert_eq!(
            field(&opened.map(), "stdin_received"),
            Value::from(received),
            "cut at {cut}"
        );
        // The same frame again, whole: the bytes arrive once.
        bytes.clear();
        frame::put(&mut bytes, Kind::Data, channel, STDIN, b"0123456789");
        host.write(&bytes);
        assert_eq!(take(&mut host, channel, 10), b"0123456789");
        received += 10;
        current = (host, channel);
    }
}

#[test]
fn a_marker_in_the_same_stream_begins_anew() {
    // As when a VMM goes on with one byte stream although the helper behind it was replaced.
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("exec cat", stdin());
    let mut cut = Vec::new();
    frame::put(&mut cut, Kind::Data, channel, STDIN, b"never arrives");
    host.write(&cut[..cut.len() - 3]);
    host.greet(next_key(FIRST_KEY));
    let channel = host.attach(job, 0);
    let opened = host.next_of(channel).map();
    assert_eq!(field(&opened, "stdin_received"), Value::from(0));
    host.send(Kind::Data, channel, STDIN, b"arrives");
    assert_eq!(take(&mut host, channel, 7), b"arrives");
}

#[test]
fn a_frame_that_ends_like_a_marker_begins_is_not_lost() {
    let agent = Agent::start();
    let mut host = agent.host();
    let key = next_key(FIRST_KEY);
    let (channel, _) = host.job("exec cat", stdin());
    host.send(Kind::Data, channel, STDIN, &key[..5]);
    assert_eq!(take(&mut host, channel, 5), key[..5]);
}

#[test]
fn an_old_key_opens_nothing() {
    let agent = Agent::start();
    drop(agent.host());
    let mut host = agent.silent_host();
    host.write(&hello_frame(FIRST_KEY, [7; 16]));
    // Then the right one: its nonce is the first that is answered.
    host.greet(next_key(FIRST_KEY));
    assert_eq!(host.settle(), []);
}

#[test]
fn a_host_without_a_common_version_is_told_so() {
    let agent = Agent::start();
    let mut host = agent.silent_host();
    let mut bytes = FIRST_KEY.to_vec();
    let payload = map(vec![
        ("versions", Value::Array(vec![99.into()])),
        ("nonce", Value::Binary(vec![3; 16])),
        ("next_key", Value::Binary(vec![4; 16])),
    ]);
    frame::put(&mut bytes, Kind::Hello, 0, 0, &payload);
    frame::put(&mut bytes, Kind::Ping, 0, 0, b"unanswered");
    host.write(&bytes);
    let mut expected = vec![3; 16];
    frame::put(
        &mut expected,
        Kind::Hello,
        0,
        0,
        &map(vec![("version", 0.into())]),
    );
    let mut found = vec![0; expected.len()];
    std::io::Read::read_exact(&mut host.stream, &mut found).unwrap();
    assert_eq!(found, expected);
    // The key has not changed, since no HELLO was accepted.
    host.greet(FIRST_KEY);
    assert_eq!(host.settle(), []);
}

#[test]
fn a_host_that_breaks_the_protocol_is_dropped_and_may_begin_anew() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (_, job) = host.job("exec sleep 1000", vec![]);
    let mut key = FIRST_KEY;
    let frames: [fn(&mut Vec<u8>); 6] = [
        |bytes| bytes.extend([0xff; 12]),
        |bytes| frame::put(bytes, Kind::Open, 77, 0, b"\xc1"),
        |bytes| frame::put(bytes, Kind::Opened, 77, 0, b"\x80"),
        |bytes| frame::put(bytes, Kind::Data, 77, STDERR, b"x"),
        |bytes| frame::put(bytes, Kind::Hello, 0, 0, b"\x80"),
        |bytes| frame::put_credit(bytes, 77, STDIN, 0, 0),
    ];
    for put in frames {
        let mut bytes = Vec::new();
        put(&mut bytes);
        frame::put(&mut bytes, Kind::Ping, 0, 0, b"unanswered");
        host.write(&bytes);
        key = next_key(key);
        host.greet(key);
        assert_eq!(host.settle(), []);
    }
    let jobs = field(&host.hello, "jobs");
    assert_eq!(field(&jobs.as_array().unwrap()[0], "job"), Value::from(job));
}

// -- the rest -----------------------------------------------------------------------------------------

#[test]
fn limits_are_told() {
    let agent = Agent::start();
    let mut host = agent.host();
    let mut answers = Vec::new();
    for _ in 0..257 {
        let channel = host.exec(&["sleep", "1000"], vec![]);
        answers.push(host.next_of(channel));
    }
    assert!(
        answers[..256]
            .iter()
            .all(|frame| frame.kind == Kind::Opened)
    );
    assert_eq!(error_code(&answers[256]), "too-many-jobs");
    let jobs = field(&host.ask(vec![("op", "jobs".into())]).map(), "jobs");
    assert_eq!(jobs.as_array().unwrap().len(), 256);
}

#[test]
fn unknown_requests_are_refused() {
    let agent = Agent::start();
    let mut host = agent.host();
    assert_eq!(
        error_code(&host.ask(vec![("op", "later".into())])),
        "unknown-operation"
    );
    assert_eq!(
        error_code(&host.ask(vec![("op", "exec".into())])),
        "invalid"
    );
    assert_eq!(
        error_code(&host.ask(vec![
            ("op", "signal".into()),
            ("job", 1.into()),
            ("signal", 65.into())
        ])),
        "invalid"
    );
    let refused = host.ask(vec![("op", "poweroff".into()), ("grace_ms", 1.into())]);
    assert_eq!(error_code(&refused), "unsupported");
    assert_eq!(
        host.ask(vec![("op", "sync".into())]).map(),
        Value::Map(vec![])
    );
}

#[test]
fn a_ping_is_answered_with_its_own_bytes() {
    let agent = Agent::start();
    let mut host = agent.host();
    host.send(Kind::Ping, 0, 0, &[9; 64]);
    let frame = host.next();
    assert_eq!((frame.kind, frame.payload), (Kind::Pong, vec![9; 64]));
}

#[test]
fn a_host_that_reads_nothing_cannot_fill_the_agents_memory() {
    let agent = Agent::start();
    let mut host = agent.host();
    let rss = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = rss();
    // 32 MiB of answers are asked for: the agent stops reading when about 1 MiB of them wait.
    let timeout = std::time::Duration::from_secs(1);
    host.stream.set_write_timeout(Some(timeout)).unwrap();
    let mut pings = Vec::new();
    while pings.len() < 32 << 20 {
        frame::put(&mut pings, Kind::Ping, 0, 0, &[1; 64]);
    }
    assert!(host.stream.write_all(&pings).is_err());
    assert!(rss() < before + 8_192, "{before} -> {}", rss());
}

#[test]
fn no_fd_is_left_of_jobs_that_are_gone() {
    let agent = Agent::start();
    let mut host = agent.host();
    let count = || {
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
            .unwrap()
            .count()
    };
    host.run(":");
    host.settle();
    let before = count();
    for _ in 0..10 {
        host.run("cat /dev/null");
        let channel = host.exec(
            &["true"],
            vec![("tty", size(24, 80)), ("stdin", true.into())],
        );
        host.finish(channel);
        let channel = host.exec(&["/no/such"], vec![]);
        host.next_of(channel);
    }
    host.settle();
    assert_eq!(count(), before);
}

#[test]
fn nothing_is_left_running_when_the_only_host_goes() {
    let agent = Agent::start();
    let mut host = agent.host();
    assert!(!user().is_empty());
    let done = host.run("echo $PPID");
    assert_eq!(lines(&done), [agent.pid().to_string()]);
}
