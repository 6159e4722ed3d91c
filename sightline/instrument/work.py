"""Work of calls, counted: operators, the numbers that they write, and their products; the same on every machine."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["WorkCounter"]

_CALL_S, _NUMBER_S, _PRODUCT_S = 8e-6, 1e-9, 2e-11
"""What a call, a number that is written, and a product and its sum take on one core of a usual processor."""
_ACCELERATED = 100
"""How many times as many numbers and products an accelerator makes in that time."""


class WorkCounter(TorchDispatchMode):
    """Context that counts the work of what is called in it.

    Views are no work. An operator of another library counts by its inputs and outputs, one whose products torch cannot
    count by the numbers that it writes.
    """

    supports_higher_order_operators = True  # as attention with a function of scores is: they are run, and counted once

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0
        self.num_numbers = 0
        self.num_products = 0
        self._is_accelerated = False

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Let compiled functions be run, and attention with a function of scores, which compiles itself."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            is_own = getattr(func, "namespace", "") == "aten"
            written = result if is_own else (args, kwargs, result)
            self.num_calls += 1
            tensors = [leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]
            self.num_numbers += sum(tensor.numel() for tensor in tensors)
            self._is_accelerated |= any(tensor.device.type not in ("cpu", "meta") for tensor in tensors)
            formula = flop_registry.get(getattr(func, "_overloadpacket", None))
            with contextlib.suppress(AssertionError, IndexError, TypeError, ValueError):  # what a formula does not know
                self.num_products += formula(*args, **(kwargs or {}), out_val=result) // 2 if formula else 0
        return result

    @property
    def nominal_s(self) -> float:
        """Seconds that this work takes a usual processor, or accelerator: on each, the same number everywhere."""
        share = 1 / _ACCELERATED if self._is_accelerated else 1.0
        return self.num_calls * _CALL_S + (self.num_numbers * _NUMBER_S + self.num_products * _PRODUCT_S) * share
