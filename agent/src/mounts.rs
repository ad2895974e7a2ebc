//! Taking file systems down at the end.

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Unmount whatever can be, last mounted first; the root stays.
pub fn unmount_all() {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // proc(5): fields are separated by spaces, in which a space is \040.
    let points: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(unescape)
        .collect();
    for point in points.iter().rev() {
        let is_needed = ["/", "/proc", "/dev", "/sys"].contains(&point.as_str());
        if !is_needed {
            let _ = umount2(point.as_str(), MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}

/// Make the machine's root read-only, so that its journal is closed.
pub fn make_read_only(is_init: bool) {
    let root = if is_init { "/" } else { "/proc/1/root" };
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let done = mount(None::<&str>, root, None::<&str>, flags, None::<&str>);
    // A file is still open for writing: the kernel's emergency way (sysrq.rst, "u") does it all the same.
    if done.is_err() {
        let _ = fs::write("/proc/sysrq-trigger", "u");
    }
}

fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|c| u8::from_str_radix(c, 8).ok());
        if let Some(code) = code {
            text.push(char::from(code));
            rest = &rest[at + 4..];
        } else {
            text.push('\\');
            rest = &rest[at + 1..];
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    #[test]
    fn spaces_in_mount_points_are_read() {
        assert_eq!(super::unescape(r"/a\040b\134c\x"), r"/a b\c\x");
    }
}
