"""What building images and kernel bundles has in common.

An *artifact* is a directory that becomes visible by one rename, complete, and never changes after.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[str, float | None], None]
"""Called with what is being done, for people, and how far it is (0 to 1, None: not known)."""
