"""Checks losses between rows in this process's world; started once per process by the test."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from sightline.areas.contrast.task import Contrast
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import start_world
from sightline.workbench.check.checks.loss_terms import negatives
from sightline.workbench.check.context import Context


class Deaf(Contrast):
    """Says that it gathers and does not."""

    def _gather_rows(self, own, world):  # type: ignore[no-untyped-def]
        return {name: rows.detach() for name, rows in own.items()}, 0


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=60) as world:
        result = {}
        for name, override in (("gathered", ()), ("process", ("task.negatives=process",)), ("broken", ())):
            built = build(read_config(out / "pairs.yaml", override), world)
            if name == "broken":
                built.job.task.__class__ = Deaf
            found = negatives(Context(built, world))
            result[name] = [dataclasses.asdict(finding) for finding in found]
        (out / f"{world.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
