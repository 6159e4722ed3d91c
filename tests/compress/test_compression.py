"""`sightline compress` on a small run: sizes to the byte, samples of the search, packing, resuming, fine-tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.compression.half_precision import halvable, round_to_half
from sightline.compression.inputs import calibrate_activations, quantise_inputs
from sightline.compression.packed_file import packed_size, read_packed, tensor_specs, write_packed
from sightline.compression.packed_tensors import planned_tensor_spec
from sightline.compression.parametrised import apply_policy, dense_state_dict
from sightline.compression.policy import FP16, FP32, WeightFormat, policy_to_dict
from sightline.compression.ratios import compression_ratios
from sightline.compression.weights import quantisable_weights
from sightline.config import read_config
from sightline.engine.run_data import build_data
from sightline.engine.run_loading import OpenRun, open_run, open_trained
from sightline.workbench.compress.batch_norm import reestimate_batch_norm
from sightline.workbench.compress.packing import packed_layer_sizes
from sightline.workbench.compress.run_problem import RunProblem, calibration_part, make_simulator
from sightline.workbench.compress.simulator import PolicySimulator
from sightline.workbench.compress.target import CompressionTarget
from tests.command import document_of, refuse, run_here, succeed
from tests.runs.small import TINY

# --- `sightline compress` on a small trained run: sizes to the byte, the search's samples, packing --------------------


pytestmark = pytest.mark.usefixtures("unchecked")
MODEL = ("model.embedding=64", "data.train_size=200", "--device", "cpu")
SEARCH = ("--calibration", "8", "max_evaluations=40", "table_evaluations=20", "--batch-norm", "2", "--device", "cpu")
BYTES = 48_000
RUN = ("run", "{floats}", "--out", "{out}")
UNTUNED = (*RUN, "--epochs", "0")


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("floats") / "run"
    succeed("train", TINY, *MODEL, "--no-check", "--out", run)
    return run


@pytest.fixture(scope="module")
def opened(floats: Path) -> OpenRun:
    return open_run(floats)


@pytest.fixture(scope="module")
def packed(floats: Path) -> Path:
    """The one command."""
    out = floats.parent / "packed"
    words = ("--bytes", BYTES, "--out", out, "--epochs", "1", "train.steps=2", *SEARCH)
    done = succeed("compress", "run", floats, *words)
    assert "of at most 40 evaluations, at most 0:" in done.err
    return out


def test_every_policy_is_simulated_and_sized_as_the_file_holds_it(opened: OpenRun, tmp_path: Path) -> None:
    simulated, draws = make_simulator(opened), np.random.Generator(np.random.PCG64(0))
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    kinds = [
        FP32,
        FP16,
        *(WeightFormat("codebook", bits) for bits in (1, 3, 8)),
        WeightFormat("linear", 4, per_channel=True),
    ]
    for number in range(4):
        policy = {name: kinds[place] for name, place in zip(simulated.names, draws.integers(0, 6, 99), strict=False)}
        model = opened.untrained_model()
        opened.load_into(model)
        rests = halvable(model, but=policy)
        apply_policy(model, policy)
        halves = round_to_half(model.state_dict(), rests)
        swapped = simulated.apply(policy).state_dict()
        for name, value in dense_state_dict(model).items():
            assert torch.equal(swapped[name], value), name
        assert write_packed(tmp_path / f"{number}.slq", model, simulated._meta, halves) == simulated.count_bytes(policy)
        simulated.restore()
    after = opened.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_sizes_are_those_of_hand_worked_numbers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Linear(16, 20))
    simulated = PolicySimulator(model, ("0.weight", "1.weight"), {})
    policy = {"0.weight": WeightFormat("codebook", 2), "1.weight": WeightFormat("codebook", 3)}
    assert simulated.count_bytes(policy, "weights") == (2 * 512 + 3 * 320) // 8
    assert simulated.count_bytes(policy, "codebook") == 512 * 2 // 8 + 4 * 2 + 320 * 3 // 8 + 8 * 2
    assert simulated.base_bytes("weights") == 4 * (512 + 320)
    assert simulated.base_bytes() == 4 * (512 + 320 + 16 + 20)
    assert simulated.sizes(policy).ratios.weights == pytest.approx((2 * 512 + 3 * 320) / (32 * 832))


@pytest.mark.parametrize(("select", "split"), [("validation", "validation"), ("test", "train")])
def test_a_search_sees_no_sample_that_is_reported(floats: Path, select: str, split: str) -> None:
    config = read_config(floats / "config.yaml", [f"evaluate.select={select}"])
    data = build_data(config)
    part, other = (calibration_part(config, data, 16, seed=seed) for seed in (0, 1))
    source = data.selection if split == "validation" else data.train
    assert len(part.indices) == 16
    assert set(part.indices) <= set(source.indices)
    assert set(part.indices) != set(other.indices)
    assert part.split != data.test.split
    assert part.reader.keys == data.test.reader.keys


def test_the_one_command_holds_the_budget_and_reports_the_file(floats: Path, packed: Path) -> None:
    summary, final = (json.loads((packed / name).read_text()) for name in ("compression.json", "final.json"))
    assert (packed / "model.slq").stat().st_size == summary["file_bytes"] == summary["promised_bytes"] <= BYTES
    assert summary["ratios"]["weights"] < summary["ratios"]["codebook"] < summary["ratios"]["file"]
    assert document_of("evaluate", packed, "--device", "cpu")["metrics"] == final["metrics"]
    state = open_trained(packed).model.state_dict()
    stored = read_packed(packed / "model.slq").state
    assert all(torch.equal(value, stored[name]) for name, value in state.items())
    bits = {name: entry.get("bits") for name, entry in summary["policy"].items()}
    assert all(len(state[name].unique()) <= 2 ** bits[name] for name in bits)
    shutil.copytree(packed, packed.parent / "moved", ignore=shutil.ignore_patterns("work"))
    assert open_trained(packed.parent / "moved").config.compress is None


def test_a_packed_run_is_a_run_to_start_from_but_not_to_resume(packed: Path, tmp_path: Path) -> None:
    for words in (("--resume", "auto", "--out", packed), ("--resume", packed)):
        assert "cannot be resumed" in refuse("train", packed, *words, "--device", "cpu")
    words = (f"init.from={packed}", "train.steps=1", "--no-check", "--device", "cpu", "--out", tmp_path / "next")
    succeed("train", packed, *words)
    lineage = json.loads((tmp_path / "next" / "lineage.json").read_text())
    assert lineage["checkpoint"] == "model.slq"
    assert "packed run already" in refuse("compress", "run", packed, "--bytes", BYTES, "--out", packed)


def test_a_call_that_was_killed_while_it_packed_is_repeated(floats: Path, packed: Path) -> None:
    """Between the writes of the model, of the config and of the figures, and under other options."""
    before = (packed / "model.slq").read_bytes()
    words = ("--bytes", BYTES, "--epochs", "1", "train.steps=2", *SEARCH)
    for missing in (["final.json"], ["final.json", "config.yaml", "compression.json"]):
        copy = packed.parent / f"killed_{len(missing)}"
        shutil.copytree(packed, copy)
        for name in missing:
            (copy / name).unlink()
        succeed("compress", "run", floats, *words[:-2], "--device", "cpu", "--out", copy)
        assert (copy / "model.slq").read_bytes() == before
        assert json.loads((copy / "final.json").read_text()) == json.loads((packed / "final.json").read_text())
    (copy / "final.json").unlink()
    told = refuse("compress", "run", floats, "--bytes", BYTES + 1, *words[2:], "--out", copy)
    assert "was written with other options (num_bytes: 48000 there, 48001 here)" in told
    again = shutil.copytree(floats, packed.parent / "again")
    other = (again / "checkpoints" / "last").resolve()
    succeed("train", TINY, *MODEL, "seed=3", "--no-check", "--out", packed.parent / "other")
    shutil.rmtree(other)
    shutil.copytree((packed.parent / "other" / "checkpoints" / "last").resolve(), other)
    told = refuse("compress", "run", again, *words, "--out", copy)
    assert "was written with other options (weights: " in told


def test_an_interrupted_search_comes_to_the_same_policy(floats: Path, packed: Path, tmp_path: Path) -> None:
    whole = (packed / "work" / "evaluations.jsonl").read_text().splitlines(keepends=True)
    cut = "".join(whole[: len(whole) // 2]) + whole[-1][:40]
    (tmp_path / "evaluations.jsonl").write_text(cut)
    succeed("compress", "search", floats, "--bytes", BYTES, "--out", tmp_path, *SEARCH[:4], "--device", "cpu")
    assert (tmp_path / "policy.json").read_text() == (packed / "work" / "policy.json").read_text()
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    plain = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    assert plain == [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in whole]


def test_several_searches_share_a_record_and_a_table(floats: Path, tmp_path: Path) -> None:
    words = ("--bytes", BYTES, "--calibration", "8", "table_evaluations=20", "--device", "cpu", "--out", tmp_path)
    succeed("compress", "search", floats, "--method", "uniform,knapsack,greedy", *words)
    rows = {row["method"]: row for row in json.loads((tmp_path / "search.json").read_text())["searches"]}
    assert set(rows) == {"uniform", "knapsack", "greedy"}
    assert all(row["bytes"] <= BYTES for row in rows.values())
    assert rows["greedy"]["new evaluations"] <= rows["greedy"]["evaluations"] - 18  # the table is the knapsack's
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert len(lines) == sum(row["new evaluations"] for row in rows.values())
    best = min(rows.values(), key=lambda row: (row["loss"], row["bytes"]))["method"]
    assert (tmp_path / "policy.json").read_text() == (tmp_path / f"{best}.policy.json").read_text()
    told = refuse("compress", "search", floats, "--method", "greedy", *words, "model.fused=false")
    assert "evaluations.jsonl:1: contains losses of 'weights " in told


def test_curvature_and_inputs_need_layers_that_are_called(floats: Path, tmp_path: Path) -> None:
    words = ("--bytes", BYTES, "--calibration", "8", "--device", "cpu")
    fused = refuse("compress", "search", floats, *words, "--method", "hessian", "--out", tmp_path / "a")
    assert ("differentiated only once" in fused, "fused: false" in fused) == (True, True)
    words = (*words, "model.fused=false", "draws=3", "--activations", "8")
    succeed("compress", "search", floats, *words, "--method", "hessian", "--out", tmp_path / "b")
    policy = json.loads((tmp_path / "b" / "policy.json").read_text())
    assert all(entry["activation"]["bits"] == 8 and entry["activation"]["range"] > 0 for entry in policy.values())


def test_the_steps_alone_come_to_the_same_file(floats: Path, packed: Path, tmp_path: Path) -> None:
    policy = packed / "work" / "policy.json"
    words = ("--policy", policy, "--stop-after", "finetune", "--device", "cpu", "--out")
    succeed("compress", "run", floats, "--epochs", "1", "train.steps=2", *words, tmp_path / "t")
    words = ("--out", tmp_path / "p", "--batch-norm", "2", "--device", "cpu")
    succeed("compress", "run", tmp_path / "t" / "work" / "finetuned", *words)
    assert (tmp_path / "p" / "model.slq").read_bytes() == (packed / "model.slq").read_bytes()


def test_the_checkpoint_that_is_named_is_packed(floats: Path, packed: Path, tmp_path: Path) -> None:
    policy = packed / "work" / "policy.json"
    words = ("--policy", policy, "--stop-after", "finetune", "--epochs", "2", "checkpoint.every=1")
    succeed("compress", "run", floats, *words, "checkpoint.keep_last=2", "--device", "cpu", "--out", tmp_path)
    tuned = tmp_path / "work" / "finetuned"
    for checkpoint in sorted((tuned / "checkpoints").glob("step_*")):
        out, words = tmp_path / f"from_{checkpoint.name}", ("--batch-norm", "0", "--device", "cpu")
        succeed("compress", "run", tuned, "--checkpoint", checkpoint, *words, "--out", out)
        stored = read_packed(out / "model.slq").state
        expected = dense_state_dict(open_run(tuned, checkpoint=str(checkpoint)).model)
        assert all(torch.equal(stored[name], expected[name]) for name in json.loads(policy.read_text()))


def test_a_command_that_stopped_after_each_stage_comes_to_the_same_file(
    floats: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--bytes", BYTES, "--out", out, "--epochs", "1", "train.steps=2", *SEARCH)
    succeed("compress", "run", floats, *words, "--stop-after", "search")
    assert (out / "work" / "policy.json").read_bytes() == (packed / "work" / "policy.json").read_bytes()
    assert not (out / "work" / "finetuned").exists()
    succeed("compress", "run", floats, *words, "--stop-after", "finetune")
    assert ((out / "work" / "finetuned" / "final.json").exists(), (out / "model.slq").exists()) == (True, False)
    succeed("compress", "run", floats, *words)
    assert (out / "model.slq").read_bytes() == (packed / "model.slq").read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*RUN, "--stop-after", "search"], "--stop-after search: needs the budget of a search"),
        (["run", "{floats}", "--ratio", "0.1"], "Missing option '--out'"),
        ([*RUN, "--policy", "p", "--ratio", "0.1"], "--policy: is used instead of a search"),
        ([*RUN, "--policy", "p", "--bits", "2"], "--bits: is about a search, and none is made"),
        ([*RUN, "--ratio", "0.2", "--stop-after", "search", "--json", "{out}.json"], "--json: has no use with --stop-"),
        (
            ["run", "{tuned}", "--stop-after", "finetune", "--out", "{out}"],
            "was trained with quantised weights already",
        ),
        (["run", "{tuned}", "--epochs", "3", "--out", "{out}"], "was trained with quantised weights already"),
        (["run", "{tuned}", "train.steps=3", "--out", "{out}"], "'train.steps=3', which this step does not use"),
        ([*UNTUNED, "--ratio", "0.2", "--rate", "50"], "--rate: is about fine-tuning, and --epochs 0 has none"),
        ([*UNTUNED, "--ratio", "0.2", "no.such=4"], "'no.such=4', which this step does not use"),
        ([*UNTUNED, "--policy", "p", "--distil"], "--distil/--no-distil: is about fine-tuning"),
        ([*UNTUNED, "--policy", "p", "--stop-after", "finetune"], "--epochs 0: trains nothing"),
        (["search", *UNTUNED[1:4], "--ratio", "0.2", "train.steps=3"], "'train.steps=3', which this step does not use"),
        (["search", *UNTUNED[1:4], "--batch-norm", "3"], "No such option: --batch-norm"),
        (["size", "{floats}", "--ratio", "0.1"], "No such option: --ratio"),
        (["size", "{floats}", "max_evaluations=3"], "'max_evaluations=3', which this step does not use"),
        (["report", *UNTUNED[1:4], "--epochs", "0"], "Invalid value for '--epochs'"),
    ],
)
def test_stages_and_options_that_do_not_go_together_are_refused(
    floats: Path, packed: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    places = {"floats": floats, "tuned": packed / "work" / "finetuned", "out": tmp_path / "out"}
    done = run_here("compress", *(word.format(**places) for word in words))
    assert (done.code, expected in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not (tmp_path / "out").exists()


def test_apply_packs_without_training_and_size_predicts_it(floats: Path, packed: Path, tmp_path: Path) -> None:
    policy = packed / "work" / "policy.json"
    words = ("--epochs", 0, "--out", tmp_path / "a", "--device", "cpu")
    succeed("compress", "run", floats, "--policy", policy, *words)
    (predicted,) = document_of("compress", "size", floats, "--policy", policy).values()
    assert predicted["bytes"] == (tmp_path / "a" / "model.slq").stat().st_size
    assert predicted["weights"] < predicted["codebook"] < predicted["file"] < 0.2
    every = run_here("compress", "size", floats).out
    assert "8 bits" in every
    assert "fp16" in every


def test_a_packed_run_keeps_quantised_inputs(floats: Path, opened: OpenRun, tmp_path: Path) -> None:
    names = make_simulator(opened).names
    evaluator = opened.evaluator(opened.data.train)
    entries = calibrate_activations(
        opened.model, lambda: evaluator(opened.model, opened.world), [names[0], names[-1]], bits=3
    )
    document = policy_to_dict(dict.fromkeys(names, WeightFormat("linear", 6)))
    for name, entry in entries.items():
        document[name]["activation"] = entry._asdict()
    (tmp_path / "policy.json").write_text(json.dumps(document))
    words = ("--policy", tmp_path / "policy.json", "--out", tmp_path / "packed", "--device", "cpu")
    succeed("compress", "run", floats, "--epochs", 0, *words)
    packed = open_trained(tmp_path / "packed")
    rounding, plain = opened.untrained_model(), opened.untrained_model()
    quantise_inputs(rounding, entries)
    points = torch.randn(8, packed.config.data.arguments.get("num_points", 64), 3)
    logits = packed.model.eval()(points=points)["logits"]
    for model, is_same in ((rounding, True), (plain, False)):
        model.load_state_dict(packed.model.state_dict())
        assert torch.equal(model.eval()(points=points)["logits"], logits) == is_same
    assert packed.config.compress is not None
    assert packed.config.compress.policy == {
        name: {"kind": "fp32", "activation": entry._asdict()} for name, entry in entries.items()
    }
    assert packed.model.state_dict().keys() == opened.model.state_dict().keys()


def test_statistics_are_the_means_over_the_batches(opened: OpenRun) -> None:
    """Against each batch on its own with a momentum of 1, averaged in float64."""
    wanted: dict[str, list[torch.Tensor]] = {}
    for place in range(2):
        model = opened.untrained_model()
        opened.load_into(model)
        alone = _with_first(opened, place)
        reestimate_batch_norm(model, alone, num_batches=1)
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                wanted.setdefault(name, []).append(value.double())
    model = opened.untrained_model()
    opened.load_into(model)
    momenta = [module.momentum for module in model.modules() if hasattr(module, "momentum")]
    assert reestimate_batch_norm(model, _with_first(opened, None), num_batches=2) == 2
    assert wanted
    for name, values in wanted.items():
        expected = torch.stack(values).mean(0).float()
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)
    assert [module.momentum for module in model.modules() if hasattr(module, "momentum")] == momenta
    assert not model.training


def _with_first(run: OpenRun, place: int | None) -> OpenRun:
    """The run with the first two batches of its training part, or one of them."""
    size = run.config.train.batch_size
    drawn = np.random.Generator(np.random.PCG64(run.config.seed)).permutation(run.data.train.indices)
    indices = run.data.train.indices if place is None else drawn[place * size :][:size]
    other = open_run(run.path)
    other.__dict__["data"] = type(run.data)(
        type(run.data.train)(run.data.train.dataset, indices, run.data.train.reader, "train"),
        run.data.selection,
        run.data.test,
        run.data.facts,
    )
    return other


MISTAKES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "nothing asked": ((), "give either --ratio or --bytes, the budget of a search"),
    "both": (("--ratio", "0.1", "--bytes", "9"), "give either --ratio or --bytes"),
    "above 1": (("--ratio", "1.5"), "--ratio 1.5: give a number above 0, at most 1"),
    "too small": (("--ratio", "0.001"), "a ratio of 0.0"),
    "a wrong unit": (
        ("--ratio", "0.1", "--on", "disk"),
        "Invalid value for '--on': 'disk' is not one of 'file', 'codebook'",
    ),
    "no bits": (("--ratio", "0.1", "--bits", "9"), "--bits 9: give whole numbers from 1 to 8"),
    "bits in words": (("--ratio", "0.1", "--bits", "two"), "--bits two: give whole numbers"),
    "no such search": (("--ratio", "0.1", "--method", "hybird"), "hybrid"),
    "no such argument": (("--ratio", "0.1", "max_evaluation=50"), "max_evaluations"),
    "a word that nothing takes": (("--ratio", "0.1", "--method", "uniform", "nonsense=3"), "nonsense"),
    "two runs": (("--ratio", "0.1", "another"), "takes one run directory, 2 are given"),
    "protected and uniform": (
        ("--ratio", "0.3", "--method", "uniform", "--protect", "head.*"),
        "take uniform_protected",
    ),
    "no rate": (("--ratio", "0.1", "--rate", "0"), "--rate 0.0: a factor of the run's learning rate"),
    "linear with one bit": (("--ratio", "0.1", "--kind", "linear", "--bits", "1"), "linear weights take 2 bits"),
    "no such layer": (("--ratio", "0.1", "--protect", "haed.*"), "--protect: no layer is called 'haed.*'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(floats: Path, tmp_path: Path, mistake: str) -> None:
    words, text = MISTAKES[mistake]
    done = refuse("compress", "run", floats, *words, "--out", tmp_path / "out")
    assert text in done
    assert "Traceback" not in done
    assert not (tmp_path / "out" / "model.slq").exists()


@pytest.mark.parametrize("place", ["file", "full", "run"])
def test_a_folder_that_cannot_be_used_is_refused_before_the_search(floats: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    out = floats if place == "run" else tmp_path / place
    done = run_here("compress", "run", floats, "--bytes", BYTES, "--out", out)
    assert (done.code, "search " in done.err, str(out) in done.err) == (2, False, True), done.err
    assert not (out / "work").exists()


def test_shared_and_unnamed_weights_count_in_the_ratios() -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(64, 64, bias=False), "decoder": torch.nn.Linear(64, 64)})
    model["decoder"].weight = model["encoder"].weight
    (name,) = (weight.name for weight in quantisable_weights(model))
    policy = {name: WeightFormat("codebook", 4)}
    wanted = PolicySimulator(model, (name,), {}).sizes(policy).ratios
    apply_policy(model, policy)
    layers = packed_layer_sizes(*tensor_specs(model), policy)
    assert layers == [(4096, 4, 32)]
    assert compression_ratios(layers, file_bytes=1, state=dense_state_dict(model)).codebook == pytest.approx(
        wanted.codebook
    )


def test_fewer_centres_never_make_a_larger_file() -> None:
    """Just where a codebook begins to pay, its line in the header is longer than that of plain numbers."""
    for shape in [(16, 32), (2, 130), (32, 32), (256, 300)]:
        sizes = [
            packed_size([planned_tensor_spec("w", shape, kind="codebook", bits=8, k=k)], {})
            for k in range(1, min(256, shape[0] * shape[1]) + 1)
        ]
        assert sizes == sorted(sizes)


def test_the_ratio_that_is_named_as_the_smallest_holds(floats: Path, opened: OpenRun) -> None:
    done = run_here("compress", "run", floats, "--ratio", "0.001", "--out", floats.parent / "no")
    smallest = float(done.err.split("a ratio of ")[1].split(";")[0])
    problem = RunProblem(opened, CompressionTarget(ratio=smallest, calibration=4)).search_problem
    assert problem.fits_budget(problem.lowest)


def test_quantised_and_packed_runs_are_refused_by_name(packed: Path, tmp_path: Path) -> None:
    for run in (packed / "work" / "finetuned", packed):
        assert "is quantised already" in refuse("compress", "run", run, "--ratio", "0.1", "--out", tmp_path / "a")
    data = bytearray((packed / "model.slq").read_bytes())
    data[len(data) // 2] ^= 1
    shutil.copytree(packed, tmp_path / "c")
    (tmp_path / "c" / "model.slq").write_bytes(data)
    assert "model.slq: is damaged: its CRC-32" in refuse("evaluate", tmp_path / "c")
