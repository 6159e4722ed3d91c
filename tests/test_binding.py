"""Keys and optional members: parameters found by name, one record, and a mismatch or a misspelling named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypedDict

import pytest
import typing_extensions
from torch import Tensor, nn

import sightline
from sightline import register
from sightline.contract.binding import AvailableKeys, UnknownKeyError, bind, declared_outputs
from sightline.contract.dataset import Dataset
from sightline.contract.errors import ConfigError, PluginError
from sightline.contract.members import describe_members, find_misspelt_members, list_members, list_unset, suggest_member
from sightline.contract.registry import REGISTRIES
from sightline.contract.types import ComponentConfig, DataInfo, Sample, SampleKey
from tests.cases import run_each
from tests.command import run_here
from tests.conftest import ROOT

BATCH = AvailableKeys("data set 'scans'", {"points", "offsets", "label"})
OUTPUTS = AvailableKeys("model 'salsanext'", {"logits"})


def test_parameters_are_bound_and_called_by_name() -> None:
    def loss(*, logits: int, label: int) -> str:
        return f"{logits} for {label}"

    bound = bind(loss, BATCH, OUTPUTS, owner="losses.mine")
    assert bound.names == ("logits", "label")
    assert bound({"label": 3, "points": 0, "offsets": 0}, {"logits": 4}) == "4 for 3"


def test_a_key_that_nobody_offers_names_both_sides() -> None:
    with pytest.raises(UnknownKeyError) as error:
        bind(lambda *, logits, labels: None, BATCH, OUTPUTS, owner="losses.cross_entropy")
    assert str(error.value) == (
        "losses.cross_entropy needs 'labels'; data set 'scans' offers label, offsets, points; "
        "model 'salsanext' offers logits"
    )


def test_an_offer_of_nothing_is_said() -> None:
    with pytest.raises(UnknownKeyError, match="needs 'a'; model 'mute' offers nothing"):
        bind(lambda *, a: None, AvailableKeys("model 'mute'", ()), owner="losses.mine")


@pytest.mark.parametrize("default", [False, True])
def test_a_key_that_two_sides_offer_names_both_even_where_it_is_optional(default: bool) -> None:
    def needs(*, label: int) -> None: ...
    def may_take(*, label: int = 0) -> None: ...

    other = AvailableKeys("model 'echo'", {"label"})
    with pytest.raises(UnknownKeyError) as error:
        bind(may_take if default else needs, BATCH, other, owner="metrics.mine")
    assert str(error.value) == (
        "metrics.mine takes 'label', which data set 'scans' and model 'echo' both offer; rename one of them"
    )


def test_a_key_that_two_sides_offer_harms_nobody_who_does_not_take_it() -> None:
    bind(lambda *, points: None, BATCH, AvailableKeys("model 'echo'", {"label"}), owner="metrics.mine")


def test_an_optional_parameter_is_given_where_it_is_offered() -> None:
    def forward(*, points: int, features: int = -1) -> int:
        return features

    assert bind(forward, BATCH, owner="model")({"points": 1, "offsets": 2, "label": 3}) == -1
    offer = AvailableKeys("data set 'rich'", {"points", "features"})
    assert bind(forward, offer, owner="model")({"points": 1, "features": 7}) == 7


def test_parameters_given_elsewhere_are_skipped() -> None:
    def update(self: object, state: dict, *, label: int) -> None: ...

    assert bind(update, BATCH, owner="metrics.mine", exclude=("state",)).names == ("label",)


def test_parameters_without_names_are_a_broken_promise() -> None:
    def anything(**batch: int) -> None: ...
    def rows(*batch: int) -> None: ...

    for function in (anything, rows):
        with pytest.raises(AssertionError, match="parameters must be named"):
            bind(function, BATCH, owner="losses.mine")


class Output(TypedDict):
    logits: int
    feature_transform: int


def test_outputs_are_read_from_the_annotation() -> None:
    def forward(*, points: int) -> Output: ...  # type: ignore[empty-body]

    assert declared_outputs(forward, owner="model 'mine'") == {"logits", "feature_transform"}


class OutputOfExtensions(typing_extensions.TypedDict):
    logits: int


def test_both_kinds_of_typed_dicts_name_outputs() -> None:
    def forward(*, points: int) -> OutputOfExtensions: ...  # type: ignore[empty-body]

    assert declared_outputs(forward, owner="model 'mine'") == {"logits"}


def test_a_forward_that_does_not_say_what_it_returns_is_refused() -> None:
    def silent(*, points: int): ...  # type: ignore[no-untyped-def]
    def vague(*, points: int) -> dict[str, int]: ...  # type: ignore[empty-body]

    for function in (silent, vague):
        with pytest.raises(ConfigError, match=r"model 'mine': annotate the return value of '.*' with a TypedDict"):
            declared_outputs(function, owner="model 'mine'")


def test_an_annotation_of_a_class_inside_of_a_function_is_refused_in_one_line() -> None:
    class Local(TypedDict):
        logits: int

    def forward(*, points: int) -> Local: ...  # type: ignore[empty-body]

    with pytest.raises(ConfigError, match=r"model 'mine': an annotation of '.*forward' cannot be read: name 'Local'"):
        declared_outputs(forward, owner="model 'mine'")


# --- optional members of components -----------------------------------------------------------------------------------


PACKAGE = {path: path.read_text() for path in sorted((ROOT / "sightline").rglob("*.py"))}

PLANTED = {
    "data": {"strataa": "strata", "stata": "strata", "smaple_name": "sample_name", "getBatch": "get_batch"},
    "models": {"outputkeys": "output_keys", "taregts": "targets"},
    "point_encoders": {"enocde": "encode"},
    "image_encoders": {"encode_": "encode", "featurewidth": "feature_width"},
    "backbones": {"fowrard": "forward"},
    "necks": {"forwad": "forward"},
    "heads": {"prior_per_cell": "priors_per_cell", "asigners": "assigners"},
    "references": {"titel": "title"},
    "tasks": {"predict_": "predict", "predictss": "predicts", "vot": "vote", "shwo": "show", "prepar": "prepare"},
    "losses": {"cuont": "count"},
    "metrics": {"higher_is_beter": "higher_is_better", "perclass": "per_class", "slotss": "slots", "udpate": "update"},
    "transforms": {"adds_": "adds", "chose_points": "chooses_points"},
    "assigners": {"prior_kidns": "prior_kinds"},
    "suppressions": {"kepe": "keep", "keepp": "keep"},
    "searches": {"fills_budgett": "fills_budget", "maxnumevaluations": "max_num_evaluations"},
    "probes": {"mostrows": "most_rows"},
}
OWN = """
add add_noise added adder amount assessed backward batch batches cards class_counts class_names clouds code collated
collates collator commuted compare computed computer count_of counted counter counts decode decoder describe distances
duplicate encode_all encoded encoder encoders encodes feature_dim feature_widths features finger fingerprints
forward_features forwards gauge gauged get_batches get_item group groups head higher_is_worse index indices infer infos
is_better joint_names label labels layers load loader loss lossy makes_unit_cube mount name name_of_class named names
new_slots new_states norm note num_classes output outputs_of per_class_names per_classes per_cloud per_point per_samples
picture pictured plots points predicted prediction predictions predictor prepare_data prepared process processed
promised promises reduce reset root rotate row rows sample samples scale shape shapes show_all shown shows sightline
slot slow snow split stable state states strata_of stratum table table_of tables_of tag tags told tolls toll updated
updates veto view views vote_all voted voter voters votes voting weights width widths within_batches
""".split()


def test_members_of_every_base_class_of_a_plugin_are_known() -> None:
    assert suggest_member(list_members(sightline.Supervised), "ouputs") == "outputs"
    assert suggest_member(list_members(sightline.MeanMetric), "vlaues") == "values"
    assert suggest_member(list_members(sightline.Encoder), "feature_widht") == "feature_width"


@run_each("kind, planted", PLANTED.items())
def test_misspelt_members_are_known(kind: str, planted: dict[str, str]) -> None:
    members = list_members(REGISTRIES[kind].base)
    assert {name: suggest_member(members, name) for name in planted} == planted


@run_each("kind", REGISTRIES)
def test_plausible_names_of_an_author_are_his_own(kind: str) -> None:
    """A near miss costs a rename, a false alarm too; a word with another ending, or with another word, is none."""
    members = list_members(REGISTRIES[kind].base)
    own = {name: known for name in OWN if (known := suggest_member(members, name)) is not None}
    assert own == {}


@run_each("kind", REGISTRIES)
def test_known_members_and_private_ones_are_no_misspellings(kind: str) -> None:
    known = list_members(REGISTRIES[kind].base)
    assert not [name for name in known if suggest_member(known, name)]
    assert not [name for name in known if suggest_member(known, f"_{name}s")]


@run_each("kind", REGISTRIES.keys() - {"optimizers"})  # a specification, which functions return
def test_every_member_is_described_and_read(kind: str) -> None:
    """A member that nothing reads is documented and does nothing; one that is looked up by text escapes mypy."""
    base = REGISTRIES[kind].base
    described = describe_members(base)
    assert described.keys() >= {name for name in list_members(base) if name in vars(base)}
    text = "\n".join(PACKAGE.values())
    assert not [name for name in described if not re.search(rf"\.{name}\b|\"{name}\"", text)]
    optional = [name for name, member in described.items() if member.has_default]
    by_text = re.compile(rf"(?:has|get)attr\([^\n]*\"(?:{'|'.join(optional) or 'no member'})\"")
    assert not [f"{path}: {found[0]}" for path, text in PACKAGE.items() for found in by_text.finditer(text)]


class Base:
    """What a class of the same package inherits is its own too."""

    @classmethod
    def sample_nam(cls) -> None: ...


class Planted(Base):
    """A misspelling in every place where a member may stand."""

    baslines: dict[str, float]
    getBatch = None  # noqa: N815

    def __init__(self) -> None:
        self.strataa = [self.collatee]  # type: ignore[attr-defined]  # what is only read is not a member

    @property
    def finger_print(self) -> str:
        self.expected_inf = 1
        return "1"


def test_members_are_found_wherever_a_class_defines_them() -> None:
    assert dict(find_misspelt_members(Dataset, Planted)) == {
        "finger_print": "fingerprint",
        "getBatch": "get_batch",
        "sample_nam": "sample_name",
        "expected_inf": "expected_info",
        "strataa": "strata",
        "baslines": "baselines",
    }


PLUGIN = """\
import sightline


@sightline.register.{kind}("mine")
class Mine({base}):
    def {method}(self) -> None: ...
"""


def write_plugin(path: Path, *, kind: str, base: str, method: str) -> Path:
    [noun] = [name for name, add in vars(register).items() if getattr(add, "__self__", None) is REGISTRIES[kind]]
    path.write_text(PLUGIN.format(kind=noun, base=base, method=method))
    return path


@pytest.mark.parametrize(("kind", "planted"), PLANTED.items())
def test_a_plugin_with_a_misspelt_member_is_refused(tmp_path: Path, kind: str, planted: dict[str, str]) -> None:
    found, known = next(iter(planted.items()))
    base = f"sightline.{REGISTRIES[kind].base.__name__}"
    path = write_plugin(tmp_path / "parts.py", kind=kind, base=base, method=found)
    code, out, err = run_here("list", "data", "--plugin", path)
    assert (code, out) == (2, "")
    where = f"error: --plugin {path}:4: the {REGISTRIES[kind].noun} 'mine': Mine.{found} is close to '{known}' ("
    assert err.startswith(where)
    assert err.endswith(f"); call it '{known}', or give a member of your own a name that is less like it\n")
    assert err.count("\n") == 1
    assert "mine" not in REGISTRIES[kind]._entries


@run_each("kind", REGISTRIES)
def test_a_plugin_of_a_plain_class_is_told_its_base(tmp_path: Path, kind: str) -> None:
    path = write_plugin(tmp_path / "parts.py", kind=kind, base="object", method="forward")
    code, out, err = run_here("list", "data", "--plugin", path)
    base = f"sightline.{REGISTRIES[kind].base.__name__}"
    reason = "lacks the base class of its kind"
    assert (code, out) == (2, "")
    assert err == (
        f"error: --plugin {path}:4: the {REGISTRIES[kind].noun} 'mine': Mine {reason}; write class Mine({base})\n"
    )
    assert getattr(sightline, base.removeprefix("sightline.")) is REGISTRIES[kind].base


def test_a_class_without_a_method_that_its_base_asks_for_is_refused(tmp_path: Path) -> None:
    path = write_plugin(tmp_path / "parts.py", kind="losses", base="sightline.Loss", method="forward")
    code, _, err = run_here("list", "data", "--plugin", path)
    assert code == 2
    assert err.endswith(f"{path}:4: the loss 'mine': Mine has to define count, as its base class says\n")


def test_what_a_function_makes_derives_from_the_base_too(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = REGISTRIES["models"]
    registry.names()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @sightline.register.model("plain")
    def make_plain() -> nn.Module:
        return nn.Linear(1, 1)

    with pytest.raises(ConfigError, match=r"make_plain returned a Linear, which derives from no sightline\.Model"):
        registry.build(ComponentConfig("plain"), facts={})


def test_a_layer_cannot_hide_what_sightline_reads_of_a_model() -> None:
    class Net(sightline.Model):
        def __init__(self, name: str) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(2, 2))

        def forward(self, *, points: Tensor) -> Tensor:
            return self.get_submodule("layer")(points)

    assert Net("layer").state_dict()
    with pytest.raises(PluginError, match=r"self\.tasks is read of every model, .*; give it another name"):
        Net("tasks")


def test_what_a_base_class_leaves_open_is_asked_for() -> None:
    class Cups(sightline.Dataset):
        def __init__(self, *, split: str) -> None: ...

        def __len__(self) -> int:
            return 1

        def __getitem__(self, key: SampleKey) -> Sample:
            return {}

    (unset,) = list_unset(Cups(split="train"), Dataset)
    assert unset.startswith("info (")
    cups = Cups(split="train")
    cups.info = DataInfo({}, {}, {})
    assert list_unset(cups, Dataset) == []
