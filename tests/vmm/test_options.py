from pathlib import Path

import pytest

from vmgr.errors import UsageError
from vmgr.vmm.options import option, plain_value


def test_names_and_values() -> None:
    assert option(
        "virtio-blk-pci", num_queues=1, disable_legacy=True, wait=False, nothing=None
    ) == ("virtio-blk-pci,num-queues=1,disable-legacy=on,wait=off")
    assert option(file__filename=Path("/a b")) == "file.filename=/a b"


def test_a_comma_is_doubled_wherever_it_stands() -> None:
    assert option("a,b", path="/x,readonly=on,") == "a,,b,path=/x,,readonly=on,,"


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "a\rb"])
def test_what_would_break_a_line_or_an_argument_is_refused(value: str) -> None:
    for call in (lambda: option(path=value), lambda: plain_value(value)):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.message == (
            f"{value!r} has a line break or NUL in it, which QEMU cannot be given"
        )
