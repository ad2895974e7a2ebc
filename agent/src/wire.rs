//! The msgpack maps inside frames (docs/agent-protocol.md), and nothing else.
//!
//! Read and written by hand over `rmpv`: derive macros cannot be built for a static target without
//! moving the build's output, and what is read here is small and wants exact bounds.

mod call;
mod identity;
mod networks;
mod placing;
mod records;
mod secrets;
mod shares;
mod volumes;

use rmpv::{Value, ValueRef, decode, encode};

use crate::calls::CallRequest;
use crate::connection::Connect;
use crate::error::Refusal;
use crate::frame::{MAX_PAYLOAD, Violation};
use crate::network::Network;
use crate::share::Share;
use crate::volume::Mount;

pub use placing::{Placed, placing};
pub use records::jobs;
pub use secrets::Secrets;

/// Versions of the protocol that this agent speaks, best first.
pub const VERSIONS: [u64; 1] = [1];
/// A map may be nested 8 deep, itself included; `rmpv` counts two for each level and up to three for
/// what is in the innermost.
const MAX_DEPTH: usize = 2 * 8 + 3;
const MAX_ARGUMENTS: usize = 4_096;
const MAX_LABEL: usize = 256;
const MAX_ENTROPY: usize = 512;

const BAD_MAP: Violation = Violation("a bad msgpack map");

// -- from the host --------------------------------------------------------------------------------

/// HELLO.
#[derive(Debug, PartialEq, Eq)]
pub struct HostHello {
    /// The best version that both speak.
    pub version: Option<u64>,
    pub nonce: [u8; 16],
    pub next_key: [u8; 16],
}

/// OPEN: what is asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Exec(Box<Exec>),
    Attach(Attach),
    Jobs,
    Forget {
        job: u64,
    },
    Signal {
        job: u64,
        signal: i32,
    },
    Clock {
        realtime_ns: i64,
    },
    Time {
        slew_ns: Option<i64>,
    },
    Configure(Configure),
    /// `sync`: what is in memory is written to the disks as well.
    Freeze {
        sync: bool,
    },
    Thaw,
    Network(Network),
    Share(Share),
    Unshare {
        slot: u32,
    },
    Ports,
    Connect(Connect),
    Call(CallRequest),
    Mount(Mount),
    Unmount(Mount),
    Grow,
    PowerOff {
        reboot: bool,
        grace_ms: u64,
    },
    Sync,
}

/// A program of the agent's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    Pack,
    Unpack,
    Stat,
    Read,
    Write,
    /// The user's shell, with argv[1] as its command.
    Shell,
    Sftp,
    Connect,
    Listen,
    Accept,
    Account,
    Place,
}

impl Builtin {
    /// By its name in the protocol.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "pack" => Self::Pack,
            "unpack" => Self::Unpack,
            "stat" => Self::Stat,
            "read" => Self::Read,
            "write" => Self::Write,
            "shell" => Self::Shell,
            "sftp" => Self::Sftp,
            "connect" => Self::Connect,
            "listen" => Self::Listen,
            "accept" => Self::Accept,
            "account" => Self::Account,
            "place" => Self::Place,
            _ => return None,
        })
    }

    /// Its name in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Unpack => "unpack",
            Self::Stat => "stat",
            Self::Read => "read",
            Self::Write => "write",
            Self::Shell => "shell",
            Self::Sftp => "sftp",
            Self::Connect => "connect",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Account => "account",
            Self::Place => "place",
        }
    }
}

/// Start a job. Nothing in it contains a NUL byte.
#[derive(Debug, PartialEq, Eq)]
pub struct Exec {
    /// Not empty, unless `login`.
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    pub cwd: Option<Vec<u8>>,
    pub user: String,
    pub tty: Option<TerminalSize>,
    pub stdin: bool,
    pub login: bool,
    pub builtin: Option<Builtin>,
    pub detached: bool,
    pub label: String,
    pub secrets: Secrets,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: u16,
    pub cols: u16,
}

/// Take over a job's streams.
#[derive(Debug, PartialEq, Eq)]
pub struct Attach {
    pub job: u64,
    pub stdout_received: u64,
    pub stderr_received: u64,
}

/// What a fresh machine is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Configure {
    pub hostname: Option<String>,
    pub entropy: Option<Vec<u8>>,
    pub machine_id: Option<String>,
    pub realtime_ns: Option<i64>,
    /// What the machine keeps of its random state is replaced, and its SSH host keys are removed.
    pub renew: bool,
    /// At the end, processes that were held go on.
    pub thaw: bool,
}

/// CONTROL. More than one may be set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Control {
    pub signal: Option<i32>,
    pub resize: Option<TerminalSize>,
    pub hangup: bool,
    pub detach: bool,
}

/// A map from the host; fields are taken by name, others are ignored.
struct Map<'a>(Vec<(ValueRef<'a>, ValueRef<'a>)>);

/// A field is missing or is not what it should be.
struct BadField(&'static str);

type Field<T> = Result<T, BadField>;

impl<'a> Map<'a> {
    fn read(mut payload: &'a [u8]) -> Result<Self, Violation> {
        match decode::read_value_ref_with_max_depth(&mut payload, MAX_DEPTH) {
            Ok(ValueRef::Map(fields)) if payload.is_empty() => Ok(Self(fields)),
            _ => Err(BAD_MAP),
        }
    }

    /// None when it is absent or nil.
    fn get(&self, name: &str) -> Option<&ValueRef<'a>> {
        let (_, value) = self.0.iter().find(|(key, _)| match key {
            ValueRef::String(key) => key.as_str() == Some(name),
            _ => false,
        })?;
        (*value != ValueRef::Nil).then_some(value)
    }

    fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&ValueRef<'a>) -> Option<T>,
    ) -> Field<Option<T>> {
        self.get(name)
            .map(|value| read(value).ok_or(BadField(name)))
            .transpose()
    }

    fn required<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&ValueRef<'a>) -> Option<T>,
    ) -> Field<T> {
        self.optional(name, read)?.ok_or(BadField(name))
    }

    fn flag(&self, name: &'static str) -> Field<bool> {
        Ok(self.optional(name, boolean)?.unwrap_or(false))
    }

    fn offset(&self, name: &'static str) -> Field<u64> {
        Ok(self.optional(name, number)?.unwrap_or(0))
    }
}

fn boolean(value: &ValueRef) -> Option<bool> {
    match value {
        ValueRef::Boolean(value) => Some(*value),
        _ => None,
    }
}

fn number(value: &ValueRef) -> Option<u64> {
    value.as_u64()
}

fn small(value: &ValueRef) -> Option<u16> {
    u16::try_from(number(value)?).ok()
}

fn signed(value: &ValueRef) -> Option<i64> {
    match value {
        ValueRef::Integer(value) => value.as_i64(),
        _ => None,
    }
}

fn text(value: &ValueRef) -> Option<String> {
    match value {
        ValueRef::String(text) => text.as_str().map(str::to_owned),
        _ => None,
    }
}

/// Text of no encoding, for the kernel: no NUL.
fn bytes(value: &ValueRef) -> Option<Vec<u8>> {
    let bytes = match value {
        ValueRef::Binary(bytes) => *bytes,
        ValueRef::String(text) => text.as_bytes(),
        _ => return None,
    };
    (!bytes.contains(&0)).then(|| bytes.to_vec())
}

fn list<T>(value: &ValueRef, read: impl Fn(&ValueRef) -> Option<T>) -> Option<Vec<T>> {
    match value {
        ValueRef::Array(items) => items.iter().map(read).collect(),
        _ => None,
    }
}

fn sixteen(value: &ValueRef) -> Option<[u8; 16]> {
    match value {
        ValueRef::Binary(bytes) => <[u8; 16]>::try_from(*bytes).ok(),
        _ => None,
    }
}

fn signal(value: &ValueRef) -> Option<i32> {
    let number = i32::try_from(value.as_u64()?).ok()?;
    (1..=64).contains(&number).then_some(number)
}

fn terminal_size(value: &ValueRef) -> Option<TerminalSize> {
    let ValueRef::Map(fields) = value else {
        return None;
    };
    let fields = Map(fields.clone());
    let cells = |name| fields.required(name, small).ok();
    Some(TerminalSize {
        rows: cells("rows")?,
        cols: cells("cols")?,
    })
}

/// Read a HELLO.
pub fn host_hello(payload: &[u8]) -> Result<HostHello, Violation> {
    let map = Map::read(payload)?;
    let read = || -> Field<HostHello> {
        let versions = map.required("versions", |v| list(v, number))?;
        Ok(HostHello {
            version: VERSIONS.into_iter().find(|v| versions.contains(v)),
            nonce: map.required("nonce", sixteen)?,
            next_key: map.required("next_key", sixteen)?,
        })
    };
    read().map_err(|_| BAD_MAP)
}

/// Read a CONTROL. Unknown keys are ignored.
pub fn control(payload: &[u8]) -> Result<Control, Violation> {
    let map = Map::read(payload)?;
    let read = || -> Field<Control> {
        Ok(Control {
            signal: map.optional("signal", signal)?,
            resize: map.optional("resize", terminal_size)?,
            hangup: map.flag("hangup")?,
            detach: map.flag("detach")?,
        })
    };
    read().map_err(|_| BAD_MAP)
}

/// Read an OPEN.
///
/// What is no map with an `op` is a violation. An unknown operation, or a known one with wrong fields,
/// is refused, so that a newer host can ask and be told.
pub fn request(payload: &[u8]) -> Result<Result<Request, Refusal>, Violation> {
    let map = Map::read(payload)?;
    let operation = map.required("op", text).map_err(|_| BAD_MAP)?;
    let request = match operation.as_str() {
        "exec" => exec(&map).map(|exec| Request::Exec(Box::new(exec))),
        "attach" => attach(&map).map(Request::Attach),
        "jobs" => Ok(Request::Jobs),
        "forget" => map
            .required("job", number)
            .map(|job| Request::Forget { job }),
        "signal" => map.required("job", number).and_then(|job| {
            let signal = map.required("signal", signal)?;
            Ok(Request::Signal { job, signal })
        }),
        "clock" => identity::clock(&map),
        "time" => identity::time(&map),
        "configure" => identity::configure(&map).map(Request::Configure),
        "freeze" => map
            .flag("unsynced")
            .map(|unsynced| Request::Freeze { sync: !unsynced }),
        "thaw" => Ok(Request::Thaw),
        "network" => networks::network(&map).map(Request::Network),
        "ports" => Ok(Request::Ports),
        "share" => shares::share(&map).map(Request::Share),
        "unshare" => shares::slot(&map).map(|slot| Request::Unshare { slot }),
        "connect" => networks::connect(&map).map(Request::Connect),
        "calls" | "answer" | "refuse" => call::read(&operation, &map).map(Request::Call),
        "mount" => volumes::mount(&map).map(Request::Mount),
        "unmount" => volumes::mount(&map).map(Request::Unmount),
        "grow" => Ok(Request::Grow),
        "poweroff" => power_off(&map),
        "sync" => Ok(Request::Sync),
        _ => {
            return Ok(Err(Refusal::new("unknown-operation", "no such operation")));
        }
    };
    Ok(request.map_err(|BadField(name)| Refusal::invalid(format!("bad or missing field {name}"))))
}

fn exec(map: &Map) -> Field<Exec> {
    let exec = Exec {
        argv: map
            .optional("argv", |v| list(v, bytes))?
            .unwrap_or_default(),
        env: map.optional("env", |v| list(v, bytes))?.unwrap_or_default(),
        cwd: map.optional("cwd", bytes)?,
        user: map
            .optional("user", text)?
            .unwrap_or_else(|| "root".to_owned()),
        tty: map.optional("tty", terminal_size)?,
        stdin: map.flag("stdin")?,
        login: map.flag("login")?,
        builtin: map.optional("builtin", |v| Builtin::from_name(&text(v)?))?,
        detached: map.flag("detached")?,
        label: map.optional("label", text)?.unwrap_or_default(),
        secrets: secrets::secrets(map)?,
    };
    if exec.argv.len() > MAX_ARGUMENTS || (exec.argv.is_empty() && !exec.login) {
        return Err(BadField("argv"));
    }
    if exec.label.len() > MAX_LABEL {
        return Err(BadField("label"));
    }
    if exec.user.len() > MAX_LABEL || exec.user.contains('\0') {
        return Err(BadField("user"));
    }
    Ok(exec)
}

fn attach(map: &Map) -> Field<Attach> {
    // `stdin_sent` needs no answer but `stdin_received`, and whoever has not sent that much cannot.
    map.offset("stdin_sent")?;
    Ok(Attach {
        job: map.required("job", number)?,
        stdout_received: map.offset("stdout_received")?,
        stderr_received: map.offset("stderr_received")?,
    })
}

fn power_off(map: &Map) -> Field<Request> {
    Ok(Request::PowerOff {
        reboot: map.flag("reboot")?,
        grace_ms: map.optional("grace_ms", number)?.unwrap_or(10_000),
    })
}

// -- to the host ----------------------------------------------------------------------------------

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal { number: i32, core: bool },
}

/// A job, in HELLO and in the answer to `jobs`.
#[derive(Debug)]
pub struct JobRecord<'a> {
    pub job: u64,
    pub pid: i32,
    pub label: &'a str,
    pub argv: &'a [Vec<u8>],
    pub user: &'a str,
    pub tty: bool,
    pub detached: bool,
    pub private: bool,
    pub started_ns: u64,
    pub attached: bool,
    pub exit: Option<(Ended, [u64; 2])>,
}

/// Write a map. What the agent says is its own and bounded, so this cannot fail.
///
/// # Panics
/// When a message is larger than a frame, which would be a defect here.
#[must_use]
pub fn map(fields: Vec<(&str, Value)>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    encode::write_value(&mut bytes, &value(fields)).expect("a Vec takes everything");
    assert!(bytes.len() <= MAX_PAYLOAD, "own messages fit a frame");
    bytes
}

/// Payload of ERROR.
#[must_use]
pub fn error(refusal: &Refusal) -> Vec<u8> {
    map(vec![
        ("code", refusal.code.into()),
        ("message", refusal.message.as_str().into()),
        ("errno", refusal.errno.map_or(Value::Nil, Value::from)),
    ])
}

/// Payload of EXIT, with the bytes dropped of stdout and stderr.
#[must_use]
pub fn exit(ended: Ended, dropped: [u64; 2]) -> Vec<u8> {
    map(exit_fields(ended, dropped))
}

fn exit_fields(ended: Ended, dropped: [u64; 2]) -> Vec<(&'static str, Value)> {
    let mut fields = match ended {
        Ended::Code(code) => vec![("code", code.into())],
        Ended::Signal { number, core } => vec![("signal", number.into()), ("core", core.into())],
    };
    let counts = vec![("stdout", dropped[0].into()), ("stderr", dropped[1].into())];
    fields.push(("dropped", value(counts)));
    fields
}

fn value(fields: Vec<(&str, Value)>) -> Value {
    let fields = fields.into_iter().map(|(name, v)| (name.into(), v));
    Value::Map(fields.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize, innermost: Value) -> Vec<u8> {
        let value = (1..levels).fold(innermost, |inner, _| Value::Array(vec![inner]));
        map(vec![("op", "jobs".into()), ("future", value)])
    }

    #[test]
    fn eight_levels_are_read_and_ten_are_not() {
        assert_eq!(request(&nested(8, "text".into())), Ok(Ok(Request::Jobs)));
        assert_eq!(request(&nested(10, 1.into())), Err(BAD_MAP));
    }

    #[test]
    fn texts_for_the_kernel_have_no_nul() {
        let argv = Value::Array(vec![Value::Binary(b"a\0b".to_vec())]);
        let payload = map(vec![("op", "exec".into()), ("argv", argv)]);
        assert_eq!(request(&payload).unwrap().unwrap_err().code, "invalid");
    }

    #[test]
    fn what_follows_a_map_is_refused() {
        let mut payload = map(vec![("op", "jobs".into())]);
        payload.push(0xc0);
        assert_eq!(request(&payload), Err(BAD_MAP));
    }

    #[test]
    fn any_number_of_jobs_fits_a_hello() {
        let argv = vec![vec![b'x'; 60_000]; 4_096];
        let label = "\u{20ac}".repeat(80);
        let record = || JobRecord {
            job: u64::MAX,
            pid: i32::MAX,
            label: &label,
            argv: &argv,
            user: &label,
            tty: true,
            detached: true,
            private: true,
            started_ns: u64::MAX,
            attached: true,
            exit: Some((
                Ended::Signal {
                    number: 64,
                    core: true,
                },
                [u64::MAX; 2],
            )),
        };
        for count in [0, 1, 2, 64, 256, 320] {
            let records: Vec<_> = (0..count).map(|_| record()).collect();
            let bytes = map(vec![("jobs", jobs(&records))]);
            assert!(bytes.len() <= MAX_PAYLOAD - 512, "{count}: {}", bytes.len());
        }
    }
}
