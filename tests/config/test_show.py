"""What `show` prints is the run itself: fed back in, it gives an equal RunConfig."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sightline.config import read_config, render_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.plugins import find_plugin
from tests.cases import run_each
from tests.command import succeed
from tests.runs.small import TINY

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if not p.name.startswith("_"))
EACH = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_come_back_equal(path: Path, tmp_path: Path) -> None:
    config = read_config(path)
    assert config.name == path.stem
    again = tmp_path / "config.yaml"
    for origins in (True, False):
        again.write_text(render_config(config, origins=origins))
        found = read_config(again)
        assert found == config
        assert render_config(found, origins=False) == render_config(config, origins=False)


@run_each("path", SHIPPED)
def test_shipped_configs_count_epochs_and_say_what_they_reproduce(path: Path) -> None:
    """`train.epochs=1` always works, whatever warm-up and milestones a recipe has."""
    assert read_config(path, ["train.epochs=1"]).train.epochs == 1
    assert path.read_text().startswith("# ")


NUMBERS = {
    "seed": st.integers(0, 2**63 - 1),
    "train.epochs": st.integers(1, 2**31 - 1),
    "train.clip_norm": st.floats(1e-300, 1e9) | st.none(),
    "train.ema_decay": st.floats(0, 1, exclude_max=True) | st.none(),
    "train.compile": st.booleans(),
    "train.precision": st.sampled_from(["float32", "float64", "bf16", "fp16"]),
    "model.dropout": st.floats(0, 1) | st.integers(0, 1),
    "optimizer.lr": st.floats(min_value=5e-324, max_value=1e9),
    "optimizer.decay": st.sampled_from(["all", "weights"]),
    "losses.0.weight": st.floats(0, 1e9)
    | st.fixed_dictionaries({"start": st.just(0), "end": st.floats(1e-9, 1e9), "epochs": st.floats(1e-3, 1e6)}),
    "losses.0.class_weights": st.lists(st.floats(0, 10), max_size=5) | st.none(),
    "optimizer.groups": st.lists(
        st.fixed_dictionaries({"modules": st.text(max_size=8), "lr_factor": st.floats(0, 10)}), max_size=3
    ),
    "optimizer.frozen": st.lists(
        st.fixed_dictionaries({"modules": st.text(max_size=8)}, optional={"until_epoch": st.integers(1, 9)}), max_size=3
    ),
    "optimizer.layer_decay": st.none()
    | st.fixed_dictionaries(
        {"factor": st.floats(1e-6, 1)}, optional={"modules": st.lists(st.text(max_size=8), max_size=3)}
    ),
    "evaluate.metric": st.text(max_size=20),
    "name": st.text(min_size=1, max_size=20),
    "init": st.none()
    | st.fixed_dictionaries(
        {"from": st.text(max_size=20)}, optional={"modules": st.none() | st.text(), "into": st.none() | st.text()}
    ),
    "checks.skip": st.lists(st.text(max_size=10), max_size=3),
    "transforms.train": st.lists(
        st.sampled_from(
            [
                {"name": "scale", "low": 0.1, "high": 1 / 3, "isotropic": True},
                {"name": "jitter"},
                {"name": "flip", "axes": []},
                {"name": "rotate", "max_angle_rad": 3},
            ]
        ),
        max_size=3,
    ),
}


@given(st.fixed_dictionaries({}, optional=NUMBERS))  # type: ignore[arg-type]
@EACH
def test_random_overrides_come_back_equal(tmp_path: Path, overrides: dict[str, object]) -> None:
    """JSON is a part of YAML that needs no writer of ours: what is given in it is what is read, and read again."""
    given_overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    try:
        config = read_config(TINY, given_overrides)
    except ConfigError as error:
        # text may hold what no file can; a name may not be one of a folder; nothing else is wrong with these
        assume(all("remove it" in fault or "name a folder" in fault for fault in error.faults))
        assume(False)
    path = tmp_path / "config.yaml"
    for origins in (True, False):
        path.write_text(render_config(config, origins=origins), encoding="utf-8")
        assert read_config(path) == config


def test_arguments_of_a_plugin_with_any_keys_come_back(tmp_path: Path) -> None:
    """Mappings as arguments: no built-in part has one, a user's may."""
    registry.models.names()
    entries = dict(registry.models._entries)
    sizes = {"a b: c": 1e-30, "true": 2.0, "5": 0.0, "#": 1.0}

    @registry.models.add("keyed")
    def keyed(*, num_classes: int, sizes: dict[str, float] = sizes) -> None:
        """A part whose argument is a mapping."""

    try:
        config = read_config(TINY, ["model={name: keyed}"])
        path = tmp_path / "config.yaml"
        for origins in (True, False):
            path.write_text(render_config(config, origins=origins))
            assert read_config(path) == config
        changed = read_config(TINY, ["model={name: keyed, sizes: {x: 3}}"])
        assert changed.model.arguments["sizes"] == {"x": 3.0}
        with pytest.raises(ConfigError, match=r"model\.sizes\.x: found the text 'y', allowed is a number"):
            read_config(TINY, ["model={name: keyed, sizes: {x: y}}"])
    finally:
        registry.models._entries = entries


# --- as a user sees it -----------------------------------------------------------------------------------------------


def run(*words: object) -> str:
    """What a command prints that goes well."""
    return succeed(*words).out


def test_show_prints_each_value_with_its_origin(tmp_path: Path) -> None:
    document = tmp_path / "shown.json"
    out = run("show", TINY, "train.epochs=10", "--json", document)
    lines = {line.partition("#")[0].strip(): line.partition("#")[2].strip() for line in out.splitlines()}
    assert lines["epochs: 10"] == "command line"
    assert lines["batch_size: 12"] == f"{TINY}:10"
    assert lines["micro_batches: 1"] == "default"
    assert lines['- name: "cross_entropy"'] == f"{TINY}:7"
    told = json.loads(document.read_text())
    assert told["config"]["train"]["epochs"] == 10
    assert told["origins"]["train.batch_size"] == f"{TINY}:10: train.batch_size"


def test_a_run_directory_stands_for_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(render_config(read_config(TINY), origins=False))
    assert 'name: "tiny"' in run("show", tmp_path)


def test_list_prints_every_component_with_arguments_defaults_and_sources(tmp_path: Path) -> None:
    document = tmp_path / "list.json"
    out = run("list", "--json", document)
    told = json.loads(document.read_text())
    assert set(told) == set(registry.REGISTRIES)
    for kind, entries in told.items():
        assert f"{kind} " in out
        entire = run("list", kind)
        assert [each["name"] for each in entries] == registry.REGISTRIES[kind].names()
        for each in entries:
            assert each["summary"], f"{each['name']}: the first line of its docstring says what it is"
            assert f"\n  {each['name']}\n" in entire
            for argument in each["arguments"]:
                assert f"      {argument['name']}: " in entire
                assert argument["required"] == ("default" not in argument)
    adam = next(each for each in told["optimizers"] if each["name"] == "adam")
    assert adam["source"] == "Kingma and Ba 2015, algorithm 1."
    assert adam["summary"] == "Adam; weight decay is added to the gradient."
    assert adam["arguments"][:2] == [
        {
            "name": "lr",
            "meaning": "learning rate, which the schedule multiplies",
            "allowed": "a number, above 0",
            "required": True,
        },
        {
            "name": "betas",
            "meaning": "shares of the running means of gradients and their squares that a step keeps",
            "allowed": "a list of 2, each a number from 0 to 1",
            "required": False,
            "default": [0.9, 0.999],
        },
    ]
    assert max(map(len, out.splitlines())) < 80
    assert len(out.splitlines()) <= 24


def test_list_of_a_name_prints_one_component() -> None:
    out = run("list", "dgcnn")
    assert out.startswith("models\n  dgcnn\n")
    assert "\n  pointnet\n" not in out
    assert "\n      >>> loss.count(label=label)\n      tensor(2)\n" in run("list", "cross_entropy")
    assert ">>>" not in run("list", "losses")


def test_list_of_one_kind_says_who_gives_what_a_config_may_not() -> None:
    out = run("list", "models")
    assert "optimizers" not in out
    assert "num_classes:" not in out
    assert "(the data set gives num_classes, in_channels)" in out
    assert "      num_neighbours: 20   a whole number, at least 1\n" in out
    assert "(the run gives num_steps" in run("list", "schedules")


def test_components_of_models_losses_and_metrics_name_their_source() -> None:
    """House rule: paper and equation in the docstring of what comes from one."""
    for kind in ("models", "losses", "metrics", "optimizers", "transforms", "data"):
        entries = [registry.REGISTRIES[kind].get_entry(name) for name in registry.REGISTRIES[kind].names()]
        unsourced = [entry.name for entry in entries if not entry.source and find_plugin(entry.builder) is None]
        assert not unsourced, f"{kind} without 'Source:': {', '.join(unsourced)}"
