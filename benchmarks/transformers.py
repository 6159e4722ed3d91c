"""Benchmark of a training step of the Point Transformer against the textbook form.

Three implementations: the textbook's, in which every layer searches its neighbours; ours with unfused layers (`plain`),
which search neighbours once; and ours.
"""

from __future__ import annotations

import copy

from benchmarks.textbook_transformer import TextbookPointTransformer
from sightline.bench.case import BenchmarkCase, Implementation
from sightline.bench.networks import IN_FLOAT64, build_plain, close_in_float32, make_parts, step_form


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="models",
            label="point_transformer_step_{batch}x{points}",
            size={"batch": 16, "points": 1024},
            quick={"batch": 2, "points": 512},
            make=make_parts,
            baseline=Implementation("textbook", step_form(TextbookPointTransformer), close_in_float32),
            variants=(
                Implementation("plain", step_form(build_plain), close_in_float32),
                Implementation("sightline", step_form(copy.deepcopy), close_in_float32),
            ),
            exactly=IN_FLOAT64,
        )
    ]
