"""Run something with one thread and with two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def with_one_and_two_threads(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = function()
        torch.set_num_threads(2)
        return one, function()
    finally:
        torch.set_num_threads(before)
