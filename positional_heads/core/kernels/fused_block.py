"""What one program of the Triton kernel does: D of a block of entries of one head, its bin, and integer sums.

A program has 32 queries and up to 1920 keys, or some listed entries, and takes 4 x 128 entries at a time, four by four
in each thread of a warp. As in native.cpp, queries arrive multiplied by log2(e) / temperature; positions lie side by
side in memory, so that a thread loads four keys at once, and no term is stored.

An entry is counted in a row of bins of the program's own, as one number: its rank times 2^16, and 1. So programs do not
wait for each other, and a row holds up to 65535 entries; rows are added up afterwards.
"""

# ruff: noqa: ANN001, ANN202, PLR0917 -- Triton gives annotations a meaning of its own, and passes arguments by position
import os
from typing import Any, no_type_check

import triton
import triton.language as tl

from positional_heads.core.binning import CELLS
from positional_heads.core.kernels import tiled
from positional_heads.core.kernels.sums import DIMENSION_SCALE

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs kernels in Python on a CPU, for tests."""
BLOCK, QUERIES = ((32, 128), 64) if INTERPRETED else ((4, 128), 32)
"""Queries and keys of a block, and queries of a program; the interpreter prefers few blocks."""
MOST_KEYS = (2**16 - 1) // (QUERIES * BLOCK[1]) * BLOCK[1]
"""Keys of a program, so that 16 bits can count its entries."""

LISTED = 2 * BLOCK[0] * BLOCK[1]
"""Listed entries of a program."""

ROWS, COLUMNS, BLOCKS = tl.constexpr(BLOCK[0]), tl.constexpr(BLOCK[1]), tl.constexpr(QUERIES // BLOCK[0])
CELL_ENDS = tl.constexpr(CELLS + 1)
SATURATED, STEPS = tl.constexpr(tiled.SATURATED), tl.constexpr(DIMENSION_SCALE)
WHOLE = tl.constexpr(2.0**23)  # float32 from here on are whole numbers


@no_type_check
def _dominant(q, k, pair_stride, channel, n_pairs, bounded):
    """D of each entry of a block, and whether one rotary pair holds its softmax; the same ways as in native.cpp.

    Where contributions are bounded, no weight overflows, and one loop is enough. Elsewhere D is the index of the
    largest contribution plus the mean deviation from it, so that small weights are not lost beside it.
    """
    total, weighted = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    top, at = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    if bounded:
        for pair in range(n_pairs):
            a, b = pair * pair_stride, pair * pair_stride + channel
            weight = tl.exp2(tl.load(q + a) * tl.load(k + a) + tl.load(q + b) * tl.load(k + b))
            total += weight
            weighted += weight * pair
            top = tl.maximum(top, weight)
    else:
        for pair in range(n_pairs):
            a, b = pair * pair_stride, pair * pair_stride + channel
            g = tl.load(q + a) * tl.load(k + a) + tl.load(q + b) * tl.load(k + b)
            at = tl.where(g > top, pair, at)
            top = tl.where(g > top, g, top)
        for pair in range(n_pairs):
            a, b = pair * pair_stride, pair * pair_stride + channel
            g = tl.load(q + a) * tl.load(k + a) + tl.load(q + b) * tl.load(k + b)
            weight = tl.exp2(g - top)
            total += weight
            weighted += weight * (pair - at)
        top = tl.full((ROWS, COLUMNS), 1.0, tl.float32)
    return at + weighted / total, total * SATURATED < top


dominant: Any = triton.jit(_dominant)


@no_type_check
def _add_entries(
    query, key, head_stride, pos_stride, pair_stride, channel, length, n_pairs,
    places, query_list, key_list, nearest, furthest, skip_keys,
    low, scale, starts, edges, n_edges, halvings, ranks, distances,
    bounded, rows, dimension_sums, found,
):  # fmt: skip
    """Add the entries of one head and place to its row of bins, to sums by distance, and to what was found.

    The arguments are pointers, strides of planes and limits as in the plan; without a list, all entries of the place
    that are within the limits count. `found` gets the number of saturated entries, of those whose D is not finite, and
    of listed ones outside the limits.
    """
    program, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    query += head * head_stride
    key += head * head_stride
    rows += (head * tl.num_programs(0) + program) * (n_edges + 1)
    place = places + 3 * program
    first_query, first, end = tl.load(place), tl.multiple_of(tl.load(place + 1), COLUMNS), tl.load(place + 2)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    columns = (end - first + COLUMNS - 1) // COLUMNS
    saturated, not_finite, outside = 0, 0, 0
    for block in range(columns * BLOCKS if query_list is None else (columns + ROWS - 1) // ROWS):
        if query_list is None:
            query_pos = first_query + block // columns * ROWS + row
            key_pos = first + block % columns * COLUMNS + column
            wanted = key_pos < end
        else:
            entry = first + block * ROWS * COLUMNS + row * COLUMNS + column
            wanted = entry < end
            query_pos = tl.load(query_list + entry, mask=wanted, other=0).to(tl.int32)
            key_pos = tl.load(key_list + entry, mask=wanted, other=0).to(tl.int32)
        distance = query_pos - key_pos
        within = (distance >= nearest) & (distance <= furthest) & (key_pos >= skip_keys) & (query_pos < length)
        counted = wanted & within
        if query_list is not None:
            outside += tl.sum((wanted & (within == 0)).to(tl.int32))
            query_pos, key_pos = tl.where(counted, query_pos, 0), tl.where(counted, key_pos, 0)

        q, k = query + query_pos * pos_stride, key + key_pos * pos_stride
        d, alone = dominant(q, k, pair_stride, channel, n_pairs, tl.load(bounded + head))
        finite = counted & (d - d == 0)
        not_finite += tl.sum((counted & (d - d != 0)).to(tl.int32))
        saturated += tl.sum((finite & alone).to(tl.int32))
        d = tl.where(finite, d, 0.0)

        # its bin, by a search among the edges in its cell, see binning.BinLookup
        cell = (d - tl.load(low + head)) * tl.load(scale + head)
        cell = tl.minimum(tl.maximum(cell, 0.0), CELL_ENDS - 2.0).to(tl.int32)
        its_bin = tl.load(starts + head * CELL_ENDS + cell).to(tl.int32)
        last = tl.load(starts + head * CELL_ENDS + cell + 1).to(tl.int32)
        for _ in range(halvings):
            middle = (its_bin + last) // 2
            above = tl.load(edges + head * n_edges + middle, mask=its_bin < last, other=float("inf")) < d
            its_bin, last = tl.where(above, middle + 1, its_bin), tl.where(above, last, middle)
        packed = tl.load(ranks + distance, mask=finite, other=0) * 65536 + 1
        tl.atomic_add(rows + its_bin, packed, mask=finite, sem="relaxed")

        # D in steps of 2^-24, halves to even as torch.round does
        size = tl.abs(d) * STEPS
        size = tl.where(size < WHOLE, (size + WHOLE) - WHOLE, size)
        fixed = tl.where(d < 0, -size, size).to(tl.int64)
        tl.atomic_add(dimension_sums + head * distances + distance, fixed, mask=finite, sem="relaxed")
    tl.atomic_add(found + 3 * head, saturated, sem="relaxed")
    tl.atomic_add(found + 3 * head + 1, not_finite, sem="relaxed")
    tl.atomic_add(found + 3 * head + 2, outside, sem="relaxed")


add_entries: Any = triton.jit(_add_entries)
