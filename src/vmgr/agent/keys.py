"""Resync keys: which marker makes the agent listen, whatever it was in the middle of.

The agent searches all it reads for one 16-byte key. Each hello names the next one, so the marker is
always something that no program in the machine has seen. A helper can die between storing the next
key and knowing that the agent took it; then more than one key may be the right one. Waiting for the
first to fail would cost a deadline at each such start, so the host sends **a chain** instead::

    K0 HELLO(next=K1)  K1 HELLO(next=K2)  K2 HELLO(next=K3)

The agent that holds K0 takes every step of it, the one that holds K2 sees garbage until the last,
and both hold K3 in the end. Only the last hello's nonce counts. An agent that holds K1 finds it
first at the very end of K0's hello (`next_key` is the last field) and again right behind it: it
begins anew, and no byte of garbage is ever read as a frame.

With three candidates there is no need of a fourth: the last link leads back to the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FIRST_KEY", "KEY_SIZE", "KeyStore", "MemoryKeyStore", "next_key"]

KEY_SIZE: Final = 16
FIRST_KEY: Final = b"vmgr-resync-key\0"
"""The marker until the agent has accepted a hello (no user data has flowed by then)."""
_MOST: Final = 3


class KeyStore(Protocol):
    """Where one machine's keys are kept; the helper's database, in real life."""

    async def candidates(self) -> Sequence[bytes]:
        """Keys the agent may hold, oldest first; `[FIRST_KEY]` for a machine never spoken to."""
        ...

    async def store_next(self, key: bytes) -> None:
        """Add a candidate; durable on return, since it is sent right after."""
        ...

    async def confirm(self, key: bytes) -> None:
        """The agent holds `key`: forget all others. May be lost in a crash without harm."""
        ...


class MemoryKeyStore:
    """Keys of a machine that nobody speaks to after this process."""

    def __init__(self, keys: Sequence[bytes] = (FIRST_KEY,)) -> None:
        self.keys = list(keys)

    async def candidates(self) -> Sequence[bytes]:
        """See `KeyStore`."""
        return list(self.keys)

    async def store_next(self, key: bytes) -> None:
        """See `KeyStore`."""
        self.keys.append(key)

    async def confirm(self, key: bytes) -> None:
        """See `KeyStore`."""
        self.keys = [key]


def next_key(candidates: Sequence[bytes], fresh: bytes) -> tuple[bytes, bool]:
    """The key that the last hello of the chain names, and whether it must be stored first."""
    if len(candidates) < _MOST:
        return fresh, True
    return candidates[1], False
