"""Remakes the table of docs/results/contrast.md: what do the two losses of CrossPoint bring, by the SVM of `probe`?

    .venv/bin/python tests/long/contrast_tables.py losses --data data/modelnet40 --views data/modelnet40_views \\
        --out docs/results/contrast.json

Every run is four epochs, a quarter of an hour on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.long.tables import Row, main_of

LENGTH = "train.epochs=4"
VIEWS = "data.views={views}"
CROSS = ("losses=[{{name: cross_modal, temperature: 0.1}}]", "metrics=[{{name: cross_pairs}}]")


def _losses() -> list[Row]:
    """Both losses, with three seeds, whose spread is the yardstick; the clouds' loss alone, the images' alone."""
    both = "contrast/modelnet40_crosspoint_cpu"
    return [
        Row("both losses", both, (VIEWS, LENGTH), seeds=(0, 1, 2)),
        Row("cross-modal alone", both, (VIEWS, LENGTH, *CROSS)),
        Row("intra-modal alone", "contrast/modelnet40_intrapoint_cpu", (LENGTH,)),
    ]


TABLES = {"losses": _losses}


def main(arguments: Sequence[str] | None = None) -> int:
    return main_of(
        TABLES,
        ("probe_svm_accuracy",),
        arguments,
        about="Remake the table of docs/results/contrast.md.",
        places={"data": "the prepared ModelNet40", "views": "views of it that 'sightline data render' made"},
    )


if __name__ == "__main__":
    sys.exit(main())
