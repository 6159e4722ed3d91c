"""The vote of near pixels compiled for the CPU: the nearest few are kept while a point's window is read once."""

from __future__ import annotations

import numpy as np

from sightline.compiled import compiled

__all__ = ["vote_of_neighbours"]


@compiled
def vote_of_neighbours(
    first: int,
    last: int,
    scan: np.ndarray,
    pixel: np.ndarray,
    point_range: np.ndarray,
    range_image: np.ndarray,
    label: np.ndarray,
    window: np.ndarray,
    num_neighbours: int,
    limit: float,
    is_circular: bool,
    border_range: float,
    void: int,
    found: np.ndarray,
) -> None:
    """See `lift.lift_knn`; points are the rows."""
    height, width, reach = label.shape[1], label.shape[2], window.shape[0] // 2
    distances = np.empty(num_neighbours, dtype=range_image.dtype)
    labels = np.empty(num_neighbours, dtype=np.int64)
    outside = range_image.dtype.type(border_range)
    for point in range(first, last):
        ranges, names, own = range_image[scan[point]], label[scan[point]], point_range[point]
        row, column = pixel[point] // width, pixel[point] % width
        distances[:] = np.inf
        for i in range(window.shape[0]):
            v = row + i - reach
            for j in range(window.shape[1]):
                u = column + j - reach
                if is_circular and (u < 0 or u >= width):
                    u %= width
                if v < 0 or v >= height or u < 0 or u >= width:
                    here, name = outside, void
                elif i == reach and j == reach:
                    here, name = own, names[v, u]
                else:
                    here, name = ranges[v, u], names[v, u]
                if here >= 0:
                    _keep(distances, labels, abs(here - own) * window[i, j], name)
        found[point] = _elected(distances, labels, limit, void, names[row, column])


@compiled
def _keep(distances: np.ndarray, labels: np.ndarray, distance: float, name: int) -> None:
    """Puts a neighbour among the nearest, which are in order, behind those at the same distance."""
    place = len(distances) - 1
    if not distance < distances[place]:
        return
    while place > 0 and distance < distances[place - 1]:
        distances[place], labels[place] = distances[place - 1], labels[place - 1]
        place -= 1
    distances[place], labels[place] = distance, name


@compiled
def _elected(distances: np.ndarray, labels: np.ndarray, limit: float, void: int, otherwise: int) -> int:
    """The label of most of those within the limit, of equally many the lowest; `otherwise` where there is none."""
    elected, most = otherwise, 0
    for place in range(len(distances)):
        name = labels[place]
        if name == void or not (distances[place] <= limit and distances[place] < np.inf):
            continue
        votes = 0
        for other in range(len(distances)):
            if labels[other] == name and distances[other] <= limit and distances[other] < np.inf:
                votes += 1
        if votes > most or (votes == most and name < elected):
            elected, most = name, votes
    return elected
