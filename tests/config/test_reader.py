"""Bases, overrides, origins and component blocks: what a config file resolves to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.config import RunConfig, locate_errors, read_config, render_config
from sightline.config.reader import MAX_BASES, parse_component
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import LinearRamp, SourceLocation
from tests.cases import run_each
from tests.runs.small import TINY

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config that stands on the healthy one, and gives its path."""

    def write(text: str, name: str = "mine.yaml", base: str | None = str(TINY)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((f"base: {base}\n" if base else "") + text)
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_config(path, overrides)
    return str(error.value)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_values_defaults_and_the_name() -> None:
    config = read_config(TINY)
    assert config.name == "tiny"
    assert (config.train.epochs, config.train.batch_size, config.train.micro_batches) == (2, 12, 1)
    assert config.optimizer.arguments["lr"] == 0.1
    assert config.optimizer.arguments["momentum"] == 0.9, "a default of the signature is written out"
    assert config.schedule.name == "constant"
    assert config.schedule.arguments == {"warmup_epochs": 0.0, "warmup_share": 0.0, "warmup_min_steps": 100}
    assert [loss.weight for loss in config.losses] == [1.0]
    assert config.init is None


def test_a_weight_is_a_number_or_a_ramp(write: Write) -> None:
    ramped = "losses: [{name: cross_entropy, weight: {start: 0, end: 3.0, epochs: 20}}]\n"
    config = read_config(write(ramped))
    assert config.losses[0].weight == LinearRamp(0.0, 3.0, 20.0)
    assert config.origins["losses.0.weight"].line == 2
    again = write(render_config(config, origins=False), "again.yaml", base=None)
    assert read_config(again).losses == config.losses
    assert read_config(write(ramped), ["losses.0.weight.end=2"]).losses[0].weight == LinearRamp(0.0, 2.0, 20.0)


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        ("{start: 0.0, end: 3.0}", "losses.0.weight"),
        ("{start: -1.0, end: 3.0, epochs: 2}", "losses.0.weight.start: found -1.0"),
        ("{start: 0.0, end: 3.0, epochs: 0}", "losses.0.weight.epochs: found 0"),
        ("{start: 0.0, end: 3.0, steps: 4}", "losses.0.weight.steps"),
        ("{start: 1.0, end: 1.0, epochs: 2}", "for one weight throughout, weight: 1"),
        ("[0.0, 3.0]", "found the list [0.0, 3.0], allowed is a number, at least 0, or a ramp {start: "),
    ],
)
def test_what_is_no_ramp_is_refused(write: Write, weight: str, told: str) -> None:
    assert told in refused(write(f"losses: [{{name: cross_entropy, weight: {weight}}}]\n"))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_config(TINY).seed = 5  # type: ignore[misc]


def test_numbers_become_what_the_signature_says(write: Write) -> None:
    config = read_config(write("optimizer: {name: adam, lr: 1, betas: [0, 0.5]}\n"))
    assert repr(config.optimizer.arguments["lr"]) == "1.0"
    assert config.optimizer.arguments["betas"] == (0.0, 0.5)


# --- bases -----------------------------------------------------------------------------------------------------------


def test_mappings_merge_lists_replace(write: Write) -> None:
    write("transforms: {train: [{name: jitter}, {name: scale}]}\ntrain: {epochs: 7}\n", "below.yaml")
    config = read_config(write("transforms: {train: [{name: flip}]}\ntrain: {batch_size: 3}\n", base="below.yaml"))
    assert (config.train.epochs, config.train.batch_size) == (7, 3)
    assert [transform.name for transform in config.transforms.train] == ["flip"]


def test_a_block_of_another_name_inherits_no_arguments(write: Write) -> None:
    same = read_config(write("optimizer: {lr: 0.5}\n", base=str(write("optimizer: {momentum: 0.3}\n", "below.yaml"))))
    assert (same.optimizer.arguments["lr"], same.optimizer.arguments["momentum"]) == (0.5, 0.3)
    assert "lr: is required and missing" in refused(write("optimizer: {name: adamw}\n"))


def test_each_key_that_an_entry_of_a_list_lacks_is_named(write: Write) -> None:
    told = refused(write("optimizer: {name: adam, lr: 0.1, groups: [{modules: head, lr_factor: 0.1}, {}]}\n"))
    assert "optimizer.groups.1.modules: is required and missing; give text" in told
    assert "optimizer.groups.1.lr_factor: is required and missing; give a number" in told


def test_the_name_of_a_run_may_change_without_losing_anything(write: Write) -> None:
    config = read_config(write("name: other\n", base=str(write("name: one\nseed: 5\n", "below.yaml"))))
    assert (config.name, config.seed) == ("other", 5)


def test_a_base_is_found_from_the_config_that_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("seed: 3\n", "shared/below.yaml")
    path = write("train: {epochs: 4}\n", "mine/over.yaml", base="../shared/below.yaml")
    monkeypatch.chdir("/")
    assert read_config(path).seed == 3


def test_paths_of_other_runs_may_begin_at_home(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """As data.root may; a teacher was looked for in a folder called ~ of the working directory."""
    monkeypatch.setenv("HOME", "/home/me")
    config = read_config(write("init: {from: ~/runs/a}\nteacher: {from: ~/runs/b}\n"), ["init.from=~/runs/c"])
    assert config.init is not None
    assert config.teacher is not None
    assert (config.init.source, config.teacher.source) == ("/home/me/runs/c", "/home/me/runs/b")


def test_bases_end(write: Write) -> None:
    paths = [write("seed: 0\n", "0.yaml")]  # itself on the healthy one: two files
    for number in range(1, MAX_BASES):
        paths.append(write(f"seed: {number}\n", f"{number}.yaml", base=f"{number - 1}.yaml"))
    assert read_config(paths[MAX_BASES - 2]).seed == MAX_BASES - 2
    assert "more than 8 configs are based on one another" in refused(paths[MAX_BASES - 1])


def test_two_bases_that_name_each_other_are_refused(write: Write) -> None:
    write("seed: 1\n", "a.yaml", base="b.yaml")
    said = refused(write("seed: 2\n", "b.yaml", base="a.yaml"))
    assert "a.yaml:1: base: " in said
    assert "leads back to itself" in said


def test_a_fault_in_a_base_names_the_base(write: Write) -> None:
    below = write("sed: 1\n", "below.yaml")
    assert f"{below}:2: sed: unknown key 'sed'; did you mean 'seed'?" in refused(write("", base="below.yaml"))


def test_a_base_with_another_fault_of_its_file_names_both(write: Write) -> None:
    (write("", "latin.yaml")).write_bytes(b"name: \xfc\n")
    said = refused(write("", base="latin.yaml"))
    assert ":1: base: " in said
    assert "latin.yaml: is not UTF-8 text" in said


def test_the_base_of_the_command_line_replaces_that_of_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found from the working directory, or by the name of a shipped config; the file's own lines stay over it."""
    write("seed: 3\ntrain: {epochs: 4}\n", "here/other.yaml")
    path = write("seed: 5\n", "mine/over.yaml", base="nowhere.yaml")
    assert "nowhere.yaml: no such file" in refused(path)
    monkeypatch.chdir(path.parents[1] / "here")
    config = read_config(path, ["train.batch_size=3", "base=other.yaml"])
    assert (config.seed, config.train.epochs, config.train.batch_size) == (5, 4, 3)
    alone = write("seed: 5\n", "alone.yaml", base=None)
    assert read_config(alone, ["base=other.yaml"]).train.epochs == 4
    assert read_config({"seed": 5, "base": "nowhere.yaml"}, ["base=other.yaml"]).train.epochs == 4
    shipped = read_config(path, ["base=classify/synthetic_shapes_pointnet"])
    assert (shipped.model.name, shipped.seed) == ("pointnet", 5)
    wrong = refused(path, "base=classify/synthetic_shapes_pointnets")
    assert "command line: base: " in wrong
    assert "did you mean 'classify/synthetic_shapes_pointnet'?" in wrong
    assert "command line: base: is given twice" in refused(path, "base=other.yaml", "base=other.yaml")
    with pytest.raises(ConfigError, match="command line: base: a run's config states every value"):
        read_config(config, ["base=other.yaml"])


@pytest.mark.parametrize("base", ["''", "5", "[a]", "{a: b}", "'a\\nb'", "x" * 5000])
def test_no_base_is_the_path_of_nothing(write: Write, base: str) -> None:
    said = refused(write("", base=base))
    assert ":1: base: " in said
    assert "\n" not in said, "what a base would have given is not said to be missing"


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_of_values_lists_and_blocks() -> None:
    config = read_config(
        TINY,
        [
            "train.epochs=10",
            "optimizer.lr=1e-3",
            "losses.0.label_smoothing=0.2",
            "metrics=[{name: accuracy}]",
            "transforms.vote=[{name: scale, low: 0.5}, {name: jitter}]",
            "transforms.vote.1.std=0.5",
            "name='a name: with a colon'",
            "train.clip_norm=",
        ],
    )
    assert config.train.epochs == 10
    assert config.optimizer.arguments["lr"] == 0.001
    assert config.losses[0].arguments["label_smoothing"] == 0.2
    assert [t.arguments.get("std", t.arguments.get("low")) for t in config.transforms.vote] == [0.5, 0.5]
    assert config.name == "a name: with a colon"
    assert config.train.clip_norm is None


def test_overrides_of_whole_blocks_merge_like_files() -> None:
    config = read_config(TINY, ["train={epochs: 9}", "model={name: dgcnn, dropout: 0.25}"])
    assert (config.train.epochs, config.train.batch_size) == (9, 12)
    assert (config.model.name, config.model.arguments["dropout"]) == ("dgcnn", 0.25)


@pytest.mark.parametrize("swap", [False, True])
def test_the_order_of_overrides_does_not_matter(swap: bool) -> None:
    """A new name drops what the file gave to the old one, and never what the command line gives to the new one."""
    overrides = ["model.name=dgcnn", "model.embedding=32", "losses.0.weight=2", "losses=[{name: cross_entropy}]"]
    config = read_config(TINY, overrides[::-1] if swap else overrides)
    assert (config.model.name, config.model.arguments["embedding"], config.losses[0].weight) == ("dgcnn", 32, 2.0)


@run_each(
    "overrides, expected",
    [
        (["train.epochs=1", "train.epochs=1"], "command line: train.epochs: is given twice on the command line"),
        (["train={epochs: 1}", "train.epochs=2"], "command line: train.epochs: is given twice on the command line"),
        (["train=5", "train.epochs=2"], "command line: train.epochs: is given twice on the command line"),
        (["train.epochs"], "command line: found the text 'train.epochs', allowed is key=value, as train.epochs=10"),
        (["=3"], "command line: found the text '=3', allowed is key=value"),
        (["train..epochs=3"], "allowed is key=value"),
        (["train.epoch=3"], "command line: train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        (["losses.1.weight=3"], "command line: losses.1.weight: '1' is not an element of the list; there are 0 to 0"),
        (["losses.-1.weight=3"], "command line: losses.-1.weight: '-1' is not an element of the list"),
        (["losses.²=3"], "'²' is not an element of the list"),
        (["losses.9999999999999999999999=3"], "is not an element of the list"),
        (["transforms.train.0.std=1"], "command line: transforms.train: found a mapping with 0, allowed is a list"),
        (["train.epochs=[1"], "command line: train.epochs: not valid YAML"),
        (["train.epochs=[1,"], "the shell split it at a blank? put it in quotes"),
        (["model={name:"], "the shell split it at a blank? put it in quotes"),
        (["train.epochs=!!int 3"], "command line: train.epochs: the tag '!!int' is not allowed"),
        (["optimizer={lr: 1, lr: 2}"], "command line: optimizer.lr: 'lr' is given twice"),
        (["base=other.yaml"], "command line: base: other.yaml: no such file; give a YAML file"),
        (["base=[a, b]"], 'command line: base: found the list ["a", "b"], allowed is the path of one config'),
        (["seed=99999999999999999999"], "command line: seed: found 99999999999999999999, which does not fit"),
        (["train.epochs=1_000"], "command line: train.epochs: found the text '1_000', allowed is a whole number"),
        (["optimizer.epochs=2"], "has no such argument; did you mean 'train.epochs'?"),
        (["data.split=1"], "remove it here: a run opens every part itself; parts are set by data.test_size"),
        (["model.num_classes=3"], "command line: model.num_classes: 'num_classes' is given by the data set"),
    ],
)
def test_overrides_are_refused_like_files(overrides: list[str], expected: str) -> None:
    assert expected in refused(TINY, *overrides)


def test_faults_of_file_and_command_line_come_together(write: Write) -> None:
    path = write("seed: -1\nlog: {evry: 5}\n")
    said = refused(path, "train.epochs=0", "nosuch=1").splitlines()
    assert {line.partition(": ")[0] for line in said} == {f"{path}:2", f"{path}:3", "command line"}
    assert len(said) == 4


# --- origins ---------------------------------------------------------------------------------------------------------


def test_every_value_knows_its_origin(write: Write) -> None:
    below = write("train: {epochs: 7}\nlosses:\n  - name: cross_entropy\n    label_smoothing: 0.1\n", "below.yaml")
    path = write("train:\n  batch_size: 3\noptimizer: {groups: [{modules: head, lr_factor: 2}]}\n", base="below.yaml")
    origins = read_config(path, ["seed=4", "losses.0.weight=2"]).origins
    assert origins["train.epochs"] == SourceLocation(str(below), 2, "train.epochs")
    assert origins["train.batch_size"] == SourceLocation(str(path), 3, "train.batch_size")
    assert origins["optimizer.groups"] == SourceLocation(str(path), 4, "optimizer.groups")
    assert origins["optimizer.lr"].source == str(TINY)
    assert origins["losses.0.label_smoothing"] == SourceLocation(str(below), 5, "losses.0.label_smoothing")
    assert origins["losses.0.weight"] == SourceLocation("command line", None, "losses.0.weight")
    assert origins["seed"] == SourceLocation("command line", None, "seed")
    assert origins["model.dropout"] == SourceLocation("default", None, "model.dropout")
    assert origins["train.tail"] == SourceLocation("default", None, "train.tail")
    assert origins["schedule.warmup_epochs"] == SourceLocation("default", None, "schedule.warmup_epochs")


def test_every_leaf_has_an_origin(write: Write) -> None:
    from sightline.config.plain_values import to_plain

    def leaves(tree: object, path: str) -> list[str]:
        if path in config.origins:
            return []
        if isinstance(tree, dict) and tree:
            return [leaf for key, value in tree.items() for leaf in leaves(value, f"{path}.{key}".lstrip("."))]
        if isinstance(tree, list) and tree:
            return [leaf for index, value in enumerate(tree) for leaf in leaves(value, f"{path}.{index}")]
        return [path]

    config = read_config(write("init: {from: runs/a/1}\ntransforms: {train: [{name: scale}]}\n"), ["losses.0.weight=3"])
    assert leaves(to_plain(config), "") == []


# --- what contradicts itself -----------------------------------------------------------------------------------------


def test_settings_that_agree_are_left_alone(write: Write) -> None:
    config = read_config(
        write(
            "evaluate: {votes: 5}\ntransforms: {vote: [{name: scale, low: 1, high: 1}]}\n"
            "train: {micro_batches: 12, epochs: 3}\nschedule: {name: step, milestones: [1, 2], warmup_epochs: 2.5}\n"
        )
    )
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize("name", ["a b", "übung", "x" * 200, "a.b", "run(1)"])
def test_names_that_can_be_a_folder(name: str) -> None:
    assert read_config(TINY, [f"name='{name}'"]).name == name


@run_each("name", ["", ".", "..", ".hidden", "a/b", "a\\\\b", "x" * 201, "é" * 101, " a", "a\\tb"])
def test_names_that_cannot(name: str) -> None:
    assert "allowed is what can name a folder" in refused(TINY, f'name="{name}"')


def test_a_fault_hides_no_contradiction_elsewhere() -> None:
    said = refused(TINY, "train.epochs=x", "train.micro_batches=99", "evaluate.votes=3").splitlines()
    assert len(said) == 3


def test_errors_of_building_get_the_place_of_what_they_name() -> None:
    origins = {"train.tail": SourceLocation("a.yaml", 5, "train.tail")}
    with pytest.raises(ConfigError) as error, locate_errors(origins):
        raise ConfigError("train.tail: too short", "nowhere: else", "train.tail is no subject here")
    assert error.value.faults == ("a.yaml:5: train.tail: too short", "nowhere: else", "train.tail is no subject here")


# --- words of an option, and the config of a run ----------------------------------------------------------------------


@run_each(
    "name, words, told",
    [
        ("svm", ("folds",), "command line: found 'folds', allowed is key=value, each key once, as folds=5"),
        ("svm", ("folds=3", "folds=4"), "command line: found 'folds=4', allowed is key=value, each key once"),
        ("swm", (), "command line: --probe: no probe is called 'swm'; did you mean 'svm'?"),
    ],
)
def test_words_that_are_no_arguments_are_refused(name: str, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_component(registry.probes, name, words, option="--probe")
    assert str(error.value).startswith(told)


def test_a_recorded_config_that_lacks_an_argument_is_of_another_version(tmp_path: Path) -> None:
    """A default of today may not be the one that the run had."""
    (tmp_path / "config.yaml").write_text(render_config(read_config(TINY), origins=False))
    (tmp_path / "facts.json").write_text("{}")
    assert read_config(tmp_path / "config.yaml").train.epochs == 2
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace('  tail: "keep"\n', ""))
    assert "config.yaml: lacks train.tail, which this version of sightline records; read the run" in refused(
        tmp_path / "config.yaml"
    )
