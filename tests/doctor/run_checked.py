"""Runs checks in this process's world and explains a failed step; started once per process by the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import start_world
from sightline.engine.loop import train
from sightline.engine.train import NonFiniteGradientError
from sightline.workbench.check.non_finite import diagnose_non_finite
from sightline.workbench.check.suite import run_quick
from tests.doctor.planting import Wrapped, with_data
from tests.limits import HANG_S


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        built = build(read_config(out / "small.yaml"), world)
        if world.rank == 1:
            built.job.model.get_parameter("head.2.bias").requires_grad_(False)
        findings = [finding.to_dict() | {"seconds": 0} for finding in run_quick(built, world)]
        built.job.model.get_parameter("head.2.bias").requires_grad_(True)

        target = built.job.stream.plan.step_keys(2)[0][1][3].index  # a sample of the second process, at step 2

        def edit(batch: dict, keys: object) -> dict:
            points = batch["points"].clone()
            points[batch["sample_index"] == target] = torch.inf
            return {**batch, "points": points}

        broken = with_data(built, lambda inner: Wrapped(inner, edit))
        try:
            train(broken.job, world, lambda record, stop_requested: False)
        except NonFiniteGradientError as error:
            explained = diagnose_non_finite(error, world).to_dict()
        result = {"findings": findings, "explained": explained, "target": target}
        (out / f"{world.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
