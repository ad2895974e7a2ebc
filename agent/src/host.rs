//! `host`: a command on the computer that the machine runs on, as far as its person allows that.
//!
//! It asks at the door (`crate::door`) and then speaks the frames of the agent protocol on one channel,
//! with the parts exchanged: this end opens and sends stdin, the host starts, sends output and EXIT
//! (docs/agent-protocol.md, "Calls"). Threads, since each of stdin, output and signals may wait for its
//! own time: what waits here holds up nothing but this command.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{self, SetArg, Termios};
use rmpv::Value;

use crate::door::SOCKET;
use crate::flow::{INITIAL, OUTPUT_WINDOW};
use crate::frame::{self, HEADER, Header, Kind, STDERR, STDIN, STDOUT};
use crate::wire;

const CHANNEL: u32 = 1;
/// As env(1) and others say that they failed, not what they were to run.
const OWN_FAILURE: i32 = 125;
const USAGE: &str = "usage: host [--] COMMAND [ARGUMENT]...
       host open FILE|URL | host notify TEXT... | host copy | host paste

Runs a command on the computer that this machine runs on, where its person allows that. open shows
a file or a web page there, notify shows a text, copy puts standard input on its clipboard, paste
writes the clipboard to standard output. After -- these words are commands like any other.";

/// Whether a program that was started as `name` is this one.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    let base = name.rsplit(|&b| b == b'/').next().unwrap_or_default();
    [&b"host"[..], b"vmgr-host"].contains(&base)
}

/// Run it; its exit code.
#[must_use]
pub fn run(arguments: &[OsString]) -> i32 {
    let Some((verb, argv)) = parse(arguments) else {
        if arguments
            .first()
            .is_some_and(|a| a == "--help" || a == "-h")
        {
            println!("{USAGE}");
            return 0;
        }
        eprintln!("{USAGE}");
        return 2;
    };
    let Ok(stream) = UnixStream::connect(SOCKET) else {
        eprintln!(
            "host: this machine may run nothing on its host; there, allow it with: \
             vmgr host-commands NAME ask"
        );
        return OWN_FAILURE;
    };
    match converse(stream, verb, argv) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("host: lost the host: {error}");
            OWN_FAILURE
        }
    }
}

/// What is asked for, and with what.
fn parse(arguments: &[OsString]) -> Option<(&'static str, &[OsString])> {
    let (first, rest) = arguments.split_first()?;
    match first.as_bytes() {
        b"--" if !rest.is_empty() => Some(("run", rest)),
        b"open" if rest.len() == 1 => Some(("open", rest)),
        b"notify" if !rest.is_empty() => Some(("notify", rest)),
        b"copy" if rest.is_empty() => Some(("copy", rest)),
        b"paste" if rest.is_empty() => Some(("paste", rest)),
        b"open" | b"notify" | b"copy" | b"paste" | b"" | b"--" => None,
        word if word.starts_with(b"-") => None,
        _ => Some(("run", arguments)),
    }
}

/// What the threads share.
struct Shared {
    stream: Mutex<UnixStream>,
    /// Up to where stdin may be sent.
    limit: Mutex<u64>,
    raised: Condvar,
    /// Whether it runs on the host.
    started: Mutex<bool>,
}

impl Shared {
    fn send(&self, kind: Kind, flow: u8, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        frame::put(&mut bytes, kind, CHANNEL, flow, payload);
        locked(&self.stream).write_all(&bytes)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn converse(stream: UnixStream, verb: &str, argv: &[OsString]) -> io::Result<i32> {
    let terminal = (verb == "run" && is_terminal(0) && is_terminal(1))
        .then(size)
        .flatten();
    let forwarded = forwarded(terminal.is_some());
    // Before there are threads: each inherits this, and one waits for them.
    let _ = forwarded.thread_block();
    let mut reader = stream.try_clone()?;
    let shared = Arc::new(Shared {
        stream: Mutex::new(stream),
        limit: Mutex::new(INITIAL),
        raised: Condvar::new(),
        started: Mutex::new(false),
    });
    let request = request(verb, argv, terminal);
    if request.len() > frame::MAX_PAYLOAD {
        return Err(io::Error::other("the arguments are too long"));
    }
    // Where we are turned away at once this fails, and why is there to be read.
    let _ = shared.send(Kind::Open, 0, &request);
    let signals = Arc::clone(&shared);
    thread::spawn(move || forward_signals(&signals, &forwarded));
    let mut raw = None;
    let mut taken = [0u64; 3];
    let mut granted = [INITIAL; 3];
    let mut payload = Vec::new();
    loop {
        let mut head = [0; HEADER];
        reader.read_exact(&mut head)?;
        let header = Header::decode(&head).map_err(|v| io::Error::other(v.0))?;
        payload.resize(header.length, 0);
        reader.read_exact(&mut payload)?;
        match header.kind {
            Kind::Opened => {
                *locked(&shared.started) = true;
                if terminal.is_some() {
                    raw = Raw::enter();
                }
                if !matches!(verb, "open" | "notify" | "paste") {
                    let input = Arc::clone(&shared);
                    thread::spawn(move || send_input(&input));
                }
            }
            Kind::Credit => {
                let (_, limit) = frame::credit(&payload);
                *locked(&shared.limit) = limit;
                shared.raised.notify_all();
            }
            Kind::Data if [STDOUT, STDERR].contains(&header.flow) => {
                let flow = usize::from(header.flow);
                put(i32::from(header.flow), &payload);
                taken[flow] += payload.len() as u64;
                if taken[flow] + OUTPUT_WINDOW / 2 > granted[flow] {
                    granted[flow] = taken[flow] + OUTPUT_WINDOW;
                    let mut credit = Vec::with_capacity(HEADER + 16);
                    let (acked, limit) = (taken[flow], granted[flow]);
                    frame::put_credit(&mut credit, CHANNEL, header.flow, acked, limit);
                    // It may have ended meanwhile; EXIT says so.
                    let _ = locked(&shared.stream).write_all(&credit);
                }
            }
            Kind::Exit => {
                drop(raw);
                return Ok(code_of(&payload));
            }
            Kind::Error => {
                drop(raw);
                return Ok(failed(&payload));
            }
            _ => {}
        }
    }
}

fn request(verb: &str, argv: &[OsString], terminal: Option<(u16, u16)>) -> Vec<u8> {
    let argv = argv.iter().map(|a| Value::Binary(a.as_bytes().to_vec()));
    let cwd = std::env::current_dir().map_or(Value::Nil, |path| {
        Value::Binary(path.as_os_str().as_bytes().to_vec())
    });
    let tty = terminal.map_or(Value::Nil, size_value);
    let term = std::env::var("TERM").unwrap_or_default();
    let fields = vec![
        ("verb".into(), verb.into()),
        ("argv".into(), Value::Array(argv.collect())),
        ("cwd".into(), cwd),
        ("tty".into(), tty),
        ("term".into(), term.into()),
    ];
    let mut bytes = Vec::new();
    // A Vec takes everything.
    let _ = rmpv::encode::write_value(&mut bytes, &Value::Map(fields));
    bytes
}

fn size_value((rows, cols): (u16, u16)) -> Value {
    Value::Map(vec![
        ("rows".into(), rows.into()),
        ("cols".into(), cols.into()),
    ])
}

fn field(payload: &[u8], name: &str) -> Option<Value> {
    let mut payload = payload;
    let Ok(Value::Map(fields)) = rmpv::decode::read_value_with_max_depth(&mut payload, 16) else {
        return None;
    };
    let found = fields
        .into_iter()
        .find(|(key, _)| key.as_str() == Some(name));
    found.map(|(_, value)| value)
}

fn code_of(payload: &[u8]) -> i32 {
    let number = |name| field(payload, name).and_then(|v| v.as_i64());
    let code = number("code").or_else(|| number("signal").map(|n| 128 + n));
    code.and_then(|n| i32::try_from(n).ok())
        .unwrap_or(OWN_FAILURE)
}

fn failed(payload: &[u8]) -> i32 {
    let text = |name| field(payload, name).and_then(|v| v.as_str().map(str::to_owned));
    eprintln!("host: {}", text("message").unwrap_or_default());
    match text("code").unwrap_or_default().as_str() {
        "not-found" => 127,
        "not-executable" => 126,
        _ => OWN_FAILURE,
    }
}

/// Write all of it, or end as any filter does whose reader has gone.
fn put(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the process has it for this.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        match nix::unistd::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(nix::errno::Errno::EINTR) => {}
            // A stdout that is closed or full: its bytes are lost, as with any command.
            Err(_) => return,
        }
    }
}

/// Standard input to the host, as far as the host takes it.
fn send_input(shared: &Shared) {
    let mut buffer = vec![0; frame::MAX_DATA];
    let mut sent = 0u64;
    let mut stdin = io::stdin();
    loop {
        let mut limit = locked(&shared.limit);
        while *limit <= sent {
            limit = shared
                .raised
                .wait(limit)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let room = usize::try_from(*limit - sent).unwrap_or(usize::MAX);
        drop(limit);
        let most = room.min(buffer.len());
        match stdin.read(&mut buffer[..most]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                let _ = shared.send(Kind::Eof, STDIN, &[]);
                return;
            }
            Ok(count) => {
                if shared.send(Kind::Data, STDIN, &buffer[..count]).is_err() {
                    return;
                }
                sent += count as u64;
            }
        }
    }
}

fn forwarded(terminal: bool) -> SigSet {
    let mut set = SigSet::empty();
    set.extend([
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]);
    if terminal {
        set.add(Signal::SIGWINCH);
    }
    set
}

fn forward_signals(shared: &Shared, set: &SigSet) {
    while let Ok(signal) = set.wait() {
        let number = signal as i32;
        if signal == Signal::SIGWINCH {
            if let Some(size) = size() {
                let control = wire::map(vec![("resize", size_value(size))]);
                let _ = shared.send(Kind::Control, 0, &control);
            }
        } else if *locked(&shared.started) {
            let control = wire::map(vec![("signal", number.into())]);
            let _ = shared.send(Kind::Control, 0, &control);
        } else {
            // Nothing of ours runs yet: the host sees that nobody waits for it any more.
            // SAFETY: ends the process; there is nothing of its to save.
            unsafe { libc::_exit(128 + number) }
        }
    }
}

// -- the terminal ------------------------------------------------------------------------------------

fn is_terminal(fd: i32) -> bool {
    // SAFETY: only asks.
    unsafe { libc::isatty(fd) == 1 }
}

/// Rows and columns.
fn size() -> Option<(u16, u16)> {
    // SAFETY: all zero is a valid size.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is the one that TIOCGWINSZ fills.
    let result = unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(match (size.ws_row, size.ws_col) {
        (0, _) | (_, 0) => (24, 80),
        known => known,
    })
}

/// The terminal is raw for as long as this lives.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).ok()?;
        debug_assert_eq!(io::stdin().as_raw_fd(), 0);
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<(&'static str, Vec<String>)> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let (verb, argv) = parse(&words)?;
        let argv = argv.iter().map(|a| a.to_string_lossy().into_owned());
        Some((verb, argv.collect()))
    }

    #[test]
    fn words_are_verbs_only_where_they_make_sense() {
        let run = |words: &[&str]| Some(("run", words.iter().map(|w| (*w).to_owned()).collect()));
        assert_eq!(parsed(&["make", "-j2"]), run(&["make", "-j2"]));
        assert_eq!(parsed(&["--", "open", "x"]), run(&["open", "x"]));
        assert_eq!(parsed(&["make", "--", "x"]), run(&["make", "--", "x"]));
        assert_eq!(parsed(&["open", "x"]), Some(("open", vec!["x".to_owned()])));
        assert_eq!(parsed(&["paste"]), Some(("paste", Vec::new())));
        for wrong in [
            &[][..],
            &["--"],
            &[""],
            &["-x"],
            &["open"],
            &["open", "a", "b"],
            &["notify"],
            &["copy", "x"],
            &["paste", "x"],
        ] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn it_goes_by_two_names() {
        for name in ["host", "/usr/local/bin/host", "vmgr-host", "/run/vmgr/host"] {
            assert!(is_name(name.as_bytes()), "{name}");
        }
        for name in ["vmgr-agent", "/init", "", "host/", "ghost"] {
            assert!(!is_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn ends_have_codes() {
        let map = |name: &str, value: Value| wire::map(vec![(name, value)]);
        assert_eq!(code_of(&map("code", 7.into())), 7);
        assert_eq!(code_of(&map("signal", 9.into())), 137);
        assert_eq!(code_of(b"nonsense"), OWN_FAILURE);
        assert_eq!(failed(&map("code", "not-found".into())), 127);
        assert_eq!(failed(&map("code", "refused".into())), OWN_FAILURE);
    }
}
