"""A trainer for small Unigram vocabularies whose result depends on nothing but the words.

The Unigram trainer of the `tokenizers` package sums in the order of a hash table, so the last
digits of its scores differ from run to run, and the trained model's bytes with them.

Source: Kudo, "Subword regularization", 2018: fit the probabilities of many pieces by expectation
maximisation, drop those whose loss costs the likelihood least, repeat. It differs from the paper in
where the pieces come from: the merges of a byte-pair encoding, not all frequent substrings. Among
the few words of a small language every substring but the whole words is hardly used, and would be
dropped at once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

SPACE = "▁"
SPARE = 1.6
"""Candidates for each piece that is wanted."""

KEPT = 0.9
"""Share of the pieces that a round of pruning keeps."""

ROUNDS = 2
"""Steps of expectation maximisation between two rounds of pruning."""

FLOOR = 0.01
"""How often a character is taken to occur at least."""

WORD = rf"{SPACE}?\p{{L}}+|{SPACE}?[^\p{{L}}{SPACE}\n]+|\n|{SPACE}"
"""No piece mixes letters with other characters, but for the space before them."""

Scores = dict[str, float]


def train(lines: Sequence[str], alphabet: str, size: int) -> Scores:
    """Pieces with their log probabilities, most probable first.

    Args:
        lines: the text. Characters that are not in the alphabet are left to byte fallback.
        alphabet: characters that are pieces whether they occur or not, `SPACE` among them.
        size: the number of pieces, those of single characters included.
    """
    known = set(alphabet)
    words: Counter[str] = Counter()
    for line in lines:
        for word in line.split(" "):
            marked = "".join(c if c in known else "\0" for c in SPACE + word)
            words.update(part for part in marked.split("\0") if part)
    pieces = [*alphabet, *_merges(words, alphabet, int(SPARE * size))]
    scores = {piece: -math.log(len(pieces)) for piece in pieces}
    while True:
        for _ in range(ROUNDS):
            used = _expected(scores, words)
            scores = _probabilities(used, scores, known)
        if len(scores) <= size:
            ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
            return {piece: round(score, 4) for piece, score in ranked}
        scores = _prune(scores, used, known, max(size, int(KEPT * len(scores))))


def _merges(words: Mapping[str, int], alphabet: str, size: int) -> list[str]:
    """Pieces of two and more characters that a byte-pair encoding of the words makes."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False
    )
    text = (word for word, n in words.items() for _ in range(n))
    tokenizer.train_from_iterator(text, trainer)
    return sorted(piece for piece in tokenizer.get_vocab() if len(piece) > 1)


def _expected(scores: Scores, words: Mapping[str, int]) -> dict[str, float]:
    """How often each piece is expected among all spellings of the words."""
    longest = max(map(len, scores))
    expected: dict[str, float] = defaultdict(float)
    for word, n in words.items():
        edges = [
            (start, end, math.exp(scores[word[start:end]]))
            for start in range(len(word))
            for end in range(start + 1, min(start + longest, len(word)) + 1)
            if word[start:end] in scores
        ]
        before = [1.0] + [0.0] * len(word)  # words are short: no underflow
        for start, end, p in edges:
            before[end] += before[start] * p
        after = [0.0] * len(word) + [1.0]
        for start, end, p in reversed(edges):
            after[start] += after[end] * p
        for start, end, p in edges:
            expected[word[start:end]] += n * before[start] * p * after[end] / before[-1]
    return expected


def _probabilities(used: Mapping[str, float], scores: Scores, known: set[str]) -> Scores:
    """New scores of what is used, and of every character."""
    counts = {
        piece: max(used.get(piece, 0.0), FLOOR)
        for piece in scores
        if used.get(piece, 0.0) > FLOOR or piece in known
    }
    total = sum(counts.values())
    return {piece: math.log(n / total) for piece, n in counts.items()}


def _prune(scores: Scores, used: Mapping[str, float], known: set[str], size: int) -> Scores:
    """Keep every character, and the pieces whose loss would cost most."""
    cost = {
        piece: used[piece] * (score - _best_without(piece, scores))
        for piece, score in scores.items()
        if piece not in known
    }
    ranked = sorted(cost, key=lambda piece: (-cost[piece], piece))
    kept = set(ranked[: size - len(known)]) | known
    return {piece: score for piece, score in scores.items() if piece in kept}


def _best_without(piece: str, scores: Scores) -> float:
    """Log probability of the best spelling of a piece by other ones."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            part = piece[start:end]
            if part != piece and part in scores:
                best[end] = max(best[end], best[start] + scores[part])
    return best[-1]
