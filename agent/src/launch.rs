//! Starting a job: what happens between clone and exec.
//!
//! The child gets only what is stated here: its own session, default signals and an empty mask, the
//! machine's root, the user's identity, its stdio and nothing else (every fd of the agent is CLOEXEC).
//! It reports through a CLOEXEC pipe: end of file means that the exec succeeded, anything else is the
//! step that failed. So the agent never waits for a disk that is slow to deliver a program.

use std::ffi::{CStr, CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Uid};

use crate::account::{self, Account};
use crate::error::Refusal;
use crate::secrets;
use crate::wire::{Builtin, Exec};

/// Whose root jobs get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The agent's own: it is init itself, or an ordinary process under test.
    Own,
    /// That of the machine's init; the agent itself stays in the initramfs.
    OfInit,
}

/// What every job is started with.
pub struct Ground {
    pub root: Root,
    /// The cgroup's directory that jobs belong into.
    pub cgroup: Option<OwnedFd>,
    /// The agent's own program.
    pub program: OwnedFd,
}

/// The fds that a job gets as 0, 1 and 2; for a tty all three are its slave side.
pub struct Stdio<'a> {
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
}

/// A child that may or may not have reached its exec yet.
pub struct Launched {
    pub pid: i32,
    /// To be read to its end, then given to [`verdict`].
    pub status: OwnedFd,
}

/// Start `exec`.
pub fn launch(ground: &Ground, exec: &Exec, stdio: &Stdio) -> Result<Launched, Refusal> {
    let (status, report) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|errno| Refusal::system("cannot make a pipe", errno))?;
    // SAFETY: the agent has one thread, so its memory is consistent in the child.
    let pid = unsafe { clone_into(ground.cgroup.as_ref().map(AsFd::as_fd)) }
        .map_err(|errno| Refusal::system("cannot start another process", errno))?;
    if pid == 0 {
        let refusal = match become_job(ground, exec, stdio) {
            Ok(never) => match never {},
            Err(refusal) => refusal,
        };
        // The pipe is empty and this fits it.
        let _ = std::fs::File::from(report).write_all(&encode(&refusal));
        // SAFETY: ends the child without running what belongs to the agent.
        unsafe { libc::_exit(127) }
    }
    Ok(Launched { pid, status })
}

/// What the bytes of a launch's status pipe say.
pub fn verdict(bytes: &[u8]) -> Result<(), Refusal> {
    let Some((&[code, e0, e1, e2, e3], message)) = bytes.split_first_chunk() else {
        return Ok(());
    };
    let errno = i32::from_le_bytes([e0, e1, e2, e3]);
    Err(Refusal {
        code: CODES.get(usize::from(code)).unwrap_or(&"system"),
        message: String::from_utf8_lossy(message).into_owned(),
        errno: (errno != 0).then_some(errno),
    })
}

/// The most bytes that a launch's status pipe carries.
pub const MAX_VERDICT: usize = 512;

const CODES: [&str; 6] = [
    "system",
    "not-found",
    "not-executable",
    "no-such-user",
    "no-such-directory",
    "invalid",
];

fn encode(refusal: &Refusal) -> Vec<u8> {
    let code = CODES.iter().position(|code| *code == refusal.code);
    let mut bytes = vec![u8::try_from(code.unwrap_or(0)).unwrap_or(0)];
    bytes.extend(refusal.errno.unwrap_or(0).to_le_bytes());
    bytes.extend(refusal.message.as_bytes());
    bytes.truncate(MAX_VERDICT);
    bytes
}

/// fork, into a cgroup: born there, a child spares the kernel the migration between cgroups, which
/// waits for all of its processors.
///
/// # Safety
/// The caller has one thread.
pub unsafe fn clone_into(cgroup: Option<BorrowedFd>) -> Result<i32, Errno> {
    // linux/sched.h; too large for the type that `libc` gives such flags.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all zero is the structure's "nothing asked".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_sign_loss, reason = "signals and fds are not negative")]
    {
        arguments.exit_signal = libc::SIGCHLD as u64;
        if let Some(cgroup) = cgroup {
            arguments.flags = CLONE_INTO_CGROUP;
            arguments.cgroup = cgroup.as_raw_fd() as u64;
        }
    }
    // SAFETY: without CLONE_VM this is fork; the structure lives and its size is given.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    #[expect(clippy::cast_possible_truncation, reason = "pids are below 2^22")]
    Errno::result(pid).map(|pid| pid as i32)
}

enum Never {}

fn become_job(ground: &Ground, exec: &Exec, stdio: &Stdio) -> Result<Never, Refusal> {
    let step = |what| move |errno| Refusal::system(what, errno);
    unistd::setsid().map_err(step("cannot make a session"))?;
    if ground.root == Root::OfInit {
        // The agent must not be killed for memory, its jobs must when they are to blame.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        unistd::chroot("/proc/1/root").map_err(step("cannot enter the machine's root"))?;
        unistd::chdir("/").map_err(step("cannot enter the machine's root"))?;
    }
    let account = account::look_up(&exec.user)?;
    if exec.tty.is_some() {
        // As login does; a user of another name space of the same machine may not be known to devpts.
        let _ = unistd::fchown(stdio.stdin, Some(Uid::from_raw(account.uid)), None);
        // SAFETY: the fd is a terminal's; the argument 0 steals it from nobody.
        let result = unsafe { libc::ioctl(stdio.stdin.as_raw_fd(), libc::TIOCSCTTY, 0) };
        Errno::result(result).map_err(step("cannot take the terminal"))?;
    }
    let stdin = unistd::dup2_stdin(stdio.stdin);
    let stdout = unistd::dup2_stdout(stdio.stdout);
    let stderr = unistd::dup2_stderr(stdio.stderr);
    stdin
        .and(stdout)
        .and(stderr)
        .map_err(step("cannot set up standard input and output"))?;
    umask(Mode::from_bits_truncate(0o022));
    // What systemd gives: programs that use select() see no large number unless they ask for it.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 1_024, 524_288);
    secrets::place(&exec.secrets, &account).map_err(step("cannot give it its secrets"))?;
    take_identity(&account).map_err(step("cannot take the user's identity"))?;
    change_directory(exec.cwd.as_deref(), &account)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(step("cannot unblock signals"))?;

    let environment = environment(exec, &account);
    if exec.builtin == Some(Builtin::Shell) {
        let name = account.shell.rsplit('/').next().unwrap_or_default();
        let mut argv = vec![
            c_string(name.as_bytes()).unwrap_or_default(),
            c"-c".to_owned(),
        ];
        argv.extend(exec.argv.get(1).and_then(|command| c_string(command)));
        return Err(exec_path(account.shell.as_bytes(), &argv, &environment));
    }
    if let Some(builtin) = exec.builtin {
        let mut argv = vec![c"vmgr-agent".to_owned(), c"--builtin".to_owned()];
        argv.push(CString::new(builtin.name()).expect("no NUL"));
        argv.extend(exec.argv.iter().skip(1).filter_map(|a| c_string(a)));
        let error = exec_program(&ground.program, &argv, &environment);
        return Err(Refusal::system("cannot run the agent's own program", error));
    }
    if exec.login {
        let name = account.shell.rsplit('/').next().unwrap_or_default();
        let argv = [c_string(format!("-{name}").as_bytes()).unwrap_or_default()];
        return Err(exec_path(account.shell.as_bytes(), &argv, &environment));
    }
    let argv: Vec<CString> = exec.argv.iter().filter_map(|a| c_string(a)).collect();
    Err(exec_search(&exec.argv[0], &argv, &environment))
}

fn c_string(bytes: &[u8]) -> Option<CString> {
    // What has a NUL was refused when it was decoded.
    CString::new(bytes).ok()
}

fn take_identity(account: &Account) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    if (unistd::getuid(), unistd::getgid()) == (uid, gid) && !uid.is_root() {
        return Ok(());
    }
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    unistd::setgroups(&groups)?;
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)
}

fn change_directory(cwd: Option<&[u8]>, account: &Account) -> Result<(), Refusal> {
    match cwd {
        Some(cwd) => unistd::chdir(Path::new(OsStr::from_bytes(cwd))).map_err(|errno| Refusal {
            code: "no-such-directory",
            ..Refusal::system("cannot enter the working directory", errno)
        }),
        None => unistd::chdir(account.home.as_str())
            .or_else(|_| unistd::chdir("/"))
            .map_err(|errno| Refusal::system("cannot enter /", errno)),
    }
}

/// The whole environment: what was asked, and what every program expects.
fn environment(exec: &Exec, account: &Account) -> Vec<CString> {
    const OF_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    const OF_OTHERS: &str = "/usr/local/bin:/usr/bin:/bin";
    let path = if account.uid == 0 { OF_ROOT } else { OF_OTHERS };
    let mut entries: Vec<CString> = exec.env.iter().filter_map(|e| c_string(e)).collect();
    for (name, value) in [
        ("HOME", account.home.as_str()),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
        ("PATH", path),
    ] {
        if variable(&entries, name).is_none() {
            entries.extend(c_string(format!("{name}={value}").as_bytes()));
        }
    }
    entries
}

fn variable<'a>(environment: &'a [CString], name: &str) -> Option<&'a [u8]> {
    environment.iter().find_map(|entry| {
        let value = entry.to_bytes().strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })
}

fn exec_program(program: &OwnedFd, argv: &[CString], environment: &[CString]) -> Errno {
    let flags = AtFlags::AT_EMPTY_PATH;
    match unistd::execveat(program, c"", argv, environment, flags) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Run `name`, looked up in the PATH of `environment` when it has no slash.
fn exec_search(name: &[u8], argv: &[CString], environment: &[CString]) -> Refusal {
    if name.contains(&b'/') {
        return exec_path(name, argv, environment);
    }
    let path = variable(environment, "PATH").unwrap_or_default();
    let mut seen = None;
    if !name.is_empty() {
        for directory in path.split(|&b| b == b':') {
            // POSIX: an empty entry is the working directory.
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            let refusal = exec_path(&[directory, b"/", name].concat(), argv, environment);
            match refusal.code {
                "not-found" => {}
                // Another directory may have one that can be executed.
                _ if refusal.errno == Some(libc::EACCES) => {
                    seen.get_or_insert(refusal);
                }
                _ => return refusal,
            }
        }
    }
    seen.unwrap_or_else(|| Refusal {
        code: "not-found",
        message: format!(
            "no program {:?} in {:?}",
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(path)
        ),
        errno: Some(libc::ENOENT),
    })
}

fn exec_path(path: &[u8], argv: &[CString], environment: &[CString]) -> Refusal {
    let Some(program) = c_string(path) else {
        return Refusal::invalid("a path with a NUL");
    };
    let errno = match unistd::execve(&program, argv, environment) {
        Ok(never) => match never {},
        Err(errno) => errno,
    };
    let shown = String::from_utf8_lossy(path).into_owned();
    let missing = matches!(errno, Errno::ENOENT | Errno::ENOTDIR);
    if missing && !exists(&program) {
        return Refusal {
            code: "not-found",
            message: format!("there is no {shown:?}"),
            errno: Some(errno as i32),
        };
    }
    let why = if missing {
        "its interpreter is missing"
    } else {
        errno.desc()
    };
    Refusal {
        code: "not-executable",
        message: format!("cannot execute {shown:?}: {why}"),
        errno: Some(errno as i32),
    }
}

fn exists(path: &CStr) -> bool {
    unistd::access(path, unistd::AccessFlags::F_OK).is_ok()
}

/// Close every fd of the agent in a child that will not exec, but those in `keep` (all above 2).
pub fn close_others(keep: &[RawFd]) {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep {
        close_range(from, fd - 1, 0);
        from = fd + 1;
    }
    close_range(from, RawFd::MAX, 0);
}

/// Make every fd that the agent was started with one that jobs do not get.
pub fn hide_inherited() {
    // linux/close_range.h
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    close_range(3, RawFd::MAX, CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) {
    if first <= last {
        // SAFETY: whoever calls this still uses none of those, or only marks them.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    }
}

/// The agent's own program, to be executed whatever the root is by then.
pub fn own_program() -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open("/proc/self/exe", flags, Mode::empty())
}

/// Take ownership of an fd that was given by number.
///
/// # Safety
/// Nothing else owns `fd`.
#[must_use]
pub unsafe fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
