"""cloud-init's NoCloud seed: a small disk labelled `cidata` with what the person gave.

See https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html.
"""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_seed"]

LABEL: Final = "cidata"
# The machine's network is the agent's, and it is there before cloud-init.
_NETWORK: Final = "config: disabled\n"


def write_seed(path: Path, user_data: str, *, instance: str, hostname: str) -> None:
    """Write the disk, unless it is there. May block.

    Args:
        path: the new file, which nobody but this user may read.
        user_data: as cloud-init takes it: `#cloud-config`, a script and so on.
        instance: another one makes cloud-init set a machine up anew.
        hostname: the machine's name.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists():
        return
    import pycdlib  # 0.1 s, and most helpers never need it

    meta = {"instance-id": f"vmgr-{instance}", "local-hostname": hostname}
    # JSON is YAML, and quotes all that needs it.
    files = {
        "user-data": user_data,
        "meta-data": json.dumps(meta) + "\n",
        "network-config": _NETWORK,
    }
    disk = pycdlib.PyCdlib()
    disk.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for name, text in files.items():
        content = text.encode()
        short = name.replace("-", "").upper()[:8]
        disk.add_fp(
            io.BytesIO(content), len(content), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}"
        )
    image = io.BytesIO()
    disk.write_fp(image)
    disk.close()
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(image.getbuffer())
    temporary.replace(path)
