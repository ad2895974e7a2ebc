//! A host: the agent's real binary at the other end of a socket.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use rmpv::Value;
use vmgr_agent::frame::{self, HEADER, Header, Kind, STDOUT};
use vmgr_agent::receiver::FIRST_KEY;

/// After this a test has failed: nothing here takes a hundredth of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// The real agent, serving an ordinary process's root.
pub struct Agent {
    child: Child,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        // Bound here, so that there is nothing to wait for.
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let fd = listener.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmgr-agent"));
        command.args(["--serve-listener", "9"]);
        // SAFETY: dup2 is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                nix::errno::Errno::result(libc::dup2(fd, 9))?;
                Ok(())
            });
        }
        Self {
            child: command.spawn().unwrap(),
            socket,
            _directory: directory,
        }
    }

    /// A host that has said its HELLO and got the agent's.
    pub fn host(&self) -> Host {
        self.host_with(FIRST_KEY)
    }

    /// The same, with the key of an earlier session.
    pub fn host_with(&self, key: [u8; 16]) -> Host {
        let mut host = self.silent_host();
        host.greet(key);
        host
    }

    /// A host that has said nothing yet.
    pub fn silent_host(&self) -> Host {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Host {
            stream,
            read: Vec::new(),
            kept: VecDeque::new(),
            channel: 0,
            hello: Value::Nil,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // In a machine its jobs would end with the machine.
        let jobs = children(self.child.id());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for job in jobs {
            // SAFETY: a system call on numbers. Each job leads a session and group of its own.
            unsafe { libc::kill(-job, libc::SIGKILL) };
        }
    }
}

fn children(parent: u32) -> Vec<libc::pid_t> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name, in parentheses, may have blanks and parentheses in it.
            let (_, rest) = stat.rsplit_once(')')?;
            (rest.split_whitespace().nth(1)? == parent.to_string()).then_some(pid)
        })
        .collect()
}

/// One frame from the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub kind: Kind,
    pub channel: u32,
    pub flow: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn map(&self) -> Value {
        rmpv::decode::read_value(&mut self.payload.as_slice()).unwrap()
    }
}

/// What a command did.
#[derive(Debug, PartialEq)]
pub struct Done {
    pub exit: Value,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

pub struct Host {
    pub stream: UnixStream,
    read: Vec<u8>,
    kept: VecDeque<Frame>,
    channel: u32,
    pub hello: Value,
}

/// The next key that `Host` offers: derived from the one before, so that tests can follow.
pub fn next_key(key: [u8; 16]) -> [u8; 16] {
    let mut next = key;
    for (at, byte) in next.iter_mut().enumerate() {
        *byte = byte
            .wrapping_mul(31)
            .wrapping_add(u8::try_from(at).unwrap() + 1);
    }
    next
}

pub fn map(fields: Vec<(&str, Value)>) -> Vec<u8> {
    vmgr_agent::wire::map(fields)
}

pub fn hello_frame(key: [u8; 16], nonce: [u8; 16]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    let payload = map(vec![
        ("versions", Value::Array(vec![1.into()])),
        ("nonce", Value::Binary(nonce.to_vec())),
        ("host", "test".into()),
        ("next_key", Value::Binary(next_key(key).to_vec())),
    ]);
    frame::put(&mut bytes, Kind::Hello, 0, 0, &payload);
    bytes
}

impl Host {
    pub fn greet(&mut self, key: [u8; 16]) {
        let nonce = [key[0] ^ 0x5a; 16];
        self.write(&hello_frame(key, nonce));
        loop {
            if let Some(at) = self.read.windows(16).position(|w| w == nonce) {
                self.read.drain(..at + 16);
                break;
            }
            self.more();
        }
        let frame = self.next();
        assert_eq!(frame.kind, Kind::Hello);
        self.hello = frame.map();
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, kind: Kind, channel: u32, flow: u8, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, kind, channel, flow, payload);
        self.write(&bytes);
    }

    fn more(&mut self) {
        let mut buffer = [0; 16_384];
        let count = self
            .stream
            .read(&mut buffer)
            .expect("the agent answers in time");
        assert!(count > 0, "the agent has gone");
        self.read.extend_from_slice(&buffer[..count]);
    }

    fn parse(&mut self) -> Option<Frame> {
        let header = Header::decode(self.read.first_chunk()?).expect("frames are valid");
        let end = HEADER + header.length;
        let payload = self.read.get(HEADER..end)?.to_vec();
        self.read.drain(..end);
        Some(Frame {
            kind: header.kind,
            channel: header.channel,
            flow: header.flow,
            payload,
        })
    }

    /// The next frame, whatever it is for.
    pub fn next(&mut self) -> Frame {
        if let Some(frame) = self.kept.pop_front() {
            return frame;
        }
        loop {
            if let Some(frame) = self.parse() {
                return frame;
            }
            self.more();
        }
    }

    /// The next frame of a channel; others are kept for later.
    pub fn next_of(&mut self, channel: u32) -> Frame {
        if let Some(at) = self.kept.iter().position(|f| f.channel == channel) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            match self.parse() {
                Some(frame) if frame.channel == channel => return frame,
                Some(frame) => self.kept.push_back(frame),
                None => self.more(),
            }
        }
    }

    /// All that comes until the answer to a ping: the agent has dealt with everything sent before.
    pub fn settle(&mut self) -> Vec<Frame> {
        self.send(Kind::Ping, 0, 0, b"settle");
        let mut frames = Vec::new();
        loop {
            let frame = self.next();
            if frame.kind == Kind::Pong {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// Nothing comes any more, because the agent has closed.
    pub fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }

    pub fn open(&mut self, fields: Vec<(&str, Value)>) -> u32 {
        self.channel += 1;
        let channel = self.channel;
        self.send(Kind::Open, channel, 0, &map(fields));
        channel
    }

    /// A request that is answered at once.
    pub fn ask(&mut self, fields: Vec<(&str, Value)>) -> Frame {
        let channel = self.open(fields);
        self.next_of(channel)
    }

    /// Start a job with `more` fields, as this user.
    pub fn exec(&mut self, argv: &[&str], more: Vec<(&'static str, Value)>) -> u32 {
        let argv = argv.iter().map(|a| Value::Binary(a.as_bytes().to_vec()));
        let mut fields = vec![
            ("op", "exec".into()),
            ("argv", Value::Array(argv.collect())),
            ("user", user().into()),
        ];
        fields.extend(more);
        self.open(fields)
    }

    /// Start a job; its channel and number.
    pub fn job(&mut self, script: &str, more: Vec<(&'static str, Value)>) -> (u32, u64) {
        let channel = self.exec(&["sh", "-c", script], more);
        let opened = self.next_of(channel);
        assert_eq!(opened.kind, Kind::Opened, "{:?}", opened.map());
        (channel, field(&opened.map(), "job").as_u64().unwrap())
    }

    pub fn attach(&mut self, job: u64, stdout_received: u64) -> u32 {
        self.open(vec![
            ("op", "attach".into()),
            ("job", job.into()),
            ("stdout_received", stdout_received.into()),
        ])
    }

    pub fn credit(&mut self, channel: u32, flow: u8, acked: u64, limit: u64) {
        let payload = [acked.to_le_bytes(), limit.to_le_bytes()].concat();
        self.send(Kind::Credit, channel, flow, &payload);
    }

    pub fn control(&mut self, channel: u32, fields: Vec<(&str, Value)>) {
        self.send(Kind::Control, channel, 0, &map(fields));
    }

    /// Take everything a job says, granting credit as it comes, to its EXIT; then CLOSE.
    pub fn finish(&mut self, channel: u32) -> Done {
        self.finish_from(channel, 0)
    }

    /// The same for a channel whose stdout began at that offset.
    pub fn finish_from(&mut self, channel: u32, stdout_from: u64) -> Done {
        let mut outputs = [Vec::new(), Vec::new()];
        loop {
            let frame = self.next_of(channel);
            match frame.kind {
                Kind::Data => {
                    let output = &mut outputs[usize::from(frame.flow - 1)];
                    output.extend(frame.payload);
                    let from = if frame.flow == frame::STDOUT {
                        stdout_from
                    } else {
                        0
                    };
                    let received = from + output.len() as u64;
                    self.credit(channel, frame.flow, received, received + 262_144);
                }
                Kind::Exit => {
                    self.send(Kind::Close, channel, 0, &[]);
                    let [stdout, stderr] = outputs;
                    let exit = frame.map();
                    return Done {
                        exit,
                        stdout,
                        stderr,
                    };
                }
                Kind::Eof | Kind::Credit | Kind::Opened => {}
                other => panic!("{other:?}: {:?}", frame.map()),
            }
        }
    }

    /// Run a shell script to its end.
    pub fn run(&mut self, script: &str) -> Done {
        let channel = self.exec(&["sh", "-c", script], vec![]);
        self.finish(channel)
    }
}

pub fn field(map: &Value, name: &str) -> Value {
    let fields = map.as_map().expect("a map");
    let found = fields.iter().find(|(key, _)| key.as_str() == Some(name));
    found.map_or(Value::Nil, |(_, value)| value.clone())
}

pub fn code(map: &Value) -> Option<i64> {
    field(map, "code").as_i64()
}

pub fn error_code(frame: &Frame) -> String {
    assert_eq!(frame.kind, Kind::Error);
    field(&frame.map(), "code").as_str().unwrap().to_owned()
}

/// Who runs the tests, as a number.
pub fn user() -> String {
    nix::unistd::geteuid().to_string()
}

pub fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Take DATA of `channel` until `count` bytes are there.
pub fn take(host: &mut Host, channel: u32, count: u64) -> Vec<u8> {
    let mut taken = Vec::new();
    while (taken.len() as u64) < count {
        let frame = host.next_of(channel);
        assert_eq!((frame.kind, frame.flow), (Kind::Data, STDOUT), "{frame:?}");
        taken.extend(frame.payload);
    }
    assert_eq!(taken.len() as u64, count);
    taken
}

/// What `seq 1 20000` writes.
pub fn numbers() -> Vec<u8> {
    let mut text = Vec::new();
    for number in 1..=20_000 {
        writeln!(text, "{number}").unwrap();
    }
    text
}
