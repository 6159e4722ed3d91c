"""What is probed: a run's weights on a config's data, beside the same network with random weights."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from sightline import registry
from sightline.config import RunConfig
from sightline.config.yaml_writer import to_plain
from sightline.engine.build import DataSubset, build_model, build_part
from sightline.engine.distributed import World
from sightline.engine.records import preserve_rng_state
from sightline.optional_members import DataMembers, TransformMembers
from sightline.probe.cache import FeatureCache, weights_digest
from sightline.probe.features import Features, extract, label_key, share_errors
from sightline.probe.outcome import UnprobableError
from sightline.probe.source_digest import plugins_of, source_sha256
from sightline.runs.preprocessing_signature import flatten_blocks, makes_pairs, read_fields
from sightline.types import ComponentConfig, SampleKey

__all__ = ["EncoderRecipe", "FeatureSplit", "ProbedData", "extract_split", "open_data", "random_model"]

_OF_PAIRS = frozenset({"image", "other_points", "draws", "self"})
"""What only the contrast of pairs reads: a transform that takes nothing else changes no cloud."""
_OF_VIEWS = frozenset({"views", "background", "without_views"})
"""Arguments of a data set about pictures of its clouds; without them it has none."""


_LIBRARIES = ("sightline", "torch", "numpy", "numba")
"""Of whose versions features may depend; numba may be absent."""


@dataclass(frozen=True)
class EncoderRecipe:
    """How clouds become features, besides weights and data: the model's block, and the number format."""

    model: ComponentConfig
    precision: str


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """Features of the two parts that every probe needs: it learns from `train` and is scored on `test`."""

    train: Features
    test: Features


@dataclass(frozen=True)
class ProbedData:
    """The training and test part of a config's data, read with its evaluation transforms, without making pairs.

    What brings the clouds of a pair into the unit sphere stays, where the set's own clouds do not lie in it. `left_out`
    names the transforms that were not applied.
    """

    config: RunConfig
    train: DataSubset
    test: DataSubset
    left_out: tuple[str, ...]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What the training part states."""
        return self.train.dataset.info.facts

    @property
    def num_classes(self) -> int:
        """How many classes the data set names."""
        names = "category_names" if label_key(self.train) == "category" else "class_names"
        return len(self.facts.get(names, ())) or int(self.facts["num_classes"])

    @property
    def num_points(self) -> int:
        """How many points the first cloud has when the encoder sees it."""
        batch = self.train.reader([SampleKey(int(self.train.indices[0]), 0, self.config.seed)])
        return int(batch["points"].shape[-2])

    def identity(self, part: DataSubset) -> dict[str, Any] | None:
        """Everything that the clouds of a part depend on; None where the set has no fingerprint.

        The folder of a prepared set counts by the contents of its manifest, not by where it lies.
        """
        fingerprint = DataMembers.fingerprint.get(part.dataset)
        if fingerprint is None:
            return None
        data = to_plain(self.config.data)
        return {
            "split": part.split,
            "num_samples": len(part.indices),
            "names": _digest_of(part),
            "fingerprint": fingerprint,
            "data": {name: value for name, value in data.items() if name != "root"},
            "transforms": to_plain(self.config.transforms.evaluate),
            "plugins": plugins_of(
                ("data", self.config.data), *(("transforms", each) for each in self.config.transforms.evaluate)
            ),
            "batch_size": self.config.evaluate.batch_size,
            "seed": self.config.seed,
        }


def open_data(config: RunConfig) -> ProbedData:
    """The parts to probe on. Raises UnprobableError for a set without a test part or without a class for each cloud."""
    kept = tuple(each for each in config.transforms.evaluate if not _serves_pairs(each))
    left_out = tuple(each.name for each in config.transforms.evaluate if _serves_pairs(each))
    normalising = _with_norms(config.transforms.evaluate)
    config = dataclasses.replace(config, transforms=dataclasses.replace(config.transforms, evaluate=kept))
    if not any("image" in read_fields(each) for each in kept):
        config = dataclasses.replace(config, data=_without_views(config.data))
    train = build_part(config, "train")
    form = train.dataset.info.clouds
    if normalising and (form is None or form.unit_sphere == "none"):
        config = dataclasses.replace(config, transforms=dataclasses.replace(config.transforms, evaluate=normalising))
        train = build_part(config, "train")
    if "test" not in train.dataset.info.split_sizes:
        raise UnprobableError(
            f"{config.data.location}: data set '{config.data.name}' has no test part to score a probe on"
        )
    test = build_part(config, "test")
    if label_key(train) is None:
        raise UnprobableError(
            f"{config.data.location}: data set '{config.data.name}' gives no class for each cloud (label or category), "
            "which a probe learns; give other data"
        )
    return ProbedData(config, train, test, left_out)


def extract_split(
    model: nn.Module, recipe: EncoderRecipe, data: ProbedData, world: World, *, cache: FeatureCache | None
) -> FeatureSplit:
    """Features of both parts, from the cache where it has them; what was computed is kept there."""
    digest = weights_digest(model)
    return FeatureSplit(
        *(_features(model, recipe, data, part, digest, world, cache) for part in (data.train, data.test))
    )


def random_model(config: RunConfig, facts: Mapping[str, Any], world: World, *, seed: int) -> nn.Module:
    """The config's network with the weights that another seed gives. Global random states stay as they are."""
    with preserve_rng_state():
        return build_model(dataclasses.replace(config, seed=seed), facts, world)


def _features(
    model: nn.Module,
    recipe: EncoderRecipe,
    data: ProbedData,
    part: DataSubset,
    digest: str,
    world: World,
    cache: FeatureCache | None,
) -> Features:
    identity = data.identity(part)
    key = None
    if cache is not None and identity is not None:
        key = {
            **identity,
            "weights": digest,
            "model": to_plain(recipe.model),
            "model_plugins": plugins_of(("models", recipe.model)),
            "precision": recipe.precision,
            "device": world.device.type,
            "versions": {name: _version(name) for name in _LIBRARIES},
            "source": source_sha256(),
        }
    found = _kept(cache, key, world)
    if found is not None:
        return found
    if cache is not None and key is not None:
        with share_errors(world):
            world.rank_zero_only(cache.assert_writable)()
    config = data.config
    computed = extract(
        model,
        part,
        world,
        batch_size=config.evaluate.batch_size,
        seed=config.seed,
        precision=recipe.precision,
        workers=config.loader.workers,
    )
    if cache is not None and key is not None:
        with share_errors(world):  # the disk may be full
            world.rank_zero_only(cache.save)(key, computed)
    return computed


def _kept(cache: FeatureCache | None, key: Mapping[str, Any] | None, world: World) -> Features | None:
    """Features from the cache, on every process or on none."""
    if cache is None or key is None:
        return None
    found = cache.load(key)
    votes = world.gather_text("" if found is None else "found", operation="kept features")
    return found if all(votes) else None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest_of(part: DataSubset) -> str:
    """Of the names of all samples in order: a set may choose among its shapes by more than its arguments."""
    names = "\n".join(part.sample_name(int(index)) for index in part.indices)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()  # of files whose names are not UTF-8, too


def _serves_pairs(component: ComponentConfig) -> bool:
    """Whether a transform makes the pairs of contrastive learning, or changes nothing but their images."""
    return makes_pairs(component) or set(read_fields(component)) <= _OF_PAIRS


def _with_norms(blocks: Sequence[ComponentConfig]) -> tuple[ComponentConfig, ...]:
    """Transforms without making pairs, but with what brings each cloud of a pair into the unit sphere; empty where no
    pair has that."""
    found: list[ComponentConfig] = []
    is_needed = False
    for block in blocks:
        if not _serves_pairs(block):
            found.append(block)
            continue
        norms = [each for each in flatten_blocks([block]) if _brings_into_unit_sphere(each)]
        found += norms[:1]
        is_needed = is_needed or bool(norms)
    return tuple(found) if is_needed else ()


def _brings_into_unit_sphere(component: ComponentConfig) -> bool:
    return TransformMembers.makes_unit_sphere.get(registry.transforms.entry(component).builder)


def _without_views(component: ComponentConfig) -> ComponentConfig:
    """A data set's block without the pictures that it would read or render for each cloud.

    As it was where it cannot do without them, or where they decide which clouds belong to it.
    """
    given = component.arguments
    views = registry.data.entry(component).arguments.get("views")
    if views is None or views.default not in (None, 0) or given.get("without_views") == "left_out":
        return component
    kept = {name: value for name, value in given.items() if name not in _OF_VIEWS}
    return dataclasses.replace(component, arguments=kept)
