//! Files whose content is elsewhere, and is fetched when somebody opens them.
//!
//! What a machine reads is no reason to fetch gigabytes from a remote store: such a file is seen, with
//! its size, and opening it is refused with EREMOTE until the person has fetched it.

use std::os::fd::AsFd;

use rustix::fs::{fstatfs, getxattr};

use crate::place::magic;

/// FILE_ATTRIBUTE_OFFLINE, _RECALL_ON_OPEN and _RECALL_ON_DATA_ACCESS: [MS-FSCC] 2.6.
const ELSEWHERE: u32 = 0x1000 | 0x4_0000 | 0x40_0000;
/// Under which names file systems tell a file's DOS attributes: Linux' SMB client, ntfs3 and NTFS-3G.
const NAMES: [&str; 3] = [
    "user.cifs.dosattrib",
    "user.smb3.dosattrib",
    "system.ntfs_attrib",
];
/// The file systems that may: SMB 1, SMB 2 and 3, FUSE, ntfs3; from linux/magic.h and fs/ntfs3.
const KINDS: [u32; 4] = [0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x7366_746e];

/// Whether a file's content would have to be fetched.
pub fn is_placeholder(fd: impl AsFd) -> bool {
    let Ok(kind) = fstatfs(&fd) else {
        return false;
    };
    // Only the low half of the number is what the header files name.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let kind = kind.f_type as u32;
    if !KINDS.contains(&kind) {
        return false;
    }
    let path = magic(&fd);
    NAMES.iter().any(|&name| {
        let mut value = [0; 4];
        getxattr(path.as_str(), name, &mut value) == Ok(4)
            && u32::from_ne_bytes(value) & ELSEWHERE != 0
    })
}
