//! The system calls that this process may make, all else being refused with EPERM.
//!
//! What serves a machine opens, reads and changes files beneath one directory. It starts no program,
//! makes no socket and sends no signal, whatever a machine makes of it.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

#[rustfmt::skip]
const CALLS: &[libc::c_long] = &[
    // the stream
    libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev, libc::SYS_recvfrom,
    libc::SYS_recvmsg, libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_setsockopt,
    libc::SYS_shutdown, libc::SYS_ppoll,
    // files
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_statx, libc::SYS_fstat,
    libc::SYS_newfstatat, libc::SYS_fstatfs, libc::SYS_getdents64, libc::SYS_lseek,
    libc::SYS_readlinkat, libc::SYS_fcntl, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_copy_file_range, libc::SYS_fsync,
    libc::SYS_fdatasync, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat2,
    libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_fchmod, libc::SYS_fchmodat,
    libc::SYS_utimensat, libc::SYS_setxattr, libc::SYS_getxattr, libc::SYS_listxattr,
    libc::SYS_removexattr,
    // watching
    libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch,
    // memory and threads
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect,
    libc::SYS_madvise, libc::SYS_futex, libc::SYS_clone, libc::SYS_clone3, libc::SYS_gettid,
    libc::SYS_getpid, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_getrandom, libc::SYS_clock_gettime, libc::SYS_prctl,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack, libc::SYS_restart_syscall, libc::SYS_exit, libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Keep to these calls from here on, in this thread and those that it starts.
pub fn confine() -> std::io::Result<()> {
    let calls: BTreeMap<_, _> = CALLS.iter().map(|&call| (call, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let architecture =
        TargetArch::try_from(std::env::consts::ARCH).map_err(std::io::Error::other)?;
    let filter = SeccompFilter::new(calls, refused, SeccompAction::Allow, architecture)
        .map_err(std::io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(std::io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(std::io::Error::other)
}
