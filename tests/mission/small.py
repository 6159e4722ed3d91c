"""Small forms of what users run: a training of a step, the checks of a planted fault, a step of a shipped recipe."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sightline.workbench.check.suite import all_rules
from tests.command import run_here, succeed
from tests.planted.catalog import FAULTS
from tests.planted.planting import BENCHES, Planter
from tests.processes import ROOT, launched_as_forks
from tests.recipe_steps import SmallStep

CONFIGS = ROOT / "configs"
CPU = ("--device", "cpu")
ONE_STEP = ("train.steps=1", "log.tensorboard=false", "loader.workers=0")
NETWORK = ("model={name: pointnet_plain, embedding: 16}", "losses=[{name: cross_entropy}]")
"""The smallest network of clouds, in place of a recipe's own."""
SOLIDS = ("data.train_size=24", "data.test_size=12", "data.num_points=32", "train.batch_size=8")
"""Few and small clouds of the synthetic solids."""


def learn(config: str, out: Path, *words: object) -> Path:
    """Train a shipped config for a step, unless words say otherwise, and evaluate it; return the run."""
    said_anew = {str(word).partition("=")[0] for word in words}
    usual = [word for word in ONE_STEP if word.partition("=")[0] not in said_anew]
    succeed("train", CONFIGS / f"{config}.yaml", *usual, *words, "--no-check", *CPU, "--out", out)
    return out


def said(*words: object) -> str:
    """Run a command that ends in 0; return what it prints on one line, however tables are broken."""
    done = succeed(*words)
    return " ".join(f"{done.out} {done.err}".split())


def document(run: Path, name: str = "final.json") -> Any:
    """Read a file of a run."""
    return json.loads((run / name).read_text())


def processes(log: Path, *words: object) -> str:
    """Run a command with `--processes 2`; return what its processes print, which are forked from this one."""
    with launched_as_forks(log):
        done = run_here(*words, "--processes", 2, *CPU)
    assert done.code == 0, done.err + log.read_text()
    return log.read_text()


def figures(run: Path) -> dict[str, float]:
    """Read the metrics that a run ended with."""
    metrics: dict[str, float] = document(run)["metrics"]
    return metrics


def skip_but(*codes: str) -> str:
    """Return the override that leaves out the checks of all other codes, which take most of the time."""
    return f"checks.skip=[{', '.join(each for each in _codes() if each not in codes)}]"


def findings(config: object, *words: object) -> dict[str, dict[str, Any]]:
    """Check a config; return its findings by code, notes aside."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "found.json"
        done = run_here("check", config, *words, *CPU, "--json", report)
        assert report.exists(), done.err
        found = json.loads(report.read_text())["findings"]
    return {finding["code"]: finding for finding in found if finding["severity"] != "note"}


@cache
def _codes() -> tuple[str, ...]:
    return tuple(sorted({rule.code for rule in all_rules()}))


def find_fault(case: str, code: str, *words: object, cause: str | None = None) -> dict[str, Any]:
    """Check a bench with a planted fault by the rules of one code; return the finding, which names its cause."""
    fault = next(each for each in FAULTS if each.id == case)
    with Planter() as planter:
        fault.plant_into(planter)
        assert not planter.edits, f"{case} changes what is built; the command builds it itself"
        seeds = ("seed=0", *(() if any("data=" in word for word in planter.overrides) else ("data.data_seed=0",)))
        found = findings(BENCHES / f"{fault.bench}.yaml", *planter.overrides, *seeds, skip_but(code), *words)
    assert code in found, f"no finding {code}, only {sorted(found)}"
    finding = found[code]
    assert (cause or fault.cause) in (finding["cause"], *finding["alternatives"]), finding
    return finding


def step(recipe: str, folder: Path, *overrides: str) -> SmallStep:
    """Train a step of a shipped recipe with its own network, narrow, on few samples; its gradients are finite."""
    small = SmallStep(recipe, folder, *overrides)
    learnt = {name: value for name, value in small.job.model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in learnt.items()}
    small.run()
    assert all(bool(value.isfinite().all()) for value in small.numbers().values())
    changed = [name for name, value in before.items() if not torch.equal(value, learnt[name])]
    assert len(changed) > len(before) / 2, f"only {len(changed)} of {len(before)} tensors changed in a step"
    return small
