"""What the helper and the switchboard say to each other fits what they say it with."""

from __future__ import annotations

import msgspec

from vmgr.switchboard import messages as m


def test_all_ports_of_a_machine_fit_one_answer() -> None:
    # 100 that appear by themselves at three addresses each, and 256 that were asked for at two.
    forwards = [
        m.Forward(
            machine="0" * 12, protocol="tcp", host="127.118.255.255", host_port=65_535 - number,
            target="fd76:6d67:7200::ffff", target_port=65_535 - number,
        )
        for number in range(100 * 3 + 256 * 2)
    ]  # fmt: skip
    plugs = m.Plugs(version=m.VERSION, forwards=forwards)
    answer = m.Answer(number=1 << 30, result=msgspec.to_builtins(plugs))
    assert len(msgspec.json.encode(answer)) < m.MAX_PACKET
