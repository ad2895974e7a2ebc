//! Connections of the machine for somebody outside: `connect`, `listen`, `accept`.
//!
//! A job has one stdin and one stdout, so each connection is a job of its own, with the flow control
//! that jobs have. `listen` only tells of connections; `accept` fetches one of them: over a socket in
//! the abstract name space, whose name `listen` made up, and which gives to the same user only.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, shutdown, sockopt,
};

use super::{Report, Usage};

/// Connections that nobody has fetched; one more is closed.
const MAX_WAITING: usize = 64;
/// How long a connection waits to be fetched.
const FETCHED_WITHIN: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);

/// `connect HOST PORT` or `connect --unix PATH`: a line when it is connected, then the connection.
pub(super) fn connect(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    const USAGE: Usage = Usage("connect HOST PORT | connect --unix PATH");
    let [first, second] = arguments else {
        return Err(USAGE);
    };
    let connected = if first == "--unix" {
        UnixStream::connect(second).map(OwnedFd::from)
    } else {
        let port = port(second).ok_or(USAGE)?;
        reach(&first.to_string_lossy(), port).map(OwnedFd::from)
    };
    let name = if first == "--unix" { second } else { first };
    match connected {
        Ok(socket) => relay(&socket, report),
        Err(error) => report.error(Path::new(name), &error),
    }
    Ok(())
}

/// `listen ADDRESS PORT`, `listen --unix PATH` or `listen --agent`.
///
/// Writes `listening WHERE TOKEN`, then `accepted ID HOST PORT` for each connection, until stdin ends.
pub(super) fn listen(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    const USAGE: Usage = Usage("listen ADDRESS PORT | listen --unix PATH | listen --agent");
    // Before there are threads: each inherits this, and one waits for them.
    let mut ends = SigSet::empty();
    ends.extend([Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT]);
    let _ = ends.thread_block();
    ignore_broken_pipes();
    let mut made = Vec::new();
    let listener = match arguments {
        [kind] if kind == "--agent" => agent_socket(&mut made).map(Listener::Unix),
        [kind, path] if kind == "--unix" => {
            unix_socket(Path::new(path), &mut made).map(Listener::Unix)
        }
        [address, number] => {
            let number = port(number).ok_or(USAGE)?;
            tcp_socket(&address.to_string_lossy(), number).map(Listener::Tcp)
        }
        _ => return Err(USAGE),
    };
    let result = listener.and_then(|listener| offer(listener, &made, ends));
    remove(&made);
    if let Err(error) = result {
        report.error("listen", &error);
    }
    Ok(())
}

/// `accept TOKEN ID`: a connection that `listen` told of.
pub(super) fn accept(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    const USAGE: Usage = Usage("accept TOKEN ID");
    let [token, id] = arguments else {
        return Err(USAGE);
    };
    let id: u64 = id.to_str().and_then(|id| id.parse().ok()).ok_or(USAGE)?;
    match fetch(token.as_bytes(), id) {
        Ok(socket) => relay(&socket, report),
        Err(error) => report.error("accept", &error),
    }
    Ok(())
}

// -- one connection ----------------------------------------------------------------------------------

/// Move bytes both ways until both have ended; the end of each is passed on by itself.
fn relay(socket: &OwnedFd, report: &mut Report) {
    // SAFETY: the process has them for this, and nothing else uses them.
    let (stdin, stdout) = unsafe { (OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)) };
    let mut stdout = File::from(stdout);
    ignore_broken_pipes();
    // What has come for the peer is still sent when the job is hung up; it has 5 s for that.
    // SAFETY: no handler is installed.
    let _ = unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) };
    // Whoever asked waits for this line: what comes after it is the other side's.
    if stdout.write_all(b"connected\n").is_err() {
        return;
    }
    let copies = socket
        .try_clone()
        .and_then(|a| Ok((a, socket.try_clone()?)));
    let (from, to) = match copies {
        Ok(copies) => copies,
        Err(error) => return report.error("connection", &error),
    };
    let outward = thread::spawn(move || {
        let mut to = File::from(to);
        copy(&mut File::from(stdin), &mut to);
        // Also when the copy failed: then there is nothing more to send.
        let _ = shutdown(to.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    });
    copy(&mut File::from(from), &mut stdout);
    drop(stdout);
    // A peer that has gone altogether fails the copy; one that only sends no more is still served.
    let _ = outward.join();
}

/// Copy until either side ends.
///
/// Not with `io::copy`, which uses splice(2): from a socket into a pipe that waits for the socket
/// with the pipe locked, and whoever reads the pipe (the agent!) hangs in the kernel meanwhile.
fn copy(from: &mut File, to: &mut File) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) if to.write_all(&buffer[..count]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// One direction that breaks must not end the other: what the peer said last is still to be read.
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
}

/// A TCP connection to a host of the machine's, by the machine's own way of resolving names.
fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the machine knows no such host");
    for address in addresses(host) {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_DEADLINE) {
            Ok(stream) => {
                // What comes here was put together by its sender.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return vec![address];
    }
    if host == "localhost" {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    // A static program has no name services. The machine's own are asked through its own tool.
    let asked = Command::new("getent")
        .args(["ahosts", "--", host])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let Ok(asked) = asked else { return Vec::new() };
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&asked.stdout).lines() {
        if let Some(Ok(address)) = line.split_whitespace().next().map(str::parse)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

fn port(text: &OsString) -> Option<u16> {
    text.to_str().and_then(|text| text.parse().ok())
}

// -- listening ---------------------------------------------------------------------------------------

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection and where it comes from.
    fn next(&self) -> io::Result<(OwnedFd, String)> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, peer)| {
                let _ = stream.set_nodelay(true);
                (stream.into(), format!("{} {}", peer.ip(), peer.port()))
            }),
            Self::Unix(listener) => listener
                .accept()
                .map(|(stream, _)| (stream.into(), "- 0".to_owned())),
        }
    }
}

fn tcp_socket(address: &str, port: u16) -> io::Result<TcpListener> {
    match address {
        "" | "*" => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
        "localhost" => TcpListener::bind((Ipv4Addr::LOCALHOST, port)),
        _ => match address.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => TcpListener::bind((address, port)),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
        },
    }
}

fn unix_socket(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    made.push(path.to_owned());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A socket for an ssh-agent, in a directory that only this user can enter.
fn agent_socket(made: &mut Vec<PathBuf>) -> io::Result<UnixListener> {
    let directory = PathBuf::from(format!("/tmp/vmgr-agent-{}", random_name()?));
    DirBuilder::new().mode(0o700).create(&directory)?;
    made.push(directory.clone());
    unix_socket(&directory.join("agent"), made)
}

/// Undo what was made, the last first.
fn remove(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // What somebody else removed is removed.
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    }
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

type Waiting = Arc<Mutex<BTreeMap<u64, (OwnedFd, Instant)>>>;

/// Tell of connections and hand them out until stdin ends or a signal comes.
fn offer(listener: Listener, made: &[PathBuf], ends: SigSet) -> io::Result<()> {
    let token = format!("vmgr-listen-{}", random_name()?);
    let hatch = UnixListener::bind_addr(&UnixAddress::from_abstract_name(token.as_bytes())?)?;
    let place = match &listener {
        Listener::Tcp(listener) => listener.local_addr()?.port().to_string(),
        Listener::Unix(_) => made
            .last()
            .map_or_else(String::new, |p| p.display().to_string()),
    };
    // SAFETY: the process has it for this, and nothing else uses it.
    let mut stdout = File::from(unsafe { OwnedFd::from_raw_fd(1) });
    stdout.write_all(format!("listening {place} {token}\n").as_bytes())?;
    let waiting = Waiting::default();
    let shared = Arc::clone(&waiting);
    thread::spawn(move || hand_out(&hatch, &shared));
    thread::spawn(move || tell(&listener, &waiting, &mut stdout));
    let cleaned = made.to_vec();
    thread::spawn(move || {
        let _ = ends.wait();
        remove(&cleaned);
        // SAFETY: ends the process; there is nothing of its to save.
        unsafe { libc::_exit(0) }
    });
    // SAFETY: the process has it for this, and nothing else uses it.
    let mut stdin = File::from(unsafe { OwnedFd::from_raw_fd(0) });
    let mut ignored = [0; 64];
    while stdin.read(&mut ignored)? > 0 {}
    Ok(())
}

fn tell(listener: &Listener, waiting: &Waiting, stdout: &mut File) {
    for id in 1_u64.. {
        let Ok((socket, peer)) = listener.next() else {
            // Out of fds, or the peer was too quick: the next may do better, but not at once.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        {
            let mut waiting = waiting.lock().expect("no holder panics");
            waiting.retain(|_, (_, since)| since.elapsed() < FETCHED_WITHIN);
            if waiting.len() >= MAX_WAITING {
                continue;
            }
            waiting.insert(id, (socket, Instant::now()));
        }
        if stdout
            .write_all(format!("accepted {id} {peer}\n").as_bytes())
            .is_err()
        {
            return;
        }
    }
}

fn hand_out(hatch: &UnixListener, waiting: &Waiting) {
    while let Ok((mut asker, _)) = hatch.accept() {
        let of_us = getsockopt(&asker, sockopt::PeerCredentials)
            .is_ok_and(|peer| peer.uid() == nix::unistd::getuid().as_raw());
        let mut id = [0; 8];
        let _ = asker.set_read_timeout(Some(Duration::from_secs(2)));
        if !of_us || asker.read_exact(&mut id).is_err() {
            continue;
        }
        let id = u64::from_be_bytes(id);
        let found = waiting.lock().expect("no holder panics").remove(&id);
        if let Some((socket, _)) = found {
            let fds = [socket.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&fds)];
            // An asker that has gone takes the connection with it.
            let _ = sendmsg::<()>(
                asker.as_raw_fd(),
                &[IoSlice::new(b"1")],
                &message,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
        }
    }
}

fn fetch(token: &[u8], id: u64) -> io::Result<OwnedFd> {
    let mut hatch = UnixStream::connect_addr(&UnixAddress::from_abstract_name(token)?)?;
    let owner = getsockopt(&hatch, sockopt::PeerCredentials)?;
    if owner.uid() != nix::unistd::getuid().as_raw() {
        return Err(nix::errno::Errno::EPERM.into());
    }
    hatch.write_all(&id.to_be_bytes())?;
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(
        hatch.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut space),
        flags,
    )?;
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just made it for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::from_raw_os_error(libc::ECONNABORTED))
}
