"""A program of its own that moves guests' memory between a VMM and files.

The helper neither maps nor holds what is in a machine's memory: this short-lived process does the
copying, with fds that the helper opened and gave it, and nothing else. It is run as a script with
an isolated interpreter, so it imports only the standard library and starts in a few milliseconds.

    copier.py save RAM MEM PAGEMAP OUT START SIZE PRIVATE
        the memory of a VMM, in two steps: what cannot change any more is copied at once; the rest
        when `g` comes on stdin (the VMM stands still by then). Says `ready`, then `done BYTES`.
    copier.py load FROM OUT
        a saved memory into another file. Says `done BYTES CHECKSUM`.
    copier.py check FROM
        only its checksum. Says `done BYTES CHECKSUM`.

Upper-case words are numbers: fds, the address and size of the guest's memory in the VMM in bytes,
and whether the mapping is private (1) to the VMM or shared (0). Files stay sparse: pages that
nobody has touched are holes in all of them.

Formats: /proc/PID/pagemap is described in Documentation/admin-guide/mm/pagemap.rst of Linux.
"""

import os
import sys
import zlib
from array import array
from collections.abc import Iterator

PAGE = os.sysconf("SC_PAGE_SIZE")
CHUNK = 1 << 20
PAGEMAP_READ = 1 << 16  # entries (of 8 bytes) at a time
PRESENT_OR_SWAPPED = 3 << 62
OF_FILE = 1 << 61  # the page is the file's own (or shared), not the VMM's private copy


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of data in a sparse file."""
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        offset = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        if begin < offset:
            yield begin, offset


def private_pages(pagemap: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of pages of which the VMM has a copy of its own."""
    first, count = start // PAGE, size // PAGE
    begin: int | None = None
    for at in range(0, count, PAGEMAP_READ):
        wanted = min(PAGEMAP_READ, count - at)
        raw = os.pread(pagemap, wanted * 8, (first + at) * 8)
        if len(raw) != wanted * 8:
            raise OSError(5, "the page map is cut short")
        entries = array("Q", raw)
        if begin is None and not any(entries):
            continue
        for index, entry in enumerate(entries, at):
            if entry & PRESENT_OR_SWAPPED and not entry & OF_FILE:
                if begin is None:
                    begin = index
            elif begin is not None:
                yield begin * PAGE, index * PAGE
                begin = None
    if begin is not None:
        yield begin * PAGE, count * PAGE


def copy(source: int, at: int, target: int, begin: int, end: int) -> int:
    """Copy [begin, end) of `target`'s offsets from `source`, where it lies `at` further on."""
    buffer = memoryview(bytearray(min(CHUNK, end - begin)))
    offset = begin
    while offset < end:
        count = os.preadv(source, [buffer[: min(CHUNK, end - offset)]], at + offset)
        if count <= 0:
            raise OSError(5, "the memory is cut short")
        write(target, buffer[:count], offset)
        offset += count
    return end - begin


def write(target: int, data: memoryview, offset: int) -> None:
    """Write all of `data`."""
    while data:
        count = os.pwrite(target, data, offset)
        data = data[count:]
        offset += count


def say(line: str) -> None:
    """Tell the helper."""
    os.write(1, f"{line}\n".encode())


def save(*arguments: int) -> None:
    """See the module's description."""
    ram, mem, pagemap, out, start, size, private = arguments
    os.ftruncate(out, size)
    total = 0
    if private:
        # The file below a private mapping never changes: all of it before the machine has to wait.
        total += sum(copy(ram, 0, out, begin, end) for begin, end in extents(ram, size))
    say("ready")
    if os.read(0, 1) != b"g":
        return
    if private:
        runs = private_pages(pagemap, start, size)
        total += sum(copy(mem, start, out, begin, end) for begin, end in runs)
    else:
        total += sum(copy(ram, 0, out, begin, end) for begin, end in extents(ram, size))
    say(f"done {total}")


def load(source: int, out: int | None) -> None:
    """See the module's description."""
    size = os.fstat(source).st_size
    if out is not None:
        os.ftruncate(out, size)
    total, checksum = 0, zlib.crc32(str(size).encode())
    buffer = memoryview(bytearray(CHUNK))
    for begin, end in extents(source, size):
        checksum = zlib.crc32(f"{begin}-{end}".encode(), checksum)
        offset = begin
        while offset < end:
            count = os.preadv(source, [buffer[: min(CHUNK, end - offset)]], offset)
            if count <= 0:
                raise OSError(5, "the file is cut short")
            checksum = zlib.crc32(buffer[:count], checksum)
            if out is not None:
                write(out, buffer[:count], offset)
            offset += count
        total += end - begin
    say(f"done {total} {checksum}")


def main(what: str, *numbers: str) -> None:
    """Do what the arguments say."""
    values = [int(number) for number in numbers]
    if what == "save":
        save(*values)
    else:
        load(values[0], values[1] if what == "load" else None)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        say(f"failed {error.errno or 5}")
