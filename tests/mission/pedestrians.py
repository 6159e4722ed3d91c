"""What notes on a detector of pedestrians ask for."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import sightline
from sightline.areas.detect.losses import SigmoidFocal
from sightline.areas.detect.retinanet import MaxIoU, RetinaHead
from sightline.contract.errors import UserError
from sightline.engine import distributed
from sightline.ops.boxes.priors import make_anchors
from sightline.training import published_results
from tests.command import document_of
from tests.mission.detections import own_crowds, small_canvas
from tests.mission.detectors import CROWDS, assert_near
from tests.mission.labels import prepare_crowd
from tests.mission.published import assert_reached
from tests.mission.rows import part, row
from tests.mission.small import CPU, ONE_STEP, document, figures, find_fault, findings, learn, said, skip_but, step
from tests.planted.planting import BENCHES
from tests.processes import ROOT
from tests.runs.broken_off import run_forked
from tests.trained import DETECT, trained_run

# --- silent bugs ------------------------------------------------------------------------------------------------------

_FAULTS = {
    "S3.13": ("give an anchor to every box", "unmatched-boxes", ("O52",)),
    "S3.14": ("catch values that are changed before the backward pass", "loss-gradient", ("O58",)),
    "S3.15": ("catch boxes that are scaled in place at every reading", "data-mutation", ("O49",)),
    "S3.16": ("catch a cross entropy that is written backwards", "loss-direction", ("O53",)),
    "S3.17": ("catch a squared loss of boxes in place of smooth L1", "loss-direction", ("O55",)),
    "S3.18": ("catch a class loss that is averaged over all priors", "loss-normaliser", ("O54",)),
    "S3.19": ("catch exchanged width and height", "swapped-canvas", ("O50",)),
    "S3.26": ("keep ignored regions out of the negatives", "ignored-regions", ("O56",)),
}


def _add_fault(id: str, thing: str, code: str, cases: tuple[str, ...]) -> None:
    @row(id, thing, f"`sightline check CONFIG`, finding `{code}`")
    def find(work: Path) -> None:
        for case in cases:
            assert find_fault(case, code)["severity"] in ("error", "warning")
        assert code not in _sound_findings(), "found without the fault, too"


@functools.cache
def _sound_findings() -> tuple[str, ...]:
    """Return the codes that are found of the detector in which the faults are planted, without any."""
    codes = {code for _, code, _ in _FAULTS.values()}
    return (*findings(BENCHES / "DET.yaml", "seed=0", "data.data_seed=0", skip_but(*codes, "anchor-coverage")),)


for _id, (_thing, _code, _cases) in _FAULTS.items():
    _add_fault(_id, _thing, _code, _cases)


@part("S3.13")
def _coverage(work: Path) -> None:
    assert find_fault("B23", "anchor-coverage")["severity"] == "warning"
    assert "anchor-coverage" not in _sound_findings()


@part("S3.13")
def _guaranteed(work: Path) -> None:
    """Each box gets an anchor of its own: of 1 pixel, larger than all anchors, beside the image, and two equal ones."""
    priors = make_anchors([(8, 8), (4, 4)], [8, 16], [[(32.0, 32.0)], [(64.0, 64.0)]])
    boxes = torch.tensor(
        [[5.0, 5, 6, 6], [-200, -200, 300, 300], [100, 100, 110, 110], [8, 8, 40, 40], [8, 8, 40, 40], [30, 30, 33, 60]]
    )
    matched = MaxIoU()(priors, boxes, torch.zeros(6, dtype=torch.bool)).matched
    assert {*matched.tolist()} >= {*range(6)}
    alone = MaxIoU(low_quality=None)(priors, boxes, torch.zeros(6, dtype=torch.bool)).matched
    assert 0 not in alone.tolist()


@part("S3.26")
def _not_negative(work: Path) -> None:
    """Anchors in an ignored region have no gradient of the class loss, and those of background have one."""
    small = step("detect/synthetic_crowds_retinanet", work)
    task: Any = small.job.task
    batch = small.send()[0]
    side = batch["image"].shape[3] / 2
    rows = slice(*batch["box_offsets"][:2].tolist())
    assert batch["is_ignored"][rows].any()
    place = rows.start + int(batch["is_ignored"][rows].long().argmax())
    batch["boxes"][place] = torch.tensor([0.0, 0.0, side, side])  # a region of a quarter of the photo
    context, outputs = task.context(small.job.model, batch), task.outputs(small.job.model, batch)
    logits = outputs["logits"].detach().float().requires_grad_()
    task.losses_of(batch, {**outputs, "logits": logits}, context)["sigmoid_focal"].backward()
    target = context["target"]
    assert logits.grad is not None
    assert {*target.unique().tolist()} == {-2, -1, 0}
    assert not logits.grad[target == -2].any()
    assert (logits.grad[target == -1] > 0).all()
    assert (logits.grad[target == 0] < 0).all()
    anchors = context["priors"].numpy()
    sides = np.clip(np.minimum(anchors[:, 2:], side) - np.maximum(anchors[:, :2], 0), 0, None)
    share = sides.prod(axis=1) / (anchors[:, 2:] - anchors[:, :2]).prod(axis=1)
    assert (share > 0.51).sum() > 50
    assert not (target[0].numpy()[share > 0.51] == -1).any()


# --- parts ------------------------------------------------------------------------------------------------------------


@row("S3.20", "take the transforms apart from the data set", "`sightline.load_data(CONFIG, SPLIT, transforms='none')`")
def _detached(work: Path) -> None:
    words = [word for word in DETECT if word.startswith("data")]
    raw = sightline.load_data(CROWDS, "train", overrides=words, transforms="none")[0]
    ready = sightline.load_data(CROWDS, "train", overrides=words)[0]
    assert (raw["image"].dtype, ready["image"].dtype) == (torch.uint8, torch.float32)
    other = sightline.load_data(
        CROWDS,
        "train",
        overrides=[*words, "transforms={train: [{name: normalize_image}], evaluate: [{name: normalize_image}]}"],
    )[0]
    assert torch.equal(other["boxes"], raw["boxes"])
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((raw["image"].float() / 255 - mean) / deviation).permute(2, 0, 1)
    assert_near(other["image"], expected, "normalised by the mean and deviation of ImageNet", 1e-5)
    assert (tuple(raw["image"].shape), tuple(ready["image"].shape)) == ((192, 256, 3), (3, 192, 256))
    again = sightline.load_data(CROWDS, "train", overrides=[*words, "transforms={train: [], evaluate: []}"])[0]
    assert raw.keys() == again.keys()
    assert all(
        torch.equal(
            raw[name],
            again[name],
        )
        for name in ("image", "boxes", "label", "is_ignored")
    )
    evaluated = sightline.load_data(CROWDS, "train", overrides=words, transforms="evaluate")
    plain = sightline.load_data(CROWDS, "train", overrides=words, transforms="none")
    for index in range(4):  # not turned, as the canvas has the size of the photos
        assert torch.equal(evaluated[index]["boxes"], plain[index]["boxes"])


@row("S3.21", "configure by YAML, extend by decorators, override by options", "`sightline show CONFIG KEY=VALUE`")
def _configured(work: Path) -> None:
    text = said(
        "show",
        ROOT / "examples/my_plugin.yaml",
        "--plugin",
        ROOT / "examples/my_plugin.py",
        "--plugin",
        ROOT / "examples/my_transform.py",
        "optimizer.lr=0.02",
        "model.width=8",
    )
    assert re.search(r"lr: 0\.02 # command line", text)
    assert re.search(r'name: "offset_net" # \S*my_plugin\.yaml:3', text)
    assert re.search(r"width: 8 # command line", text)
    assert re.search(r"dropout: 0\.2 # default", text)


@part("S3.21")
def _configured_run(work: Path) -> None:
    """A file of the user's own overrides its base, and an option overrides both; the network is the plugin's own."""
    (work / "own.yaml").write_text(
        f"base: {ROOT / 'examples/my_plugin.yaml'}\nmodel: {{width: 4, dropout: 0.5}}\ntrain: {{epochs: 3}}\n"
        "losses: [{name: focal, gamma: 1.5}]\n"
    )
    plugins = [word for name in ("plugin", "transform") for word in ("--plugin", ROOT / f"examples/my_{name}.py")]
    shown = document_of("show", work / "own.yaml", *plugins, "model.width=8")
    config, origins = shown["config"], shown["origins"]
    assert config["model"] == {"name": "offset_net", "width": 8, "dropout": 0.5}
    assert (config["train"]["epochs"], config["train"]["batch_size"], config["data"]["name"]) == (3, 12, "pebbles")
    assert config["losses"] == [{"name": "focal", "gamma": 1.5}]  # lists are replaced
    assert [metric["name"] for metric in config["metrics"]] == ["top_k"]
    assert origins["model.width"] == "command line: model.width"
    assert origins["model.dropout"].endswith("own.yaml:2: model.dropout")
    assert origins["train.batch_size"].endswith("my_plugin.yaml:9: train.batch_size")
    rows = document_of("describe", work / "own.yaml", *plugins, "model.width=8", *CPU)["modules"]
    assert [each["parameters"] for each in rows if each["class_name"] == "Linear"] == [4 * 8, 9 * 8, 9 * 3]


# --- scores, logs, speed ----------------------------------------------------------------------------------------------


@row("S3.32", "time a step", "`sightline profile CONFIG`")
def _timed(work: Path) -> None:
    """Where something takes a tenth of a second by the loop's clock, the time goes: head, loss, and two more."""
    clock = [0.0]

    def slowed(function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **named: Any) -> Any:
            clock[0] += 0.1
            return function(*args, **named)

        return run

    slow = ((RetinaHead, "forward"), (SigmoidFocal, "forward"), (torch.Tensor, "backward"), (torch.optim.Adam, "step"))
    with contextlib.ExitStack() as patches:
        for owner, name in slow:
            patches.enter_context(mock.patch.object(owner, name, slowed(getattr(owner, name))))
        for module in ("step", "loop"):
            counted = SimpleNamespace(perf_counter=lambda: clock[0])
            patches.enter_context(mock.patch(f"sightline.engine.{module}.time", counted))
        found = document_of("profile", CROWDS, *DETECT, "--steps", 1, *CPU)
    parts = {each["part"]: each["seconds"] for each in found["parts"]}
    assert {"data", "forward", "loss", "backward", "optimise"} <= parts.keys()
    assert found["untraced_step_s"] == pytest.approx(0.4)
    assert "Detector" in [each["class"] for each in found["modules"]]
    slow_parts = dict.fromkeys(("forward", "loss", "backward", "optimise"), 0.1)
    assert parts == pytest.approx(dict.fromkeys(parts, 0.0) | slow_parts)


@row("S3.33", "train at scale, each process with a GPU of its own", "`sightline train CONFIG --processes 2`")
def _at_scale(work: Path) -> None:
    run = trained_run("pair")
    assert document(run, "environment.json")["num_processes"] == 2
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in steps if line["split"] == "train")["num_samples"] == 60  # of both processes


@part("S3.33")
def _as_one_process(work: Path) -> None:
    """Two processes learn what one learns of the same batches: weights and figures agree but for rounding."""
    network = [word for word in DETECT if word.startswith(("model", "train"))]
    sizes = ("data.train_size=4", "data.validation_size=2", "data.test_size=2", "optimizer={name: sgd, lr: 0.05}")
    numbers = ("train.precision=float64", "schedule.warmup_epochs=0", "distributed.sync_batch_norm=true")
    words = ("train", CROWDS, *network, *sizes, *ONE_STEP, *numbers, "--no-check", *CPU, "--out")
    runs = {count: work / f"run{count}" for count in (1, 2)}
    for count, run in runs.items():
        code, text = run_forked([*map(str, (*words, run))], work / f"log{count}", num_processes=count)
        assert code == 0, text
        assert document(run, "environment.json")["num_processes"] == count
    states = [sightline.load_run(run).model.state_dict() for run in runs.values()]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.allclose(states[1][name].double(), value.double(), rtol=1e-6, atol=1e-8), name
    found = [{name: value for name, value in figures(run).items() if value is not None} for run in runs.values()]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@part("S3.33")
def _own_gpu(work: Path) -> None:
    """Each process of a machine takes the GPU of its number, and one more than there are is refused."""
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=2),
        mock.patch.object(torch.cuda, "set_device") as set_device,
        mock.patch.dict(os.environ, clear=False),
    ):
        os.environ.pop("SLURM_PROCID", None)
        devices = [distributed._select_device("auto", rank) for rank in range(2)]
        assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
        assert [call.args[0] for call in set_device.call_args_list] == [0, 1]
        with pytest.raises(UserError, match=r"process 2 of this machine has no GPU of its own: 2 are visible"):
            distributed._select_device("auto", 2)


@row(
    "S3.35",
    "stand beside the published figures of CrowdHuman, and come near them",
    "`sightline evaluate RUN --against published`",
)
def _published(work: Path) -> None:
    _, root = prepare_crowd(work)
    words = (f"data={{name: crowdhuman, root: '{root}', validation_share: 0.0}}", *own_crowds(work)[1:4])
    sizes = small_canvas()
    run = learn(
        "detect/crowdhuman_retinanet", work / "run", *words, *sizes, "evaluate.select=test", "train.batch_size=2"
    )
    done = said("evaluate", run, "--against", "published", *CPU)
    assert "4,370 there" in done  # images; ours is one
    table = published_results._read_table()
    table["samples"]["crowdhuman"] = {"test": 1}
    with mock.patch.object(published_results, "_read_table", return_value=table):
        found = document_of("evaluate", run, "--against", "published", *CPU)
    beside = {entry["who"]: entry for entry in found["published"]}
    first = beside["RetinaNet"]
    assert first == found["published"][0]  # of the same network
    assert first["metrics"] == {"crowd_ap": 0.8188, "mr2": 0.5644, "ji": 0.7316}
    assert first["here"] == {name: found["metrics"][name] for name in first["metrics"]}
    assert first["protocol"]["data.scored_box"] == "full"
    assert beside["RetinaNet (paper of the set)"]["metrics"] == {"crowd_ap": 0.8083, "mr2": 0.6333}
    assert beside["FPN, EMD with refinement, MegEngine"]["metrics"]["mr2"] == 0.4102


@part("S3.35", "E")
def _near(work: Path) -> None:
    assert_reached("crowdhuman")
