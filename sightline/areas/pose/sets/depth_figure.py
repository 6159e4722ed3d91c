"""Figure of the user's own joints: their names, the bones that are stated, the middle joint, and the cube around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.pose.sets.depth_frames import SKELETONS, Skeleton, SkeletonName
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest

NO_BONES = "none stated: joints are drawn as dots"
_CUBE_MARGIN = 1.25


def make_figure(
    names: Sequence[str],
    joints: np.ndarray,
    cube_mm: float | None,
    *,
    path: Path,
    skeleton: SkeletonName | None,
    joint_names: Sequence[str] | None,
    bones: Sequence[tuple[str, str]] | None,
) -> Skeleton:
    """Make the skeleton of joints (F, J, 3) in mm with these names in the file, by the options of `data prepare`.

    The middle joint is that of the stated skeleton, else the nearest to all others; the cube is a quarter larger than
    the joints need about it. Raises ConfigError for options that do not fit the joints of the file `path`.
    """
    figure = Skeleton(tuple(names), (), _find_middle(_mean_distances(joints)), 0.0)
    stated = None if joint_names is None else _check_names(joint_names, len(names), path)
    if skeleton is not None:
        figure = _order_as_file(SKELETONS[skeleton], stated or names, path, skeleton)
    if stated is not None:
        figure = replace(figure, joint_names=stated)
    if bones is not None:
        figure = replace(figure, bones=tuple(_find_bone(pair, figure.joint_names) for pair in bones))
    if cube_mm is None:
        reach = np.nanmax(np.abs(joints - joints[:, [figure.centre]]))
        cube_mm = float(np.ceil(2 * _CUBE_MARGIN * reach / 10) * 10)
    return replace(figure, cube_mm=cube_mm)


def describe_figure(figure: Skeleton, joints: np.ndarray, skeleton: SkeletonName | None) -> dict[str, Any]:
    """Return the entries of a manifest: bones and middle joint by name, and pairs to state where no bones are."""
    names = figure.joint_names
    pairs = [f"[{names[first]}, {names[second]}]" for first, second in _shortest_tree(_mean_distances(joints))]
    return {
        "bones": [_name_bone(names, bone) for bone in figure.bones] or NO_BONES,
        **({} if figure.bones else {"by_distance": f"bones=[{', '.join(pairs)}] if these are the bones"}),
        **({} if skeleton is None else {"skeleton": skeleton}),
        "centre": names[figure.centre],
        "cube_mm": figure.cube_mm,
    }


def read_figure(about: Mapping[str, Any], joint_names: Sequence[str]) -> Skeleton:
    """Make the skeleton of the entries that `describe_figure` returned, for joints of these names."""
    names, count = tuple(joint_names), range(len(joint_names))
    index_by_bone = {_name_bone(names, (first, second)): (first, second) for first in count for second in count}
    bones = () if about["bones"] == NO_BONES else tuple(index_by_bone[bone] for bone in about["bones"])
    return Skeleton(names, bones, names.index(about["centre"]), about["cube_mm"])


def _name_bone(names: Sequence[str], bone: tuple[int, int]) -> str:
    return f"{names[bone[0]]} - {names[bone[1]]}"


def _refuse_other_order(skeleton: Skeleton, names: Sequence[str], path: Path, name: str) -> None:
    """Raise ConfigError if the file and the skeleton call some joint alike that they have at other places."""
    moved = [
        joint
        for joint in names
        if joint in skeleton.joint_names and names.index(joint) != skeleton.joint_names.index(joint)
    ]
    if moved:
        first, own = (order.index(moved[0]) + 1 for order in (skeleton.joint_names, names))
        raise ConfigError(
            f"skeleton={name} has '{moved[0]}' as joint {first}, {path} as joint {own}, and so it is with {len(moved)} "
            f"joints: bones would join others; give joint_names=[...], the names of {name} in the order of the file "
            f"({', '.join(skeleton.joint_names)}), or bones=[[NAME, NAME], ...]"
        )


def _order_as_file(skeleton: Skeleton, names: Sequence[str], path: Path, name: str) -> Skeleton:
    """Return a skeleton in the order of the file if this has its names, else as it is, for joints in its order."""
    if len(names) != len(skeleton):
        fits = [key for key, other in SKELETONS.items() if len(other) == len(names)]
        advice = f"those of {len(names)} are {', '.join(fits)}" if fits else "state bones=[[NAME, NAME], ...]"
        raise ConfigError(f"skeleton={name} has {len(skeleton)} joints, {path} has {len(names)}; {advice}")
    if set(names) != set(skeleton.joint_names):
        _refuse_other_order(skeleton, names, path, name)
        return skeleton
    place = [names.index(joint) for joint in skeleton.joint_names]
    bones = tuple((place[first], place[second]) for first, second in skeleton.bones)
    return Skeleton(tuple(names), bones, place[skeleton.centre], skeleton.cube_mm)


def _check_names(joint_names: Sequence[str], count: int, path: Path) -> tuple[str, ...]:
    if len(joint_names) != count or len(set(joint_names)) != count or not all(map(str.strip, joint_names)):
        raise ConfigError(
            f"joint_names: names {len(set(joint_names))} different joints, {path} has {count}; name each once, in the "
            "order of the file"
        )
    return tuple(joint_names)


def _find_bone(pair: tuple[str, str], names: Sequence[str]) -> tuple[int, int]:
    """Return the indices of the two joints of a bone. Raises ConfigError for a name that is no joint's."""
    for name in pair:
        if name not in names:
            raise ConfigError(f"bones: there is no joint '{name}'{suggest(name, names, otherwise=f', only {names}')}")
    if pair[0] == pair[1]:
        raise ConfigError(f"bones: [{pair[0]}, {pair[1]}] joins a joint to itself; name two")
    return names.index(pair[0]), names.index(pair[1])


def _mean_distances(joints: np.ndarray) -> np.ndarray:
    """Compute the mean distance (J, J) of each pair of joints (F, J, 3); a pair that is never known is the farthest."""
    with np.errstate(invalid="ignore"):
        distances = np.linalg.norm(joints[:, :, None] - joints[:, None], axis=-1)
    is_known = ~np.isnan(distances)
    mean = np.where(is_known, distances, 0).sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    return np.where(is_known.any(axis=0), mean, mean.max() + 1)


def _find_middle(distances: np.ndarray) -> int:
    return int(distances.sum(axis=1).argmin())


def _shortest_tree(distances: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the tree of least length that joins all joints, from the middle one on, by their mean distances (J, J)."""
    joined, bones = [_find_middle(distances)], []
    while len(joined) < len(distances):
        remaining = [joint for joint in range(len(distances)) if joint not in joined]
        row, column = divmod(int(distances[np.ix_(joined, remaining)].argmin()), len(remaining))
        bones.append((joined[row], remaining[column]))
        joined.append(remaining[column])
    return tuple(bones)
