//! Jobs and terminals, on the agent's real binary.

mod common;

use common::{Agent, Done, code, error_code, field};
use rmpv::Value;
use vmgr_agent::frame::{Kind, STDIN};
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
