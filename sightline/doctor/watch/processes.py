"""Processes that torch joins: a board of notes for one another, and the collectives that a loop enters."""

from __future__ import annotations

import contextlib
import datetime
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sightline.doctor.watch.loop import find_user_line
from sightline.instrument import replace_function

_COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single"),
    *("barrier", "broadcast", "broadcast_object_list", "gather", "gather_object", "monitored_barrier", "reduce"),
    *("reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list"),
)
_EQUAL_FORMS = frozenset(("all_reduce", "broadcast", "reduce"))
"""Collectives whose first argument has one form on all processes."""
_MAX_OTHERS = 8
"""Processes whose notes one process reads, so that the store of a large group is not flooded."""
_STORE_TIMEOUT_S = 10.0


class RankBoard:
    """Notes of the processes of a group for one another, in the group's store: no collective, and nothing waits.

    `others` are the ranks whose notes are read.
    """

    def __init__(self, store: dist.Store, *, rank: int, size: int) -> None:
        self._store = store
        self.rank = rank
        self.others = sorted({(rank + 2**i) % size for i in range(_MAX_OTHERS)} - {rank})

    def write(self, note: str) -> None:
        """Replace the note of this process."""
        self._store.set(f"note/{self.rank}", note)

    def read(self) -> dict[int, str]:
        """Read the notes of other processes that have written one, by rank."""
        return {
            other: self._store.get(f"note/{other}").decode()
            for other in self.others
            if self._store.check([f"note/{other}"])
        }


def is_one_of_several() -> bool:
    """Return True if torch joins this process with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def open_board(name: str) -> RankBoard | None:
    """Open the board of a name on the default process group, a new one at each call; None for a single process."""
    if not is_one_of_several():
        return None
    rank = dist.get_rank()
    own_connection = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    own_connection.set_timeout(datetime.timedelta(seconds=_STORE_TIMEOUT_S))
    number = own_connection.add(f"sightline/{name}/opened/{rank}", 1)
    return RankBoard(
        dist.PrefixStore(f"sightline/{name}/{number}", own_connection), rank=rank, size=dist.get_world_size()
    )


@contextlib.contextmanager
def observe_collectives(enter: Callable[[str, str], None]) -> Iterator[None]:
    """Call `enter(form, line)` before each collective of all processes that Python code calls."""
    with contextlib.ExitStack() as stack:
        for name in _COLLECTIVES if dist.is_available() else ():
            place = [*inspect.signature(getattr(dist, name)).parameters].index("group")

            def run(original: Any, *args: Any, _name: str = name, _place: int = place, **kwargs: Any) -> Any:
                group = args[_place] if len(args) > _place else kwargs.get("group")
                if group is not None and group is not dist.group.WORLD:
                    return original(*args, **kwargs)
                tensor = next(iter((*args, *kwargs.values())), None)
                is_equal = _name in _EQUAL_FORMS and isinstance(tensor, Tensor)
                form = f"{_name} of {_format_shape(tensor)}" if is_equal else _name
                line = find_user_line(sys._getframe())
                enter(form, "an unknown line" if line is None else "{}:{}".format(*line))
                return original(*args, **kwargs)

            stack.enter_context(replace_function(dist, name, run))
        yield


def _format_shape(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
