"""Slow, obvious references: float64, no cache, no trie, no window, no pruning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from infer_kit.vocab.canonical import CONTEXTS, Canonicality
from infer_kit.vocab.conditioning import Conditioning
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.utf8 import is_beginning, open_tail
from infer_kit.vocab.vocabulary import Vocabulary

Float = NDArray[np.float64]
Tokens = tuple[int, ...]
Symbols = tuple[int, ...]

# Language models -----------------------------------------------------------------------------


class UncachedLM:
    """The forest interface over a function of whole sequences; every node is read anew.

    Args:
        logits: (token ids) -> [V].
    """

    def __init__(self, logits: Callable[[Tokens], Float]) -> None:
        self._logits = cache(logits)
        self._sequences: list[Tokens] = []
        self.calls = self.rows = 0

    def logits(self, sequence: Tokens) -> Float:
        return self._logits(sequence)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[list[int], Tensor]:
        return self._read(map(tuple, prompts))

    def extend(self, nodes: Sequence[tuple[int, int]]) -> tuple[list[int], Tensor]:
        self.rows += len(nodes)
        return self._read((*self._sequences[node], token) for node, token in nodes)

    def keep(self, live: Iterable[int]) -> None:
        pass

    def _read(self, sequences: Iterable[Tokens]) -> tuple[list[int], Tensor]:
        first = len(self._sequences)
        self._sequences.extend(sequences)
        self.calls += 1
        nodes = list(range(first, len(self._sequences)))
        return nodes, torch.from_numpy(
            np.stack([self.logits(self._sequences[node]) for node in nodes])
        )


def hashed(
    size: int, seed: int = 0, spread: float = 1.5, favoured: Iterable[int] = ()
) -> UncachedLM:
    """Logits that depend on the whole sequence; `favoured` tokens are likelier."""
    raised = np.zeros(size)
    raised[list(favoured)] = 8.0

    def logits(sequence: Tokens) -> Float:
        digest = hashlib.sha256(repr((seed, sequence)).encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return spread * draw.standard_normal(size) + raised

    return UncachedLM(logits)


def cheap(size: int, spread: float = 3.0) -> UncachedLM:
    """Logits that depend on the last token alone, one of seven laws: quick for large V."""
    laws = spread * np.random.default_rng(0).standard_normal((7, size)).astype(np.float32)
    lm = UncachedLM(lambda sequence: laws[sequence[-1] % 7])
    lm._logits = lambda sequence: laws[sequence[-1] % 7]  # nothing to remember
    return lm


def uncached(model: torch.nn.Module) -> UncachedLM:
    @torch.no_grad()
    def logits(sequence: Tokens) -> Float:
        return model(torch.tensor([sequence]), use_cache=False).logits[0, -1].numpy()

    return UncachedLM(logits)


@cache
def tiny_llama(size: int) -> UncachedLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.8,
        bos_token_id=None,
        eos_token_id=0,
    )
    return uncached(LlamaForCausalLM(config).double().eval())


@cache
def tiny_gpt2(size: int) -> UncachedLM:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=size,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return uncached(GPT2LMHeadModel(config).double().eval())


class TokenLaw:
    """Next-token law over tokens with text and END: softmax without what is banned."""

    def __init__(self, lm: UncachedLM, vocabulary: Vocabulary, prompt: Tokens) -> None:
        self._lm = lm
        self._prompt = prompt
        self._text = [id for id, text in enumerate(vocabulary.tokens) if text is not None]
        self._ends = list(vocabulary.end_ids)
        self.size = vocabulary.size
        self.after = cache(self._after)

    def _after(self, tokens: Tokens) -> tuple[Float, float]:
        """[V] probabilities (0 for tokens without text), and that of END."""
        logits = np.asarray(self._lm.logits((*self._prompt, *tokens)), np.float64)
        weights = np.exp(logits - logits.max())
        total = weights[self._text + self._ends].sum()
        law = np.zeros(self.size)
        law[self._text] = weights[self._text] / total
        return law, float(weights[self._ends].sum() / total)


# Enumeration: sums over the relative cover ---------------------------------------------------


def cover_sums(
    law: TokenLaw, phi: dict[int, Symbols], longest: int
) -> tuple[dict[Symbols, float], dict[Symbols, float]]:
    r"""P(y) and P(y END) of every string of at most `longest` symbols, by the definition.

    $P(y) = \sum_x P(x)$ over all x whose symbols begin with y while those of x without its last
    token do not; $P(y\,END) = \sum_{\phi(x) = y} P(x)\,p(END|x)$.
    """
    begins: dict[Symbols, list[float]] = {(): [1.0]}
    ends: dict[Symbols, list[float]] = {}

    def visit(tokens: Tokens, spelled: Symbols, mass: float) -> None:
        masses, end = law.after(tokens)
        ends.setdefault(spelled, []).append(mass * end)
        if len(spelled) == longest:
            return
        for token, symbols in phi.items():
            longer = spelled + symbols
            share = mass * masses[token]
            for count in range(len(spelled) + 1, min(longest, len(longer)) + 1):
                begins.setdefault(longer[:count], []).append(share)
            if len(longer) <= longest:
                visit((*tokens, token), longer, share)

    visit((), (), 1.0)
    return tuple({y: float(np.sum(sorted(m))) for y, m in sums.items()} for sums in (begins, ends))


# Canonical tokens, judged from the beginning of the text ---------------------------------------


class SlowCanonical:
    """Which tokens a tokenizer may have written, from the whole text, each time anew.

    Tokenizers that split texts ("windowed"): completed tokens x are accepted if `encode(b(x) + c)`
    begins with x for some right context c; or, in byte-level BPE, if under some c a word (no added
    token) goes on across the end of b(x), and x ends with what BPE makes of its part in b(x).

    A place in the text is certain if a word of the pre-tokenizer begins there under every c (and
    where the text is cut before what may become an added token), with the same tokens before it:
    nothing else may stand before it, nor a token in progress lie across it.

    Others: x is accepted if `encode(b(x))` is x. Nothing is ever certain.

    Where b(x) ends inside a character: in byte-level BPE, the bytes since the last word's
    beginning, or since the character's, must be merged as they are in x; elsewhere, if x ends with
    one byte token for each byte of it, what is before is judged.
    """

    def __init__(self, vocabulary: Vocabulary, windowed: bool) -> None:
        self._vocabulary = vocabulary
        self._encoder = vocabulary.encoder
        self._windowed = windowed
        self._byte_level = vocabulary.kind == "byte_bpe"
        self._bytes_of = {id: byte for byte, id in vocabulary.byte_ids.items()}
        self._ranks: dict[tuple[bytes, bytes], int] = {}
        tokens = vocabulary.tokens
        for rank, (left, right, _) in enumerate(vocabulary.merges.tolist()):
            self._ranks.setdefault((tokens[left], tokens[right]), rank)
        self._added = {tokens[id] for id in self._encoder.get_added_tokens_decoder()} - {None}
        self._id_of = {}
        added = self._encoder.get_added_tokens_decoder()
        for id in vocabulary.text_ids.tolist():
            if id not in added:
                self._id_of.setdefault(tokens[id], id)
        self.readings = cache(self._readings)

    def accepts(self, x: Tokens, text: bytes) -> bool:
        if self._byte_level and not self._windowed:
            return x == self._merge(text)
        if not is_beginning(text):
            return self._windowed  # no UTF-8 has no encoding: windows do not judge it
        rest = open_tail(text)
        whole = text[: len(text) - len(rest)].decode()
        if not rest:
            return self._begins(x, whole)
        if self._byte_level:
            return self._accepts_open(x, text, whole)
        tail = bytes(self._bytes_of.get(token, 0) for token in x[-len(rest) :])
        return tail != rest or self._begins(x[: -len(rest)], whole)

    def _begins(self, x: Tokens, whole: str) -> bool:
        if not self._windowed:
            return x == tuple(self._encoder.encode(whole, add_special_tokens=False).ids)
        readings = self.readings(whole)
        if any(tokens[: len(x)] == x for tokens, _, _ in readings):
            return True
        text = whole.encode()
        for tokens, ends, starts in readings if self._byte_level else ():
            begin = max([start for start in starts if start < len(text)], default=0)
            before = tokens[: sum(end <= begin for end in ends)]
            goes_on = max(ends, default=0) > len(text) not in starts
            if goes_on and self._vocabulary.tokens[tokens[len(before)]] in self._added:
                continue
            if goes_on and begin in (0, *ends) and x == before + self._merge(text[begin:]):
                return True
        return False

    def _accepts_open(self, x: Tokens, text: bytes, whole: str) -> bool:
        length = len(whole.encode())
        for tokens, ends, starts in self.readings(whole):
            for place in (max([s for s in starts if s <= length], default=0), length):
                before = tokens[: sum(end <= place for end in ends)]
                if place not in (0, *ends):
                    continue
                if x == before + self._merge(text[place:]):
                    return True
        return False

    def certain(self, text: bytes) -> Tokens:
        """The tokens that nothing can change any more."""
        if not self._windowed:
            return ()
        rest = open_tail(text)
        whole = text[: len(text) - len(rest)].decode()
        readings = [(*reading, None) for reading in self.readings(whole)]
        last = len(text)
        for added in self._added:
            for count in range(1, len(added)):
                if text.endswith(added[:count]):
                    cut = len(text) - count
                    last = min(last, cut)
                    readings.append((*self.readings(text[:cut].decode())[0], cut))
        places = set(range(1, last + 1))
        for number, (_, _, starts, cut) in enumerate(readings):
            end = cut if cut is not None else len(whole.encode()) if number == 0 else None
            places &= {*starts, end}
        if not places:
            return ()
        place = max(places)
        befores = [tokens[: sum(e <= place for e in ends)] for tokens, ends, _, _ in readings]
        if place not in readings[0][1] or len(set(befores)) > 1:
            return ()
        return befores[0]

    def _readings(self, whole: str) -> list[tuple[Tokens, tuple[int, ...], set[int]]]:
        """For each right context: tokens, where they end, where words begin; in bytes."""
        found = []
        for context in CONTEXTS:
            encoding = self._encoder.encode(whole + context, add_special_tokens=False)
            ids: list[int] = []
            for id in encoding.ids:
                if self._vocabulary.tokens[id] is None:
                    break
                ids.append(id)
            ends = np.cumsum([len(self._vocabulary.tokens[id]) for id in ids]).astype(int)
            words = encoding.word_ids[: len(ids)]
            changed = [i for i in range(len(ids)) if i == 0 or words[i] != words[i - 1]]
            starts = {0 if i == 0 else int(ends[i - 1]) for i in changed}
            found.append((tuple(ids), tuple(ends.tolist()), starts))
        return found

    def _merge(self, text: bytes) -> Tokens:
        """BPE by the book: the merge that comes first, over and over."""
        parts = [text[i : i + 1] for i in range(len(text))]
        never = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, never) for pair in pairwise(parts)]
            at = int(np.argmin(ranks))
            if ranks[at] == never:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return tuple(self._id_of[part] for part in parts)


# The reduced law, hypothesis by hypothesis -----------------------------------------------------


class SlowReducer:
    r"""P(y) over bytes, as a sum over all pairs (completed tokens x, bytes u of one in progress).

    Mode "full": all pairs. "late": x was accepted whenever a token was completed, and no certain
    place ever contradicted it. "early": the same, with $p(v|x)$ over accepted $xv$, normalised.
    """

    def __init__(
        self,
        law: TokenLaw,
        vocabulary: Vocabulary,
        mode: str,
        canonical: SlowCanonical | None = None,
    ) -> None:
        self._law = law
        self._mode = mode
        self._canonical = canonical
        self._tokens = vocabulary.tokens
        self._starting: dict[bytes, list[int]] = {}
        for id, text in enumerate(vocabulary.tokens):
            for end in range(len(text or b"") + 1):
                if text is not None:
                    self._starting.setdefault(text[:end], []).append(id)
        self.text = b""
        self._pairs: list[tuple[Tokens, bytes, float]] = [((), b"", 1.0)]
        self._laws: dict[Tokens, tuple[Float, float]] = {}

    def _after(self, x: Tokens) -> tuple[Float, float]:
        masses, end = self._law.after(x)
        if self._mode != "early":
            return masses, end
        if x not in self._laws:
            before = b"".join(self._tokens[token] for token in x)
            kept = np.zeros(len(masses))
            for v in self._starting[b""]:
                if self._canonical.accepts((*x, v), before + self._tokens[v]):
                    kept[v] = masses[v]
            total = kept.sum() + end
            self._laws[x] = kept / total, end / total
        return self._laws[x]

    def advance(self, byte: int) -> None:
        self.text += bytes([byte])
        pairs = []
        for x, u, weight in self._pairs:
            longer = u + bytes([byte])
            masses, _ = self._after(x)
            going = self._starting.get(longer, [])
            for v in going:
                if self._tokens[v] == longer and masses[v] > 0:
                    completed = (*x, v)
                    if self._canonical is None or self._canonical.accepts(completed, self.text):
                        pairs.append((completed, b"", weight * masses[v]))
            if any(self._tokens[v] != longer for v in going):
                pairs.append((x, longer, weight))
        if self._canonical is not None:
            certain = self._canonical.certain(self.text)
            pairs = [pair for pair in pairs if pair[0][: len(certain)] == certain]
        self._pairs = pairs

    @property
    def hypotheses(self) -> int:
        """Sequences of completed tokens that end here: each needs a row of the model."""
        return sum(not u for _, u, _ in self._pairs)

    def mass(self) -> float:
        """P(y)."""
        return float(sum(weight * self._inner(x, u) for x, u, weight in self._pairs))

    def _inner(self, x: Tokens, u: bytes) -> float:
        if not u:
            return 1.0
        return self._after(x)[0][[v for v in self._starting[u] if self._tokens[v] != u]].sum()

    def end(self) -> float:
        """P(y END)."""
        return sum(weight * self._after(x)[1] for x, u, weight in self._pairs if not u)

    def next(self) -> Float:
        """[257] law of the next byte, END last."""
        law = np.zeros(257)
        for x, u, weight in self._pairs:
            masses, _ = self._after(x)
            for byte in range(256):
                going = self._starting.get(u + bytes([byte]))
                if going is not None:
                    law[byte] += weight * masses[going].sum()
        law[256] = self.end()
        return law / law.sum()


# Driving the reducer ---------------------------------------------------------------------------


def opened(
    reduction: Reduction,
    lm: UncachedLM,
    prompt: Sequence[int],
    eps: float = 0.0,
    prefetch: float | None = None,
) -> tuple[CertifiedReducer, Reader]:
    reader = Reader(reduction, lm, prefetch)
    reducer = CertifiedReducer(reduction, eps)
    reducer.open(reader.begin([prompt])[0])
    return reducer, reader


def conditioned(
    reduction: Reduction, lm: UncachedLM, conditioning: Conditioning, eps: float = 0.0
) -> tuple[CertifiedReducer, Reader]:
    """A reducer that has read a prompt, its forced bytes too."""
    reader = Reader(reduction, lm, None)
    reducer = CertifiedReducer(reduction, eps)
    reducer.open(reader.begin([conditioning.ids])[0], conditioning.before)
    forced = reduction.of_tokens(conditioning.forced)
    read(reducer, reader, forced or conditioning.prefix)
    reducer.condition()
    return reducer, reader


def read(reducer: CertifiedReducer, reader: Reader, symbols: Iterable[int]) -> CertifiedReducer:
    for symbol in symbols:
        reader.run([reducer.advance(symbol)], [reducer])
    return reducer


def reached(
    reducer: CertifiedReducer, reader: Reader, symbols: Sequence[int], longest: int
) -> Iterator[tuple[Symbols, CertifiedReducer]]:
    """Every string of at most `longest` symbols that has any mass, and the reducer there."""
    stack = [((), reducer)]
    while stack:
        y, here = stack.pop()
        yield y, here
        if len(y) < longest:
            law = here.next()
            for symbol in symbols:
                if law[symbol] > 0:
                    twin = read(here.fork(), reader, [symbol])
                    stack.append(((*y, symbol), twin))


def total_variation(p: Float, q: Float) -> float:
    return 0.5 * float(np.abs(p - q).sum())


def rejections(
    canonicality: Canonicality,
    vocabulary: Vocabulary,
    ids: Sequence[int],
    before: Sequence[int] = (),
) -> list[int]:
    """Places of tokens that are rejected, where a reducer goes along `ids` byte by byte."""
    window, since = canonicality.open(before)
    found = []
    for place, token in enumerate(ids):
        spelling = vocabulary.tokens[token]
        alive = True
        for count, byte in enumerate(spelling, 1):
            window = window.step(bytes([byte]))
            if count == len(spelling):
                longer = canonicality.follow(window, since, token)
                alive = alive and longer is not None
                since = longer or ()
            moved, certain = window.anchored()
            if moved is not window:
                alive = alive and since[: len(certain)] == certain
                window, since = moved, since[len(certain) :]
        if not alive:
            found.append(place)
            window, since = canonicality.open()
    return found
