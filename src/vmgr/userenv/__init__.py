"""Commands run on the person's behalf get the person's environment, not ours."""

from vmgr.userenv.capture import UserEnvironment, capture, login_umask
from vmgr.userenv.person import Person

__all__ = ["Person", "UserEnvironment", "capture", "login_umask"]
