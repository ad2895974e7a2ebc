"""vmgr: the helper process that owns a person's Linux machines."""

from vmgr._version import __version__

__all__ = ["__version__"]
