//! `vmgr-share-server`: one host directory for one machine.
//!
//! The machine's agent mounts a FUSE file system and sends what the kernel asks over a virtio port,
//! each request with the paths of the files it is about. This process holds no table of files, so it
//! can be ended and started anew under a file system that is mounted and in use; see docs/shares.md.
//!
//! All that comes in is a stranger's. What it may reach is decided by `place`, whose it is there by
//! `identity`; the sandbox around the process shows it the one directory.

mod abi;
mod content;
mod filter;
mod handles;
mod identity;
mod names;
mod place;
mod placeholder;
mod server;
mod session;
mod watches;

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use abi::{KIND_HELLO, KIND_REOPEN, KIND_REQUEST, KIND_WATCH, Reader, UNANSWERED};
use handles::Handles;
use place::Place;
use server::Server;
use session::{Frame, KEY, Session};
use watches::Watches;

const USAGE: &str = "usage: vmgr-share-server --stream-fd N --key-fd N [--read-only] DIRECTORY
       vmgr-share-server --version";
/// Requests that are served at once.
const THREADS: usize = 4;
/// Open files that are not the machine's: the stream, the directory, what is open for a moment.
const OWN_FILES: u64 = 128;

struct Options {
    stream: RawFd,
    key: RawFd,
    read_only: bool,
    directory: OsString,
}

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.len() == 1 && arguments[0] == "--version" {
        println!("vmgr-share-server {}", env!("CARGO_PKG_VERSION"));
        return;
    }
    let Some(options) = parse(&arguments) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    // Modes come from the machine, whose own umask has been applied. Not inherited: what watches this
    // process in its sandbox is to have none of it.
    rustix::process::umask(rustix::fs::Mode::empty());
    if let Err(error) = run(&options) {
        eprintln!("vmgr-share-server: {error}");
        std::process::exit(1);
    }
}

fn parse(arguments: &[OsString]) -> Option<Options> {
    let (mut stream, mut key, mut read_only, mut directory) = (None, None, false, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || {
            rest.next()?
                .to_str()?
                .parse::<RawFd>()
                .ok()
                .filter(|&n| n > 2)
        };
        match argument.to_str() {
            Some("--stream-fd") => stream = Some(number()?),
            Some("--key-fd") => key = Some(number()?),
            Some("--read-only") => read_only = true,
            _ => directory = Some(argument.clone()),
        }
    }
    Some(Options {
        stream: stream?,
        key: key?,
        read_only,
        directory: directory?,
    })
}

#[allow(
    unsafe_code,
    reason = "the fds are who started us's, named on the command line"
)]
fn given(number: RawFd) -> OwnedFd {
    // SAFETY: nobody else in this process knows the number, and it is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn run(options: &Options) -> std::io::Result<()> {
    let mut key = [0; KEY];
    std::fs::File::from(given(options.key)).read_exact(&mut key)?;
    let stream = UnixStream::from(given(options.stream));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = limit.current.unwrap_or(65_536).saturating_sub(OWN_FILES);
    let server = Server {
        place: Place::new(&options.directory)?,
        read_only: options.read_only,
        handles: Handles::new(usize::try_from(most).unwrap_or(usize::MAX)),
        host: (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
        default: OnceLock::new(),
    };
    filter::confine()?;
    let session = Session::begin(stream, &key)?;
    let watches = Watches::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = watches.run(&server.place, &session) {
                eprintln!("vmgr-share-server: the machine is told of no changes any more: {error}");
            }
        });
        for _ in 0..THREADS {
            scope.spawn(|| {
                // The stream's end, or what is no frame: the process ends with all that it has open.
                let Err(error) = work(&server, &session, &watches);
                let ended = error.kind() == std::io::ErrorKind::UnexpectedEof;
                if !ended {
                    eprintln!("vmgr-share-server: {error}");
                }
                std::process::exit(i32::from(!ended));
            });
        }
    });
    Ok(())
}

enum Never {}

/// Read a frame and do what it asks, one after the other; other threads do the same meanwhile.
fn work(server: &Server, session: &Session, watches: &Watches) -> Result<Never, std::io::Error> {
    let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidData);
    let (mut bytes, mut answer) = (Vec::new(), Vec::new());
    loop {
        session.next(&mut bytes, |bytes| before_others(server, watches, bytes))?;
        let frame = Frame::parse(&bytes).map_err(invalid)?;
        if frame.kind != KIND_REQUEST {
            continue; // done already
        }
        let served = watches.during(&frame, &server.place, session, || {
            server.serve(&frame, &mut answer)
        });
        if frame.how & UNANSWERED != 0 {
            continue;
        }
        match served {
            Ok(()) => session.answer(frame.unique, server.besides(&frame), &mut answer)?,
            Err(server::Failure(errno)) => session.refuse(frame.unique, errno.raw_os_error())?,
        }
    }
}

/// What a session begins with is done before anything else is read.
fn before_others(server: &Server, watches: &Watches, bytes: &[u8]) {
    let Ok(frame) = Frame::parse(bytes) else {
        return;
    };
    match frame.kind {
        KIND_HELLO => {
            let mut body = Reader(frame.body);
            if let (Ok(_version), Ok(uid), Ok(gid)) = (body.u32(), body.u32(), body.u32()) {
                let _ = server.default.set((uid, gid));
            }
        }
        KIND_REOPEN => server.reopen(&frame),
        KIND_WATCH => {
            let _ = watches.set(&server.place, frame.body);
        }
        _ => {}
    }
}
