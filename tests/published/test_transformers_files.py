"""Detectors of transformers from their own files: names of any version, classes by name, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sightline.contract import registry
from sightline.contract.errors import CheckpointError, MissingExtraError
from sightline.contract.types import ComponentConfig
from sightline.published import transformers_files
from sightline.runs.weight_sources import open_source
from sightline.runs.weights import load_weights
from tests.cases import run_each
from tests.models.set_networks import make_set_network

THEIRS = ("Person", "bicycle", "car")


def write_theirs(folder: Path, family: str = "d_fine", **config: Any) -> tuple[Path, Any]:
    """A detector as `save_pretrained` of an earlier version wrote it: names of that time, tied tensors once."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model = make_set_network(family, *THEIRS).eval()
    names = {"encoder.aifi.": "encoder.encoder.", "o_proj": "out_proj", "lateral_convs": "lateral_convs"}
    state = {}
    for name, value in model.network.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        if not name.startswith(("class_embed", "bbox_embed")):
            state[name] = value.clone()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads(model.network.config.to_json_string()) | config))
    return folder / "model.safetensors", model


@run_each("family", ["d_fine", "rt_detr_v2"])
def test_a_file_gives_the_predictions_it_gave_there(family: str, tmp_path: Path) -> None:
    path, theirs = write_theirs(tmp_path / family, family)
    source, ours = open_source(str(path)), make_set_network(family, *THEIRS).eval()
    before = torch.random.get_rng_state()
    weights, note = ours.fit_weights(source.read(), source.config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert source.layout == "transformers"
    assert note == "3 of 3 classes start with the file's weights of the class of the same name"
    load_weights(ours, weights)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(ours(image=image)[name], theirs(image=image)[name]) for name in ("logits", "set_boxes"))


def test_heads_are_renewed_but_for_classes_of_the_same_name(tmp_path: Path) -> None:
    path, theirs = write_theirs(tmp_path)
    source, ours = open_source(str(path)), make_set_network("d_fine", "helmet", "person")
    fresh, old = {name: value.clone() for name, value in ours.state_dict().items()}, theirs.state_dict()
    weights, note = ours.fit_weights(source.read(), source.config)
    assert note.startswith("1 of 2 classes start")
    assert note.endswith("; new: helmet")
    load_weights(ours, weights)
    new = ours.state_dict()
    layers = [name for name in new if any(part in name for part in ("class_embed", "score_head"))]
    assert len(layers) == 11
    for name in layers:
        assert torch.equal(new[name][0], fresh[name][0])
        assert torch.equal(new[name][1], old[name][0])
    denoising = "network.model.denoising_class_embed.weight"
    assert torch.equal(new[denoising][2], old[denoising][3])  # of no class
    assert all(torch.equal(new[name], old[name]) for name in new if name not in layers)


def test_what_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_theirs(tmp_path / "a")
    source = open_source(str(path))
    with pytest.raises(
        CheckpointError, match=r"other decoder_layers; set these as in its config: model.network=\{"
    ) as told:
        make_set_network("d_fine", "car", decoder_layers=3).fit_weights({}, source.config)
    block = json.loads(str(told.value).partition("model.network=")[2])
    make_set_network("d_fine", "car", **block).fit_weights({}, source.config)  # what it says to take does
    with pytest.raises(CheckpointError, match=r"is a d_fine, this model is a rt_detr_v2; set losses=\[.*,") as told:
        make_set_network("rt_detr_v2", "car").fit_weights({}, source.config)
    block = json.loads(str(told.value).partition("model.network=")[2])
    facts = {"num_classes": 1, "class_names": ("car",)}
    other = registry.models.build(ComponentConfig("transformers_detector", {"network": block}), facts=facts)
    other.fit_weights({}, source.config)  # and of this, no value of the old network is left
    (tmp_path / "a/config.json").write_text(
        (tmp_path / "a/config.json").read_text().replace('"encoder_ffn_dim": 16', '"encoder_ffn_dim": 8')
    )
    with pytest.raises(CheckpointError, match=r"does not fit its config.json: 3 tensors are of another shape \(model"):
        open_source(str(path)).read()
    (tmp_path / "a/config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not JSON"):
        open_source(str(path))
    (tmp_path / "a/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="are of no known layout"):
        open_source(str(path))
    globals_of = transformers_files.assert_installed.__globals__
    find = globals_of["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "transformers" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[transformers\]'"):
        source.read()
