"""The suite: one table, published figures beside, every difference between protocols named."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from sightline.commands.look import StudyOptions
from sightline.config import read_config
from sightline.config.run_config import to_plain
from sightline.contract import registry
from sightline.contract.types import CloudInputSpec, ComponentConfig, DataInfo, Field
from sightline.engine.session import TrainingSession
from sightline.runs.preprocessing_signature import format_setting, preprocessing_signature
from sightline.runs.weights import get_argument
from sightline.training import published_results
from sightline.training.published_results import ResultRow, protocol_differences
from sightline.verbs.study import run_preset
from sightline.workbench.probe.few_shot import FewShot
from sightline.workbench.probe.probed_run import open_probed
from sightline.workbench.probe.svm import SVM
from sightline.workbench.study.probe_suite import (
    PARTS,
    column_heading,
    comparison_rows,
    probe_markdown,
    probe_protocol,
    probe_rows,
)
from tests.command import run_here, succeed
from tests.probe.contrast import train_thin
from tests.trained import copy_run

QUICK = ("folds=2", "ways=3", "shots=2", "queries=2", "runs=2", "standardise=no", "C=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("suite")
    return [copy_run("contrast", folder).rename(folder / "first"), train_thin(folder, "seed=1", name="second")]


def suite(runs: list[Path], out: Path, *words: object) -> tuple[dict[str, Any], str, str]:
    outcome = succeed("study", "--preset", "probes", *runs, *QUICK, *words, "--device", "cpu", "--out", out)
    return json.loads((out / "suite.json").read_text()), (out / "suite.md").read_text(), outcome.err


def test_every_run_has_a_row_with_its_protocol(runs: list[Path], tmp_path: Path) -> None:
    document, text, _ = suite(runs, tmp_path / "out")
    assert [row["run"] for row in document["runs"]] == list(map(str, runs))
    for row, run in zip(document["runs"], runs, strict=True):
        assert {"probe_svm_accuracy", "probe_svm_accuracy_random", "fewshot_3w2s", "fewshot_3w2s_std"} <= set(
            row["metrics"]
        )
        assert row["protocol"]["pairs per step"] == 16
        assert row["protocol"]["neighbours"] == row["protocol"]["neighbours in the probe"] == 8
        assert row["protocol"]["points in pre-training"] == row["protocol"]["points in the probe"] == 64
        assert row["protocol"]["arguments"] == ", ".join(QUICK)
        assert row["protocol"]["C"] == "1, given"
        assert row["protocol"]["few-shot queries"] == "training part, 2 of a class, the points of the probe"
        assert f"| {run} | synthetic_shapes | " in text
    assert document["others"] == []
    assert "None of these data sets has published figures here." in text


def test_data_of_ones_own_have_no_published_rows(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the number of test samples shows that the set is another one of the same layout."""
    entry = {"who": "Others", "source": "a paper", "data": "synthetic_shapes", "protocol": {}, "unverified": None}
    entry["metrics"] = {"probe_svm_accuracy": 0.75}
    for samples, expected in (({}, ["Others"]), ({"synthetic_shapes": {"test": 9999}}, [])):
        table = {"protocols": {}, "rows": [entry], "samples": samples}
        monkeypatch.setattr(published_results, "_read_table", lambda table=table: table)
        document, _, err = suite(runs[:1], tmp_path / f"{len(samples)}")
        assert [row["who"] for row in document["others"]] == expected
        assert err.count("of the published results: test samples are") == len(samples)


def test_points_of_pre_training_are_those_that_its_views_have(tmp_path: Path) -> None:
    views = "[{name: two_views, each: [{name: sample_points, num_points: 32}, {name: jitter}]}]"
    grown = "model.points.neighbours_at=32"
    run = train_thin(tmp_path, f"transforms.train={views}", f"transforms.evaluate={views}", grown)
    probed = open_probed(run, checkpoint="last", data=None)
    protocol = probe_protocol(probed, which="last", probes={})
    assert protocol["points in pre-training"] == 32
    assert protocol["points in the probe"] == 64
    assert protocol["neighbours"] == 8
    assert protocol["neighbours in the probe"] == 16


def test_what_is_laid_over_is_told_and_changes_no_fact_of_the_training(runs: list[Path], tmp_path: Path) -> None:
    words = ("model.points.num_neighbours=4", "data.train_size=60")
    document, text, _ = suite(runs[:1], tmp_path / "out", *words)
    (protocol,) = (row["protocol"] for row in document["runs"])
    assert protocol["overrides"] == ", ".join(words)
    assert (protocol["neighbours"], protocol["neighbours in the probe"]) == (8, 4)
    assert "data.train_size=60" in text
    assert document["runs"][0]["chance"]["fewshot_3w2s"] == pytest.approx(1 / 3)
    assert "3-way 2-shot, queries of the test part" in text


PARTS_MODEL = "{name: dgcnn_parts, num_neighbours: 4, embedding: 16}"


def parts_config(folder: Path) -> Path:
    """Two steps on parts of few solids, from whatever run is named."""
    config = folder / "parts.yaml"
    config.write_text(
        "base: " + str(Path(__file__).parents[2] / "configs" / "segment" / "synthetic_shapes_dgcnn.yaml") + "\n"
        "data: {name: synthetic_shapes, target: parts, train_size: 72, test_size: 24, num_points: 32}\n"
        f"model: {PARTS_MODEL}\n"
        "init: {from: none yet, modules: points, may_be_missing: [category, join, head]}\n"
        "optimizer: {name: adam, lr: 1e-3, frozen: [{modules: head, until_epoch: 1}]}\n"
        "train: {epochs: 1, steps: 2, batch_size: 8}\n"
    )
    return config


@pytest.fixture(scope="module")
def parts_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs whose encoder goes into the network for parts, and one whose does not."""
    folder = tmp_path_factory.mktemp("parts")
    fitting = [
        train_thin(folder, f"model.points={PARTS_MODEL}", f"seed={seed}", name=f"parts_{seed}") for seed in range(2)
    ]
    return [*fitting, copy_run("contrast", folder).rename(folder / "classes")]


def test_parts_are_learnt_from_every_run_that_fits_and_once_from_scratch(
    parts_runs: list[Path], tmp_path: Path
) -> None:
    """By training itself: the figures are those of its folders, and what does not fit is told and trains nothing."""
    out = tmp_path / "out"
    document, text, told_on_the_way = suite(parts_runs, out, f"finetune={parts_config(tmp_path)}")
    scratch = json.loads((out / "parts" / "scratch" / "final.json").read_text())["metrics"]
    assert not (out / "parts" / "scratch" / "lineage.json").exists()
    finals = []
    for row, run in zip(document["runs"][:2], parts_runs[:2], strict=True):
        (folder,) = (out / "parts").glob(f"{run.name}_*")
        assert json.loads((folder / "lineage.json").read_text())["match"]["matched"] == 68
        final = json.loads((folder / "final.json").read_text())["metrics"]
        assert row["metrics"]["part_instance_miou_all_parts"] == final["instance_miou_all_parts"]
        assert row["metrics"]["part_instance_miou"] == final["instance_miou"]
        assert row["metrics"]["part_instance_miou_all_parts_scratch"] == scratch["instance_miou_all_parts"]
        finals.append(final)
    assert finals[0] != finals[1], "each starts from its own run"
    misfit = document["runs"][2]
    assert not any(name.startswith("part") for name in (*misfit["metrics"], *misfit["protocol"]))
    assert not list((out / "parts").glob("classes_*"))
    (remark,) = [line for line in misfit["remarks"] if line.startswith("not fine-tuned on parts: ")]
    assert f"- {parts_runs[2]}, synthetic_shapes: {remark}" in text
    assert f"{parts_runs[2]}: will not be fine-tuned on parts: " in told_on_the_way
    assert document["others"] == [], "published figures are of other parts than those of synthetic_shapes"
    protocol = document["runs"][0]["protocol"]
    assert (protocol["parts data"], protocol["parts epochs"], protocol["parts points"]) == (
        "synthetic_shapes",
        1,
        32,
    )


def test_where_no_run_fits_nothing_is_trained(parts_runs: list[Path], tmp_path: Path) -> None:
    out, config = tmp_path / "out", parts_config(tmp_path)
    code, _, err = run_here("study", "--preset", "probes", parts_runs[2], *QUICK, f"finetune={config}", "--out", out)
    assert code == 2, err
    assert f"finetune={config}: the weights of no run fit its model" in err
    assert not out.exists()


def test_what_few_shot_refuses_is_told_before_anything_is_learnt(parts_runs: list[Path], tmp_path: Path) -> None:
    out, config = tmp_path / "out", parts_config(tmp_path)
    words = (parts_runs[0], "shots=500", f"finetune={config}", "--out", out)
    code, _, err = run_here("study", "--preset", "probes", *words)
    assert code == 2, err
    assert "few-shot 5w500s: needs 5 classes with 520 training samples" in err
    assert not (out / "parts").exists()
    assert not (out / "suite.md").exists()


def test_without_a_config_for_parts_the_table_says_so(runs: list[Path], tmp_path: Path) -> None:
    _, text, _ = suite(runs[:1], tmp_path / "out")
    assert "not fine-tuned on parts: no finetune=CONFIG was given" in text


def test_parts_of_the_published_set_are_laid_beside_the_published_figures() -> None:
    ours = ResultRow("ours", "this run", "modelnet40", {"parts data": "shapenet_part"}, {PARTS: 0.84})
    (theirs,) = probe_rows(["shapenet_part"])
    ((row, other, found),) = comparison_rows([ours], [theirs])
    assert (row, other) == (ours, theirs)
    assert not any(each.name == "parts data" for each in found)
    assert "| 84.00 |" in probe_markdown([ours], [theirs])
    assert "| 85.50 | 85.10 |" in probe_markdown([ours], [theirs])


@pytest.mark.long
def test_a_run_that_was_trained_again_is_fine_tuned_again(parts_runs: list[Path], tmp_path: Path) -> None:
    """Its folder holds other weights under the same name: what parts said of the old ones is not told of these."""
    run, config = tmp_path / "run", parts_config(tmp_path)
    shutil.copytree(parts_runs[0], run, symlinks=True)
    found = []
    for source in (None, None, parts_runs[1]):
        if source is not None:
            shutil.rmtree(run / "checkpoints")
            shutil.copytree(source / "checkpoints", run / "checkpoints", symlinks=True)
        document, _, _ = suite([run], tmp_path / "out", f"finetune={config}")
        found.append(document["runs"][0]["metrics"]["part_instance_miou"])
    assert found[0] == found[1] != found[2]
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 3  # from scratch, and from either weights


@pytest.mark.parametrize("code", [130, pytest.param(143, marks=pytest.mark.long)])
def test_an_interrupt_while_parts_are_learnt_ends_the_suite_with_its_code(
    parts_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Where a signal comes as training begins; what signals do is afterwards what it was."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def run(session: TrainingSession) -> None:
        assert session.stop.signal is None
        os.kill(os.getpid(), code - 128)

    monkeypatch.setattr(TrainingSession, "run", run)
    asked = StudyOptions(
        preset="probes",
        configs=tuple(parts_runs),
        overrides=(*QUICK, f"finetune={parts_config(tmp_path)}"),
        out=tmp_path / "out",
        device="cpu",
    )
    try:
        assert run_preset(asked) == code
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Missing option '--out'"),
        (["--out", "{out}", "k=3"], "found 'k=3'; neither few_shot nor svm has such an argument"),
        (["--out", "{out}", "--processes", "2"], "runs in one process"),
        (["--out", "{out}", "--vary", "seed=1,2"], "--vary: is not an option of --preset probes; it takes data=CONFIG"),
        (["--out", "{out}", "random=0"], "random=0: give one whole number from 1"),
        (["--out", "{out}", "cache=a", "cache=b"], "cache= is given twice"),
    ],
)
def test_a_slip_gets_one_line(runs: list[Path], words: list[str], expected: str, tmp_path: Path) -> None:
    code, _, err = run_here(
        "study", "--preset", "probes", runs[0], *(word.format(out=tmp_path / "out") for word in words)
    )
    assert code == 2, err
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_a_run_given_twice_is_refused(runs: list[Path], tmp_path: Path) -> None:
    code, _, err = run_here("study", "--preset", "probes", runs[0], runs[0], "--out", tmp_path / "out")
    assert (code, err) == (2, "error: study --preset probes: a run is given twice\n")


# --- rows -------------------------------------------------------------------------------------------------------------


def row(data: str = "modelnet40", **protocol: Any) -> ResultRow:
    return ResultRow("ours", "this run", data, {key.replace("_", " "): value for key, value in protocol.items()}, {})


def test_differences_are_named_in_both_directions() -> None:
    ours = row(pairs_per_step=64, neighbours=20, points_in_the_probe=1024)
    theirs = row(pairs_per_step=20, points_in_the_probe=1024)
    assert list(map(str, protocol_differences(ours, theirs))) == [
        "pairs per step: 64 here, 20 there",
        "neighbours: 20 here, not stated there",
    ]
    assert str(protocol_differences(theirs, ours)[-1]) == "neighbours: not stated here, 20 there"
    assert protocol_differences(theirs, theirs) == []


def test_the_recipe_to_the_paper_is_told_in_the_words_of_the_published_row() -> None:
    config = read_config(Path(__file__).parents[2] / "configs" / "contrast" / "shapenet_render_crosspoint_dgcnn.yaml")
    stage = preprocessing_signature(
        config, DataInfo({}, {"points": Field("points 3", "float32")}, clouds=CloudInputSpec(2048))
    )
    paper = probe_rows(["modelnet40"])[0].protocol
    assert format_setting(to_plain(config.losses)) == paper["losses"]
    assert format_setting(stage["training"]) == paper["training transforms of points"]
    assert format_setting(stage["training_images"]) == paper["training transforms of images"]
    assert (stage["num_points"], config.train.batch_size) == (paper["points in pre-training"], paper["pairs per step"])


def test_published_rows_are_shares_of_known_metrics() -> None:
    rows = probe_rows(["modelnet40", "scanobjectnn", "shapenet_part"])
    assert len(rows) == 10
    for each in rows:
        assert each.source
        assert each.protocol
        for name, value in each.metrics.items():
            assert column_heading(name.removesuffix("_std")) is not None
            assert 0 < value < 1
    (paper,) = [r for r in rows if r.who.startswith("CrossPoint, DGCNN (paper)") and r.data == "scanobjectnn"]
    assert paper.metrics["probe_svm_accuracy"] == 0.817
    assert probe_rows(["synthetic_shapes"]) == []
    (forest,) = [r for r in rows if "random forest" in r.who]
    assert forest.metrics == {"by_hand_accuracy": 0.784}, "no SVM: it stands in a column of its own"
    assert "| 78.40 |" in probe_markdown([], [forest])
    assert "| SVM |" not in probe_markdown([], [forest])


def test_the_table_shows_percent_and_compares_with_rows_of_the_same_data() -> None:
    ours = ResultRow(
        "ours", "this run", "modelnet40", {"pairs per step": 64}, {"fewshot_5w10s": 0.9, "fewshot_5w10s_std": 0.02}
    )
    text = probe_markdown([ours], probe_rows(["modelnet40", "scanobjectnn"]))
    assert "| ours | modelnet40 |  | 90.00 +- 2.00 |" in text
    assert "| CrossPoint, DGCNN (paper) | modelnet40 | 91.20 | 92.50 +- 3.00 |" in text
    source = "(Afham et al. 2022, tables 1 and 2)"
    assert f"- ours against CrossPoint, DGCNN (paper) {source}: pairs per step: 64 here, 20 there" in text
    assert text.count("- ours against") == 6


def test_headings_say_setting_baseline_and_queries() -> None:
    assert column_heading("probe_svm_accuracy_standardised_random") == "SVM, standardised, random weights"
    assert column_heading("fewshot_10w20s_test_queries") == "10-way 20-shot, queries of the test part"
    assert column_heading("fewshot_3w2s_random") == "3-way 2-shot, random weights"
    assert column_heading("fewshot_3w2s_std") is None


def test_chance_stands_in_the_table() -> None:
    ours = ResultRow("ours", "this run", "modelnet40", {}, {"fewshot_5w10s": 0.9}, chance={"fewshot_5w10s": 0.2})
    assert "## What guessing gets\n\n- ours, modelnet40: 5-way 10-shot 20.00\n" in probe_markdown([ours], [])


def test_probes_tell_their_protocol() -> None:
    assert SVM(folds=3).choice == "by 3-fold cross-validation on the training part"
    assert SVM(C=(0.1,)).choice == "0.1, given"
    assert FewShot().queries_description == "training part, 20 of a class, the points of the probe"
    assert (
        FewShot(convention="test", queries=5).queries_description == "test part, 5 of a class, the points of the probe"
    )
    assert FewShot(episodes=__file__).queries_description == f"as in {__file__}"


def test_arguments_are_found_inside_blocks_and_as_defaults() -> None:
    nested = ComponentConfig("intrapoint", {"points": {"name": "dgcnn", "num_neighbours": 15}})
    assert get_argument("models", nested, "num_neighbours") == 15
    assert get_argument("models", ComponentConfig("intrapoint", {"points": {"name": "dgcnn"}}), "num_neighbours") == 20
    assert get_argument("models", ComponentConfig("pointnet"), "num_neighbours") is None
    assert get_argument("tasks", ComponentConfig("contrast"), "negatives") == "gathered"
    assert "num_neighbours" in registry.models.get_entry("dgcnn").arguments
