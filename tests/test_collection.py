"""The collector of cycles: put off during imports, as it was afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from sightline.contract.catalogue import gc_paused


class Knot:
    def __init__(self) -> None:
        self.me = self


def test_is_off_inside_and_on_again_even_after_an_error() -> None:
    inside = []

    def import_what_is_absent() -> None:
        with gc_paused():
            inside.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        import_what_is_absent()
    assert inside == [False]
    assert gc.isenabled()


def test_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_pause_without_imports_sets_nothing_aside() -> None:
    frozen = gc.get_freeze_count()
    with gc_paused():
        knot = weakref.ref(Knot())
    assert gc.get_freeze_count() == frozen
    gc.collect()
    assert knot() is None


def test_what_a_large_import_made_is_set_aside_and_still_freed() -> None:
    frozen = gc.get_freeze_count()
    try:
        with gc_paused():
            many = [[index] for index in range(50_000)]
        aside = gc.get_freeze_count()
        assert aside >= frozen + 50_000
        many.clear()
        assert gc.get_freeze_count() <= aside - 50_000
    finally:
        gc.unfreeze()
