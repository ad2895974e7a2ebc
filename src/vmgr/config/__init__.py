"""Settings: `settings` is the table of them, `file` the TOML file they are kept in."""

from vmgr.config.file import Config
from vmgr.config.settings import SETTINGS, Setting

__all__ = ["SETTINGS", "Config", "Setting"]
