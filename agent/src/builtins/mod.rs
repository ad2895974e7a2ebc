//! The agent's own programs: files in and out of a machine, as jobs (docs/agent-protocol.md,
//! "Builtins").
//!
//! They run after exec, in the machine's root and as the job's user, so they can do no more than the
//! machine's own `tar` could, and the image needs none. Problems with single files are lines on stderr
//! and exit code 1; the rest is still done.

mod account;
mod forward;
mod list;
mod pack;
mod place;
mod sftp;
mod single;
mod unpack;

use std::ffi::OsString;
use std::fmt::Display;
use std::path::Path;

use crate::wire::Builtin;

/// Run a builtin; its exit code. `arguments` are those after its name.
#[must_use]
pub fn run(builtin: Builtin, arguments: &[OsString]) -> i32 {
    let mut report = Report::default();
    let known = match builtin {
        Builtin::Pack => pack::run(arguments, &mut report),
        Builtin::Unpack => unpack::run(arguments, &mut report),
        Builtin::Stat => single::stat(arguments, &mut report),
        Builtin::Read => single::read(arguments, &mut report),
        Builtin::Write => single::write(arguments, &mut report),
        Builtin::Sftp => sftp::run(arguments, &mut report),
        Builtin::Connect => forward::connect(arguments, &mut report),
        Builtin::Listen => forward::listen(arguments, &mut report),
        Builtin::Accept => forward::accept(arguments, &mut report),
        Builtin::Account => account::run(arguments, &mut report),
        Builtin::Place => place::run(arguments, &mut report),
        // A job that is one becomes the shell itself; see `launch`.
        Builtin::Shell => Err(Usage("shell is for jobs")),
    };
    match known {
        Err(Usage(usage)) => {
            eprintln!("usage: {usage}");
            2
        }
        Ok(()) => i32::from(report.problems > 0),
    }
}

/// The arguments made no sense; what would.
struct Usage(&'static str);

/// What went wrong so far.
#[derive(Default)]
struct Report {
    problems: u64,
}

impl Report {
    fn problem(&mut self, path: impl AsRef<Path>, what: impl Display) {
        self.problems += 1;
        eprintln!("{}: {what}", path.as_ref().display());
    }

    /// The cause alone: the path is said already.
    fn error(&mut self, path: impl AsRef<Path>, error: &std::io::Error) {
        match error.raw_os_error() {
            Some(number) => self.problem(path, nix::errno::Errno::from_raw(number).desc()),
            None => self.problem(path, error),
        }
    }
}

/// Split leading options from operands; `--` ends the options.
fn options<'a>(arguments: &'a [OsString], usage: &'static str) -> Result<Options<'a>, Usage> {
    let mut rest = arguments;
    let mut options = Options::default();
    while let Some((first, after)) = rest.split_first() {
        match first.as_encoded_bytes() {
            b"--" => {
                rest = after;
                break;
            }
            b"--follow" => options.follow = true,
            b"--list" => options.list = true,
            option @ (b"--as" | b"--expect") => {
                let (value, after) = after.split_first().ok_or(Usage(usage))?;
                if option == b"--as" {
                    options.name = Some(value);
                } else {
                    options.expect = Some(value);
                }
                rest = after;
                continue;
            }
            [b'-', b'-', ..] => return Err(Usage(usage)),
            _ => break,
        }
        rest = after;
    }
    options.operands = rest;
    Ok(options)
}

#[derive(Default)]
struct Options<'a> {
    /// A link that is named stands for what it leads to.
    follow: bool,
    /// `--as NAME`
    name: Option<&'a OsString>,
    /// `--expect MARK`: what a file must be like still.
    expect: Option<&'a OsString>,
    /// All that is in a directory.
    list: bool,
    operands: &'a [OsString],
}
