"""The trie of all spellings, with every node a contiguous range of the vocabulary."""

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int32]


class DfsTrie:
    """Trie over sequences of symbols; a node is a range of the sequences in sorted order.

    Sorted, the sequences that start with the same symbols lie side by side, those that end at a
    node first. So the mass of every node is a sum over a range, and the children of a node
    partition its range. Built level by level over the sorted sequences, O(total length): a run
    of 128 spaces costs its own length, not that of the vocabulary.

    Args:
        flat: [total] symbol indices of all sequences, one after the other.
        offsets: [n + 1] sequence i is `flat[offsets[i]:offsets[i + 1]]`; none may be empty.

    Attributes:
        order: [n] sequence numbers in sorted order.
        low, high: [nodes] a node's range of `order`; the root is node 0.
        terminals: [nodes] how many sequences end at the node: the first of its range.
        first, children: [nodes] a node's children are `first .. first + children`, by symbol.
        symbol: [nodes] the last symbol of the node (0 at the root).
        depth: length of the longest sequence.

    Source: arXiv 2510.08102 defines the masses; the layout by ranges is ours.
    """

    ROOT = 0

    def __init__(self, flat: NDArray[np.integer], offsets: NDArray[np.integer]) -> None:
        flat, offsets = np.asarray(flat, np.int32), np.asarray(offsets, np.int64)
        lengths = np.diff(offsets)
        if not len(lengths) or (lengths < 1).any():
            raise ValueError("A trie needs at least one sequence, and none may be empty.")
        self.order = _sorted_order(flat, offsets)
        starts, lengths = offsets[self.order], lengths[self.order]

        rows = np.arange(len(self.order))  # sequences still open at this depth, sorted
        node_of = np.zeros(len(rows), np.int64)
        low, high, symbol = [np.zeros(1, int)], [np.array([len(rows)])], [np.zeros(1, int)]
        first, children, terminals = [], [], []
        nodes = width = 1  # all so far; those of this level
        depth = 0
        while width:
            level = nodes - width
            ends = lengths[rows] == depth
            terminals.append(np.bincount(node_of[ends] - level, minlength=width))
            rows, node_of = rows[~ends], node_of[~ends]
            symbols = flat[starts[rows] + depth]
            new = np.ones(len(rows), bool)
            new[1:] = (node_of[1:] != node_of[:-1]) | (symbols[1:] != symbols[:-1])
            at = np.flatnonzero(new)
            count = np.bincount(node_of[at] - level, minlength=width)
            first.append(nodes + np.cumsum(count) - count)
            children.append(count)
            low.append(rows[at])
            high.append(rows[np.append(at, len(rows))[1:] - 1] + 1)
            symbol.append(symbols[at])
            node_of = nodes + np.cumsum(new) - 1
            width = len(at)
            nodes += width
            depth += 1
        self.depth = depth - 1
        fields = (low, high, symbol, first, children, terminals)
        self.low, self.high, self.symbol, self.first, self.children, self.terminals = (
            np.concatenate(parts).astype(np.int32) for parts in fields
        )
        # Plain arrays answer one question at a time several times faster than numpy's.
        self._low, self._high, self._first, self._children, self._terminals, self._symbol = (
            array("i", field.tobytes()) for field in self._fields()
        )

    def _fields(self) -> tuple[Int, ...]:
        return self.low, self.high, self.first, self.children, self.terminals, self.symbol

    def __len__(self) -> int:
        return len(self.low)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return int(self.order.nbytes + 2 * sum(field.nbytes for field in self._fields()))

    def child(self, node: int, symbol: int) -> int | None:
        """The node one symbol further, or None where no sequence goes on so."""
        first = self._first[node]
        last = first + self._children[node]
        at = bisect_left(self._symbol, symbol, first, last)
        return at if at < last and self._symbol[at] == symbol else None

    def descend(self, symbols: Sequence[int], node: int = ROOT) -> int | None:
        """The node that `symbols` lead to, or None."""
        found: int | None = node
        for symbol in symbols:
            if found is None:
                return None
            found = self.child(found, symbol)
        return found

    def span(self, node: int) -> tuple[int, int]:
        """The node's range `low, high` of `order`."""
        return self._low[node], self._high[node]

    def ending(self, node: int) -> int:
        """How many sequences end at the node."""
        return self._terminals[node]

    def is_inner(self, node: int) -> bool:
        """Whether any sequence goes on from the node."""
        return self._children[node] > 0

    def child_symbols(self, node: int) -> Int:
        """[children] the symbols that may follow, ascending."""
        first = self._first[node]
        return self.symbol[first : first + self._children[node]]

    def child_masses(self, node: int, masses: Float) -> Float:
        """[children] the mass of each child, in the order of `child_symbols`.

        Each range is summed by itself: differences of one running sum would lose small masses.

        Args:
            masses: [high - low] masses of the node's range.
        """
        first = self._first[node]
        starts = self.low[first : first + self._children[node]]
        if not len(starts):
            return np.zeros(0)
        return np.add.reduceat(masses, starts - self._low[node])


def _sorted_order(flat: NDArray[np.integer], offsets: NDArray[np.integer]) -> Int:
    """Sequence numbers in lexicographic order, a prefix before what extends it."""
    small = int(flat.max()) < 256
    raw = flat.astype(np.uint8 if small else ">u4").tobytes()
    bounds = (offsets * (1 if small else 4)).tolist()
    keys = [raw[a:b] for a, b in itertools.pairwise(bounds)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int32)
