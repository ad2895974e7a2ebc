//! Making systemd quick in a machine, without touching the image: units under /run.
//!
//! Every process that systemd starts at boot costs 50 to 100 ms where there is no hardware
//! virtualization. What is left out here is done by the agent already, or has no use in a machine whose
//! hardware does not change and whose console nobody logs in at. A unit of the same name in
//! /etc/systemd/system comes before ours (systemd.unit(5)), so each of these can be had back.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::unistd::symlinkat;

use super::place::Place;

/// Units that do not run, by reason.
const MASKED: [&str; 25] = [
    // There is no screen and nobody at the serial line; `vmgr shell` is the way in.
    "getty.target",
    // The agent has mounted the root for writing, and made the static nodes that matter.
    "systemd-remount-fs.service",
    "systemd-fsck-root.service",
    "kmod-static-nodes.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup-dev-early.service",
    // The agent has mounted what these load modules for.
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@dm_mod.service",
    "modprobe@loop.service",
    // Waiting for all hardware: there is none to come.
    "systemd-udev-settle.service",
    "systemd-pstore.service",
    "systemd-hwdb-update.service",
    // For images that are updated as a whole and for their first boot.
    "systemd-firstboot.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
    "ldconfig.service",
    // A record of run levels, which systemd does not have.
    "systemd-update-utmp-runlevel.service",
    // Would run at the first boot of every machine; `systemctl unmask` where they are wanted.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "man-db.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
];

/// Generators (systemd.generator(7)) that do not run, and the file of the machine for whose sake they
/// would: each is a process at boot and at every reload of the configuration.
const GENERATORS: [(&str, Option<&str>); 10] = [
    ("systemd-cryptsetup-generator", Some("etc/crypttab")),
    ("systemd-integritysetup-generator", Some("etc/integritytab")),
    ("systemd-veritysetup-generator", Some("etc/veritytab")),
    ("systemd-rc-local-generator", Some("etc/rc.local")),
    ("systemd-system-update-generator", Some("system-update")),
    // These read the kernel command line, which is the VMM's, or look for partitions.
    ("systemd-debug-generator", None),
    ("systemd-run-generator", None),
    ("systemd-hibernate-resume-generator", None),
    ("systemd-gpt-auto-generator", None),
    ("systemd-getty-generator", None),
];

/// Where modules-load.d(5) finds its lists.
const MODULE_LISTS: [&str; 3] = [
    "etc/modules-load.d",
    "usr/local/lib/modules-load.d",
    "usr/lib/modules-load.d",
];

/// Coldplug only what needs udev: names of network links, links to disks, rights of devices.
const TRIGGER: &str = "[Service]
ExecStart=
ExecStart=-/usr/bin/udevadm trigger --type=devices --action=add --prioritized-subsystem=net \
--subsystem-match=net --subsystem-match=block --subsystem-match=misc
";

/// systemd would unmount the modules while udev still has their index open, and say that it failed. It
/// gets them at the very end, when no process is left.
const KEEP_MOUNTED: &str = "[Unit]
DefaultDependencies=no
";

/// Leave what is mounted at `path` (absolute, as the machine sees it) alone until the end.
pub fn keep_mounted(root: &Place, path: &str) -> Result<(), Errno> {
    let directory = format!("run/systemd/system/{}.mount.d", escape(path));
    root.directory(&directory)?;
    root.write(&format!("{directory}/vmgr.conf"), KEEP_MOUNTED)
}

/// A path as the name of a unit: systemd.unit(5), "String Escaping for Inclusion in Unit Names".
fn escape(path: &str) -> String {
    let mut name = String::new();
    for byte in path.trim_matches('/').bytes() {
        match byte {
            b'/' => name.push('-'),
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b':' | b'_' | b'.' => {
                name.push(char::from(byte));
            }
            other => {
                let _ = write!(name, "\\x{other:02x}");
            }
        }
    }
    name
}

/// Put the units into the /run that `root` has by now.
pub fn prepare(root: &Place) -> Result<(), Errno> {
    let units: OwnedFd = root.directory("run/systemd/system")?;
    for unit in MASKED {
        symlinkat("/dev/null", &units, unit)?;
    }
    if !lists_modules(root) {
        symlinkat("/dev/null", &units, "systemd-modules-load.service")?;
    }
    let generators = root.directory("run/systemd/system-generators")?;
    for (generator, reason) in GENERATORS {
        if !reason.is_some_and(|path| root.has(path)) {
            symlinkat("/dev/null", &generators, generator)?;
        }
    }
    root.directory("run/systemd/system/systemd-udev-trigger.service.d")?;
    root.write(
        "run/systemd/system/systemd-udev-trigger.service.d/vmgr.conf",
        TRIGGER,
    )
}

/// Whether the machine wants modules at boot: Debian's list is there and says nothing.
fn lists_modules(root: &Place) -> bool {
    MODULE_LISTS.iter().any(|directory| {
        root.entries(directory).iter().any(|name| {
            let text = root
                .read(&format!("{directory}/{name}"))
                .unwrap_or_default();
            let mut lines = text.lines().map(str::trim);
            lines.any(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn unit_names_are_escaped() {
        assert_eq!(
            super::escape("/usr/lib/modules/6.12.1+deb-a"),
            r"usr-lib-modules-6.12.1\x2bdeb\x2da"
        );
    }
}
