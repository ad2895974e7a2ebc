import pytest

from vmgr.errors import ConflictError, MachineError, ResourceError, VmgrError
from vmgr.spawner import ExitStatus
from vmgr.vmm.exit import explain_exit, failure_to_start

FINE, SEGV, GONE = ExitStatus(code=0), ExitStatus(signal=11), ExitStatus()


@pytest.mark.parametrize(
    ("status", "shutdown", "panic", "asked", "cause", "reason"),
    [
        (FINE, "guest-shutdown", None, None, "poweroff", "the machine powered itself off"),
        (FINE, "guest-shutdown", None, "stopped", "poweroff", "the machine powered itself off"),
        (FINE, "guest-reset", None, None, "reboot", "the machine rebooted"),
        (FINE, "guest-reset", "Oops", None, "panic", "the machine's kernel panicked: Oops"),
        (FINE, "guest-panic", "", None, "panic", "the machine's kernel panicked"),
        (FINE, "guest-panic", "VFS", None, "panic", "the machine's kernel panicked: VFS"),
        (FINE, "host-signal", None, "stopped", "asked", "stopped"),
        (FINE, "host-signal", None, None, "asked", "its VMM was asked to end"),
        (ExitStatus(signal=9), None, None, "killed", "asked", "killed"),
        (SEGV, None, None, None, "failed", "its VMM was killed by SIGSEGV: last words"),
        (ExitStatus(code=1), None, None, None, "failed", "its VMM exited with 1: last words"),
        (GONE, None, None, None, "unknown", "its VMM has gone"),
        (FINE, "a-new-reason", None, None, "unknown", "its VMM exited with 0"),
    ],
)
def test_every_way_to_end(
    *,
    status: ExitStatus,
    shutdown: str | None,
    panic: str | None,
    asked: str | None,
    cause: str,
    reason: str,
) -> None:
    log = "first\n2026-01-01T00:00:00.000000Z qemu-system-x86_64: last words\n\n"
    ended = explain_exit(status, shutdown, panic, asked, log)
    assert (ended.cause, ended.reason) == (cause, reason)
    assert ended.by_guest == (cause in {"poweroff", "reboot", "panic"})
    assert ended.log_tail == log


# As QEMU 7.2 prints them.
@pytest.mark.parametrize(
    ("printed", "kind", "message"),
    [
        (
            (
                'qemu-system-x86_64: -device virtio-blk,drive=root: Failed to get "write" lock\n'
                "Is another process using the image [/d/disk.qcow2]?"
            ),
            ConflictError,
            "the disk of machine box is in use by another process",
        ),
        (
            "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory",
            ResourceError,
            (
                "the host cannot give machine box its memory: "
                "cannot set up guest memory 'ram': Cannot allocate memory"
            ),
        ),
        (
            "qemu-system-x86_64: -blockdev x: Could not open /d: No space left on device",
            ResourceError,
            (
                "no space is left for machine box: "
                "-blockdev x: Could not open /d: No space left on device"
            ),
        ),
        (
            "qemu-system-x86_64: -device x: Property 'x.y' not found",
            MachineError,
            "the VMM of machine box did not start: -device x: Property 'x.y' not found",
        ),
        ("", MachineError, "the VMM of machine box did not start: its VMM exited with 1"),
    ],
)
def test_why_it_did_not_start(printed: str, kind: type[VmgrError], message: str) -> None:
    ended = explain_exit(ExitStatus(code=1), None, None, None, printed)
    error = failure_to_start("box", ended)
    assert type(error) is kind
    assert error.message == message
    assert error.next_step
    assert error.details == {"machine": "box", "vmm_log": printed}


def test_a_warning_is_no_reason() -> None:
    said = "2026-11-24T22:18:30.1Z qemu-system-x86_64: warning: nic net has no peer\n"
    ended = explain_exit(ExitStatus(signal=9), None, None, None, said)
    assert ended.reason == "its VMM was killed by SIGKILL"
    assert ended.log_tail == said
