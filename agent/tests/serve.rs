//! The agent's real binary at work: jobs, streams, and hosts that come and go.

mod common;

use std::io::Write;

use common::{Agent, Done, Host, code, error_code, field, hello_frame, map, next_key, user};
use rmpv::Value;
use vmgr_agent::frame::{self, Kind, STDERR, STDIN, STDOUT};
use vmgr_agent::receiver::FIRST_KEY;

const WINDOW: u64 = 262_144;

fn size(rows: u64, cols: u64) -> Value {
    Value::Map(vec![
        ("rows".into(), rows.into()),
        ("cols".into(), cols.into()),
    ])
}

fn stdin() -> Vec<(&'static str, Value)> {
    vec![("stdin", true.into())]
}

/// The text of a file that a shell line writes, without waiting for it in any other way.
fn lines(done: &Done) -> Vec<&str> {
    std::str::from_utf8(&done.stdout).unwrap().lines().collect()
}

// -- jobs -----------------------------------------------------------------------------------------

#[test]
fn a_command_runs_and_its_outputs_are_kept_apart() {
    let agent = Agent::start();
    let done = agent.host().run("echo out; echo err >&2; exit 3");
    assert_eq!(code(&done.exit), Some(3));
    assert_eq!(
        (done.stdout.as_slice(), done.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
}

#[test]
fn a_signal_that_ended_it_is_told() {
    let agent = Agent::start();
    let mut host = agent.host();
    for number in [9, 15, 40] {
        let done = host.run(&format!("kill -{number} $$"));
        assert_eq!(
            field(&done.exit, "signal"),
            Value::from(number),
            "{:?}",
            done.exit
        );
        assert_eq!(code(&done.exit), None);
    }
}

#[test]
fn a_job_starts_clean() {
    let agent = Agent::start();
    let mut host = agent.host();
    let done = host.run("grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; umask; ps -o sid=,pgid= -p $$; echo $$");
    let found = lines(&done);
    assert!(found[0].ends_with("0000000000000000"), "{found:?}");
    assert!(found[1].ends_with("0000000000000000"), "{found:?}");
    // 3 is the directory that `ls` reads.
    assert_eq!(found[2..6], ["0", "1", "2", "3"], "{found:?}");
    assert_eq!(found[6], "0022", "{found:?}");
    let (ids, own) = (found[7].split_whitespace().collect::<Vec<_>>(), found[8]);
    assert_eq!(ids, [own, own]);
}

#[test]
fn the_environment_is_the_one_asked_for() {
    let agent = Agent::start();
    let mut host = agent.host();
    let env = ["A=1", "PATH=/nowhere:/usr/bin:/bin", "HOME=/tmp"];
    let env = env
        .iter()
        .map(|e| Value::Binary(e.as_bytes().to_vec()))
        .collect();
    let cwd = Value::Binary(b"/usr".to_vec());
    let channel = host.exec(&["env"], vec![("env", Value::Array(env)), ("cwd", cwd)]);
    let done = host.finish(channel);
    let mut found = lines(&done);
    found.sort_unstable();
    let names: Vec<_> = found.iter().map(|l| l.split('=').next().unwrap()).collect();
    assert_eq!(names, ["A", "HOME", "LOGNAME", "PATH", "SHELL", "USER"]);
    assert!(found.contains(&"HOME=/tmp"));
}

#[test]
fn what_cannot_be_started_says_why() {
    let agent = Agent::start();
    let mut host = agent.host();
    let cwd = |path: &[u8]| vec![("cwd", Value::Binary(path.to_vec()))];
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(script.path(), mode).unwrap();
    let script = script.into_temp_path();
    for (argv, more, expected) in [
        ("no-such-program-here", vec![], "not-found"),
        ("/no/such/program", vec![], "not-found"),
        ("/etc/passwd/x", vec![], "not-found"),
        ("", vec![], "not-found"),
        ("/etc/passwd", vec![], "not-executable"),
        ("/etc", vec![], "not-executable"),
        (script.to_str().unwrap(), vec![], "not-executable"),
        ("true", cwd(b"/no/such/directory"), "no-such-directory"),
        ("true", cwd(b"/etc/passwd"), "no-such-directory"),
    ] {
        let channel = host.exec(&[argv], more);
        let answer = host.next_of(channel);
        assert_eq!(error_code(&answer), expected, "{argv}: {:?}", answer.map());
    }
    let answer = host.ask(vec![
        ("op", "exec".into()),
        ("argv", Value::Array(vec!["true".into()])),
        ("user", "no-such-user-here".into()),
    ]);
    assert_eq!(error_code(&answer), "no-such-user");
    // None of them is left.
    let answer = host.ask(vec![("op", "jobs".into())]);
    assert_eq!(field(&answer.map(), "jobs"), Value::Array(vec![]));
}

#[test]
fn a_login_shell_is_the_users_own() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.exec(&[], vec![("login", true.into()), ("stdin", true.into())]);
    host.send(Kind::Data, channel, STDIN, b"echo \"$0 $SHELL\"\n");
    host.send(Kind::Eof, channel, STDIN, b"");
    let done = host.finish(channel);
    let found = lines(&done);
    let (name, shell) = found.last().unwrap().split_once(' ').unwrap();
    assert_eq!(name, format!("-{}", shell.rsplit('/').next().unwrap()));
}

#[test]
fn stdin_comes_whole_and_ends() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.exec(&["cat"], stdin());
    host.send(Kind::Data, channel, STDIN, b"one ");
    host.send(Kind::Data, channel, STDIN, b"two");
    host.send(Kind::Eof, channel, STDIN, b"");
    assert_eq!(host.finish(channel).stdout, b"one two");
}

#[test]
fn without_stdin_there_is_an_end_at_once() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.exec(&["cat"], vec![]);
    assert_eq!(code(&host.finish(channel).exit), Some(0));
}

#[test]
fn stdin_that_nobody_reads_is_taken_when_its_reader_ends() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, _) = host.job("exec <&-; read x <&1; :", stdin());
    // More than the pipe holds, to a job that has closed it.
    host.send(Kind::Data, channel, STDIN, &vec![0; 32_768]);
    host.send(Kind::Data, channel, STDIN, &vec![0; 32_768]);
    let done = host.finish(channel);
    assert_eq!(done.stdout, b"");
}

#[test]
fn a_background_child_with_the_pipe_does_not_delay_the_exit() {
    let agent = Agent::start();
    let done = agent.host().run("sleep 1000 & echo $!");
    assert_eq!(code(&done.exit), Some(0));
    let pid: i32 = lines(&done)[0].parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

#[test]
fn all_that_was_written_before_the_exit_arrives() {
    let agent = Agent::start();
    let mut host = agent.host();
    // As much as a pipe holds, from a process that is gone at once.
    let done = host.run("head -c 65536 /dev/zero");
    assert_eq!(done.stdout.len(), 65_536);
    let done = host.run("head -c 10000001 /dev/zero; head -c 70001 /dev/zero >&2");
    assert_eq!((done.stdout.len(), done.stderr.len()), (10_000_001, 70_001));
}

#[test]
fn signals_reach_the_whole_group() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (channel, job) = host.job("sleep 1000 & echo up; wait", vec![]);
    assert_eq!(host.next_of(channel).payload, b"up\n");
    host.control(channel, vec![("signal", 15.into())]);
    assert_eq!(field(&host.finish(channel).exit, "signal"), Value::from(15));
    let answer = host.ask(vec![
        ("op", "signal".into()),
        ("job", job.into()),
        ("signal", 15.into()),
    ]);
    assert_eq!(error_code(&answer), "no-such-job");
}

// -- terminals --------------------------------------------------------------------------------------

#[test]
fn a_terminal_is_real() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.exec(
        &[
            "sh",
            "-c",
            "tty; stty size; ps -o tty= -p $$; test -t 0 && test -t 1 && test -t 2 && echo all",
        ],
        vec![("tty", size(7, 33))],
    );
    let done = host.finish(channel);
    let found: Vec<_> = lines(&done)
        .iter()
        .map(|l| l.trim_end().to_owned())
        .collect();
    assert!(found[0].starts_with("/dev/pts/"), "{found:?}");
    assert_eq!(format!("/dev/{}", found[2]), found[0]);
    assert_eq!((found[1].as_str(), found[3].as_str()), ("7 33", "all"));
    assert_eq!(done.stderr, b"");
}

#[test]
fn a_new_size_is_signalled() {
    let agent = Agent::start();
    let mut host = agent.host();
    let script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done";
    let channel = host.exec(
        &["sh", "-c", script],
        vec![("tty", size(24, 80)), ("stdin", true.into())],
    );
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    assert_eq!(host.next_of(channel).payload, b"up\r\n");
    host.control(channel, vec![("resize", size(50, 132))]);
    assert_eq!(host.finish(channel).stdout, b"50 132\r\n");
}

#[test]
fn ctrl_c_reaches_the_foreground() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.exec(
        &["sh", "-c", "echo up; exec sleep 1000"],
        vec![("tty", size(24, 80)), ("stdin", true.into())],
    );
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    assert_eq!(host.next_of(channel).payload, b"up\r\n");
    host.send(Kind::Data, channel, STDIN, b"\x03");
    assert_eq!(field(&host.finish(channel).exit, "signal"), Value::from(2));
}

#[test]
fn the_last_words_on_a_terminal_arrive() {
    let agent = Agent::start();
    let mut host = agent.host();
    for _ in 0..20 {
        let channel = host.exec(&["sh", "-c", "seq 1 2000"], vec![("tty", size(24, 80))]);
        let done = host.finish(channel);
        assert!(
            done.stdout.ends_with(b"2000\r\n"),
            "{} bytes",
            done.stdout.len()
        );
    }
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

/// Take DATA of `channel` until `count` bytes are there.
fn take(host: &mut Host, channel: u32, count: u64) -> Vec<u8> {
    let mut taken = Vec::new();
    while (taken.len() as u64) < count {
        let frame = host.next_of(channel);
        assert_eq!((frame.kind, frame.flow), (Kind::Data, STDOUT), "{frame:?}");
        taken.extend(frame.payload);
    }
    assert_eq!(taken.len() as u64, count);
    taken
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

/// What `seq 1 20000` writes.
fn numbers() -> Vec<u8> {
    let mut text = Vec::new();
    for number in 1..=20_000 {
        writeln!(text, "{number}").unwrap();
    }
    text
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
