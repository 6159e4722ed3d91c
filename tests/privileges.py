"""Permissions hold for the superuser too, within a block: tests run as root in many a container."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

__all__ = ["as_anybody"]

_VERSION = 0x20080522
_OVERRIDES = 0b110
"""Of what files permit: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH. Source: linux/capability.h."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def as_anybody() -> Iterator[None]:
    """What files permit holds for this process. Modules that it may not read must have been imported."""
    if os.geteuid() != 0:
        yield
        return
    library = ctypes.CDLL(None)
    header, data = _Header(_VERSION, 0), (_Data * 2)()
    assert library.capget(ctypes.byref(header), data) == 0
    before = data[0].effective
    data[0].effective &= ~_OVERRIDES
    assert library.capset(ctypes.byref(header), data) == 0
    try:
        yield
    finally:
        data[0].effective = before
        assert library.capset(ctypes.byref(header), data) == 0
