from __future__ import annotations

import mmap
import os
import socket
import subprocess

from tests.conftest import wait_for_end

from vmgr.spawner.process import start_time_of
from vmgr.usage import cpu_seconds, host_counters, memory_use, traffic_of


def ended() -> int:
    with subprocess.Popen(["true"]) as process:
        wait_for_end(process.pid)
    return process.pid


def test_work_counts() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    while (now := cpu_seconds(os.getpid())) is not None and now < before + 0.05:
        pass
    assert now is not None


def test_another_process_of_the_same_number_is_not_taken_for_it() -> None:
    start = start_time_of(os.getpid())
    assert start is not None
    assert cpu_seconds(os.getpid(), start) is not None
    assert cpu_seconds(os.getpid(), start - 1) is None


def test_memory_counts_and_is_given_back() -> None:
    before = memory_use(os.getpid())
    size = 64 << 20
    with mmap.mmap(-1, size) as held:
        for at in range(0, size, mmap.PAGESIZE):
            held[at] = 1
        during = memory_use(os.getpid())
    after = memory_use(os.getpid())
    assert before is not None
    assert during is not None
    assert after is not None
    assert during.pss >= before.pss + size * 0.9
    assert after.pss <= during.pss - size * 0.9
    assert during.pss <= during.rss


def test_what_is_sent_over_an_interface_counts() -> None:
    def lo() -> int:
        return traffic_of(os.getpid())["lo"].sent

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        before = lo()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.sendto(b"x" * 10_000, there.getsockname())
        assert len(there.recv(20_000)) == 10_000
        assert lo() >= before + 10_000


def test_a_process_that_has_ended_has_nothing() -> None:
    pid = ended()
    assert cpu_seconds(pid) is None
    assert memory_use(pid) is None
    assert traffic_of(pid) == {}


def test_the_host_is_seen() -> None:
    host = host_counters()
    assert host.cpus == os.cpu_count()
    assert host.cpu_seconds > 0
    assert 0 < host.available <= host.memory
