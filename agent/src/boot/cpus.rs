//! Bringing up the CPUs that the kernel has left off.
//!
//! Under some emulators a kernel that patches its own code while several CPUs run may die of it, and
//! most of that patching is done at boot. There the host says `maxcpus=1`, and the rest is ours.

use std::fs;

/// Bring up all CPUs that there are. What does not come up is told to `log`.
pub fn bring_up(log: impl Fn(&str)) {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // `cpu1`, but not `cpufreq`. The first CPU, and one that cannot go off, has no such file.
        let is_cpu = name
            .strip_prefix("cpu")
            .is_some_and(|rest| rest.parse::<u32>().is_ok());
        let path = entry.path().join("online");
        if is_cpu
            && fs::read_to_string(&path).is_ok_and(|state| state.trim_end() == "0")
            && let Err(error) = fs::write(&path, "1")
        {
            log(&format!("cannot bring up {name}: {error}"));
        }
    }
}
