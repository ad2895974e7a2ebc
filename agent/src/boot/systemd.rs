//! Making systemd quick in a machine, without touching the image: units under /run.
//!
//! Every process that systemd starts at boot costs 50 to 100 ms where there is no hardware
//! virtualization. What is left out here is done by the agent already, or has no use in a machine whose
//! hardware does not change and whose console nobody logs in at. A unit of the same name in
//! /etc/systemd/system comes before ours (systemd.unit(5)), so each of these can be had back.

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

/// Coldplug only what needs udev: names of network links, links to disks, rights of devices.
const TRIGGER: &str = "[Service]
ExecStart=
ExecStart=-/usr/bin/udevadm trigger --type=devices --action=add --prioritized-subsystem=net \
--subsystem-match=net --subsystem-match=block --subsystem-match=misc
";

/// Put the units into the /run that `root` has by now.
pub fn prepare(root: &Place) -> Result<(), Errno> {
    let units: OwnedFd = root.directory("run/systemd/system")?;
    for unit in MASKED {
        symlinkat("/dev/null", &units, unit)?;
    }
    root.directory("run/systemd/system/systemd-udev-trigger.service.d")?;
    root.write(
        "run/systemd/system/systemd-udev-trigger.service.d/vmgr.conf",
        TRIGGER,
    )
}
