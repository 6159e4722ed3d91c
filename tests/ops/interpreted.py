"""`python -m tests.ops.interpreted`: every GPU kernel in Triton's interpreter against its plain form, on the CPU.

The interpreter is chosen when Triton is imported: it has a process of its own.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from sightline.ops.operator import OPERATORS
from tests.ops.exam_cases import CASES
from tests.ops.results import find_difference


def main() -> None:
    for case in CASES:
        operator = OPERATORS[case.operator]
        arguments = case.make(torch.float32)
        if operator.gpu is None or not operator.takes(*arguments):
            continue
        found, expected = operator.gpu(*arguments), operator.plain(*arguments)
        fault = find_difference(found, expected, case.tolerance)
        sys.stdout.write(f"{case}: {fault or 'equal'}\n")


if __name__ == "__main__":
    main()
