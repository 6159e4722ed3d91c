"""Silent faults of networks on sparse voxels: each is planted, and told; its healthy twin is not.

The numbers are those of the specification of such networks, section 8.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline
from sightline import ops
from sightline.areas.scenes import rules as scene_rules
from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES
from sightline.areas.scenes.sets.synthetic_rooms import SyntheticRooms
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import CheckpointError
from sightline.contract.types import Field, SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.check import examine_subject
from sightline.doctor.examine import list_rules
from sightline.doctor.finding import Finding
from sightline.doctor.rules import find_by
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.optimizers import module_parameters
from sightline.parts.models import ptv3
from sightline.parts.models.voxel_unet import SpUNet
from sightline.parts.voxels import rules
from sightline.published.rows import read_layout
from sightline.published.translation import CHANGES
from sightline.workbench.check import init_rules
from sightline.workbench.check.context import Context
from sightline.workbench.check.other_set_rules import CloudSample, compare_sets
from sightline.workbench.check.run_subject import examine_run, make_run_subject
from sightline.workbench.check.suite import all_rules
from sightline.workbench.weights.recipe import list_contradictions
from tests.command import succeed
from tests.data.clouds.cloud_writers import write_ply
from tests.doctor.segmenting import Edited, Joined, Rooms, make_rooms
from tests.planted.planting import Planter
from tests.runs.small import ROOT
from tests.runtime.healthy_loops import skips_each

SIZES: dict[str, Any] = {
    "stem_width": 4,
    "encoder_widths": (4, 8),
    "encoder_blocks": (1, 1),
    "decoder_widths": (8, 4),
    "decoder_blocks": (1, 1),
}
_WORDS = [f"model.{name}={list(size) if isinstance(size, tuple) else size}" for name, size in SIZES.items()]
COLOURS = ("red", "green", "blue")
CONFIG = ROOT / "configs/segment/synthetic_rooms_spunet.yaml"
_FEW = ("data.points_per_m2=10", "data.train_size=4", "evaluate.select=test", "seed=1")
WORDS = (*_WORDS, *_FEW, "data.test_size=2")
ATTENTION = ROOT / "configs/segment/synthetic_rooms_ptv3.yaml"
ATTENTION_WORDS = (
    *("model.encoder_widths=[16, 16]", "model.encoder_blocks=[3, 1]", "model.patch_size=1024"),
    *("model.decoder_widths=[16]", "model.decoder_blocks=[1]", *_FEW, "data.test_size=4"),
)


def list_findings(findings: list[Finding]) -> str:
    return "\n".join(f"{each.code} {each.severity}: {each.summary} | {each.measured}" for each in findings)


def attempt(call: Callable[[], Any]) -> str:
    """Return the words of an error, or of what a call returns."""
    try:
        result = call()
    except (ValueError, CheckpointError) as error:
        return str(error)
    return "" if isinstance(result, Tensor) else str(result or "")


# --- a run on rooms of a set of one's own -----------------------------------------------------------------------------


def judge(folder: Path, wrap: Callable[[Any], Any] = lambda dataset: dataset, *, grid_m: float = 0.4) -> str:
    """Judge a run of a small SpUNet on ragged rooms by all rules of runs."""
    all_rules()
    torch.manual_seed(0)
    channels = wrap(Rooms(1, seed=0, split_sizes={})).info.facts["in_channels"]
    model = SpUNet(num_classes=4, in_channels=channels, grid_m=grid_m, **SIZES)
    _, findings = examine_run(Context(make_rooms(folder, wrap, model=model), World()))
    return list_findings(findings)


def with_values(name: str, change: Callable[[Tensor], Tensor], **facts: Any) -> Callable[[Any], Any]:
    """Change a field of each sample, and facts of the set."""
    return lambda data: Edited(data, lambda sample, _: {**sample, name: change(sample[name])}, facts=facts)


def with_normals(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Add normals, which are declared to be unit vectors."""

    def wrap(data: Any) -> Any:
        field = Field("points 3", "float32", "unit vector", low=-1, high=1, collate="concatenate")

        def add(sample: Any, _: int) -> Any:
            return {**sample, "normals": change(torch.nn.functional.normalize(sample["points"] - 1.5, dim=1))}

        info = {"fields": {**data.info.fields, "normals": field}, "features": ("grey", "normals")}
        return Edited(data, add, facts={"in_channels": 7}, **info)

    return wrap


def in_unit(times: float) -> Callable[[Any], Any]:
    """State coordinates in another unit than metres, and a reach that fits them, as a prepared set does."""

    def wrap(data: Any) -> Any:
        field = dataclasses.replace(data.info.fields["points"], low=-6 * times, high=6 * times)
        fields = {**data.info.fields, "points": field}
        return Edited(data, lambda sample, _: {**sample, "points": sample["points"] * times}, fields=fields)

    return wrap


def label_first(label: int, **facts: Any) -> Callable[[Any], Any]:
    return with_values("label", lambda labels: torch.cat([labels.new_tensor([label]), labels[1:]]), **facts)


def shuffle(labels: Tensor) -> Tensor:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


# --- what a trained run, and the import of weights, has at hand -------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a step on rooms with colours from 0 to 1, with voxels of 0.1 m."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    succeed("train", CONFIG, *WORDS, "train.steps=1", "--no-check", "--out", folder)
    return folder


def start_from(trained: Path, *words: str, change: Callable[[Tensor], Tensor] = lambda colours: colours) -> str:
    """Judge how a run that starts from a trained one differs from it; its colours are changed."""
    with Planter() as planter:

        def read(original: Any, *arguments: Any) -> Any:
            sample = original(*arguments)
            return {**sample, "colours": change(sample["colours"])}

        planter.wrap(SyntheticRooms, "__getitem__", read)
        run = Context(build(read_config(CONFIG, [*WORDS, *words, f"init.from={trained}"]), World()), World())
        found = find_by(init_rules.pretraining_mismatch, lineage=init_rules.lineage(run))
        ranges = init_rules.feature_ranges(run, init_rules.loaded_init(run))
        return list_findings([*found, *find_by(init_rules.pretraining_ranges, feature_ranges=ranges)])


def grids_of(*words: str) -> str:
    run = Context(build(read_config(CONFIG, [*WORDS, *words]), World()), World())
    return list_findings(find_by(rules.grid_of_evaluation, grid_sides=rules.grid_sides(run)))


def vote(trained: Path, transform: str, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    sightline.evaluate(trained, overrides=["evaluate.votes=3", f"transforms.vote=[{transform}]"], device="cpu")
    return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def convert(*shape: int) -> str:
    return attempt(lambda: CHANGES["arrange_kernels"]({"a.weight": torch.zeros(shape)}, "spconv")["a.weight"])


def state_grid(folder: Path, grid_m: float, *words: str) -> str:
    """Import weights with a config that states the side of the voxels."""
    path = folder / "own.yaml"
    path.write_text(f"base: {CONFIG}\nmodel: {{name: spunet, grid_m: {grid_m}, inputs: features}}\n")
    model = read_config(path, words).model
    return "\n".join(list_contradictions(model, read_layout("pointcept_spunet")))


def compare_unit(times: float) -> str:
    info = Rooms(1, seed=0, split_sizes={}).info
    return list_findings(compare_sets(CloudSample(info, "a", (2.0, 2.2)), CloudSample(info, "b", (2.1 * times,))))


# --- attention inside of patches --------------------------------------------------------------------------------------


def build_attention(*words: str) -> Context:
    """A run of a small Point Transformer V3 on rooms of various sizes."""
    return Context(build(read_config(ATTENTION, (*ATTENTION_WORDS, *words)), World()), World())


def cut(*words: str, batch_size: int = 4) -> str:
    run = build_attention(f"evaluate.batch_size={batch_size}", *words)
    try:
        cut_clouds = rules.cut_clouds(run, rules.voxel_network(run))
    except NotApplicableError:
        return ""
    return list_findings(find_by(rules.clouds_cut_together, cut_clouds=cut_clouds))


def shuffle_always(planter: Planter) -> None:
    """Let curves be shuffled in evaluation too, as the published code does."""
    planter.wrap(ptv3, "list_permutations", lambda original, count, **_: original(count, is_shuffled=True))


def reseed(*, is_shuffled: bool) -> str:
    """Judge whether the outputs of a network in evaluation mode depend on the seed."""
    with Planter() as planter:
        if is_shuffled:
            shuffle_always(planter)
        all_rules()
        subject = make_run_subject(build_attention().built, num_samples=2)
        others = {rule.code for rule in list_rules()} - {"random-evaluation"}
        return list_findings(list(examine_subject(subject, declared=others).findings))


# --- settings of the training -----------------------------------------------------------------------------------------


def group(module: str) -> str:
    return attempt(lambda: build_attention(f"optimizer.groups=[{{modules: {module}, lr_factor: 0.1}}]") and "")


def crop(metres: float) -> str:
    """Judge the crops of rooms whose tables stand so far away from the rest."""

    def move(original: Any, *arguments: Any) -> Any:
        sample = original(*arguments)
        is_table = sample["label"] == CLASS_NAMES.index("table")
        return {**sample, "points": sample["points"] + metres * is_table[:, None]}

    with Planter() as planter:
        planter.wrap(SyntheticRooms, "__getitem__", move)
        words = (*WORDS, "transforms.train=[{name: crop_points, max_points: 300}]")
        run = Context(build(read_config(CONFIG, words), World()), World())
        found = find_by(scene_rules.cropped_class, class_crops=scene_rules.class_crops(run), run=run)
    return list_findings(found)


def skip(number: int, *, fused: bool) -> str:
    return list_findings([*skips_each(number, fused=fused).findings])


# --- the network alone ------------------------------------------------------------------------------------------------


POINTS = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) * 3


def run_network(*, cells: Tensor | None = None, offsets: Tensor | None = None, points: Tensor = POINTS) -> Tensor:
    torch.manual_seed(0)
    model = SpUNet(num_classes=4, in_channels=3, grid_m=0.4, **SIZES).eval()
    offsets = torch.tensor([0, 30, len(points)]) if offsets is None else offsets
    logits: Tensor = model(points=points, offsets=offsets, cells=cells)["logits"]
    return logits


CELLS = (POINTS / 0.4).floor().long()
TWO = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]])


def map_down(cells: Tensor, extent: list[int] | None = None) -> str:
    """Halve the resolution; name the voxels that no output reads."""
    coarse = ops.strided_map(cells, torch.tensor([0, len(cells)]), size=2, stride=2, extent=extent)
    dropped = int(coarse.is_dropped.sum())
    return f"{dropped} of {len(cells)} voxels are read by no output" if dropped else ""


class Row(NamedTuple):
    """A fault, a pattern of what is told of it, and its twin, of which nothing is told. Both are given a folder."""

    name: str
    fault: Callable[[Path], str]
    told: str
    twin: Callable[[Path], str]


SET = [
    Row(
        "1 grey values from 0 to 255",
        lambda folder: judge(folder, with_values("grey", lambda grey: grey * 255)),
        r"channel-contract error: 'grey' exceeds its declared range \| .*25\d.*, declared 0 .. 1",
        judge,
    ),
    Row(
        "1 grey values from -1 to 1",
        lambda folder: judge(folder, with_values("grey", lambda grey: grey * 2 - 1)),
        r"channel-contract error: 'grey' exceeds its declared range \| -0.99",
        judge,
    ),
    Row(
        "6 counts for offsets",
        lambda folder: judge(folder, lambda data: Joined(data, lambda offsets: offsets.diff())),
        r"(?s)first-step error: .*\(counts, or cumulative counts .*broken-offsets error",
        lambda folder: judge(folder, Joined),
    ),
    Row(
        "7 label 255, ignored -1",
        lambda folder: judge(folder, label_first(255, ignore_index=-1)),
        r"label-range error: 'label' holds what is no class \| 255 of num_classes 4",
        lambda folder: judge(folder, label_first(255, ignore_index=255)),
    ),
    Row(
        "7 label -1, ignored 255",
        lambda folder: judge(folder, label_first(-1, ignore_index=255)),
        r"label-range error: 'label' holds what is no class \| -1 of num_classes 4",
        lambda folder: judge(folder, label_first(-1, ignore_index=-1)),
    ),
    Row(
        "7 a label too many",
        lambda folder: judge(folder, label_first(4)),
        r"label-range error: 'label' holds what is no class \| 4 of num_classes 4",
        lambda folder: judge(folder, label_first(3)),
    ),
    Row(
        "17 normals of 0",
        lambda folder: judge(folder, with_normals(torch.zeros_like)),
        r"channel-contract warning: 'normals' has vectors that are 0, and have no direction \| \d+ of \d+, 100%",
        lambda folder: judge(folder, with_normals(lambda normals: normals)),
    ),
    Row(
        "17 normals of another length",
        lambda folder: judge(folder, with_normals(lambda normals: normals * 0.3)),
        r"channel-contract warning: 'normals' has vectors that are not of length 1 \| \d+ of \d+, 100%",
        lambda folder: judge(folder, with_normals(lambda normals: normals * 0.95)),
    ),
    Row(
        "18 few voxels for batch norm",
        lambda folder: judge(folder, grid_m=0.9),
        r"voxel-grid warning: batch norm of the coarsest level has the statistics of 4 voxels of 3.6 m \| 4 clouds of",
        lambda folder: judge(folder, grid_m=0.4),
    ),
    Row(
        "20 many points in a voxel",
        lambda folder: judge(folder, in_unit(0.05)),
        r"voxel-grid warning: a voxel of 0.4 m has \d\d points on average, which become one \| .*most points 7\d",
        judge,
    ),
    Row(
        "coordinates in millimetres",
        lambda folder: judge(folder, in_unit(1000.0)),
        r"voxel-grid warning: a voxel of 0.4 m has 1.0 of the 27 in a kernel of size 3.*neighbours of 27 1.0",
        judge,
    ),
    Row(
        "voxels of several classes",
        lambda folder: judge(folder, with_values("label", shuffle), grid_m=0.8),
        r"voxel-grid warning: no network with voxels of 0.8 m has a mIoU above 0\.\d+ on these points, as \d",
        judge,
    ),
]
"""Faults of a set, told by `sightline check` and before a training."""

NETWORK = [
    Row(
        "4 cells that are not whole",
        lambda _: attempt(lambda: run_network(cells=POINTS / 0.4)),
        r"cells: found \(60, 3\) torch.float32, expected whole numbers \(N, 3\): floor\(coordinate / side\)",
        lambda _: attempt(lambda: run_network(cells=CELLS)),
    ),
    Row(
        "4 cells below 0 of a map",
        lambda _: attempt(lambda: map_down(TWO[:2] - 1)),
        r"cells: found \[-1, -1, -1\] as the lowest, expected 0 or more in each cloud: subtract the lowest",
        lambda _: attempt(lambda: map_down(TWO[:2])),
    ),
    Row(
        "5 two voxels in a cell",
        lambda _: attempt(lambda: map_down(TWO)),
        r"cells: 1 voxels are in a cell with another; keep one of each cell",
        lambda _: attempt(lambda: map_down(TWO[:2])),
    ),
    Row(
        "6 counts for offsets",
        lambda _: attempt(lambda: run_network(offsets=torch.tensor([30, 30]))),
        r"offsets \[30, 30\] of 60 points; they start at 0",
        lambda _: attempt(lambda: run_network(offsets=torch.tensor([0, 30, 60]))),
    ),
    Row(
        "8 a kernel of other axes",
        lambda _: convert(8, 4, 3, 3, 3),
        r"'a.weight' has the shape \(8, 4, 3, 3, 3\), which is no kernel of spconv: \(out, x, y, z, in\)",
        lambda _: convert(8, 3, 3, 3, 4) or convert(3, 3, 3, 4, 8),
    ),
    Row(
        "13 voxels beyond the extent of a grid",
        lambda _: map_down(torch.tensor([[0, 0, 0], [0, 0, 2]]), [3, 3, 3]),
        "1 of 2 voxels are read by no output",
        lambda _: map_down(torch.tensor([[0, 0, 0], [0, 0, 2]])),
    ),
    Row(
        "2 the grid of another training",
        lambda folder: state_grid(folder, 0.05),
        "model.grid_m is 0.05 by the config, and 0.02 where pointcept_spunet was trained, which no tensor shows",
        lambda folder: state_grid(folder, 0.02) + state_grid(folder, 0.02, "model.grid_m=0.05"),
    ),
    Row(
        "2 a grid in training alone",
        lambda _: grids_of("transforms.train=[{name: voxel_sample, size_m: 0.3}]"),
        r"voxel-grid warning: points are as dense .* \| grid of training 0.3 m, of evaluation 0.1 m",
        lambda _: grids_of("transforms.train=[{name: voxel_sample, size_m: 0.05}]"),
    ),
    Row(
        "a test set in millimetres",
        lambda _: compare_unit(1000.0),
        "dataset-mismatch warning: clouds of b are 1e.03 times as large as those trained on, a factor of units",
        lambda _: compare_unit(6.0),  # a hall after rooms: of a single cloud
    ),
]
"""Faults that the network, its operators, and the import of weights refuse or tell."""

TRAINING = [
    Row(
        "10 orders shuffled in evaluation",
        lambda _: reseed(is_shuffled=True),
        r"random-evaluation note: the output logits in evaluation mode depends on the seed \| two seeds differ by",
        lambda _: reseed(is_shuffled=False),
    ),
    Row(
        "11 patches as large as the smallest cloud",
        lambda _: cut("model.patches=shared"),
        r"cross-sample-leak warning: .*: patches are as large as the smallest .* \| [1-4] of the first 4 clouds",
        lambda _: cut("model.patches=shared", batch_size=1) + cut(),
    ),
    Row(
        "12 bits of curves by the largest cloud",
        lambda _: cut("model.data_flow=main", "model.grid_m=0.15"),
        r"cross-sample-leak warning: .*: curves have as many bits as the largest .* \| [1-3] of the first 4 clouds",
        lambda _: cut("model.data_flow=main", "model.grid_m=0.15", batch_size=1) + cut("model.grid_m=0.15"),
    ),
    Row(
        "19 a group of a module that was renamed",
        lambda _: group("blocks"),
        r"optimizer.groups.0.modules: the model has no module 'blocks' with parameters",
        lambda _: group("encoder"),
    ),
    Row(
        "21 crops without a class",
        lambda _: crop(50.0),
        r"cropped-class warning: crops leave out \d\d% of the points of 'table', .* \| \d.*% of its points are kept",
        lambda _: crop(0.0),
    ),
    *(
        Row(
            f"22 a scaler that skips updates{', fused' if fused else ''}",
            lambda _, fused=fused: skip(16, fused=fused),
            r"skipped-updates warning: the GradScaler skips \d% of the updates of AdamW \| \d of 100 updates in a row",
            lambda _, fused=fused: skip(25, fused=fused),
        )
        for fused in (False, True)
    ),
]
"""Faults of attention on voxels, of the settings of a training, and of its steps."""


@pytest.mark.parametrize("row", [*SET, *NETWORK, *TRAINING], ids=lambda row: row.name)
def test_a_planted_fault_is_told_and_its_twin_is_not(row: Row, tmp_path: Path) -> None:
    for name in ("fault", "twin"):
        (tmp_path / name).mkdir()
    told = row.fault(tmp_path / "fault")
    assert re.search(row.told, told), told
    assert row.twin(tmp_path / "twin") == ""


STARTED = [
    ("2 another grid", ["model.grid_m=0.4"], 1.0, 0.0, "the encoder's grid_m: 0.1 in .* 0.4 in"),
    ("1 colours to 255", [], 255.0, 0.0, r"of other numbers \| colours: 25\d.*, in training 0 to 1"),
    ("1 colours from -1", [], 2.0, -1.0, r"of other numbers \| colours: -1 to 1, in training 0 to 1"),
    ("healthy", [], 1.0, 0.0, ""),
    ("darker rooms", [], 0.3, 0.0, ""),
]


@pytest.mark.parametrize(("words", "times", "plus", "told"), [row[1:] for row in STARTED], ids=[r[0] for r in STARTED])
def test_weights_of_other_inputs_are_told(
    trained: Path, words: list[str], times: float, plus: float, told: str
) -> None:
    found = start_from(trained, *words, change=lambda colours: colours * times + plus)
    assert re.search(told, found) if told else found == "", found


def test_equal_passes_are_told(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    """16: transforms that change nothing; those that draw say nothing."""
    told = vote(trained, "{name: rotate, max_angle_rad: 0.0}", caplog)
    assert "equal-votes: 4 of the 4 further passes of evaluate.votes read the numbers of another one" in told
    assert vote(trained, "{name: rotate}", caplog) == ""


@pytest.fixture(scope="module")
def attended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a step of attention inside of patches as large as the smallest room of a batch allows."""
    folder = tmp_path_factory.mktemp("attended") / "run"
    words = (*ATTENTION_WORDS, "model.patches=shared", "evaluate.batch_size=1")
    succeed("train", ATTENTION, *words, "train.steps=1", "--no-check", "--out", folder)
    return folder


def test_clouds_that_are_evaluated_together_are_told(
    attended: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """11: by `evaluate`, where patches depend on the batch, and there are several clouds in it."""
    told = []
    for run, batch_size in ((attended, 4), (attended, 1), (trained, 2)):
        caplog.clear()
        sightline.evaluate(run, overrides=[f"evaluate.batch_size={batch_size}"], device="cpu")
        told.append([record.getMessage() for record in caplog.records if "batch-mates" in record.getMessage()])
    assert told[1:] == [[], []]
    assert re.search(r"depends on the 3 others .* patches are as large as the smallest cloud of a batch", *told[0])


def test_files_are_predicted_alone_where_clouds_depend_on_others(attended: Path, tmp_path: Path) -> None:
    """11: a file's prediction is the same with any files beside it."""
    paths = [tmp_path / f"{number}.ply" for number in range(3)]
    room = build_attention().built.data.selection.reader.dataset[SampleKey(0, 0, 0)]
    colours = {name: (room["colours"][:, place] * 255).to(torch.uint8) for place, name in enumerate(COLOURS)}
    for path, times in zip(paths, (1.0, 0.5, 0.25), strict=True):  # files of equal sizes make a batch
        columns = dict(zip("xyz", room["points"].T * times, strict=True)) | colours
        write_ply(path, {name: values.numpy() for name, values in columns.items()})
    run = sightline.load_run(attended)
    together = run.predict(paths, batch_size=3, probabilities="float32").predicted
    for path, prediction in zip(paths, together, strict=True):
        (alone,) = run.predict([path], batch_size=3, probabilities="float32").predicted
        assert alone.probabilities is not None
        assert np.array_equal(alone.probabilities, prediction.probabilities)


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_evaluation_twice_gives_equal_labels(is_shuffled: bool) -> None:
    """10: whatever has been drawn before; with curves that are shuffled, as in the published code, it does not."""
    built, labels = build_attention("evaluate.batch_size=2").built, []
    with Planter() as planter:
        if is_shuffled:
            shuffle_always(planter)
        for seed in range(3):
            torch.manual_seed(seed)
            found: list[Tensor] = []
            built.test_evaluator(
                built.job.model, World(), on_batch=lambda _, said, found=found: found.append(said["probabilities"])
            )
            labels.append(torch.cat([each.argmax(dim=1) for each in found]))
    assert all(torch.equal(labels[0], other) for other in labels[1:]) != is_shuffled


def test_cells_may_begin_anywhere_and_hold_several_points() -> None:
    """4 and 5: of the network itself, which counts cells from the lowest of each cloud, and averages points."""
    plain = run_network(cells=CELLS)
    assert torch.equal(run_network(cells=CELLS - 1000), plain)
    twice, offsets = POINTS.view(2, 30, 3).repeat(1, 2, 1).view(-1, 3), torch.tensor([0, 60, 120])
    assert torch.allclose(run_network(points=twice, offsets=offsets)[:30], run_network()[:30], atol=1e-5)


def test_what_no_tensor_shows_is_said_at_the_import() -> None:
    """8 and 9, where shapes are right: kernels of size 1 that are transposed, axes that are reversed; and colours."""
    for name in ("pointcept_spunet", "minkowski_minkunet34c", "spvnas_minkunet"):
        assert (
            "which axis of a kernel is x, nor whether kernels of size 1 are transposed" in read_layout(name).unseen[0]
        )
    assert (
        "0 to 1 here: weights of Pointcept before 1.6 were trained on -1 to 1"
        in read_layout("pointcept_spunet").unseen[1]
    )


_SHIPPED = sorted((ROOT / "configs").glob("*/[!_]*.yaml"))
_WITHOUT_FILES = [path for path in _SHIPPED if path.stem.startswith("synthetic_")]
_IN_VOXELS = [path for path in _WITHOUT_FILES if re.search(r"name: (spunet|minkunet|ptv3)\b", path.read_text())]
"""The configs of networks on sparse voxels that need no files."""
_CROPPED = [path for path in _WITHOUT_FILES if "crop_points" in path.read_text()]


@pytest.mark.parametrize("path", _IN_VOXELS, ids=lambda path: path.stem)
def test_shipped_configs_have_no_such_fault(path: Path) -> None:
    """Their own data, a few clouds of each part."""
    run = Context(build(read_config(path, ["data.train_size=16", "data.test_size=4"]), World()), World())
    network = rules.voxel_network(run)
    parts = rules.gridded_parts(run, network)
    assert len(parts) == 2
    assert find_by(rules.voxel_grid, gridded_parts=parts) == []
    assert find_by(rules.grid_of_evaluation, grid_sides=rules.grid_sides(run)) == []
    assert find_by(rules.voxels_of_levels, run=run, voxel_network=network) == []
    with pytest.raises(NotApplicableError, match="no patches that depend on a batch"):
        rules.cut_clouds(run, network)


def assert_no_class_is_cropped(path: Path, *words: str) -> None:
    run = Context(build(read_config(path, words), World()), World())
    crops = scene_rules.class_crops(run)
    assert len(crops) >= 8
    assert find_by(scene_rules.cropped_class, class_crops=crops, run=run) == []


@pytest.mark.parametrize("path", _CROPPED, ids=lambda path: path.stem)
def test_shipped_crops_leave_no_class_out(path: Path) -> None:
    assert_no_class_is_cropped(path, "data.train_size=16", "data.test_size=4")


@pytest.mark.shared
def test_crops_of_the_real_room_leave_no_class_out(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "s3dis_one_room.npz"
    succeed("data", "prepare", "s3dis_one_room", "--from", source, "--to", tmp_path / "room")
    for name in ("s3dis_one_room_point_transformer_cpu", "s3dis_one_room_ptv3_cpu"):
        assert_no_class_is_cropped(ROOT / f"configs/segment/{name}.yaml", f"data.root={tmp_path / 'room'}")


def test_all_shipped_configs_evaluate_clouds_alone_and_name_modules_that_exist() -> None:
    """10 to 12 and 19, of every config, whatever data it needs: networks on the device `meta`."""
    num_networks, num_groups = 0, 0
    for path in _SHIPPED:
        config = read_config(path)
        groups = config.optimizer.arguments.get("groups", ()) if config.optimizer is not None else ()
        if config.model is None or not (groups or config.model.name == "ptv3"):
            continue
        with torch.device("meta"):
            model = registry.models.build(config.model, facts={"num_classes": 13, "in_channels": 9})
        assert not getattr(model, "batch_dependence", "") or config.evaluate.batch_size == 1, path
        num_networks += config.model.name == "ptv3"
        num_groups += len(groups)
        for entry in groups:
            assert module_parameters(model, entry["modules"], "groups"), path
    assert num_networks >= 5
    assert num_groups >= 6
