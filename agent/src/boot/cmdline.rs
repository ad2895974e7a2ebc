//! What the kernel command line tells the agent: `vmgr.NAME=VALUE`.

use std::fs;

/// The parameters; an absent one has its default.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The root disk: a virtio-blk serial or a device's path.
    pub root: String,
    /// The disk of kernel modules, likewise.
    pub modules: String,
    /// The program that becomes PID 1; empty: the agent itself.
    pub init: String,
    pub hostname: Option<String>,
    /// Whether memory that nobody uses is told to the host, which can take it back then.
    pub reclaim: bool,
}

impl CommandLine {
    /// Read /proc/cmdline.
    #[must_use]
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    /// The last of several equal parameters counts, as for the kernel.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let value = |name: &str| {
            let words = line.split_ascii_whitespace().rev();
            let found = words.filter_map(|w| {
                w.strip_prefix("vmgr.")?
                    .strip_prefix(name)?
                    .strip_prefix('=')
            });
            found.map(str::to_owned).next()
        };
        let filled = |name: &str, default: &str| {
            let value = value(name).filter(|value| !value.is_empty());
            value.unwrap_or_else(|| default.to_owned())
        };
        Self {
            root: filled("root", "root"),
            modules: filled("modules", "modules"),
            init: value("init").unwrap_or_default(),
            hostname: value("hostname").filter(|name| !name.is_empty()),
            reclaim: value("reclaim").as_deref() == Some("1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gives_the_defaults() {
        let found = CommandLine::parse("console=ttyS0 quiet\n");
        assert_eq!(
            (found.root.as_str(), found.modules.as_str()),
            ("root", "modules")
        );
        assert_eq!((found.init.as_str(), found.hostname), ("", None));
        assert!(!found.reclaim);
    }

    #[test]
    fn parameters_are_read_and_the_last_counts() {
        let found = CommandLine::parse(
            "vmgr.init=/bin/a vmgr.root=/dev/vdb vmgr.initx=1 xvmgr.init=/no vmgr.init=/sbin/init vmgr.reclaim=1 vmgr.hostname=dev",
        );
        assert_eq!(found.init, "/sbin/init");
        assert_eq!(found.root, "/dev/vdb");
        assert_eq!(found.hostname.as_deref(), Some("dev"));
        assert!(found.reclaim);
    }
}
