//! `account`: an account for the person, in the machine's own files.
//!
//! Lines are only ever added to those files: an account that is there already, by its name or its
//! number, is used as it is. The lock is the one that `useradd` and `passwd` take.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink,
};
use std::path::Path;

use nix::errno::Errno;

use super::{Report, Usage};
use crate::account;
use crate::wire;

const USAGE: &str = "account NAME UID GID GROUP SHELL LOCALE";
/// Below, numbers belong to the system: login.defs(5), UID_MIN.
const FIRST: u32 = 1_000;
/// `nobody` and what systemd gives away come after.
const LAST: u32 = 59_999;
/// Seconds until another program that changes accounts is taken to hang.
const LOCK_DEADLINE: u32 = 10;
/// What is copied of /etc/skel, at the most.
const SKEL_ENTRIES: usize = 256;
const SKEL_BYTES: u64 = 1 << 20;
const LOCALES: u64 = 32 << 20;

struct Wanted {
    name: String,
    uid: u32,
    gid: u32,
    group: String,
    shell: String,
    locale: String,
}

/// What is to be done about an account.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Use the one of this name.
    Use(&'static str, String),
    /// Make one with these numbers; the group is made where it is named.
    Make(&'static str, u32, u32, Option<String>),
    /// The system uses the name.
    Taken,
}

/// One map of msgpack on stdout: `state`, and of the account that serves `name`, `uid`, `home`,
/// `shell`; `sudo`: whether the machine has it; `locale`: the one asked for or what it has instead.
pub(super) fn run(arguments: &[OsString], report: &mut Report) -> Result<(), Usage> {
    let wanted = read(arguments).ok_or(Usage(USAGE))?;
    match settle(&wanted, report) {
        Ok(answer) => {
            let mut stdout = io::stdout().lock();
            if let Err(error) = stdout.write_all(&answer).and_then(|()| stdout.flush()) {
                report.error("stdout", &error);
            }
        }
        Err(error) => report.error("/etc/passwd", &error),
    }
    Ok(())
}

fn read(arguments: &[OsString]) -> Option<Wanted> {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let [name, uid, gid, group, shell, locale] = words[..] else {
        return None;
    };
    // A colon or a line's end would make more of an entry than was meant.
    let plain = |text: &str| !text.contains([':', '\n', '\0']) && text.len() <= 256;
    words.iter().all(|word| plain(word)).then_some(())?;
    let valid = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    (valid(name) && (valid(group) || group.is_empty())).then_some(())?;
    Some(Wanted {
        name: name.to_owned(),
        uid: uid.parse().ok().filter(|&uid| uid != 0)?,
        gid: gid.parse().ok()?,
        group: group.to_owned(),
        shell: shell.to_owned(),
        locale: locale.to_owned(),
    })
}

fn settle(wanted: &Wanted, report: &mut Report) -> io::Result<Vec<u8>> {
    let lock = lock()?;
    // What is no file is not written to either.
    if !fs::metadata("/etc/passwd")?.is_file() {
        return Err(Errno::EINVAL.into());
    }
    let passwd = account::read("/etc/passwd");
    let group = account::read("/etc/group");
    let (state, name) = match plan(wanted, &passwd, &group) {
        Plan::Use(state, name) => (state, name),
        Plan::Taken => ("taken", String::new()),
        Plan::Make(state, uid, gid, new_group) => {
            make(wanted, uid, gid, new_group, report)?;
            (state, wanted.name.clone())
        }
    };
    drop(lock);
    let found = (!name.is_empty())
        .then(|| account::look_up(&name).ok())
        .flatten();
    let (uid, home, shell) = found.map_or((0, String::new(), String::new()), |a| {
        (a.uid, a.home, a.shell)
    });
    let sudo = executable(Path::new("/usr/bin/sudo"));
    let short = |text: String| -> String { text.chars().take(128).collect() };
    Ok(wire::map(vec![
        ("state", state.into()),
        ("name", short(name).into()),
        ("uid", uid.into()),
        ("home", short(home).into()),
        ("shell", short(shell).into()),
        ("sudo", sudo.into()),
        ("locale", locale(&wanted.locale).into()),
    ]))
}

fn plan(wanted: &Wanted, passwd: &str, group: &str) -> Plan {
    let entries: Vec<(&str, u32)> = passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse().ok()?))
        })
        .collect();
    let of_people = |uid: u32| uid >= FIRST && uid != 65_534;
    if let Some(&(name, uid)) = entries.iter().find(|(name, _)| *name == wanted.name) {
        return if uid == wanted.uid {
            Plan::Use("there", name.to_owned())
        } else if of_people(uid) {
            Plan::Use("other-number", name.to_owned())
        } else {
            Plan::Taken
        };
    }
    let holder = |uid: u32| entries.iter().find(|(_, found)| *found == uid);
    let (state, uid) = match holder(wanted.uid) {
        None => ("made", wanted.uid),
        Some((name, uid)) if of_people(*uid) => {
            return Plan::Use("number-of-another", (*name).to_owned());
        }
        Some(_) => match (FIRST..=LAST).find(|&uid| holder(uid).is_none()) {
            Some(uid) => ("made-with-other-number", uid),
            None => return Plan::Taken,
        },
    };
    let gid = if uid == wanted.uid { wanted.gid } else { uid };
    let mut groups = account::group_lines(group);
    let known = groups.any(|(name, found, _)| found == gid || name == wanted.group);
    let new_group = (!known && !wanted.group.is_empty()).then(|| wanted.group.clone());
    Plan::Make(state, uid, gid, new_group)
}

/// The entry in passwd comes last: whoever finds it finds the rest.
fn make(
    wanted: &Wanted,
    uid: u32,
    gid: u32,
    new_group: Option<String>,
    report: &mut Report,
) -> io::Result<()> {
    let name = &wanted.name;
    let home = format!("/home/{name}");
    if let Err(error) = make_home(Path::new(&home), uid, gid) {
        report.error(&home, &error);
    }
    if let Err(error) = permit_sudo(name) {
        report.error("/etc/sudoers.d", &error);
    }
    if let Some(group) = new_group {
        append("/etc/group", &format!("{group}:x:{gid}:\n"))?;
        if Path::new("/etc/gshadow").exists() {
            append("/etc/gshadow", &format!("{group}:!::\n"))?;
        }
    }
    if Path::new("/etc/shadow").exists() {
        let names = account::read("/etc/shadow");
        if !names.lines().any(|l| l.split(':').next() == Some(name)) {
            // No password fits, and the account is not locked: keys and sudo work.
            append("/etc/shadow", &format!("{name}:*:19000:0:99999:7:::\n"))?;
        }
    }
    let shell = shell(&wanted.shell);
    append(
        "/etc/passwd",
        &format!("{name}:x:{uid}:{gid}::{home}:{shell}\n"),
    )
}

/// One write at the end of a file, on a line of its own.
fn append(path: &str, line: &str) -> io::Result<()> {
    let mut file = File::options()
        .read(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let length = file.metadata()?;
    if !length.is_file() {
        return Err(Errno::EINVAL.into());
    }
    let mut last = [b'\n'];
    if length.len() > 0 {
        nix::sys::uio::pread(&file, &mut last, length.len().cast_signed() - 1)?;
    }
    let begin = if last == *b"\n" { "" } else { "\n" };
    file.write_all(format!("{begin}{line}").as_bytes())
}

fn make_home(home: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if let Some(parent) = home.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(home) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let (there, above) = (fs::symlink_metadata(home)?, fs::metadata(parent)?);
                // A directory that holds something of its own, or another file system, is left alone.
                let bare = there.is_dir() && there.dev() == above.dev() && there.uid() == 0;
                if !bare
                    || fs::read_dir(home)?.any(|e| e.is_ok_and(|e| !is_mount(&e.path(), &there)))
                {
                    return Ok(());
                }
            }
            other => other?,
        }
    }
    let mut left = SKEL_ENTRIES;
    copy_skel(Path::new("/etc/skel"), home, (uid, gid), &mut left)?;
    chown(home, Some(uid), Some(gid))
}

fn is_mount(path: &Path, above: &fs::Metadata) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.dev() != above.dev())
}

fn copy_skel(from: &Path, to: &Path, (uid, gid): (u32, u32), left: &mut usize) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let found = fs::symlink_metadata(&from)?;
        if fs::symlink_metadata(&to).is_ok() {
            continue;
        }
        if found.is_dir() {
            fs::DirBuilder::new()
                .mode(found.mode() & 0o777)
                .create(&to)?;
            copy_skel(&from, &to, (uid, gid), left)?;
            chown(&to, Some(uid), Some(gid))?;
        } else if found.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            std::os::unix::fs::lchown(&to, Some(uid), Some(gid))?;
        } else if found.is_file() && found.len() <= SKEL_BYTES {
            let mut bytes = Vec::new();
            File::open(&from)?
                .take(SKEL_BYTES)
                .read_to_end(&mut bytes)?;
            let mut file = File::options().write(true).create_new(true).open(&to)?;
            file.write_all(&bytes)?;
            file.set_permissions(fs::Permissions::from_mode(found.mode() & 0o777))?;
            fchown(&file, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// Also where there is no sudo yet: installed later, it serves at once.
fn permit_sudo(name: &str) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create("/etc/sudoers.d")?;
    // sudo reads no file with a dot in its name.
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o440)
        .open("/etc/sudoers.d/vmgr-user");
    match file {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        file => file?.write_all(
            format!("# Made by vmgr with the account {name}.\n{name} ALL=(ALL:ALL) NOPASSWD:ALL\n")
                .as_bytes(),
        ),
    }
}

/// The shell that was asked for, or the best of what the machine has.
fn shell(wanted: &str) -> String {
    let name = wanted.rsplit('/').next().unwrap_or_default();
    let candidates = [
        wanted.to_owned(),
        format!("/bin/{name}"),
        format!("/usr/bin/{name}"),
        "/bin/bash".to_owned(),
    ];
    let known = candidates
        .into_iter()
        .find(|path| path.starts_with('/') && executable(Path::new(path)));
    known.unwrap_or_else(|| "/bin/sh".to_owned())
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
}

/// The locale that was asked for, where the machine has it; else the one that needs no files.
fn locale(wanted: &str) -> String {
    const ALWAYS: &str = "C.UTF-8";
    if wanted.is_empty() || ["C", "POSIX", ALWAYS].contains(&wanted) {
        return wanted.to_owned();
    }
    let (name, codeset) = wanted.split_once('.').unwrap_or((wanted, ""));
    // As glibc does: letters and digits in lower case (_nl_normalize_codeset).
    let codeset: String = codeset
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let file = if codeset.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{codeset}")
    };
    let inside = |file: &str| !file.contains('/') && file != "." && file != "..";
    if !inside(&file) {
        return ALWAYS.to_owned();
    }
    let mut archive = Vec::new();
    if Path::new("/usr/lib/locale").join(&file).is_dir() {
        return wanted.to_owned();
    }
    if let Ok(found) = File::open("/usr/lib/locale/locale-archive") {
        let _ = found.take(LOCALES).read_to_end(&mut archive);
    }
    let entry = format!("{file}\0");
    let listed = archive
        .windows(entry.len())
        .any(|window| window == entry.as_bytes());
    if listed { wanted } else { ALWAYS }.to_owned()
}

/// lckpwdf(3).
fn lock() -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open("/etc/.pwd.lock")?;
    // SAFETY: an all-zero flock is valid: the whole file.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "F_WRLCK is 1")]
    {
        whole.l_type = libc::F_WRLCK as libc::c_short;
    }
    // SAFETY: this process serves nothing else, so that the alarm ends it is right; both calls get
    // what they ask for.
    unsafe {
        libc::alarm(LOCK_DEADLINE);
        Errno::result(libc::fcntl(
            file.as_raw_fd(),
            libc::F_SETLKW,
            &raw const whole,
        ))?;
        libc::alarm(0);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nmail:x:8:8::/var/mail:/usr/sbin/nologin\n\
        debian:x:1000:1000::/home/debian:/bin/bash\nann:x:1001:1001::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\n";

    fn planned(name: &str, uid: u32, gid: u32) -> Plan {
        let wanted = Wanted {
            name: name.to_owned(),
            uid,
            gid,
            group: name.to_owned(),
            shell: String::new(),
            locale: String::new(),
        };
        plan(&wanted, PASSWD, GROUP)
    }

    #[test]
    fn a_new_one_gets_its_numbers() {
        let made = Plan::Make("made", 1_002, 1_002, Some("bob".to_owned()));
        assert_eq!(planned("bob", 1_002, 1_002), made);
        assert_eq!(planned("bob", 501, 100), Plan::Make("made", 501, 100, None));
    }

    #[test]
    fn what_is_there_is_used_as_it_is() {
        assert_eq!(
            planned("ann", 1_001, 5),
            Plan::Use("there", "ann".to_owned())
        );
        let other = Plan::Use("other-number", "ann".to_owned());
        assert_eq!(planned("ann", 1_007, 5), other);
        let another = Plan::Use("number-of-another", "debian".to_owned());
        assert_eq!(planned("bob", 1_000, 5), another);
    }

    #[test]
    fn the_systems_own_are_not_used() {
        assert_eq!(planned("mail", 1_002, 5), Plan::Taken);
        let moved = Plan::Make(
            "made-with-other-number",
            1_002,
            1_002,
            Some("bob".to_owned()),
        );
        assert_eq!(planned("bob", 8, 8), moved);
    }

    #[test]
    fn entries_cannot_be_smuggled_in() {
        let words = |name: &str| -> Vec<OsString> {
            [name, "5", "5", "g", "/bin/sh", ""]
                .map(OsString::from)
                .to_vec()
        };
        assert!(read(&words("bob")).is_some());
        for name in ["", "a:b", "a\nb", "a b"] {
            assert!(read(&words(name)).is_none(), "{name:?}");
        }
    }
}
