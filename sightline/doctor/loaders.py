"""Readings of a user's loader: by workers of their own, and refused where they could not be undone."""

from __future__ import annotations

import io
import multiprocessing.process
import multiprocessing.queues
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from sightline.contract.errors import UserError, summarise_error
from sightline.doctor.objects import iter_reachable
from sightline.doctor.snapshots import iter_state, tell
from sightline.instrument import replace_function

_ADVICE = "pass a loader that begins anew each time, or a list of batches"
_PERSISTENT = {"persistent_workers": False, "_iterator": None}
"""Attributes of a loader of torch, as of one whose workers end with the epoch."""


def assert_readable(loader: Any, *, name: str) -> None:
    """Raise UserError for a loader whose reading could not be undone; nothing of it is read."""
    if reason := find_obstacle(loader):
        raise UserError(f"{name}: {reason}; {_ADVICE}")


def find_obstacle(loader: Any) -> str:
    """Say why the batches that are read of a loader would be lost to the training after it; empty if they are not."""
    if isinstance(loader, Iterator):
        return (
            f"each batch of an iterator ({type(loader).__name__}) comes once, and training would not see what is read"
        )
    return next(filter(None, (_find_obstacle(path, value) for path, value in iter_state(loader))), "")


def _find_obstacle(path: str, value: Any) -> str:
    what = ""
    if isinstance(value, io.IOBase):
        if not value.closed and value.readable() and tell(value) is None:
            what = "a file without a position to go back to"
    elif isinstance(value, threading.Thread | multiprocessing.process.BaseProcess):
        what = "running beside the loop" if value.is_alive() else ""
    elif isinstance(value, socket.socket | multiprocessing.queues.Queue | multiprocessing.queues.SimpleQueue):
        what = "a connection, of which each message comes once"
    elif isinstance(value, Iterator) and not hasattr(value, "__dict__"):  # attributes can be put back
        what = f"an iterator ({type(value).__name__}), of which each item comes once"
    return what and f"'{path.removeprefix('[0]').lstrip('.')}' is {what}"


def iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over a loader's batches by workers of this reading alone: persistent ones stay as they are.

    Raises UserError for an error of the loader.
    """
    inside = [loader] if _is_torchs(loader) else list_inside(loader)
    own = [vars(each) for each in inside if _is_torchs(each)]
    held = [(attributes, {name: attributes[name] for name in _PERSISTENT}) for attributes in own]
    for attributes, _ in held:
        attributes.update(_PERSISTENT)
    try:
        yield from loader
    except Exception as error:
        raise UserError(f"check: the loader cannot be read: {summarise_error(error)}") from error
    finally:
        for attributes, saved in held:
            attributes.update(saved)


def list_inside(loader: Any) -> list[DataLoader[Any]]:
    """List the loaders of torch that an object of another kind has."""
    return [each for _, each in iter_reachable(loader, DataLoader, stops_at=(_BaseDataLoaderIter,))]


@contextmanager
def record_readings(loader: Any) -> Iterator[list[tuple[DataLoader[Any], Any]]]:
    """Context that lists the loaders inside of a loader of another kind, each with the first batch that is read."""
    inside = [] if isinstance(loader, DataLoader) else [each for each in list_inside(loader) if _is_torchs(each)]
    readings: list[tuple[DataLoader[Any], Any]] = []

    def read(original: Any, iterator: Any) -> Any:
        batch = original(iterator)
        for each in inside:
            is_known = any(known is each for known, _ in readings)
            if not is_known and each.dataset is iterator._dataset and each.collate_fn is iterator._collate_fn:
                readings.append((each, batch))
        return batch

    with replace_function(_BaseDataLoaderIter, "__next__", read):
        yield readings


def list_hooks(model: nn.Module) -> list[Any]:
    """List the hooks of a model's modules, which its copies call, too."""
    attributes = [value for module in model.modules() for name, value in vars(module).items() if "_hooks" in name]
    hooks = [hook for each in attributes if isinstance(each, dict) for hook in each.values()]
    return [hook for hook in hooks if not getattr(hook, "can_be_suspended", False)]  # not those of `watch`


def _is_torchs(loader: Any) -> bool:
    """Return True for a loader of torch with workers of its own; accelerate's only derive from its class."""
    return isinstance(loader, DataLoader) and _PERSISTENT.keys() <= vars(loader).keys()
