"""Remakes the table of docs/results/contrast.md: what do the two losses of CrossPoint bring, by the SVM of `probe`?

    .venv/bin/python tests/long/contrast_tables.py losses --data data/modelnet40 --views data/modelnet40_views \\
        --out docs/results/contrast.json

Every run is a quarter of an hour on two cores: four epochs with DGCNN, three with PCT (`losses_pct`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.long.tables import Row, main_of

VIEWS = "data.views={views}"
CROSS = ("losses=[{{name: cross_modal, temperature: 0.1}}]", "metrics=[{{name: cross_pairs}}]")


def _losses(encoder: str, num_epochs: int) -> list[Row]:
    """Both losses, with three seeds, whose spread is the yardstick; the clouds' loss alone, the images' alone."""
    both, length = f"contrast/modelnet40_crosspoint{encoder}_cpu", f"train.epochs={num_epochs}"
    return [
        Row("both losses", both, (VIEWS, length), seeds=(0, 1, 2)),
        Row("cross-modal alone", both, (VIEWS, length, *CROSS)),
        Row("intra-modal alone", f"contrast/modelnet40_intrapoint{encoder}_cpu", (length,)),
    ]


TABLES = {"losses": partial(_losses, "", 4), "losses_pct": partial(_losses, "_pct", 3)}


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
