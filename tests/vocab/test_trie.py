"""The trie's ranges and masses, node by node, against dictionaries and exact sums."""

from __future__ import annotations

import math
import os
import random
import time
from collections import defaultdict

import numpy as np
import pytest

from infer_kit.vocab.submap import SubwordMap
from infer_kit.vocab.trie import DfsTrie, Float
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained

Sequences = list[tuple[int, ...]]


def trie_of(sequences: Sequences) -> DfsTrie:
    offsets = np.cumsum([0, *map(len, sequences)])
    return DfsTrie(np.concatenate([np.array(s) for s in sequences]), offsets)


def random_sequences(seed: int, count: int, symbols: int, longest: int) -> Sequences:
    draw = random.Random(seed)
    made = [
        tuple(draw.randrange(symbols) for _ in range(draw.randint(1, longest)))
        for _ in range(count)
    ]
    return [*made, *draw.sample(made, count // 5)]  # some end at one node


CASES = [
    random_sequences(0, 200, 3, 6),
    random_sequences(1, 300, 256, 4),
    random_sequences(2, 300, 70_000, 3),  # beyond a byte and two
    [(0,), (0, 0), (0,) * 128, (0,) * 64, (1,)],
    [(5,)],
    [(255,), (256,), (256, 255), (255, 256), (65_536,), (1,)],  # order by number, not by bytes
]


@pytest.mark.parametrize("sequences", CASES)
def test_nodes_are_the_beginnings(sequences: Sequences) -> None:
    trie = trie_of(sequences)
    below: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, sequence in enumerate(sequences):
        for end in range(len(sequence) + 1):
            below[sequence[:end]].append(number)
    assert len(trie) == len(below)
    assert trie.depth == max(map(len, sequences))
    seen = set()
    for beginning, numbers in below.items():
        node = trie.descend(beginning)
        assert node is not None
        seen.add(node)
        low, high = trie.span(node)
        assert sorted(trie.order[low:high]) == numbers
        ended = [n for n in numbers if sequences[n] == beginning]
        assert sorted(trie.order[low : low + trie.ending(node)]) == ended
        following = sorted({sequences[n][len(beginning)] for n in numbers if n not in ended})
        assert trie.child_symbols(node).tolist() == following
        assert trie.is_inner(node) == bool(following)
        for symbol in following:
            child = trie.child(node, symbol)
            assert child == trie.descend((*beginning, symbol)) and trie.symbol[child] == symbol
        for symbol in {0, 1, 254, 300, *(s + 1 for s in following)} - set(following):
            assert trie.child(node, symbol) is None
            assert trie.descend((symbol, 0), node) is None
    assert seen == set(range(len(trie)))


@pytest.mark.parametrize("sequences", CASES)
def test_masses_of_children_are_their_sums(sequences: Sequences) -> None:
    trie = trie_of(sequences)
    masses = peaked(len(sequences), 3)
    check_every_node(trie, masses)


def test_a_sequence_may_not_be_empty() -> None:
    with pytest.raises(ValueError, match="none may be empty"):
        DfsTrie(np.array([1]), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="at least one"):
        DfsTrie(np.array([], int), np.array([0]))


def peaked(count: int, seed: int) -> Float:
    """A law with one large mass: 13 orders of magnitude between its parts."""
    logits = np.random.default_rng(seed).standard_normal(count) * 5
    logits[count // 3] = logits.max() + 15
    masses = np.exp(logits - logits.max())
    return masses / masses.sum()


def check_every_node(trie: DfsTrie, masses: Float) -> None:
    """Compares the mass of every node with the exactly rounded sum."""
    worst, count = 0.0, 0
    for node in range(len(trie)):
        low, high = trie.span(node)
        found = trie.child_masses(node, masses[low:high])
        ended = trie.ending(node)
        assert len(found) == len(trie.child_symbols(node))
        at = low + ended
        for symbol, mass in zip(trie.child_symbols(node), found, strict=True):
            child = trie.child(node, int(symbol))
            below, above = trie.span(child)
            assert below == at  # the children lie side by side, after what ends here
            at = above
            exact = math.fsum(masses[below:above])
            worst = max(worst, abs(mass - exact) / exact)
            count += 1
        assert at == high
    assert worst < 1e-12 and count == len(trie) - 1


def large_vocabulary() -> Vocabulary:
    """As many tokens as Qwen's: syllables in words, and long runs of spaces."""
    draw = random.Random(5)
    parts = [bytes([a, b]) for a in b"bcdfghklmnprstvw" for b in b"aeiou"]
    texts = {bytes([byte]) for byte in range(256)} | {b" " * n for n in range(2, 129)}
    while len(texts) < 151_000:
        word = b"".join(draw.choice(parts) for _ in range(draw.randint(1, 4)))
        texts.add(draw.choice((b"", b" ", b"_")) + word + draw.choice((b"", b"n", b"s")))
    return Vocabulary((*sorted(texts), None), (len(texts),), "words", name="generated")


def test_a_large_vocabulary() -> None:
    here = "INFER_KIT_TEST_DATA" in os.environ
    vocabulary = trained.real("qwen") if here else large_vocabulary()
    ids = vocabulary.text_ids
    assert len(ids) > 150_000
    start = time.process_time()
    mapped = SubwordMap(vocabulary, "bytes")
    trie = DfsTrie(mapped.flat, np.append(mapped.offsets[ids], len(mapped.flat)))
    assert time.process_time() - start < 1.5
    assert trie.nbytes < 60 * 2**20
    check_every_node(trie, peaked(len(ids), 0)[trie.order])
