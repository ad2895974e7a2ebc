//! The command line. In a machine there is none: the kernel starts the agent as PID 1.

use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use vmgr_agent::port::Kind;
use vmgr_agent::{launch, serve};

const USAGE: &str = "usage: vmgr-agent --serve SOCKET | --serve-fd N | --version

Serves the agent protocol as an ordinary process, for tests. In a machine the kernel starts it as init.";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap_or("")).collect();
    let result = match words.as_slice() {
        ["--version"] => {
            println!("vmgr-agent {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["--serve", path] => UnixListener::bind(path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            serve::as_process(Kind::Listening(listener), None).map_err(Into::into)
        }),
        ["--serve-fd", number] if number.parse::<i32>().is_ok_and(|fd| fd > 2) => {
            // SAFETY: whoever started the agent gave it this fd.
            let stream = unsafe { launch::own(number.parse().unwrap_or(-1)) };
            serve::as_process(Kind::Single, Some(stream)).map_err(Into::into)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmgr-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
