//! Credit, and consumers that come and go, on the agent's real binary.

mod common;

use common::{Agent, Done, Host, code, error_code, field, next_key, numbers, take};
use rmpv::Value;
use vmgr_agent::frame::{self, Kind, STDIN, STDOUT};
use vmgr_agent::receiver::FIRST_KEY;

const WINDOW: u64 = 262_144;
fn stdin() -> Vec<(&'static str, Value)> {
    vec![("stdin", true.into())]
}

fn lines(done: &Done) -> Vec<&str> {
    std::str::from_utf8(&done.stdout).unwrap().lines().collect()
}

// -- credit -----------------------------------------------------------------------------------------

/// Ask for the jobs until that many have ended; their records.
fn ended(host: &mut Host, count: usize) -> Vec<Value> {
    loop {
        let jobs = field(&host.ask(vec![("op", "jobs".into())]).map(), "jobs");
        let jobs = jobs.as_array().unwrap().clone();
        if jobs
            .iter()
            .filter(|job| field(job, "exit") != Value::Nil)
            .count()
            >= count
        {
            return jobs;
        }
    }
}

#[test]
fn a_stuck_reader_blocks_nobody() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (stuck, _) = host.job("exec cat /dev/zero", vec![]);
    take(&mut host, stuck, 65_536);
    let done = host.run("echo free; seq 1 100000 | tail -1");
    assert_eq!(lines(&done), ["free", "100000"]);
    // Not a byte beyond the credit came meanwhile.
    assert!(host.settle().iter().all(|frame| frame.channel != stuck));
    host.credit(stuck, STDOUT, 65_536, 65_536 + 1_000);
    take(&mut host, stuck, 1_000);
}

#[test]
fn two_talkers_take_turns() {
    const SIZE: u64 = 65_536 + 4 * 32_768;
    let agent = Agent::start();
    let mut host = agent.host();
    let channels = [0, 1].map(|_| host.job(&format!("head -c {SIZE} /dev/zero"), vec![]).0);
    for channel in channels {
        take(&mut host, channel, 65_536);
    }
    // When both have ended, all the rest waits in the agent.
    ended(&mut host, 2);
    let mut credits = Vec::new();
    for channel in channels {
        frame::put_credit(&mut credits, channel, STDOUT, 65_536, SIZE);
    }
    host.write(&credits);
    let order = std::iter::repeat_with(|| host.next()).filter(|f| f.kind == Kind::Data);
    let order: Vec<_> = order.take(8).collect();
    for (at, frame) in order.iter().enumerate() {
        assert_eq!(
            (frame.kind, frame.payload.len()),
            (Kind::Data, frame::MAX_DATA)
        );
        assert_ne!(
            Some(frame.channel),
            order.get(at + 1).map(|f| f.channel),
            "{at}"
        );
    }
}

#[test]
fn stdin_is_granted_as_it_is_taken() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.exec(&["sh", "-c", "wc -c"], stdin());
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    let (mut sent, mut limit) = (0u64, 65_536u64);
    while sent < 3_000_000 {
        while sent < limit {
            let count = (limit - sent).min(32_768);
            host.send(
                Kind::Data,
                channel,
                STDIN,
                &vec![b'x'; usize::try_from(count).unwrap()],
            );
            sent += count;
        }
        let frame = host.next_of(channel);
        assert_eq!((frame.kind, frame.flow), (Kind::Credit, STDIN), "{frame:?}");
        let (acked, granted) = frame::credit(&frame.payload);
        assert!(acked <= sent && granted >= limit && granted - acked <= 1_048_576);
        limit = granted;
    }
    host.send(Kind::Eof, channel, STDIN, b"");
    assert_eq!(lines(&host.finish(channel)), [sent.to_string()]);
}

#[test]
fn stdin_of_a_job_that_does_not_read_is_not_granted() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, _) = host.job("exec sleep 1000", stdin());
    // The pipe takes 64 KiB, so this much is granted once more; then nothing moves.
    host.send(Kind::Data, channel, STDIN, &vec![0; 32_768]);
    host.send(Kind::Data, channel, STDIN, &vec![0; 32_768]);
    let mut limit = 65_536;
    let mut sent = 65_536;
    for frame in host.settle() {
        limit = frame::credit(&frame.payload).1;
    }
    while sent < limit {
        let count = (limit - sent).min(32_768);
        host.send(
            Kind::Data,
            channel,
            STDIN,
            &vec![0; usize::try_from(count).unwrap()],
        );
        sent += count;
    }
    for frame in host.settle() {
        limit = frame::credit(&frame.payload).1;
    }
    assert!(limit <= 65_536 + WINDOW, "{limit}");
    // Up to the limit, and one byte more: the host's mistake, and the session is over.
    while sent < limit {
        let count = (limit - sent).min(32_768);
        host.send(
            Kind::Data,
            channel,
            STDIN,
            &vec![0; usize::try_from(count).unwrap()],
        );
        sent += count;
    }
    assert_eq!(host.settle(), []);
    host.send(Kind::Data, channel, STDIN, b"x");
    host.send(Kind::Ping, 0, 0, b"lost");
    let mut again = host;
    again.greet(next_key(FIRST_KEY));
    assert_eq!(again.settle(), []);
}

// -- attach -----------------------------------------------------------------------------------------

#[test]
fn what_was_not_acknowledged_is_sent_again() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("seq 1 20000; exec sleep 1000", vec![]);
    let first = take(&mut host, channel, 65_536);
    host.credit(channel, STDOUT, 1_000, 65_536);
    host.settle();
    let again = host.attach(job, 40_000);
    assert_eq!(error_code(&host.next_of(channel)), "taken-over");
    let opened = host.next_of(again).map();
    assert_eq!(field(&opened, "stdout_from"), Value::from(40_000));
    let second = take(&mut host, again, 65_536);
    let expected = numbers();
    assert_eq!(first, expected[..65_536]);
    assert_eq!(second, expected[40_000..][..65_536]);
    host.control(again, vec![("signal", 9.into())]);
}

#[test]
fn nobody_can_have_more_than_was_written() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("exec sleep 1000", vec![]);
    let again = host.attach(job, 1);
    assert_eq!(error_code(&host.next_of(channel)), "taken-over");
    assert_eq!(error_code(&host.next_of(again)), "invalid");
    let missing = host.attach(job + 1, 0);
    assert_eq!(error_code(&host.next_of(missing)), "no-such-job");
}

#[test]
fn a_detached_job_drops_its_oldest_output() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("head -c 1000000 /dev/zero; echo end", vec![]);
    host.control(channel, vec![("detach", true.into())]);
    let records = ended(&mut host, 1);
    assert_eq!(field(&records[0], "attached"), Value::from(false));
    let again = host.attach(job, 0);
    let opened = host.next_of(again).map();
    let total = 1_000_004;
    assert_eq!(field(&opened, "stdout_from"), Value::from(total - WINDOW));
    let done = host.finish_from(again, total - WINDOW);
    assert_eq!(done.stdout.len() as u64, WINDOW);
    assert!(done.stdout.ends_with(b"\0end\n"));
    let dropped = field(&field(&done.exit, "dropped"), "stdout")
        .as_u64()
        .unwrap();
    assert!(dropped <= total - WINDOW && dropped > 0, "{dropped}");
}

#[test]
fn a_detached_jobs_consumer_that_does_not_keep_up_is_let_go() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, _) = host.job("head -c 1000000 /dev/zero", vec![("detached", true.into())]);
    loop {
        let frame = host.next_of(channel);
        if frame.kind != Kind::Data {
            assert_eq!(error_code(&frame), "fell-behind");
            break;
        }
    }
}

#[test]
fn an_ended_job_is_kept_until_its_receipt() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("echo kept; exit 5", vec![]);
    while host.next_of(channel).kind != Kind::Exit {}
    let again = host.attach(job, 0);
    // No word on the old channel: EXIT was its last.
    assert_eq!(host.next_of(again).kind, Kind::Opened);
    let done = host.finish(again);
    assert_eq!(
        (code(&done.exit), done.stdout.as_slice()),
        (Some(5), &b"kept\n"[..])
    );
    host.settle();
    let gone = host.attach(job, 0);
    assert_eq!(error_code(&host.next_of(gone)), "no-such-job");
}

#[test]
fn forget_takes_only_what_has_ended() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("read x", stdin());
    let forget = || vec![("op", "forget".into()), ("job", job.into())];
    assert_eq!(error_code(&host.ask(forget())), "job-running");
    host.send(Kind::Eof, channel, STDIN, b"");
    while host.next_of(channel).kind != Kind::Exit {}
    assert_eq!(host.ask(forget()).kind, Kind::Opened);
    assert_eq!(error_code(&host.ask(forget())), "no-such-job");
}

#[test]
fn a_hangup_ends_the_job_and_its_record() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("cat /dev/zero & exec cat /dev/zero", vec![]);
    host.control(channel, vec![("hangup", true.into())]);
    loop {
        let frame = host.next_of(channel);
        if frame.kind == Kind::Exit {
            assert_eq!(field(&frame.map(), "signal"), Value::from(1));
            break;
        }
    }
    host.settle();
    let gone = host.attach(job, 0);
    assert_eq!(error_code(&host.next_of(gone)), "no-such-job");
}

#[test]
fn sixty_four_ended_jobs_are_kept() {
    let agent = Agent::start();
    let mut host = agent.host();
    for _ in 0..70 {
        let (channel, _) = host.job(":", vec![]);
        while host.next_of(channel).kind != Kind::Exit {}
        host.control(channel, vec![("detach", true.into())]);
    }
    let (channel, _) = host.job(":", vec![]);
    while host.next_of(channel).kind != Kind::Exit {}
    host.settle();
    let jobs = field(&host.ask(vec![("op", "jobs".into())]).map(), "jobs");
    assert!(jobs.as_array().unwrap().len() <= 64);
}
