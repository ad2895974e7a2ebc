//! The power button, for machines without an init that would watch it.
//!
//! The VMM's ACPI power-down arrives as a key of an input device (input-event-codes.h).

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::kmod::{ModuleInitFlags, finit_module};

/// linux/input.h: `EVIOCGBIT(EV_KEY, 96)`, all keys that a device has.
const EVIOCGBIT_KEY: libc::Ioctl = 0x8060_4521;
/// linux/input-event-codes.h
const KEY_POWER: usize = 116;

/// The driver of the button, and the one that hands keys to programs.
const MODULES: [&str; 2] = ["drivers/acpi/button.ko", "drivers/input/evdev.ko"];

/// The devices that have a power key. By now the modules are where the machine has them.
#[must_use]
pub fn open() -> Vec<OwnedFd> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    for name in MODULES {
        let path = format!("/lib/modules/{}/kernel/{name}", release.trim());
        if let Ok(file) = File::open(path) {
            // It may be there already, or built in.
            let _ = finit_module(file, c"", ModuleInitFlags::empty());
        }
    }
    let Ok(entries) = fs::read_dir("/dev/input") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"event"))
        .filter_map(|entry| {
            let options = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
            File::options()
                .read(true)
                .custom_flags(options)
                .open(entry.path())
                .ok()
        })
        .map(OwnedFd::from)
        .filter(has_power_key)
        .collect()
}

fn has_power_key(device: &OwnedFd) -> bool {
    let mut keys = [0u8; 96];
    // SAFETY: the number says that 96 bytes are written.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), EVIOCGBIT_KEY, keys.as_mut_ptr()) };
    result >= 0 && keys[KEY_POWER / 8] & (1 << (KEY_POWER % 8)) != 0
}

/// Whether the button was pressed, in what a device has to say now.
#[must_use]
pub fn pressed(device: &OwnedFd) -> bool {
    /// `struct input_event` of x86-64: a time of 16 bytes, type, code, value.
    const EVENT: usize = 24;
    const EV_KEY: u16 = 1;
    let mut found = false;
    let mut events = [0; 16 * EVENT];
    while let Ok(count) = nix::unistd::read(device, &mut events)
        && count > 0
    {
        for event in events[..count].chunks_exact(EVENT) {
            let kind = u16::from_ne_bytes([event[16], event[17]]);
            let code = u16::from_ne_bytes([event[18], event[19]]);
            let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
            found |= kind == EV_KEY && usize::from(code) == KEY_POWER && value == 1;
        }
    }
    found
}
