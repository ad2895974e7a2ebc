//! The line that stands for a file in listings, as `ls -l` has it.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;

/// What is read of /etc/passwd and /etc/group.
const MOST: u64 = 4 << 20;

/// Names of users and groups, read when the first is asked for.
#[derive(Default)]
pub(in crate::builtins) struct Names {
    users: Option<HashMap<u32, String>>,
    groups: Option<HashMap<u32, String>>,
}

impl Names {
    /// User and group of a file.
    pub(in crate::builtins) fn owners(&mut self, found: &Metadata) -> [String; 2] {
        [
            name_of(&mut self.users, "/etc/passwd", found.uid()),
            name_of(&mut self.groups, "/etc/group", found.gid()),
        ]
    }

    /// `-rw-r--r--    1 root     root         1234 Nov 24 12:00 NAME`
    pub(super) fn line(&mut self, name: &[u8], found: &Metadata) -> Vec<u8> {
        let [user, group] = self.owners(found);
        let mut line = format!(
            "{} {:>4} {user:<8} {group:<8} {:>8} {} ",
            mode_text(found.mode()),
            found.nlink(),
            found.size(),
            time_text(found.mtime()),
        )
        .into_bytes();
        line.extend(name);
        line
    }
}

fn name_of(names: &mut Option<HashMap<u32, String>>, path: &str, number: u32) -> String {
    let names = names.get_or_insert_with(|| read(path));
    names
        .get(&number)
        .cloned()
        .unwrap_or_else(|| number.to_string())
}

fn read(path: &str) -> HashMap<u32, String> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path)
        && file.metadata().is_ok_and(|m| m.is_file())
    {
        // What could be read is what there is.
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(Ok(number))) =
            (fields.next(), fields.next(), fields.next().map(str::parse))
        {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

fn mode_text(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letters.as_bytes()[0] as char,
            (false, true) => letters.as_bytes()[1] as char,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn time_text(seconds: i64) -> String {
    const HALF_A_YEAR: i64 = 182 * 86_400;
    // SAFETY: without an argument the result is only returned.
    let now = unsafe { libc::time(std::ptr::null_mut()) };
    let recent = (now - HALF_A_YEAR..=now + 86_400).contains(&seconds);
    let format = if recent { c"%b %e %H:%M" } else { c"%b %e  %Y" };
    let mut buffer = [0_u8; 64];
    // SAFETY: the structure is filled in before it is read, and strftime keeps to the buffer's size.
    let length = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const seconds, &raw mut parts).is_null() {
            return "?".to_owned();
        }
        libc::strftime(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            format.as_ptr(),
            &raw const parts,
        )
    };
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_shows_them() {
        assert_eq!(mode_text(libc::S_IFREG | 0o644), "-rw-r--r--");
        assert_eq!(mode_text(libc::S_IFDIR | 0o1777), "drwxrwxrwt");
        assert_eq!(mode_text(libc::S_IFREG | 0o4754), "-rwsr-xr--");
        assert_eq!(mode_text(libc::S_IFLNK | 0o2660), "lrw-rwS---");
    }
}
