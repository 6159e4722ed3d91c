"""What `sightline compress` does beside the weights of layers: shared and unused ones, embeddings, biases and norms."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from sightline.compression.half_precision import halvable, round_to_half
from sightline.compression.packed_file import read_packed
from sightline.compression.parametrised import apply_policy, dense_state_dict
from sightline.compression.policy import Policy, WeightFormat
from sightline.compression.ratios import float_bytes
from sightline.config import read_config
from sightline.contract.errors import ConfigError
from sightline.engine.run_loading import OpenRun, open_run, open_trained
from sightline.runs.lineage import describe_stage
from sightline.runs.run_directory import RunDirectory
from sightline.training.train_run import TrainResult
from sightline.workbench.check.init_rules import _find_different_tensors
from sightline.workbench.compress.finetuning import FineTuning, can_distil
from sightline.workbench.compress.report import CompressionReport, report_row
from sightline.workbench.compress.run_problem import RunProblem
from sightline.workbench.compress.simulator import PolicySimulator
from sightline.workbench.compress.stages import Compression
from sightline.workbench.compress.target import CompressionTarget
from sightline.workbench.describe.trace import trace
from sightline.workbench.series.loop import StoppedError
from tests.command import document_of, refuse, run_here, succeed
from tests.compression.policies import parse_policy
from tests.processes import ROOT
from tests.runs.small import TINY

pytestmark = pytest.mark.usefixtures("unchecked")
PLUGIN = ("--plugin", Path(__file__).with_name("shared_nets.py"))
WORDS = ("model={name: shared_net}", "optimizer={name: sgd, lr: 0.1, frozen: [{modules: spare}]}")
SEARCH = ("--calibration", "8", "max_evaluations=40", "table_evaluations=20", "--device", "cpu")
ROWS = ("", " + fine-tuning", " + fine-tuning + distillation")
COMMON = ["float", "float, trained as long", *(f"mix{more}" for more in ROWS)]
NUM_FLOATS = 8 * 64 + (3 * 64 + 64) + (64 * 64 + 64) + 64 + (64 * 64 + 64) + 4 * 64 + (12 * 64 + 12)
FLOAT_BYTES = 4 * NUM_FLOATS + 8
"""By hand: the octants, enter, mix, the bias of again, spare, norm, head; and the 64 bits in which norm counts."""


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shared") / "run"
    succeed("train", TINY, *PLUGIN, *WORDS, "--device", "cpu", "--no-check", "--out", run)
    return run


@pytest.fixture(scope="module")
def opened(floats: Path) -> OpenRun:
    return open_run(floats, plugins=PLUGIN[1:])


@pytest.fixture(scope="module")
def packed(floats: Path) -> Path:
    out = floats.parent / "packed"
    words = ("--bytes", "6500", "--out", out, "--epochs", "1", "--batch-norm", "2")
    done = succeed("compress", "run", floats, *PLUGIN, *words, *SEARCH)
    assert "1 of 4 layers do not affect the loss and get the fewest bits: spare.weight" in done.err
    return out


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[4:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


def test_a_network_with_shared_weights_is_fine_tuned_and_packed(packed: Path) -> None:
    summary = json.loads((packed / "compression.json").read_text())
    assert summary["float_bytes"] == FLOAT_BYTES
    assert summary["ratios"]["file"] == (packed / "model.slq").stat().st_size / FLOAT_BYTES
    assert header_of(packed / "model.slq")["tied"] == {"mix.weight": "again.weight"}
    model = open_trained(packed, plugins=PLUGIN[1:]).model
    assert model.again.weight.data_ptr() == model.mix.weight.data_ptr()


def test_every_size_counts_a_shared_weight_once(opened: OpenRun) -> None:
    assert float_bytes(opened.model.state_dict()) == FLOAT_BYTES
    assert PolicySimulator(opened.model, ("mix.weight",), {}).base_bytes() == FLOAT_BYTES


def test_another_weight_than_the_one_given_is_found_under_each_name() -> None:
    """Names of a quantised tensor are excused, all of them; a tensor beside it that is not the one given is not."""
    model = nn.ModuleDict({"a": nn.Linear(20, 20), "b": nn.Linear(20, 20)})
    model["b"].weight = model["a"].weight
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    expected["b.weight"] = expected["a.weight"]
    apply_policy(model, {"a.weight": WeightFormat("codebook", 1)})
    assert _find_different_tensors(expected, dense_state_dict(model), ["a.weight"]) == []
    expected["b.bias"] = expected["b.bias"] + 1
    assert _find_different_tensors(expected, dense_state_dict(model), ["a.weight"]) == ["b.bias"]
    assert _find_different_tensors(expected, dense_state_dict(model), []) == ["a.weight", "b.weight", "b.bias"]


def test_embeddings_have_codebooks_and_biases_and_norms_half_precision(packed: Path) -> None:
    kinds = {line["name"]: line["kind"] for line in header_of(packed / "model.slq")["tensors"]}
    codes = ("again.weight", "head.weight", "octants.weight", "spare.weight")
    assert {name for name, kind in kinds.items() if kind == "kq"} == set(codes)
    assert {name: kind for name, kind in kinds.items() if kind not in ("kq", "f16")} == {
        "norm.num_batches_tracked": "i64"
    }
    state = read_packed(packed / "model.slq").state
    bits = json.loads((packed / "compression.json").read_text())["policy"]["octants.weight"]["bits"]
    assert len(state["octants.weight"].unique()) <= 2**bits
    for name in ("norm.running_var", "norm.weight", "enter.bias", "enter.weight"):
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], state[name].half().float())


def test_numbers_that_half_precision_cannot_hold_stay_in_float() -> None:
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "layer": nn.Linear(2, 3), "quiet": nn.LayerNorm(3)})
    with torch.no_grad():
        model["norm"].running_var.copy_(torch.tensor([70_000.0, 1.0, 1.0]))
        model["norm"].running_mean.copy_(torch.tensor([1 / 3, 0.0, 2e-9]))
        model["quiet"].bias.fill_(1e-5 / 3)
    names = halvable(model, but=["layer.bias"])
    assert set(names) == set(model.state_dict()) - {"norm.num_batches_tracked", "layer.bias"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = round_to_half(model.state_dict(), names)
    assert set(names) - set(rounded) == {"norm.running_var", "quiet.bias"}
    assert model["norm"].running_mean.tolist() == [0.333251953125, 0.0, 0.0]  # 1365 / 4096: eleven digits of 1/3
    for name in ("norm.running_var", "quiet.bias", "layer.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize("method", ["hybrid", "knapsack", "greedy", "uniform", "random", "ddpg", "nsga2"])
def test_a_weight_that_nothing_uses_gets_the_fewest_bits(floats: Path, tmp_path: Path, method: str) -> None:
    """With half of the bytes to spare."""
    words = ("--bytes", "11000", "--calibration", "8", "--device", "cpu", "--out", tmp_path, "--method", method)
    arguments = {"uniform": (), "knapsack": ("table_evaluations=8",), "greedy": ("table_evaluations=8",)}
    succeed("compress", "search", floats, *PLUGIN, *words, *arguments.get(method, ("max_evaluations=40",)))
    policy = json.loads((tmp_path / "policy.json").read_text())
    assert policy["spare.weight"]["bits"] == 1
    assert max(entry["bits"] for entry in policy.values()) > 1


def test_a_policy_of_some_layers_means_in_apply_what_it_means_in_a_config(
    floats: Path, opened: OpenRun, tmp_path: Path
) -> None:
    """What it does not name is in float; norms and biases in half, but where it says otherwise."""
    policy = {"mix.weight": {"kind": "codebook", "bits": 2}, "norm.weight": {"kind": "fp32"}}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    words = (*PLUGIN, "--policy", tmp_path / "policy.json", "--device", "cpu")
    succeed("compress", "run", floats, *words, "--out", tmp_path / "packed", "--epochs", 0, "--batch-norm", "0")
    kinds = {line["name"]: line["kind"] for line in header_of(tmp_path / "packed" / "model.slq")["tensors"]}
    assert {name for name, kind in kinds.items() if kind == "f32"} == {
        "octants.weight",
        "spare.weight",
        "head.weight",
        "norm.weight",
    }
    (predicted,) = document_of("compress", "size", floats, *words[:-2]).values()
    assert predicted["bytes"] == (tmp_path / "packed" / "model.slq").stat().st_size
    changed = opened.untrained_model()
    opened.load_into(changed)
    apply_policy(changed, parse_policy(policy))
    found, expected = read_packed(tmp_path / "packed" / "model.slq").state, dense_state_dict(changed)
    for name, kind in kinds.items():
        assert torch.equal(
            found[name], expected[name].half().to(found[name].dtype) if kind == "f16" else expected[name]
        )
    out = tmp_path / "tuned"
    stop = ("--stop-after", "finetune")
    succeed("compress", "run", floats, *words, *stop, "--epochs", "1", "train.steps=1", "--out", out)
    assert read_config(out / "work" / "finetuned" / "config.yaml").compress.policy.keys() == policy.keys()
    (tmp_path / "policy.json").write_text(json.dumps({"mixed.weight": {"kind": "fp16"}}))
    told = refuse("compress", "run", floats, *words, "--epochs", 0, "--out", tmp_path / "other")
    assert "mixed.weight: no parameter is called so; did you mean 'mix.weight'" in told


def test_weights_are_parameters_and_entries_of_codebooks_are_not(packed: Path) -> None:
    """In the header of the fine-tuning, in `describe`, and of each layer."""
    run = open_trained(packed / "work" / "finetuned", plugins=PLUGIN[1:])
    assert f"shared_net ({NUM_FLOATS - 2 * 64:,} parameters: octants, " in describe_stage(run.config, run.model)
    traced = trace(run.model, lambda model: model(points=torch.rand(2, 32, 3)), num_samples=2)
    assert traced.parameters == traced.trainable == NUM_FLOATS - 2 * 64  # without running statistics
    assert sum(node.parameters for node in traced.calls) == NUM_FLOATS - 2 * 64
    assert sum(node.parameters for node in traced.calls if node.path.startswith("head")) == 12 * 64 + 12


def test_options_that_were_refused_bind_nobody(floats: Path, tmp_path: Path) -> None:
    """By the search's method; by the config of the fine-tuning, before the search; and by the checks of its start."""
    out = tmp_path / "out"
    words = (*PLUGIN, "--bytes", "20000", "--calibration", "8", "--batch-norm", "0", "--device", "cpu", "--out", out)
    refused = ("--method", "uniform", "--protect", "head.*", "--calibration", "4")
    assert "take uniform_protected" in refuse("compress", "run", floats, *words, "--epochs", "0", *refused)
    told = refuse("compress", "run", floats, *words, "--method", "uniform_protected", "train.batch_sze=3")
    assert ("did you mean 'batch_size'" in told, "search " in told) == (True, False), told
    for word in ("train.batch_size=13", "checks.skip=[no-gradient]"):  # as advised after the first
        with mock.patch("sightline.training.launch.train_run", return_value=TrainResult(None)):
            done = run_here("compress", "run", floats, *words, "--method", "uniform_protected", word)
        assert (done.code, "not trained (exit code 1), see above" in done.err) == (1, True), done.err
    succeed("compress", "run", floats, *words, "--epochs", "0", "--method", "uniform_protected")


def test_a_second_call_is_refused_before_its_search(floats: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    words = (*PLUGIN, "--device", "cpu", "--out", tmp_path / "out")
    budget = ("--bytes", "20000", "--calibration", "8")
    steps = [(name, floats, *budget) for name in ("run", "search", "report")]
    steps.append(("run", floats, "--policy", tmp_path / "policy.json", "--epochs", 0))
    with RunDirectory(tmp_path / "out", is_writer=True).lock():
        for more in steps:
            told = refuse("compress", *more, *words)
            assert ("in use by process" in told, "search " in told) == (True, False), told
        assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}


@pytest.mark.parametrize("command", ["search", "report"])
def test_a_run_directory_is_no_place_for_a_table(floats: Path, command: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in floats.rglob("*")}
    told = refuse("compress", command, floats, *PLUGIN, "--bytes", "20000", "--device", "cpu", "--out", floats)
    assert (f"{floats}: is a run directory" in told, "search " in told) == (True, False), told
    assert {path: path.stat().st_mtime_ns for path in floats.rglob("*")} == before


def test_a_metric_that_is_no_number_is_none_in_a_report() -> None:
    """As for a class that the test part has not: files of rows hold null for it."""
    row = report_row("float", [{"a": 1.0, "b": None}, {"a": 4.0, "b": 2.0}], file_bytes=9, ratios={})
    assert (row["a"], row["a_std"]) == (2.5, pytest.approx(4.5**0.5))
    assert math.isnan(row["b"])
    assert math.isnan(row["b_std"])


def test_a_run_of_joints_cannot_be_distilled() -> None:
    assert can_distil(read_config(TINY))
    assert not can_distil(read_config(ROOT / "configs" / "pose" / "synthetic_hands_scale_net.yaml"))


REPORT = (
    *(*PLUGIN, "--calibration", "8", "--device", "cpu"),
    *("--method", "knapsack", "table_evaluations=8", "--epochs", "1"),
)


def test_a_report_refuses_a_budget_before_any_row(floats: Path, tmp_path: Path) -> None:
    """Without one it takes a tenth, of 512 + 4,096 + 4,096 + 768 weights in float32; 8 bits are a quarter."""
    for words, told in ((("--ratio", "0.01"), "378 bytes"), (("--bits", "8"), "3,788 bytes")):
        refused = refuse("compress", "report", floats, *REPORT, *words, "--out", tmp_path / "out")
        assert f"budget: {told} are too few" in refused
        assert not (tmp_path / "out").exists()


def test_a_report_leaves_out_rows_with_their_reason_and_keeps_others_at_another_ratio(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0.04 the ends cannot have 8 bits: of 512, 4096, 4096 and 768 weights 8, 1, 1 and 8 bits are 0.06.

    Packed are three rows of mix, one of 0.04, and four of 0.2, each once.
    """

    def finetune(self: Compression, policy: Policy | None, how: FineTuning) -> Path:
        path = self._work / "finetuned"
        path.mkdir(parents=True, exist_ok=True)
        (path / "final.json").write_text('{"metrics": {"overall_accuracy": 0.5, "mean_class_accuracy": 0.25}}')
        (path / "config.yaml").write_text("name: finetuned")
        return path

    def pack(self: Compression, policy: Policy, **more: Any) -> dict[str, Any]:
        packed.append(self._out)
        return packing(self, policy, **{**more, "finetuned": None})

    packing, packed, names = Compression.pack, list[Path](), {}
    monkeypatch.setattr(Compression, "finetune", finetune)
    monkeypatch.setattr(Compression, "pack", pack)
    for ratio in ("0.04", "0.2", "0.04"):
        done = succeed("compress", "report", floats, *REPORT, "--ratio", ratio, "--out", tmp_path)
        document = json.loads((tmp_path / "compression.json").read_text())
        names[ratio] = [row["name"] for row in document["rows"]]
        is_left_out = "row '0.04 preserve, mix' left out: budget: 1,515 bytes are too few" in done.err
        assert is_left_out == (ratio == "0.04") == ("Left out: 0.04 preserve, mix; " in done.out)
        assert len(document["left_out"]) == (3 if ratio == "0.04" else 0)
    assert names["0.04"] == [*COMMON, "0.04 preserve"]
    assert names["0.2"] == [*COMMON, "0.2 preserve", *(f"0.2 preserve, mix{more}" for more in ROWS)]
    assert len(set(packed)) == len(packed) == 3 + 1 + 1 + 3


def test_a_report_takes_no_policy_of_a_search_with_other_options(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first call that was stopped after its searches, before any row."""

    def stop(self: Any, spec: Any, seed: int, *_: object) -> Any:
        if spec.policy != "preserve":
            return {"metrics": {"overall_accuracy": 0.5, "mean_class_accuracy": 0.5}}
        bits.append({choice.bits for choice in self._policies["preserve, seed 0"].values()})
        raise StoppedError(143)

    bits = list[set[int]]()
    monkeypatch.setattr(CompressionReport, "_row", stop)
    is_searched = []
    for choices in ("1,2", "3,4", "3,4"):
        done = run_here("compress", "report", floats, *REPORT, "--ratio", "0.2", "--bits", choices, "--out", tmp_path)
        assert done.code == 143, done.err
        is_searched.append("search knapsack: " in done.err)
    assert [each <= {1, 2} for each in bits] == [True, False, False]
    assert bits[1] == bits[2] <= {3, 4}
    assert is_searched == [True, True, False]


def test_a_weight_that_nothing_uses_may_be_protected(opened: OpenRun) -> None:
    problem = RunProblem(opened, CompressionTarget(num_bytes=20_000, calibration=4, protect=("spare.*",)))
    assert problem.unused == ()
    assert problem.search_problem.policy(problem.search_problem.lowest)["spare.weight"].bits == 8


def test_a_budget_that_cannot_hold_is_refused_before_data_are_opened(floats: Path) -> None:
    run = open_run(floats, plugins=PLUGIN[1:])
    with pytest.raises(ConfigError, match=r"budget: 407 bytes are too few; .* a ratio of 0\.1"):
        RunProblem(run, CompressionTarget(ratio=0.01, calibration=4))
    assert "data" not in vars(run)
