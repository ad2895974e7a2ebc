"""A filter of system calls, put on when all that the switchboard starts with is there.

What it needs from then on is sockets, its taps, and the files it reads. The list is of what a
process that has been taken over would use to get further: no list of all that Python, libnftables
and their C library may ever call, which would fail with the next version of one of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

__all__ = ["restrict"]

_ALLOW: Final = 0x7FFF0000  # seccomp.h of libseccomp, seccomp_rule_add(3)
_ERRNO: Final = 0x00050000
_MASKED_EQUAL: Final = 7
_FOR_ALL_THREADS: Final = 4  # SCMP_FLTATR_CTL_TSYNC
_CLONE_THREAD: Final = 0x10000  # linux/sched.h
_DENIED: Final = (
    # other programs and processes
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev",
    "kcmp", "pidfd_getfd", "process_madvise",
    # other namespaces and roots
    "unshare", "setns", "chroot", "pivot_root",
    "mount", "umount2", "open_tree", "move_mount", "fsopen", "fsmount", "fsconfig", "fspick",
    "mount_setattr", "open_by_handle_at", "name_to_handle_at",
    # other rights
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid",
    "setfsgid", "capset", "personality", "prlimit64", "setrlimit",
    # large parts of the kernel that it has no use for
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "keyctl", "add_key", "request_key", "init_module", "finit_module",
    "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct",
    "quotactl", "iopl", "ioperm", "modify_ldt", "settimeofday", "clock_settime", "adjtimex",
    "clock_adjtime", "syslog", "vhangup", "lookup_dcookie", "fanotify_init",
)  # fmt: skip


class _Argument(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("number", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def restrict() -> str | None:
    """Deny them for good, in all threads; why not, when that does not work here."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        return f"libseccomp is not there: {error}"
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    if not rules.value:
        return "libseccomp makes no filter"

    def deny(name: str, code: int, *arguments: _Argument) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # this libseccomp, or this kind of computer, has no such call
            return
        _check(
            library.seccomp_rule_add_array(
                rules, ctypes.c_uint32(_ERRNO | code), number, len(arguments),
                (_Argument * len(arguments))(*arguments),
            ),
            name,
        )  # fmt: skip

    try:
        # Its flags are in memory, where no filter can look: the C library then takes `clone`.
        deny("clone3", errno.ENOSYS)
        deny("clone", errno.EPERM, _Argument(0, _MASKED_EQUAL, _CLONE_THREAD, 0))
        for name in _DENIED:
            deny(name, errno.EPERM)
        _check(library.seccomp_attr_set(rules, _FOR_ALL_THREADS, 1), "threads")
        _check(library.seccomp_load(rules), "the filter")
    except OSError as error:
        return str(error)
    finally:
        library.seccomp_release(rules)
    return None


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"libseccomp refuses {what}: {os.strerror(-result)}")
