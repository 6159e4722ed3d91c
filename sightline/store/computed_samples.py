"""Parts that sets computed from a seed share: their description, and a cache of samples of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from annotated_types import Ge, Le

from sightline.contract.dataset import Dataset

Many = Annotated[int, Ge(1), Le(1_000_000)]
"""Number of samples; larger numbers are refused as a mistake, before they fill the memory."""
Item = TypeVar("Item")


class ComputedSet(Dataset):
    """Base of sets without files; `computed` names a sample and the verb for its making, as in "room is computed"."""

    computed: ClassVar[str]

    @classmethod
    def card(cls) -> dict[str, str]:
        """Return the description, accepted layouts, download page and licence."""
        return {
            "layout": f"no files: every {cls.computed} from data_seed, the split and its index",
            "obtain": "nothing to obtain; it is part of sightline",
            "terms": "free to use in any way, under the licence of sightline",
        }


class SampleCache(Generic[Item]):
    """Computed samples in memory, up to `max_bytes`; samples beyond are computed at each access.

    `num_bytes` is the size of those stored. A copy in a worker process starts empty: it computes its own, with the same
    bits.
    """

    def __init__(self, max_bytes: int, count_bytes: Callable[[Item], int]) -> None:
        self._max_bytes = max_bytes
        self._count_bytes = count_bytes
        self._items: dict[Hashable, Item] = {}
        self.num_bytes = 0

    def get(self, key: Hashable) -> Item | None:
        """Return the sample stored under a key, or None."""
        return self._items.get(key)

    def put(self, key: Hashable, item: Item) -> Item:
        """Store a sample unless it exceeds the limit, and return it."""
        num_bytes = self._count_bytes(item)
        if self.num_bytes + num_bytes <= self._max_bytes:
            self._items[key] = item
            self.num_bytes += num_bytes
        return item

    def __len__(self) -> int:
        return len(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._max_bytes, self._count_bytes)


def array_bytes(arrays: dict[str, Any]) -> int:
    """Count the bytes of a dict of arrays."""
    return sum(int(values.nbytes) for values in arrays.values())
