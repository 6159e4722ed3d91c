"""Blocks inside blocks: an encoder of a model, the transforms of a transform. Read, refused, overridden and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import RunConfig, read_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, SourceLocation
from tests.runs.small import TINY

PLUGIN = " Parts of your own need --plugin FILE.py"
CONFIG = """\
model:
  name: crosspoint
  points:
    name: dgcnn
    num_neighbours: 15
  images: {name: vit, size_px: 32}
transforms:
  train:
    - name: two_views
      transforms: [{name: jitter, std: 0.02}, {name: scale, low: 0.5}]
"""


def write(path: Path, *changes: tuple[str, str]) -> Path:
    """The config above, with some texts exchanged; they may stand in the path of its base."""
    text = CONFIG
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = path / "mine.yaml"
    path.write_text(f"base: {TINY}\n{text}")
    return path


def refused(path: Path, *overrides: str) -> list[str]:
    """The faults of a config, without the file in front."""
    with pytest.raises(ConfigError) as error:
        read_config(path, overrides)
    return [fault.removeprefix(f"{path}:") for fault in error.value.faults]


def encoder(config: RunConfig, name: str = "points") -> ComponentConfig:
    inner = config.model.arguments[name]
    assert isinstance(inner, ComponentConfig)
    return inner


# --- what is read ----------------------------------------------------------------------------------------------------


def test_inner_blocks_are_completed_like_outer_ones(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (encoder(config).name, encoder(config).arguments) == (
        "dgcnn",
        {"num_neighbours": 15, "neighbours_at": None, "embedding": 1024, "fused": True},
    )
    assert encoder(config, "images").arguments["patch_px"] == 8
    assert config.model.arguments["embedding"] == 256
    views = config.transforms.train[0].arguments["transforms"]
    assert [(each.name, each.arguments.get("low")) for each in views] == [("jitter", None), ("scale", 0.5)]


def test_every_inner_value_knows_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path)
    origins = read_config(path, ["model.images.depth=2"]).origins
    assert origins["model.points.name"] == SourceLocation(str(path), 5, "model.points.name")
    assert origins["model.points.num_neighbours"] == SourceLocation(str(path), 6, "model.points.num_neighbours")
    assert origins["model.points.embedding"] == SourceLocation("default", None, "model.points.embedding")
    assert origins["model.images.depth"] == SourceLocation("command line", None, "model.images.depth")
    assert origins["transforms.train.0.transforms.1.low"] == SourceLocation(
        str(path), 11, "transforms.train.0.transforms.1.low"
    )
    assert origins["transforms.train.0.transforms.1.high"].source == "default"


def test_the_model_is_built_of_them(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert registry.models.bind(config.model).needed_facts == {"in_channels"}
    model = registry.models.build(config.model, facts={"in_channels": 6})
    assert (model.points.num_neighbours, model.points.in_channels, model.images.size_px) == (15, 6, 32)


# --- what is refused -------------------------------------------------------------------------------------------------

A_BLOCK = "a block of `name:` and its arguments, of `sightline list point_encoders`"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "num_neighbours",
            "num_neighbors",
            "6: model.points.num_neighbors: 'dgcnn' has no such argument; did you mean 'num_neighbours'?",
        ),
        ("dgcnn", "dgcn", f"5: model.points.name: no point encoder is called 'dgcn'; did you mean 'dgcnn'?{PLUGIN}"),
        ("15", "0", "6: model.points.num_neighbours: found 0, allowed is a whole number, at least 1"),
    ],
)
def test_faults_inside_have_line_and_dotted_path(tmp_path: Path, before: str, after: str, expected: str) -> None:
    assert refused(write(tmp_path, (before, after))) == [expected]


@pytest.mark.parametrize(
    ("value", "found", "meant"),
    [
        ("dgcnn", "the text 'dgcnn'", "{name: dgcnn}"),
        ("null", "null", None),
        ("[{name: dgcnn}]", 'the list [{"name": "dgcnn"}]', "{name: dgcnn}"),
        ("{num_neighbours: 5}", "a mapping with num_neighbours", None),
    ],
)
def test_what_is_no_block_is_refused_where_it_stands(tmp_path: Path, value: str, found: str, meant: str | None) -> None:
    before = "  points:\n    name: dgcnn\n    num_neighbours: 15\n"
    path = write(tmp_path, (before, f"  points: {value}\n"))
    suggestion = f"; did you mean {meant}?" if meant else ""
    assert refused(path) == [f"4: model.points: found {found}, allowed is {A_BLOCK}{suggestion}"]


def test_a_block_that_is_missing_is_named_with_the_list_of_them(tmp_path: Path) -> None:
    path = write(tmp_path, ("  points:\n    name: dgcnn\n    num_neighbours: 15\n", ""))
    assert refused(path) == [f"3: model.points: is required and missing: 'crosspoint' needs {A_BLOCK} here"]


def test_an_encoder_of_the_other_kind_is_no_encoder_here(tmp_path: Path) -> None:
    (said,) = refused(write(tmp_path, ("name: vit, size_px: 32", "name: pointnet2")))
    assert said.startswith("7: model.images.name: no image encoder is called 'pointnet2'")


def test_one_block_where_a_list_is_meant_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ("[{name: jitter, std: 0.02}, {name: scale, low: 0.5}]", "{name: jitter}"))
    (said,) = refused(path)
    assert said.startswith(
        "11: transforms.train.0.transforms: found a mapping with name, allowed is a list, each a block"
    )
    assert said.endswith("; did you mean [{name: jitter}]?")


def test_what_an_inner_builder_refuses_stands_where_it_was_given(tmp_path: Path) -> None:
    config = read_config(path := write(tmp_path, ("size_px: 32", "size_px: 60")))
    with pytest.raises(ConfigError) as error:
        registry.models.build(config.model, facts={"in_channels": 3})
    assert str(error.value).startswith(f"{path}:7: model.images")
    assert "patches of 8 pixels do not tile images of 60" in str(error.value)


def test_contradictions_inside_are_found_before_data_is_read(tmp_path: Path) -> None:
    (said,) = refused(write(tmp_path, ("low: 0.5", "low: 3, high: 1")))
    assert said.startswith("11: transforms.train.0.transforms.1")


def test_a_fact_that_only_an_inner_block_needs_is_asked_for_by_its_name(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    with pytest.raises(ConfigError, match=r"mine.yaml:5: model.points: point encoder 'dgcnn' needs in_channels"):
        registry.models.build(config.model, facts={"up_axis": "z"})


# --- what is laid over -----------------------------------------------------------------------------------------------


def test_overrides_reach_inside(tmp_path: Path) -> None:
    path = write(tmp_path)
    config = read_config(
        path,
        [
            "model.points.num_neighbours=5",
            "model.images={depth: 2}",
            "transforms.train.0.transforms.0.std=0.5",
            "model.embedding=64",
        ],
    )
    assert (encoder(config).arguments["num_neighbours"], config.model.arguments["embedding"]) == (5, 64)
    assert (encoder(config, "images").arguments["depth"], encoder(config, "images").arguments["size_px"]) == (2, 32)
    assert config.transforms.train[0].arguments["transforms"][0].arguments["std"] == 0.5
    assert refused(path, "model.points.num_neighbors=5") == [
        "command line: model.points.num_neighbors: 'dgcnn' has no such argument; did you mean 'num_neighbours'?"
    ]


def test_another_name_inside_drops_what_was_given_to_the_old_one(tmp_path: Path) -> None:
    config = read_config(write(tmp_path), ["model.points.name=pct"])
    assert encoder(config).name == "pct"
    assert encoder(config).arguments["num_neighbours"] == 32, "that of PCT, not the 15 of DGCNN"
    assert encoder(config, "images").arguments["size_px"] == 32, "its neighbour keeps its own"


def test_another_outer_name_drops_the_blocks_too(tmp_path: Path) -> None:
    assert refused(write(tmp_path), "model.name=intrapoint") == [
        f"command line: model.points: is required and missing: 'intrapoint' needs {A_BLOCK} here"
    ]


def test_a_config_over_another_changes_an_inner_block_in_part(tmp_path: Path) -> None:
    write(tmp_path)
    over = tmp_path / "over.yaml"
    over.write_text("base: mine.yaml\nmodel: {points: {embedding: 64}, images: {name: resnet18}}\n")
    config = read_config(over)
    assert (encoder(config).arguments["num_neighbours"], encoder(config).arguments["embedding"]) == (15, 64)
    assert encoder(config, "images").arguments == {}


# --- what is shown ---------------------------------------------------------------------------------------------------
