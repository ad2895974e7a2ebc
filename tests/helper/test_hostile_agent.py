"""What takes the agent's place in a machine, and lies: that machine's channel ends, nothing else.

A program in the machine ends its agent, opens the port and plays one attack on each connection that
the helper makes. Another machine works meanwhile, and the helper stays as small as it was.
"""

from __future__ import annotations

import io
import json
import os
import select
import struct
import subprocess
import tarfile
import tempfile
from typing import TYPE_CHECKING

import pytest
from tests.agent.peer import agent_frame, hello_map
from tests.conftest import SMALL

from vmgr.agent.frames import STDIN, STDOUT, FrameType, encode_credit, encode_header

if TYPE_CHECKING:
    from tests.conftest import Home

pytestmark = pytest.mark.vm
T = FrameType

# Attacks are files in /attacks, in their order: what is sent after the nonce that the helper asks
# for; an empty file never answers but sends noise. The first frame of a request names its channel.
AGENT = r"""
use strict; use POSIX ();
exit 0 if fork; POSIX::setsid();
open STDIN, '<', '/dev/null'; open STDOUT, '>', '/dev/null'; open STDERR, '>', '/attacks.log';
# The agent is whose command line begins with @ (it outlives the shutdown of an init that way).
for my $dir (glob '/proc/[0-9]*') {
  open my $file, '<', "$dir/cmdline" or next;
  my $line = <$file> // '';
  kill 9, $dir =~ /(\d+)/ if $line =~ /^@/;
}
my ($name) = map { m{([^/]+)/name$} ? $1 : () } glob '/sys/class/virtio-ports/*/name';
my $port;
until (sysopen $port, "/dev/$name", 2) { select undef, undef, undef, 0.05 }
syswrite $port, "\xff" x 64;  # the first lie ends the connection of the agent that was
my $read = '';
sub more {
  my $count = sysread $port, my $part, 65536;
  if (!$count) { select undef, undef, undef, 0.05; return }
  $read .= $part;
}
for my $attack (sort glob '/attacks/*') {
  open my $file, '<', $attack; binmode $file; local $/; my $bytes = <$file> // '';
  # The last hello that came is that of the connection which is there now.
  until ($read =~ /\xa5nonce\xc4\x10.{16}/s) { more() }
  my $nonce; $nonce = $1 while $read =~ /\xa5nonce\xc4\x10(.{16})/sg;
  $read = '';
  if ($bytes eq '') { syswrite $port, 'x' x 32768 for 1 .. 600; next }
  my ($hello, $rest) = unpack 'N/a* a*', $bytes;
  syswrite $port, $nonce . $hello;
  if ($attack =~ /request/) {
    my $channel;
    # OPEN, then its channel, then a map.
    until (defined $channel) { more(); ($channel) = $read =~ /\x02\0\0\0(....)[\x80-\x8f]/s }
    $read = '';
    $rest =~ s/CHAN/$channel/g;
  }
  for (my $at = 0; $at < length $rest; $at += 32768) { syswrite $port, substr $rest, $at, 32768 }
}
sleep 1000;
"""


def attack(*frames: bytes) -> bytes:
    hello = agent_frame(T.HELLO, hello_map())
    return struct.pack(">I", len(hello)) + hello + b"".join(frames)


CHANNEL = int.from_bytes(b"CHAN", "little")  # stands for the one that the helper opened
OPENED = agent_frame(T.OPENED, {"job": 1, "pid": 2}, channel=CHANNEL)
DATA = agent_frame(T.DATA, bytes(32_768), channel=CHANNEL, flow=STDOUT)

# Name, what is sent, what the helper gives as the reason.
ATTACKS = (
    ("length", attack(encode_header(T.DATA, channel=1, length=2**32 - 1)), "a frame of 4294967295"),
    ("type", attack(struct.pack("<IBBHI", 0, 77, 0, 0, 0)), "of the unknown type 77"),
    ("id", attack(agent_frame(T.EXIT, {"code": 0}, channel=2**32 - 1)), "was never opened"),
    ("nested", attack(agent_frame(T.EVENT, b"\x91" * 60_000)), "broke the protocol"),
    ("hello", attack(agent_frame(T.HELLO, hello_map())), "an unexpected HELLO"),
    ("pong", attack(agent_frame(T.PONG, b"x")), "an answer to no ping"),
    ("events", attack(agent_frame(T.EVENT, {"event": "oom"}) * 20_000), "a flood of events"),
    ("noise", b"", "no answer to the hello within"),
    ("request-sequence", attack(agent_frame(T.EXIT, {"code": 0}, channel=CHANNEL)), "is OPENING"),
    ("request-credit", attack(OPENED, DATA * 200), "more data than was granted"),
    ("request-ack", attack(OPENED, encode_credit(CHANNEL, STDIN, 9, 9)),
     "an acknowledgement of bytes that were not sent"),
    ("request-twice", attack(OPENED, OPENED), "OPENED twice"),
    ("request-empty", attack(OPENED, agent_frame(T.DATA, channel=CHANNEL, flow=STDOUT) * 120_000),
     "a flood of frames that say nothing"),
)  # fmt: skip


def files() -> bytes:
    """What the machine needs for all this, as an archive."""
    packed = io.BytesIO()
    contents = {f"attacks/{n:02}-{name}": sent for n, (name, sent, _) in enumerate(ATTACKS)}
    contents |= {"attacks/99-request-slow": attack(OPENED), "agent.pl": AGENT.encode()}
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class Log:
    """The helper's log, line by line as it is written."""

    def __init__(self, home: Home) -> None:
        path = home.root / "state/vmgr/helper.log"
        self._tail = subprocess.Popen(
            ["tail", "-n", "0", "-F", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

        self._seen = b""

    def says(self, words: str, within: float) -> bool:
        """Whether it says so after what was waited for before; waits no longer than that."""
        assert self._tail.stdout is not None
        while (at := self._seen.find(words.encode())) < 0:
            if not select.select([self._tail.stdout], [], [], within)[0]:
                return False
            self._seen += os.read(self._tail.stdout.fileno(), 65_536)
        self._seen = self._seen[at + 1 :]
        return True

    def close(self) -> None:
        self._tail.kill()
        self._tail.communicate()


def resident(home: Home) -> int:
    return int(home.json("helper", "status")["rss_bytes"])


def test_lies_and_floods_end_one_machines_channel_and_nothing_else(home: Home) -> None:
    home.vmgr("create", "bad", "--image", "debian", "--memory", "512M", "--cpus", "1")
    home.vmgr("create", "good", "--image", "debian-minimal", *SMALL)
    home.vmgr("start", "bad", "good")
    home.vmgr("exec", "-i", "bad", "--", "tar", "-x", "-C", "/", stdin=files())
    helper, vmms = home.helper_pid(), home.vmms()
    steady = home.start("exec", "-i", "good", "--", "cat")
    before = resident(home)
    log = Log(home)
    # It may be cut off before it has said that it runs: it ends who would say so.
    home.vmgr("exec", "bad", "--", "perl", "/agent.pl", check=False)

    for number, (name, _, reason) in enumerate(ATTACKS):
        # A command may come before the helper has connected again, and is then refused at once.
        for _ in range(60):
            if name.startswith("request"):
                done = home.vmgr("exec", "bad", "--", "true", check=False)
                assert done.returncode != 0
                assert b"Traceback" not in done.stderr
            if log.says(reason, 1.0 if name.startswith("request") else 60.0):
                break
        else:
            pytest.fail(f"{reason!r} is not said: {home.logs()}")
        assert steady.stdin is not None
        assert steady.stdout is not None
        steady.stdin.write(b"%d\n" % number)
        steady.stdin.flush()
        assert steady.stdout.readline() == b"%d\n" % number

    log.close()
    assert home.helper_pid() == helper
    assert home.vmms() == vmms
    assert resident(home) - before < 24 << 20
    assert home.json("info", "good")["status"] == "running"
    assert json.loads(home.vmgr("doctor", "--audit", "--json").stdout)["problems"] == []
    # Last, one that takes a command and never reads what is sent to it.
    with tempfile.TemporaryFile() as endless:
        endless.truncate(1 << 30)
        slow = home.start("exec", "-i", "bad", "--", "cat", stdin=endless)
        for number in range(3):
            steady.stdin.write(b"%d\n" % number)
            steady.stdin.flush()
            assert steady.stdout.readline() == b"%d\n" % number
        assert resident(home) - before < 24 << 20
        slow.kill()
        slow.communicate()
    steady.communicate()
    assert steady.returncode == 0
    home.vmgr("kill", "bad")
    assert home.json("info", "bad")["status"] == "stopped"
