"""Which rows share a forward and backward pass when rows are padded to the longest among them.

verl 0.9.1 cuts by unpadded tokens and mixes lengths to balance ranks (`utils/seqlen_balancing.py:348`),
so that one long row pads many short ones: the padded size, and with it memory, has no bound.
Invariant: a pass of several rows holds at most the budget of tokens, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut_by_padded_tokens(lengths: Sequence[int], budget: int, at_least: int = 1) -> list[list[int]]:
    """Groups of row indices, longest rows first, so that memory peaks at the start.

    Args:
        lengths: tokens of each row.
        budget: most tokens of a group, padding included; a longer row is a group of its own.
        at_least: fewest groups, not above the number of rows: the other ranks have as many passes.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    start = 0
    while start < len(by_length):
        size = max(1, budget // lengths[by_length[start]])
        groups.append(by_length[start : start + size])
        start += size
    while len(groups) < at_least:
        largest = max(range(len(groups)), key=lambda index: len(groups[index]))
        group, half = groups[largest], len(groups[largest]) // 2
        groups[largest : largest + 1] = [group[:half], group[half:]]
    return groups
