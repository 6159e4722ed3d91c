"""Programs whose model answers what it should not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.doctor.rows import Case


class Dropping(nn.Module):
    """Classifier whose dropout does, or does not, know that it evaluates."""

    def __init__(self, *, is_always: bool) -> None:
        super().__init__()
        self.body, self.is_always = nn.Linear(6, 3), is_always

    def forward(self, values: Tensor) -> Tensor:
        return F.dropout(self.body(values), 0.5, training=self.is_always or self.training)


def dropout_in_evaluation(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    check(Dropping(is_always=has_bug), nn.CrossEntropyLoss(), (torch.randn(16, 6), torch.randint(0, 3, (16,))))


CASES = [Case("dropout in evaluation", dropout_in_evaluation, "eval.mode")]
