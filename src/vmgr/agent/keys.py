"""Resync keys: which marker makes the agent listen, whatever it was in the middle of.

The agent searches all it reads for one 16-byte key. Each hello names the next one, so the marker is
always something that no program in the machine has seen. A helper can die between storing the next
key and knowing that the agent took it; then more than one key may be the right one. Waiting for the
first to fail would cost a deadline at each such start, so the host sends **a chain** instead::

    K0 HELLO(next=K1)  K1 HELLO(next=K2)  K2 HELLO(next=K3)

The agent that holds K0 takes every step of it; the one that holds K2 sees garbage until the last;
both hold K3 in the end. Only the last hello's nonce counts. The list stays short even if no hello
ever arrives: from the 16th on, the last link leads back to the second candidate.

Three rules keep bytes of two helpers from being read as one frame. The agent acts on a frame only
when it lies wholly before its marker. While more than one key may be the right one, nothing but
hellos is sent (the channel holds requests back until the key is confirmed). And a hello ends in 16
bytes without meaning, so where the beginning of a *wrong* marker completes one that was cut, it has
not touched `next_key`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FIRST_KEY", "KEY_SIZE", "KeyStore", "MemoryKeyStore", "fresh_key", "next_key"]

KEY_SIZE: Final = 16
FIRST_KEY: Final = b"vmgr-resync-key\0"
"""The marker until the agent has accepted a hello (no user data has flowed by then)."""
_MOST: Final = 16


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


def fresh_key() -> bytes:
    """A new key: 120 random bits.

    It begins with 0xC1, which neither msgpack nor UTF-8 contains: the agent holds a message back
    when its end could be the marker's beginning, and so (almost) none is.
    """
    return b"\xc1" + os.urandom(KEY_SIZE - 1)


def next_key(candidates: Sequence[bytes]) -> tuple[bytes, bool]:
    """The key that the last hello of the chain names, and whether it must be stored first."""
    if len(candidates) < _MOST:
        return fresh_key(), True
    return candidates[1], False
