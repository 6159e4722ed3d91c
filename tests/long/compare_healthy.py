"""Every shipped procedural recipe in float32 against float64, over three seeds: `python -m tests.long.compare_healthy`.

Writes a line for each as it comes to docs/results/compare_healthy.jsonl; what is there already is not run again. With
`models`: every model of the package instead, on small inputs, layer by layer, over ten.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.command import run_here
from tests.compare.steps import compared, guilty
from tests.models.small_models import OURS, make_inputs, small_model
from tests.processes import ROOT
from tests.recipes import recipes

NUM_SEEDS = {"recipes": 3, "models": 10}
KEPT = ROOT / "docs/results/compare_healthy.jsonl"
_NO_RUN_AT_HAND = {"segment/synthetic_shapes_dgcnn_from_intrapoint": ("init=null",)}


def outcome(recipe: str, seed: int) -> dict[str, object]:
    """What `sightline compare` found of a recipe in float32: exit code, guilty layers, the step of the losses."""
    words = (f"seed={seed}", "train.precision=float32", *_NO_RUN_AT_HAND.get(recipe, ()))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        done = run_here(
            "compare", ROOT / f"configs/{recipe}.yaml", *words, "--against", "float64", "--device", "cpu", "--json", out
        )
        found = json.loads(out.read_text())
    guilty = [row["layer"] for row in found["guilty"]]
    return {"recipe": recipe, "seed": seed, "code": done.code, "guilty": guilty, "parts": found["parts_at_step"]}


def compare_models() -> None:
    reported = 0
    for seed in range(NUM_SEEDS["models"]):
        for name in OURS:
            torch.manual_seed(seed)
            model = small_model(name).float()
            if found := guilty(compared(model, model, make_inputs(model, 3))):
                reported += 1
                sys.stdout.write(f"{name}, seed {seed}: {found}\n")
    sys.stdout.write(f"{reported} of {NUM_SEEDS['models'] * len(OURS)} comparisons reported\n")


def compare_recipes() -> None:
    before = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    done = {(line["recipe"], line["seed"]) for line in before}
    for seed in range(NUM_SEEDS["recipes"]):
        for recipe in recipes():
            if (recipe, seed) not in done:
                line = json.dumps(outcome(recipe, seed))
                with open(KEPT, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
                sys.stdout.write(line + "\n")


if __name__ == "__main__":
    (compare_models if sys.argv[1:] == ["models"] else compare_recipes)()
