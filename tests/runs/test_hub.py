"""Weights of a hub on this machine: fine-tuned, pushed and pulled; what is refused; files of others named by a path."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn

import sightline
from sightline.contract import registry
from sightline.contract.errors import CheckpointError
from sightline.contract.types import ComponentConfig
from sightline.published.translation import published_name
from sightline.runs.lineage import read_lineage
from sightline.runs.weight_sources import open_source
from tests.command import refuse, succeed
from tests.file_server import serve_files
from tests.hub_server import Hub, serve_hub
from tests.processes import ROOT, run_program
from tests.published_weights import write_weights
from tests.trained import DETECT, copy_run, trained_run

CROWDS = ROOT / "configs/detect/synthetic_crowds_retinanet.yaml"
CALM = ("model.channels_last=false", "schedule.warmup_epochs=0", "--no-check", "--device", "cpu")
INTO_BACKBONE = ("init.modules=images", "init.into=backbone")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which commands in this process ask, with an empty cache."""
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # a store beside the hub, which a push would ask first
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield served


def resnet_state() -> dict[str, Tensor]:
    """A thin ResNet-18 under torchvision's names, which are timm's too, with a head of three classes."""
    torch.manual_seed(3)
    state = {published_name(f"images.{name}", "torchvision_resnet18"): value for name, value in thin_state().items()}
    return {**state, "fc.weight": torch.randn(3, 64), "fc.bias": torch.randn(3)}


def thin_state() -> dict[str, Tensor]:
    backbone: nn.Module = registry.backbones.build(ComponentConfig("resnet18", {"width": 8}), facts={})
    return dict(backbone.state_dict())


# --- the road: from nothing to a fine-tuned run, and a run of one's own to others ------------------------------------


def test_a_detector_starts_from_a_hub_and_goes_on_without_it(tmp_path: Path) -> None:
    """As a user does it, in processes of their own: trained, stopped, and resumed while nothing answers."""
    options = (*DETECT, *INTO_BACKBONE, "init.from=hf://timm/thin", "train.steps=1", *CALM)
    with serve_hub() as hub:
        hub.repos["timm/thin"] = {"model.safetensors": save(resnet_state()), "README.md": b"a card"}
        commit, cache = hub.commit("timm/thin"), str(tmp_path / "home")
        _run_asking(hub.url, cache, "train", CROWDS, *options, "--out", tmp_path / "run")
    name = f"hf://timm/thin/model.safetensors@{commit}"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["init"]["from"] == name
    lineage = read_lineage(tmp_path / "run")
    assert lineage is not None
    assert lineage["lineage"] == {"file": name, "sha256": lineage["sha256"], "layout": "torchvision_resnet18"}
    assert f"started from {name}" in (tmp_path / "run/train.log").read_text()
    further = ("train.steps=2", "--no-check", "--resume", tmp_path / "run")
    _run_asking(NOWHERE, cache, "train", tmp_path / "run", *further)
    # a new run from the same commit, which is in the cache
    _run_asking(NOWHERE, cache, "train", tmp_path / "run", *CALM, "--out", tmp_path / "again")


def test_a_detector_starts_from_an_address_and_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pickle of another project, of which few digits are stated; the run keeps all, and its reader runs no code."""
    torch.save(resnet_state(), tmp_path / "net.pth")
    data = (tmp_path / "net.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve_files() as server:
        server.files["/net.pth"] = data
        words = (*DETECT, *INTO_BACKBONE, f"init.from={server.url}/net.pth#sha256={digest[:8]}", "train.steps=1", *CALM)
        succeed("train", CROWDS, *words, "--out", tmp_path / "run")
    assert f"{len(data):,} bytes from {server.url}/net.pth to " in caplog.messages[0]
    name = f"{server.url}/net.pth#sha256={digest}"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["init"]["from"] == name
    lineage = read_lineage(tmp_path / "run")
    assert lineage is not None
    assert lineage["lineage"] == {"file": name, "sha256": digest, "layout": "torchvision_resnet18"}
    succeed("train", tmp_path / "run", *CALM, "--out", tmp_path / "again")


def _run_asking(url: str, cache: str, *words: object) -> None:
    """Run a command in a process of its own, whose client asks the hub at this address."""
    environment, arguments = {"HF_ENDPOINT": url, "HF_HOME": cache}, ["sightline", *map(str, words)]
    program = f"""
import os, runpy, sys
os.environ |= {environment}
sys.argv = {arguments}
runpy.run_module("sightline", run_name="__main__", alter_sys=True)"""
    done = run_program(program)
    assert done.returncode == 0, done.stderr


def test_weights_arrive_bit_by_bit(hub: Hub) -> None:
    state = resnet_state()
    hub.repos["timm/thin"] = {"model.safetensors": save(state)}
    weights = open_source("hf://timm/thin").read()
    assert {name.removeprefix("images.") for name in weights if name.startswith("images.")} == thin_state().keys()
    assert torch.equal(weights["images.stem.conv.weight"], state["conv1.weight"])
    assert torch.equal(weights["head.weight"], state["fc.weight"])


@pytest.mark.parametrize("name", ["classify", "packed", "rounded"])
def test_a_pushed_run_is_pulled_as_it_was(hub: Hub, tmp_path: Path, name: str) -> None:
    run = copy_run(name, tmp_path / "made")
    (run / "secret.txt").write_text("mine")
    hub.repos["me/run"] = {"model.slq": b"an older one", "plugins/old.py": b"", "notes.md": b"mine"}
    hub.private["me/run"] = True
    done = succeed("runs", "push", run, "hf://me/run", "--json", tmp_path / "pushed.json")
    files = hub.repos["me/run"]
    assert json.loads((tmp_path / "pushed.json").read_text())["address"] in done.err + done.out
    assert {"notes.md", "README.md", "model.slq"} <= files.keys()
    assert not {"secret.txt", "plugins/old.py", "train.log"} & files.keys()
    assert not {"host", "directory", "command_line"} & json.loads(files["environment.json"]).keys()

    files |= {"plugins/../../evil.py": b"", "plugins/run.sh": b"", "a\x1b[2J\nb": b""}
    done = succeed("runs", "pull", "hf://me/run", "--out", tmp_path / "pulled")
    for other in ("notes.md", "plugins/run.sh", "plugins/../../evil.py", r"a\x1b[2J\nb"):
        assert f"{other} is no file of a packed run, and stays there" in done.err + done.out
    assert not list(tmp_path.glob("**/evil.py"))
    assert "is not empty; give another folder" in refuse("runs", "pull", "hf://me/run", "--out", tmp_path / "pulled")
    clouds = torch.randn(4, 24, 3)
    theirs, ours = (sightline.load_run(path).model(points=clouds)["logits"] for path in (tmp_path / "pulled", run))
    assert torch.equal(theirs, ours)
    assert (tmp_path / "pulled/final.json").read_bytes() == (run / "final.json").read_bytes()
    source = open_source("hf://me/run")
    assert source.name == f"hf://me/run/model.slq@{hub.commit('me/run')}"
    assert source.read().keys() == open_source(str(run)).read().keys()


def test_a_card_says_what_the_report_says(hub: Hub) -> None:
    run = trained_run("classify")
    succeed("runs", "push", run, "hf://me/run")
    assert hub.private["me/run"]
    card = hub.repos["me/run"]["README.md"].decode()
    about = yaml.safe_load(card.split("---")[1])
    final = json.loads((run / "final.json").read_text())
    figures = {each["type"]: each["value"] for each in about["model-index"][0]["results"][0]["metrics"]}
    assert figures == final["metrics"]
    assert about["tags"] == ["sightline", "classify", "pointnet"]
    for text in (
        "sightline runs pull hf://me/run",
        "init: {from: hf://me/run}",
        f"{final['metrics']['overall_accuracy']:.4f}",
    ):
        assert text in card
    assert yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])["model"]["name"] == "pointnet"
    killed = Path(tempfile.mkdtemp(prefix="sightline_push_"))  # of a push that was killed before it recorded itself
    os.utime(killed, (0, 0))
    succeed("runs", "push", run, "hf://me/open", "--public")
    assert not killed.exists()
    assert not hub.private["me/open"]
    before = dict(hub.repos["me/open"])
    assert "is a public repository already; give --public" in refuse("runs", "push", run, "hf://me/open")
    assert "is a private repository already; leave out" in refuse("runs", "push", run, "hf://me/run", "--public")
    assert hub.repos["me/open"] == before
    with mock.patch("sightline.workbench.weights.sharing.measure_machine", return_value=10**6):
        said = refuse("runs", "pull", "hf://me/open", "--out", run.with_name("too_large"))
    assert re.search(r"can be read: its tensors would take \d+\.\d+ GB or more, this machine has 0\.001 GB of", said)


# --- refusals, one line each -----------------------------------------------------------------------------------------

STATE = save({"a.weight": torch.zeros(20, 20), "b.weight": torch.zeros(20, 20)})
REPOS = {
    "you/pickle": {"pytorch_model.bin": b"\x80", "config.json": b"{}"},
    "you/empty": {"README.md": b""},
    "you/many": {"one.safetensors": STATE, "two.safetensors": STATE},
    "you/other": {"model.safetensors": STATE},
    "you/torn": {"model.safetensors": STATE[:1500]},
}
REFUSALS = {
    "pickle": ("hf://you/pickle", r"pytorch_model\.bin is not a safetensors file; .* a pickle is a program"),
    "document": ("hf://you/pickle/config.yaml", r"config\.yaml is not a safetensors file"),
    "named pickle": ("hf://you/pickle/pytorch_model.bin", r"a pickle is a program: ask for safetensors"),
    "nothing": ("hf://you/empty", r"hf://you/empty: has no safetensors file; there are README\.md"),
    "several": ("hf://you/many", r"has 2 files of weights; name one, you/many/FILE; there are one\.s\w+, two\.s\w+"),
    "typo": ("hf://you/many/tow.safetensors", r"has no such file; did you mean 'two\.safetensors'\?"),
    "repository": ("hf://you/nobody", r"has no such repository, or shows it to others alone; .*HF_TOKEN"),
    "revision": ("hf://you/other@v2", r"the repository has no revision 'v2'"),
    "layout": ("hf://you/other", r"its 2 names \(a\.weight, b\.weight\) are of no known layout"),
    "torn": ("hf://you/torn", r"is no safetensors file, or damaged"),
    "form": ("hf://you", r"is not a name of a hub's file; write hf://OWNER/REPO\[/FILE\]\[@REVISION\]"),
    "parent": ("hf://you/other/../x.safetensors", r"is not a name of a hub's file"),
}


@pytest.mark.parametrize(("name", "told"), REFUSALS.values(), ids=list(REFUSALS))
def test_a_refusal_is_one_line(hub: Hub, tmp_path: Path, name: str, told: str) -> None:
    hub.repos |= REPOS
    said = refuse("train", CROWDS, *DETECT, f"init.from={name}", *CALM, "--out", tmp_path / "run")
    assert re.search(told, said), said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_too_large_damaged_and_silent_hubs_are_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["me/a"] = {"model.safetensors": save(resnet_state())}
    hub.sizes["model.safetensors"] = 9 << 30
    with pytest.raises(CheckpointError, match=r"9\.7 GB, at most 8\.6 GB are fetched; download it yourself"):
        open_source("hf://me/a")
    assert not any("GET" in line and "resolve" in line for line in hub.requests)
    hub.sizes, hub.damaged = {}, {"model.safetensors"}
    with pytest.raises(
        CheckpointError, match=r"has the digest \w{16}\.\.\., the hub states \w{16}\.\.\.; .*delete (\S+),"
    ) as told:
        open_source("hf://me/a")
    hub.damaged = set()
    os.remove(re.findall(r"delete (\S+),", str(told.value))[0])
    open_source("hf://me/a")
    hub.status = 503
    open_source("hf://me/a")  # what is in the cache does not need it
    with pytest.raises(CheckpointError, match=r"hf://me/b: http\S+ answered 503: .*; try again later"):
        open_source("hf://me/b")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    open_source("hf://me/a")
    with pytest.raises(
        CheckpointError,
        match=r"9 cannot be reached \(.*refused\), and \S+hub has no copy; connect, run 'sightline weights fetch hf://me/b'",
    ):
        open_source("hf://me/b")


def test_a_cached_file_that_changed_is_found_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["me/a"] = {"model.safetensors": save(resnet_state())}
    path = open_source("hf://me/a").path.resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(CheckpointError, match="was damaged on its way or since"):
        open_source("hf://me/a")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "huggingface_hub" else find(name, *rest)
    )
    said = refuse("train", CROWDS, "init.from=hf://a/b", "--no-check", "--out", tmp_path / "run")
    assert said == "error: hf://a/b needs the package 'huggingface_hub': pip install 'sightline[hub]'\n"
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_pushed_or_pulled_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_run("classify", tmp_path / "made")
    assert "names a file or a revision; a run is pushed to hf://me/run" in refuse("runs", "push", run, "hf://me/run@v1")
    monkeypatch.delenv("HF_TOKEN")
    assert "may not write to it with these credentials; log in: hf auth login" in refuse(
        "runs", "push", run, "hf://me/run"
    )
    (run / "final.json").unlink()
    assert "has no final.json, so that its training is not finished" in refuse("runs", "push", run, "hf://me/run")
    hub.repos |= REPOS
    pull = ("runs", "pull", "hf://you/other", "--out", tmp_path / "pulled")
    assert "is not a run that 'sightline runs push' made" in refuse(*pull)
    assert "Missing option '--out': folder of the run" in refuse("runs", "pull", "hf://me/run")
    assert not (tmp_path / "pulled").exists()


# --- files of others, named by a path --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["timm_vit_tiny", "torchvision_vit_base", "wangyueft_pointnet"])
def test_a_file_is_recognised_by_its_names_and_shapes(tmp_path: Path, layout: str) -> None:
    write_weights(tmp_path / "made", layout)
    source = open_source(str(tmp_path / "made/weights.pth"))
    assert source.layout == layout
    assert source.run is None
    assert len(source.read()) > 20


def test_a_file_of_two_layouts_that_differ_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "made", "dragonbook_v2v")
    with pytest.raises(
        CheckpointError, match=r"those of the layouts dragonbook_v2v, dragonbook_v2v_zyx, .* --layout NAME"
    ):
        open_source(str(tmp_path / "made/weights.pth"))


def test_a_file_of_others_starts_a_run(tmp_path: Path) -> None:
    torch.save({"state_dict": resnet_state(), "epoch": 3}, tmp_path / "resnet.pth")
    words = (*DETECT, *INTO_BACKBONE, f"init.from={tmp_path / 'resnet.pth'}", "train.steps=1", *CALM)
    done = succeed("train", CROWDS, *words, "--out", tmp_path / "run")
    assert f"weights converted from {tmp_path / 'resnet.pth'}" in done.out + done.err
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "resnet.pth").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    said = refuse("train", CROWDS, *words, "--out", tmp_path / "run")
    assert "was not written by torch.save" in said or "it was not run" in said
