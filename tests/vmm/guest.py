"""Guests for tests: an initramfs whose `/init` is a few system calls.

What matters to a VMM is what a guest does: says something, says nothing, powers off, resets,
panics, floods its console. Each is a handful of x86-64 instructions put together here, so that a
real kernel runs them and no compiler or image is needed.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

from vmgr.kernel.cpio import NewcWriter

# System call numbers: arch/x86/entry/syscalls/syscall_64.tbl of the Linux source.
_READ, _WRITE, _OPEN, _PAUSE, _MKDIR, _MOUNT, _REBOOT, _EXIT = 0, 1, 2, 34, 83, 165, 169, 231
# The arguments of reboot(2).
_MAGIC, _MAGIC2 = 0xFEE1DEAD, 672274793
_RESTART, _POWER_OFF = 0x01234567, 0x4321FEDC
_O_RDWR = 2
_BASE, _HEADERS = 0x400000, 64 + 56
# `mov register, imm64` for the six arguments of a system call, see syscall(2).
_LOAD = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_PORT = object()  # the agent's port, opened before


@dataclass
class Guest:
    """A program for a machine; each method adds a step and gives the guest back."""

    _code: bytearray = field(default_factory=bytearray)
    _data: bytearray = field(default_factory=bytearray)
    _addresses: list[tuple[int, int]] = field(default_factory=list)

    def say(self, text: bytes) -> Guest:
        """Write to the console."""
        return self._call(_WRITE, 1, text, len(text))

    def open_port(self) -> Guest:
        """Open the agent's port, waiting until the kernel has found it."""
        self._call(_MKDIR, b"/d\0", 0o755)
        self._call(_MOUNT, b"d\0", b"/d\0", b"devtmpfs\0", 0, 0)
        start = len(self._code)
        self._call(_OPEN, b"/d/vport0p1\0", _O_RDWR, 0)
        self._code += b"\x48\x85\xc0\x0f\x88"  # test rax, rax; js start
        self._code += struct.pack("<i", start - len(self._code) - 4)
        self._code += b"\x48\x89\xc3"  # mov rbx, rax
        return self

    def send(self, data: bytes) -> Guest:
        """Write to the port."""
        return self._call(_WRITE, _PORT, data, len(data))

    def receive(self) -> Guest:
        """Wait for a byte from the port, which has to be connected on the host's side."""
        return self._call(_READ, _PORT, bytes(1), 1)

    def power_off(self) -> bytes:
        return self._call(_REBOOT, _MAGIC, _MAGIC2, _POWER_OFF, 0).initramfs()

    def reset(self) -> bytes:
        return self._call(_REBOOT, _MAGIC, _MAGIC2, _RESTART, 0).initramfs()

    def panic(self) -> bytes:
        """End PID 1, which is a panic."""
        return self._call(_EXIT, 7).initramfs()

    def idle(self) -> bytes:
        """Do nothing for ever."""
        start = len(self._code)
        return self._call(_PAUSE)._jump(start).initramfs()

    def flood(self, text: bytes) -> bytes:
        """Write to the console for ever."""
        start = len(self._code)
        return self.say(text)._jump(start).initramfs()

    def initramfs(self) -> bytes:
        file = io.BytesIO()
        archive = NewcWriter(file)
        archive.file("init", self._elf(), 0o755)
        archive.close()
        return file.getvalue()

    # -- machine code ------------------------------------------------------------------------

    def _call(self, number: int, *arguments: int | bytes | object) -> Guest:
        for load, argument in zip(_LOAD, arguments, strict=False):
            if argument is _PORT:
                self._code += b"\x48\x89\xdf"  # mov rdi, rbx
                continue
            value = argument
            if isinstance(argument, bytes):
                self._addresses.append((len(self._code) + 2, len(self._data)))
                self._data += argument
                value = 0
            assert isinstance(value, int)
            self._code += load + struct.pack("<Q", value)
        self._code += b"\x48\xb8" + struct.pack("<Q", number) + b"\x0f\x05"
        return self

    def _jump(self, target: int) -> Guest:
        self._code += b"\xe9"
        self._code += struct.pack("<i", target - len(self._code) - 4)
        return self

    def _elf(self) -> bytes:
        """A static executable of one segment; see elf(5)."""
        code = bytearray(self._code)
        for where, offset in self._addresses:
            struct.pack_into("<Q", code, where, _BASE + _HEADERS + len(code) + offset)
        size = _HEADERS + len(code) + len(self._data)
        header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
            "<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
        )  # fmt: skip
        segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 0x1000)
        return bytes(header + segment + code + self._data)
