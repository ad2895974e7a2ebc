//! `place`: files by which a machine knows something of its host, kept as the host has them.
//!
//! What was written is noted, so that it can be told from what the person made of it: a file that is
//! not as it was left is the person's from then on, and is neither changed nor removed. Nothing is
//! written into a directory that is not there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use super::{Report, Usage};
use crate::wire::{self, Placed};

const USAGE: &str = "place";
const MOST: u64 = 4 << 20;
const NOTES: &str = "/var/lib/vmgr/placed";
/// Debian's and its relatives': all certificates in one file.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A msgpack map on stdin; lines `wrote PATH`, `removed PATH` and `kept PATH` on stdout.
pub(super) fn run(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    if !arguments.is_empty() {
        return Err(Usage(USAGE));
    }
    let mut input = Vec::new();
    let read = io::stdin().lock().take(MOST).read_to_end(&mut input);
    if let Err(error) = read {
        report.error("stdin", &error);
        return Ok(());
    }
    let wanted = wire::placing(&input).map_err(|_| Usage(USAGE))?;
    let before = notes();
    let mut after = BTreeMap::new();
    for file in &wanted.files {
        let noted = before.get(&file.path).copied();
        match keep(file, noted) {
            Ok((word, note)) => {
                if let Some(note) = note {
                    after.insert(file.path.clone(), note);
                }
                if !word.is_empty() {
                    println!("{word} {}", file.path);
                }
            }
            Err(error) => report.error(&file.path, &error),
        }
    }
    // What the host has no more.
    for (path, note) in &before {
        if wanted.files.iter().all(|file| file.path != *path)
            && state(Path::new(path)) == Some(*note)
        {
            match fs::remove_file(path) {
                Ok(()) => println!("removed {path}"),
                Err(error) => report.error(path, &error),
            }
        }
    }
    if after != before
        && let Err(error) = write_notes(&after)
    {
        report.error(NOTES, &error);
    }
    if let Err(error) = trust(&wanted.certificates) {
        report.error(BUNDLE, &error);
    }
    Ok(())
}

/// Have a file there; what was done, and the note for the next time.
fn keep(file: &Placed, noted: Option<u64>) -> io::Result<(&'static str, Option<u64>)> {
    let path = Path::new(&file.path);
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(("", None));
    }
    let link = file.link.as_ref().filter(|to| Path::new(to).is_file());
    let wanted = match link {
        Some(to) => hash(b"link:", to.as_bytes()),
        None => hash(b"file:", &file.content),
    };
    let found = state(path);
    let ours = match (noted, found) {
        // It is as wanted, whoever made it so; only what we made is ours.
        (_, Some(found)) if found == wanted => return Ok(("", noted.map(|_| wanted))),
        (Some(noted), Some(found)) => noted == found,
        // The person has removed it, and that stays so.
        (Some(_), None) => false,
        (None, Some(_)) => file.replace,
        (None, None) => fs::symlink_metadata(path).is_err(),
    };
    if !ours {
        return Ok(("kept", noted));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.vmgr"));
    let _ = fs::remove_file(&temporary);
    if let Some(to) = link {
        symlink(to, &temporary)?;
    } else {
        let mut options = File::options();
        let mut new = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)?;
        new.write_all(&file.content)?;
    }
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    Ok(("wrote", Some(wanted)))
}

/// What is at a path, as a number; None for what is no link and no file.
fn state(path: &Path) -> Option<u64> {
    let found = fs::symlink_metadata(path).ok()?;
    if found.is_symlink() {
        let to = fs::read_link(path).ok()?;
        return Some(hash(b"link:", to.as_os_str().as_encoded_bytes()));
    }
    if !found.is_file() || found.len() > MOST {
        return None;
    }
    fs::read(path).ok().map(|content| hash(b"file:", &content))
}

/// FNV-1a, 64 bits: tells a file that somebody edited from one that nobody did, no more.
fn hash(kind: &[u8], bytes: &[u8]) -> u64 {
    kind.iter()
        .chain(bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

fn notes() -> BTreeMap<String, u64> {
    let mut text = String::new();
    if let Ok(file) = File::open(NOTES) {
        let _ = file.take(MOST).read_to_string(&mut text);
    }
    let entries = text.lines().filter_map(|line| {
        let (note, path) = line.split_once(' ')?;
        Some((path.to_owned(), u64::from_str_radix(note, 16).ok()?))
    });
    entries.collect()
}

fn write_notes(notes: &BTreeMap<String, u64>) -> io::Result<()> {
    let path = Path::new(NOTES);
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
    }
    let lines = notes
        .iter()
        .map(|(path, note)| format!("{note:x} {path}\n"));
    let temporary = path.with_extension("new");
    fs::write(&temporary, lines.collect::<String>())?;
    fs::rename(temporary, path)
}

/// Add certificates to the file in which most programs look, until the machine's own tool, which
/// writes it anew with them, has run.
fn trust(certificates: &[Vec<u8>]) -> io::Result<()> {
    if certificates.is_empty() || !Path::new(BUNDLE).is_file() {
        return Ok(());
    }
    let known = fs::read(BUNDLE)?;
    let missing: Vec<&Vec<u8>> = certificates
        .iter()
        .filter(|pem| !contains(&known, pem.trim_ascii()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut file = File::options().append(true).open(BUNDLE)?;
    let mut text = if known.ends_with(b"\n") {
        vec![]
    } else {
        vec![b'\n']
    };
    for pem in missing {
        text.extend_from_slice(pem.trim_ascii());
        text.push(b'\n');
    }
    file.write_all(&text)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    // A line of the signature, which is at the end, is like no other's.
    let line = part.rsplit(|byte| *byte == b'\n').nth(2).unwrap_or(part);
    text.split(|byte| *byte == b'\n').any(|known| known == line)
}
