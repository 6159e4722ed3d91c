"""CPU kernels of optimal one-dimensional clustering: cuts of sorted numbers into clusters of minimal inertia.

Clusters are intervals of the sorted order, so none is ever empty, and the minimal inertia is found by dynamic
programming instead of by iterations from a start. Equal numbers are never separated: a number's value alone identifies
its cluster. Sums over any interval come from two tables of prefix sums, a double and its rounding error, because the
inertia of a tight cluster far from zero is a difference of numbers that agree in most of their digits.
"""

from __future__ import annotations

import numpy as np

from sightline.ops.numba_kernels import numba_kernel

_CELLS_OF_ONE = 512
"""Cells per cluster, if there are enough distinct numbers: more cells are nearer to the optimum."""
_NUM_CELLS = 1024
"""Minimal number of cells; and the number of cells made by splitting the worst one."""
_COARSE = 4
"""Cells per cluster in the first search for the price."""
_EVERY = 16
"""Distance between two entries of the prefix sums; the remaining values are added on demand."""
_MAX_SWEEPS = 300
_MAX_TURNS = 200
_SPLITTER = 134217729.0
"""2^27 + 1: splits a double into halves whose products are exact (Dekker 1971)."""


@numba_kernel
def cut_sorted(values, most, cuts):  # type: ignore[no-untyped-def]
    """Write the starts of at most `most` clusters of sorted numbers, and the end, to `cuts`; return their number."""
    table = np.zeros((len(values) // _EVERY + 1, 4))
    _fill_sums(values, table)
    edges = np.empty(max(_NUM_CELLS, _CELLS_OF_ONE * most) + 1, np.int64)
    num_cells = _runs(values, edges)
    is_exact = num_cells >= 0  # every cell is one number
    if not is_exact:
        num_cells = _cells(values, table, edges)
    number = min(most, num_cells)
    if number == num_cells:
        for cut in range(number + 1):
            cuts[cut] = edges[cut]
    else:
        _best_cuts(values, table, edges[: num_cells + 1], cuts[: number + 1])
    if not is_exact:
        _settle(values, table, cuts[: number + 1])
    return number


@numba_kernel
def _add(high, low, value):  # type: ignore[no-untyped-def]
    """Return high + low + value without losing the rounding of the first sum (Knuth's two-sum)."""
    total = high + value
    moved = total - high
    return total, low + ((high - (total - moved)) + (value - moved))


@numba_kernel
def _fill_sums(values, table):  # type: ignore[no-untyped-def]
    total, total_low, square, square_low = 0.0, 0.0, 0.0, 0.0
    for index in range(len(values)):
        if index % _EVERY == 0:
            table[index // _EVERY] = (total, total_low, square, square_low)
        value = np.float64(values[index])
        total, total_low = _add(total, total_low, value)
        square, square_low = _add(square, square_low, value * value)
    if len(values) % _EVERY == 0:
        table[-1] = (total, total_low, square, square_low)


@numba_kernel
def _sums_before(values, table, index, sums):  # type: ignore[no-untyped-def]
    entry = index // _EVERY
    total, total_low, square, square_low = table[entry]
    for later in range(entry * _EVERY, index):
        value = np.float64(values[later])
        total, total_low = _add(total, total_low, value)
        square, square_low = _add(square, square_low, value * value)
    sums[0], sums[1], sums[2], sums[3] = total, total_low, square, square_low


@numba_kernel
def _inertia(start_sums, end_sums, count):  # type: ignore[no-untyped-def]
    """Return the sum of squares about the mean of `count` numbers between two entries of prefix sums."""
    total, total_low = _add(end_sums[0], end_sums[1] - start_sums[1], -start_sums[0])
    square, square_low = _add(end_sums[2], end_sums[3] - start_sums[3], -start_sums[2])
    product = total * total
    product_low = _product_rounding(total, total, product) + 2.0 * total * total_low
    share = product / count
    multiple = share * count
    remainder = (product - multiple) - _product_rounding(share, count, multiple) + product_low
    return max((square - share) + (square_low - remainder / count), 0.0)


@numba_kernel
def _product_rounding(one, other, product):  # type: ignore[no-untyped-def]
    """Return one * other - product, exactly (Dekker's two-product)."""
    high = _SPLITTER * one
    high = high - (high - one)
    low = one - high
    other_high = _SPLITTER * other
    other_high = other_high - (other_high - other)
    other_low = other - other_high
    return ((high * other_high - product) + high * other_low + low * other_high) + low * other_low


@numba_kernel
def _first_above(values, first, last, bound, is_strict):  # type: ignore[no-untyped-def]
    """Return the first index in [first, last) with a value above (or equal to) the bound; `last` if there is none."""
    while first < last:
        middle = (first + last) // 2
        value = values[middle]
        if value > bound or (value == bound and not is_strict):
            last = middle
        else:
            first = middle + 1
    return first


@numba_kernel
def _runs(values, edges):  # type: ignore[no-untyped-def]
    """Write the start of each run of equal numbers, and the end; return their number, -1 if `edges` is too small."""
    number = 0
    for index in range(len(values)):
        if index == 0 or values[index] != values[index - 1]:
            if number == len(edges) - 1:
                return -1
            edges[number] = index
            number += 1
    edges[number] = len(values)
    return number


@numba_kernel
def _cells(values, table, edges):  # type: ignore[no-untyped-def]
    """Write cells in place of runs: the one of largest inertia is split at its mean, repeatedly, then each evenly."""
    starts, start_sums = np.zeros(_NUM_CELLS, np.int64), np.zeros((_NUM_CELLS, 4))
    ends, end_sums = np.full(_NUM_CELLS, len(values)), np.zeros((_NUM_CELLS, 4))
    spread = np.zeros(_NUM_CELLS)
    _sums_before(values, table, len(values), end_sums[0])
    for cell in range(1, _NUM_CELLS):
        worst = np.argmax(spread[:cell])
        first, last = starts[worst], ends[worst]
        total = (end_sums[worst, 0] - start_sums[worst, 0]) + (end_sums[worst, 1] - start_sums[worst, 1])
        cut = _first_above(values, first, last, total / (last - first), False)
        if cut in (first, last):  # the mean was rounded to an end
            cut = _first_above(values, first, last, values[first], True)
        starts[cell], ends[cell], end_sums[cell] = cut, last, end_sums[worst]
        _sums_before(values, table, cut, start_sums[cell])
        ends[worst], end_sums[worst] = cut, start_sums[cell]
        for half in (worst, cell):
            is_one = values[starts[half]] == values[ends[half] - 1]
            spread[half] = -1.0 if is_one else _inertia(start_sums[half], end_sums[half], ends[half] - starts[half])
    parts = (len(edges) - 1) // _NUM_CELLS
    number, edges[0] = 0, 0
    for cell in np.argsort(starts):
        length = ends[cell] - starts[cell]
        for part in range(1, parts + 1):
            cut = starts[cell] + length * part // parts
            if 0 < cut < ends[cell] and values[cut - 1] == values[cut]:
                cut = _first_above(values, cut, ends[cell], values[cut], True)
            if cut > edges[number]:
                number += 1
                edges[number] = cut
    return number


@numba_kernel
def _best_cuts(values, table, edges, cuts):  # type: ignore[no-untyped-def]
    """Find the cuts of minimal inertia among the edges (Aggarwal, Schieber and Tokuyama 1994).

    With a price on each cluster the best number of clusters follows, and falls as the price rises: the price is
    searched for that yields the wanted number, first on a coarser choice of edges. If the number jumps over the
    wanted one, two optima of one price are joined to one of that price and number.
    """
    num_clusters = len(cuts) - 1
    price = 0.0
    for stride in (max(1, (len(edges) - 1) // max(_NUM_CELLS, _COARSE * num_clusters)), 1):
        chosen = np.append(edges[:-1:stride], edges[-1])
        sums = np.empty((len(chosen), 4))
        for edge in range(len(chosen)):
            _sums_before(values, table, chosen[edge], sums[edge])
        if price == 0:
            price = 2 * _inertia(sums[0], sums[-1], len(values)) / num_clusters**3
        price = _cuts_by_price(chosen, sums, price, cuts)
        if stride == 1:
            break


@numba_kernel
def _cuts_by_price(edges, sums, price, cuts):  # type: ignore[no-untyped-def]
    """Write the cuts, starting the search at a price, and return the final price."""
    num_clusters = len(cuts) - 1
    cheap, dear = 0.0, np.inf
    few, many, path = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    for turn in range(_MAX_TURNS):
        path = _cuts_at_price(edges, sums, price)
        number = len(path) - 1
        if number == num_clusters:
            break
        if number > num_clusters:
            cheap, many = price, path
        else:
            dear, few = price, path
        guess = price * (number / num_clusters) ** 3  # as if the least inertia fell with the square of the number
        if turn > 5 or not cheap < guess < dear:
            guess = np.sqrt(cheap) * np.sqrt(dear)
            guess = price / 8 if cheap == 0 else price * 8 if dear == np.inf else guess
        if not cheap < guess < dear:
            break
        price = guess
    if len(path) - 1 != num_clusters and min(len(few), len(many)) == 1:  # the inertia is 0 to the precision of a double
        path = np.arange(num_clusters + 1) * (len(edges) - 1) // num_clusters
    elif len(path) - 1 != num_clusters:
        path = _join_paths(few, many, num_clusters)
    for cut in range(num_clusters + 1):
        cuts[cut] = edges[path[cut]]
    return price


@numba_kernel
def _join_paths(few, many, num_clusters):  # type: ignore[no-untyped-def]
    """Join the first cuts of one optimum and the last of another, at a cluster of `many` within one of `few`."""
    skipped = num_clusters - (len(few) - 1)
    first = skipped
    while many[first + 1] >= few[first + 1 - skipped]:
        first += 1
    return np.append(many[: first + 1], few[first + 1 - skipped :])


@numba_kernel
def _cuts_at_price(edges, sums, price):  # type: ignore[no-untyped-def]
    """Return the edge numbers between clusters of minimal inertia plus price (Galil and Park 1992).

    The best begin of a last cluster moves right with its end: a queue contains the begins that are best for some later
    end, and the first end of each.
    """
    last = len(edges) - 1
    lowest_cost, origin = np.zeros(last + 1), np.zeros(last + 1, np.int64)
    queue, ends = np.zeros(last + 1, np.int64), np.ones(last + 1, np.int64)
    head, tail = 0, 1
    for end in range(1, last + 1):
        while head + 1 < tail and ends[head + 1] <= end:
            head += 1
        begin = queue[head]
        origin[end] = begin
        lowest_cost[end] = lowest_cost[begin] + _inertia(sums[begin], sums[end], edges[end] - edges[begin]) + price
        low, high = end + 1, last + 1
        while tail > head:
            other, first = queue[tail - 1], max(ends[tail - 1], end + 1)
            if first > last or not _is_better(edges, sums, lowest_cost, end, other, first):
                low = first + 1
                break
            tail -= 1
            high = first
        while low < high:
            middle = (low + high) // 2
            if _is_better(edges, sums, lowest_cost, end, queue[tail - 1], middle):
                high = middle
            else:
                low = middle + 1
        if low <= last:
            queue[tail], ends[tail] = end, low
            tail += 1
    number, edge = 0, last
    while edge > 0:
        edge = origin[edge]
        number += 1
    path = np.empty(number + 1, np.int64)
    path[number] = last
    for cluster in range(number, 0, -1):
        path[cluster - 1] = origin[path[cluster]]
    return path


@numba_kernel
def _is_better(edges, sums, lowest_cost, begin, other, end):  # type: ignore[no-untyped-def]
    """Return True if a last cluster that ends at `end` should begin at `begin` instead of `other`."""
    cost = lowest_cost[begin] + _inertia(sums[begin], sums[end], edges[end] - edges[begin])
    return cost < lowest_cost[other] + _inertia(sums[other], sums[end], edges[end] - edges[other])


@numba_kernel
def _settle(values, table, cuts):  # type: ignore[no-untyped-def]
    """Lloyd's iterations: move each cut halfway between the adjacent means, until none moves."""
    means, sums = np.empty(len(cuts) - 1), np.zeros((2, 4))
    for _ in range(_MAX_SWEEPS):
        for cluster in range(len(means)):
            _sums_before(values, table, cuts[cluster], sums[0])
            _sums_before(values, table, cuts[cluster + 1], sums[1])
            total = (sums[1, 0] - sums[0, 0]) + (sums[1, 1] - sums[0, 1])
            means[cluster] = total / (cuts[cluster + 1] - cuts[cluster])
        is_moving = False
        for cut in range(1, len(means)):
            middle = 0.5 * (means[cut - 1] + means[cut])
            new_cut = _first_above(values, cuts[cut - 1], cuts[cut + 1], middle, False)
            if cuts[cut - 1] < new_cut < cuts[cut + 1] and new_cut != cuts[cut]:
                cuts[cut] = new_cut
                is_moving = True
        if not is_moving:
            break
