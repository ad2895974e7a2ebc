//! The command line. In a machine there is none: the kernel starts the agent as PID 1.
//!
//! There is no `fn main` of Rust's: its runtime insists on fds 0 to 2 before any of our code runs, and
//! an initramfs may have no device to open for them.

#![no_main]

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;

use vmgr_agent::port::Kind;
use vmgr_agent::wire::Builtin;
use vmgr_agent::{boot, builtins, counter, host, launch, serve};

const USAGE: &str =
    "usage: vmgr-agent --serve SOCKET | --serve-listener FD | --serve-fd FD | --counter | --version

Serves the agent protocol as an ordinary process, for tests; --counter says how many kHz the
time-stamp counter has. In a machine the kernel starts it as init.";

/// Where the C library begins.
///
/// # Safety
/// Called once, by the C library, with what execve(2) promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: c_int, values: *const *mut c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    let arguments: Vec<OsString> = (1..count)
        .map(|at| {
            // SAFETY: argv has `count` strings.
            let value = unsafe { CStr::from_ptr(*values.add(at)) };
            OsString::from_vec(value.to_bytes().to_vec())
        })
        .collect();
    // The kernel may hand its own unknown parameters to init as arguments.
    let is_option = arguments
        .first()
        .is_some_and(|a| a.as_encoded_bytes().starts_with(b"--"));
    if std::process::id() == 1 && !is_option {
        // SAFETY: the kernel gives init a name, and nobody else looks at it.
        unsafe { boot::run(*values) }
    }
    // SAFETY: as above; execve(2) may be given no name at all.
    if count > 0 && host::is_name(unsafe { CStr::from_ptr(*values) }.to_bytes()) {
        return host::run(&arguments);
    }
    run(&arguments)
}

fn run(arguments: &[OsString]) -> c_int {
    let words: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap_or("")).collect();
    let result = match words.as_slice() {
        ["--version"] => {
            println!("vmgr-agent {}", env!("CARGO_PKG_VERSION"));
            return 0;
        }
        ["--counter"] => {
            let Some(kilohertz) = counter::kilohertz() else {
                return 1;
            };
            println!("{kilohertz}");
            return 0;
        }
        ["--builtin", name, ..] => {
            return match Builtin::from_name(name) {
                Some(builtin) => builtins::run(builtin, &arguments[2..]),
                None => 2,
            };
        }
        ["--serve", path] => UnixListener::bind(path).and_then(|listener| {
            serve::as_process(Kind::Listening(listener), None).map_err(Into::into)
        }),
        ["--serve-listener", number] if number.parse::<i32>().is_ok_and(|fd| fd > 2) => {
            // SAFETY: whoever started the agent gave it this fd.
            let listener = unsafe { launch::own(number.parse().unwrap_or(-1)) };
            serve::as_process(Kind::Listening(listener.into()), None).map_err(Into::into)
        }
        ["--serve-fd", number] if number.parse::<i32>().is_ok_and(|fd| fd > 2) => {
            // SAFETY: whoever started the agent gave it this fd.
            let stream = unsafe { launch::own(number.parse().unwrap_or(-1)) };
            serve::as_process(Kind::Single, Some(stream)).map_err(Into::into)
        }
        _ => {
            eprintln!("{USAGE}");
            return 2;
        }
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("vmgr-agent: {error}");
            1
        }
    }
}
