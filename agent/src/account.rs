//! Users and groups, from the machine's own /etc/passwd and /etc/group.
//!
//! Read without any of the machine's libraries, in the process that is to become the job: a file that
//! is huge, a pipe or nonsense costs that process only. Users of other name services have numbers.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use crate::error::Refusal;

/// What is read of either file, in bytes.
const MOST: u64 = 4 << 20;
/// NGROUPS_MAX of Linux.
const MAX_GROUPS: usize = 65_536;

/// Who a job runs as.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// Read the two files and find `spec`: a user's name or number, optionally `:group`.
pub fn look_up(spec: &str) -> Result<Account, Refusal> {
    resolve(spec, &read("/etc/passwd"), &read("/etc/group"))
}

/// The text of a file, as far as it could be read.
pub(crate) fn read(path: &str) -> String {
    let open = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path);
    let mut bytes = Vec::new();
    if let Ok(file) = open
        && file.metadata().is_ok_and(|m| m.is_file())
    {
        // What could be read is what there is.
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Find `spec` in the texts of /etc/passwd (passwd(5)) and /etc/group (group(5)).
///
/// A number without an entry is allowed: its group is the same number, its home `/`.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Account, Refusal> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let no_user = || Refusal::new("no-such-user", format!("there is no user {user:?}"));
    let user = if user.is_empty() { "root" } else { user };
    let number = number(user);
    let mut entries = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (_gecos, home) = (fields.next()?, fields.next()?);
        let shell = fields.next().unwrap_or_default();
        (!name.is_empty()).then_some((name, uid, gid, home, shell))
    });
    let by_name = entries.clone().find(|entry| entry.0 == user);
    let found = by_name.or_else(|| entries.find(|entry| Some(entry.1) == number));
    let mut account = match (found, number) {
        (Some((name, uid, gid, home, shell)), _) => Account {
            name: name.to_owned(),
            uid,
            gid,
            groups: Vec::new(),
            home: home.to_owned(),
            shell: shell.to_owned(),
        },
        (None, Some(uid)) => Account {
            name: uid.to_string(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: String::new(),
            shell: String::new(),
        },
        (None, None) if user == "root" => Account {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".to_owned(),
            shell: String::new(),
        },
        (None, None) => return Err(no_user()),
    };
    if account.home.is_empty() {
        account.home = "/".to_owned();
    }
    if account.shell.is_empty() {
        account.shell = "/bin/sh".to_owned();
    }
    match wanted_group {
        Some(name) => account.gid = group_number(name, group)?,
        None => account.groups = memberships(&account.name, group),
    }
    account.groups.retain(|&gid| gid != account.gid);
    account.groups.insert(0, account.gid);
    Ok(account)
}

/// A user or group number: decimal digits only, and not the one that means "leave as it is".
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|&n| n != u32::MAX)
}

/// Name, number and members of each group.
pub(crate) fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_number(name: &str, group: &str) -> Result<u32, Refusal> {
    group_lines(group)
        .find(|entry| entry.0 == name)
        .map(|entry| entry.1)
        .or_else(|| number(name))
        .ok_or_else(|| Refusal::new("no-such-user", format!("there is no group {name:?}")))
}

fn memberships(user: &str, group: &str) -> Vec<u32> {
    group_lines(group)
        .filter(|(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .take(MAX_GROUPS - 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        42:x:7:7::/seven:\n\
        ann:x:1000:1000:Ann,,,:/home/ann:/usr/bin/fish\n\
        bad:x:notanumber:1::/:/bin/sh\n\
        bob:x:1001:100::/home/bob\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:ann,bob\nusers:x:100:ann\nann:x:1000:\nshort:x\n";

    fn found(spec: &str) -> Account {
        resolve(spec, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn a_name_gives_its_entry_and_groups() {
        let ann = found("ann");
        assert_eq!((ann.uid, ann.gid), (1000, 1000));
        assert_eq!(ann.groups, [1000, 27, 100]);
        assert_eq!(
            (ann.home.as_str(), ann.shell.as_str()),
            ("/home/ann", "/usr/bin/fish")
        );
    }

    #[test]
    fn a_primary_group_is_not_listed_twice() {
        assert_eq!(found("bob").groups, [100, 27]);
    }

    #[test]
    fn a_number_finds_the_name() {
        assert_eq!(found("1000"), found("ann"));
    }

    #[test]
    fn a_name_of_digits_comes_before_the_number() {
        assert_eq!(found("42").uid, 7);
    }

    #[test]
    fn a_number_without_entry_is_itself() {
        let account = found("5000");
        assert_eq!((account.uid, account.gid), (5000, 5000));
        assert_eq!(
            (account.home.as_str(), account.shell.as_str()),
            ("/", "/bin/sh")
        );
        assert_eq!(account.groups, [5000]);
    }

    #[test]
    fn a_named_group_replaces_all_others() {
        let account = found("ann:users");
        assert_eq!((account.gid, account.groups.as_slice()), (100, &[100][..]));
        assert_eq!(found("ann:12").groups, [12]);
        assert_eq!(found(":users").uid, 0);
    }

    #[test]
    fn what_is_missing_is_refused() {
        for spec in [
            "nobody-here",
            "ann:nogroup",
            "-1",
            "4294967295",
            "99999999999",
            "bad",
            "+1",
        ] {
            let refusal = resolve(spec, PASSWD, GROUP).unwrap_err();
            assert_eq!(refusal.code, "no-such-user", "{spec}");
        }
    }

    #[test]
    fn root_needs_no_passwd() {
        assert_eq!(resolve("root", "", "").unwrap().home, "/root");
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
    }
}
