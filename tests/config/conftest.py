"""Settings of the property tests here."""

from hypothesis import settings

# Tests say nothing about wall-clock time, and the computer may be busy.
settings.register_profile("vmgr", deadline=None)
settings.load_profile("vmgr")
