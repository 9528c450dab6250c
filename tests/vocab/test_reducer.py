"""The reducer's laws against sums over all token sequences, in float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infer_kit.vocab.reducer import CertifiedReducer
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.submap import SubwordMap, common_vocabulary
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import reference, trained
from tests.vocab.reference import (
    Symbols,
    TokenLaw,
    UncachedLM,
    cover_sums,
    hashed,
    opened,
    reached,
    total_variation,
)

PROMPT = (0,)  # END, which any model has
T4_SEEDS = 4
MOST = 100  # strings that are enumerated
ALPHABETS = ("bytes", "subset", "random_phi", "duplicates", "all_tokens", "common")
LANGUAGE_MODELS = {
    "hashed": lambda size, seed: hashed(size, seed),
    "llama": lambda size, seed: reference.tiny_llama(size),
    "gpt2": lambda size, seed: reference.tiny_gpt2(size),
}


# Small vocabularies ----------------------------------------------------------------------------


def small_vocabulary(draw: random.Random, duplicates: bool) -> Vocabulary:
    """Letters a, b, c and some longer tokens over them; END, and one that is banned."""
    letters = [b"a", b"b", b"c"]
    longer: set[bytes] = set()
    while len(longer) < draw.randint(3, 5):
        longer.add(b"".join(draw.choice(letters) for _ in range(draw.randint(2, 4))))
    texts: list[bytes | None] = [*letters, *sorted(longer)]
    if duplicates:
        texts += draw.sample(texts, 2)
    draw.shuffle(texts)
    ends = (0, len(texts) + 2)  # END is both together
    return Vocabulary(tokens=(None, *texts, None, None), end_ids=ends, kind="words")


@cache
def small_bpe(seed: int) -> Vocabulary:
    draw = random.Random(seed)
    text = "".join(draw.choice(("a", "b", "c", "ab", "bca", "cc")) for _ in range(400))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=7 + seed % 3, special_tokens=["<s>"], show_progress=False
    )
    core.train_from_iterator([text[i : i + 10] for i in range(0, 400, 10)], trainer)
    return Vocabulary.from_hf(trained.wrapped(core, eos_token="<s>", bos_token="<s>"))


def random_phi(draw: random.Random, text: bytes, index: dict[bytes, int]) -> Symbols:
    """Any cut of a text into symbols."""
    if not text:
        return ()
    ends = [end for end in range(1, len(text) + 1) if text[:end] in index]
    end = draw.choice(ends)
    return (index[text[:end]], *random_phi(draw, text[end:], index))


@dataclass
class Case:
    vocabulary: Vocabulary
    map: SubwordMap
    lm: UncachedLM

    @property
    def phi(self) -> dict[int, Symbols]:
        return {id: self.map.phi(id) for id in self.vocabulary.text_ids.tolist()}

    @property
    def used(self) -> list[int]:
        return sorted({symbol for symbols in self.phi.values() for symbol in symbols})

    @property
    def longest(self) -> int:
        """Symbols of the strings that are enumerated."""
        return int(math.log(MOST, len(self.used)))

    @property
    def law(self) -> TokenLaw:
        return TokenLaw(self.lm, self.vocabulary, PROMPT)

    def opened(self, eps: float = 0.0) -> tuple[CertifiedReducer, reference.Reader]:
        return opened(Reduction(self.vocabulary, self.map, "full"), self.lm, PROMPT, eps)


@dataclass
class Exact:
    logprob: tuple[float, float]
    end: float
    law: reference.Float


@cache
def case(alphabet: str, lm: str, seed: int) -> Case:
    draw = random.Random(f"{alphabet}{seed}")
    if alphabet == "common":
        vocabulary = small_bpe(seed)
        symbols = common_vocabulary(vocabulary, small_bpe(seed + 1))
        mapped = SubwordMap(vocabulary, symbols, ("bpe", "greedy", "shortest")[seed % 3])
    else:
        vocabulary = small_vocabulary(draw, alphabet == "duplicates" or seed % 2 == 1)
        texts = sorted({text for text in vocabulary.tokens if text is not None})
        if alphabet in ("bytes", "duplicates"):
            mapped = SubwordMap(vocabulary, "bytes")
        elif alphabet == "all_tokens":
            mapped = SubwordMap(vocabulary, texts, "greedy")
        else:
            longer = [text for text in texts if len(text) > 1]
            symbols = [b"a", b"b", b"c", *draw.sample(longer, 2)]
            if alphabet == "subset":
                mapped = SubwordMap(vocabulary, symbols, ("greedy", "shortest")[seed % 2])
            else:
                index = {symbol: place for place, symbol in enumerate(symbols)}
                phi = [random_phi(draw, text or b"", index) for text in vocabulary.tokens]
                mapped = SubwordMap.from_phi(vocabulary, symbols, phi)
    return Case(vocabulary, mapped, LANGUAGE_MODELS[lm](vocabulary.size, seed))


SEEDS = {"hashed": 8, "llama": 1, "gpt2": 1}
CASES = [
    (alphabet, lm, seed) for alphabet in ALPHABETS for lm, n in SEEDS.items() for seed in range(n)
]
parametrized = pytest.mark.parametrize(("alphabet", "lm", "seed"), CASES)


# Mode "full" by enumeration ----------------------------------------------------------------------


def test_there_are_enough_configurations() -> None:
    assert len(CASES) >= 60


@cache
def enumerated(alphabet: str, lm: str, seed: int) -> dict[Symbols, Exact]:
    """What the exact reducer says of every string that has any mass."""
    this = case(alphabet, lm, seed)
    return {
        y: Exact(here.logprob(), here.logprob_end()[0], here.next())
        for y, here in reached(*this.opened(), this.used, this.longest)
    }


@parametrized
def test_probabilities_are_sums_over_the_relative_cover(alphabet: str, lm: str, seed: int) -> None:
    this = case(alphabet, lm, seed)
    begins, ends = cover_sums(this.law, this.phi, this.longest)
    found = enumerated(alphabet, lm, seed)
    assert found.keys() == begins.keys()
    for y, exact in found.items():
        assert exact.logprob[0] == exact.logprob[1]
        assert math.exp(exact.logprob[0]) == pytest.approx(begins[y], rel=1e-10)
        assert math.exp(exact.end) == pytest.approx(ends.get(y, 0.0), rel=1e-10)


@parametrized
def test_texts_keep_their_probability(alphabet: str, lm: str, seed: int) -> None:
    this = case(alphabet, lm, seed)
    letters = {id: tuple(this.vocabulary.spell([id])) for id in this.phi}
    _, by_tokens = cover_sums(this.law, letters, this.longest)
    by_symbols: dict[Symbols, float] = {}
    for y, exact in enumerated(alphabet, lm, seed).items():
        text = tuple(this.map.spell(y))
        if len(text) <= this.longest:
            by_symbols[text] = by_symbols.get(text, 0.0) + math.exp(exact.end)
    for text, mass in by_tokens.items():
        assert by_symbols.pop(text) == pytest.approx(mass, rel=1e-10)
    assert not any(by_symbols.values())


@parametrized
def test_next_sums_to_one_and_goes_on_from_the_text(alphabet: str, lm: str, seed: int) -> None:
    this = case(alphabet, lm, seed)
    found = enumerated(alphabet, lm, seed)
    for y, exact in found.items():
        assert abs(exact.law.sum() - 1) < 1e-12
        if len(y) == this.longest:
            continue
        mass = math.exp(exact.logprob[0])
        onward = [math.exp(found[z].logprob[0]) if (z := (*y, s)) in found else 0.0
                  for s in this.used]  # fmt: skip
        onward.append(math.exp(exact.end))
        assert math.fsum(onward) == pytest.approx(mass, rel=1e-12)
        np.testing.assert_allclose(exact.law[[*this.used, -1]] * mass, onward, rtol=1e-11)


@parametrized
def test_dropped_fractions_bound_the_law_of_whole_strings(
    alphabet: str, lm: str, seed: int
) -> None:
    """Half the L1 distance of the laws of n symbols is at most E_pruned[sum of fractions]."""
    this = case(alphabet, lm, seed)
    found = enumerated(alphabet, lm, seed)
    for eps in (0.02, 0.3):
        reducer, reader = this.opened(eps)
        exact, pruned, bound = [], [], 0.0
        likelihoods: dict[Symbols, float] = {(): 1.0}
        for y, here in reached(reducer, reader, this.used, this.longest):
            mass, law = likelihoods[y], here.next()
            if len(y) == this.longest:
                exact.append(math.exp(found[y].logprob[0]))
                pruned.append(mass)
                continue
            for symbol in this.used:
                likelihoods[(*y, symbol)] = mass * law[symbol]
            exact.append(math.exp(found[y].end))
            pruned.append(mass * law[-1])
            # Nothing after the last symbol matters.
            if len(y) == this.longest - 1 or law[-1] > 0:
                last = mass * (1.0 if len(y) == this.longest - 1 else law[-1])
                bound += last * here.stats.dropped
        missed = 1.0 - math.fsum(exact)  # strings that the pruned law gives nothing
        distance = 0.5 * (np.abs(np.subtract(exact, pruned)).sum() + missed)
        assert sum(pruned) == pytest.approx(1.0, abs=1e-12)
        assert distance <= bound + 1e-12
        assert distance > 0 or bound == 0


def test_pruned_laws_are_within_their_bound_in_mode_full() -> None:
    states, closest = 0, 0.0
    for alphabet, lm, seed in CASES:
        this = case(alphabet, lm, seed)
        if lm != "hashed" or seed >= T4_SEEDS:
            continue
        found = enumerated(alphabet, lm, seed)
        for eps in (1e-3, 0.05, 0.5):
            for y, here in reached(*this.opened(eps), this.used, this.longest):
                states += 1
                error = total_variation(found[y].law, here.next())
                assert error <= here.tv_bound + 1e-12
                closest = max(closest, error / here.tv_bound if here.tv_bound else 0.0)
                low, high = here.logprob()
                assert low - 1e-12 <= found[y].logprob[0] <= high + 1e-12
    assert states > 4_000
    assert closest > 0.9  # the bound is of the right size
