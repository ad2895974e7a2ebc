"""Volumes: named disks for data that outlives machines."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from vmgr.api.base import Model

__all__ = ["AttachVolume", "CreateVolume", "ResizeVolume", "VolumeInfo", "VolumeUse", "VolumeUser"]


class AttachVolume(Model, frozen=True, kw_only=True):
    """A volume for a machine."""

    volume: str
    path: str | None = None
    """Where in the machine it is; None: /mnt and its name."""
    read_only: bool = False
    """Any number of machines may read a volume while none writes to it."""


class VolumeUse(Model, frozen=True, kw_only=True):
    """A volume that a machine has."""

    volume: str
    id: str
    path: str
    read_only: bool = False
    slot: int
    """Where it is plugged in."""


class CreateVolume(Model, frozen=True, kw_only=True):
    """What a new volume is to be."""

    name: str
    size_bytes: Annotated[int, Meta(ge=1)] | None = None
    """None: 10 GiB. It takes no more space than what is in it."""


class ResizeVolume(Model, frozen=True, kw_only=True):
    """A volume's new size, which is no less than it has."""

    size_bytes: Annotated[int, Meta(ge=1)]


class VolumeUser(Model, frozen=True, kw_only=True):
    """A machine that has a volume."""

    machine: str
    status: str
    path: str
    read_only: bool


class VolumeInfo(Model, frozen=True, kw_only=True):
    """A volume."""

    name: str
    id: str
    size_bytes: int
    used_bytes: int
    """What it takes of this computer's disk."""
    created_at: float
    machines: list[VolumeUser] = field(default_factory=list)
