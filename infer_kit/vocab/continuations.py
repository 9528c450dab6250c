"""Many continuations of few prompts, scored together: every prompt is read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infer_kit.errors import InferKitError
from infer_kit.vocab.ensemble import Ensemble
from infer_kit.vocab.members import as_texts, prompts_for
from infer_kit.vocab.pace import Pace
from infer_kit.vocab.pooled_text import PooledText
from infer_kit.vocab.reducer import ZeroProbability
from infer_kit.vocab.results import LogProb


@dataclass(frozen=True)
class Continuation:
    """A text after a prompt.

    Attributes:
        logprob: given the prompt, as `Ensemble.logprob` gives it.
        is_greedy: whether greedy decoding writes this text, symbol by symbol.
    """

    logprob: LogProb
    is_greedy: bool


def score_continuations(
    ensemble: Ensemble, prompts: Sequence[Any], continuations: Sequence[Sequence[str]]
) -> list[list[Continuation]]:
    """Bounds on log P(text | prompt) of several texts after each of several prompts.

    The numbers are those of `Ensemble.logprob`; a prompt is read once for all its continuations.

    Args:
        ensemble: over bytes.
        prompts: texts, chats, or None for nothing.
        continuations: of each prompt, texts that are not empty.

    Raises:
        InferKitError: the ensemble is over another alphabet, or a text is empty.
    """
    if ensemble.alphabet != "bytes":
        raise InferKitError(
            f"Continuations are scored over bytes, not over {ensemble.alphabet}.",
            hint="Ensemble(..., vocabulary='bytes'), or ensemble.logprob.",
        )
    if not prompts or len(prompts) != len(continuations):
        raise InferKitError(f"Got {len(continuations)} lists of texts for {len(prompts)} prompts.")
    given = [prompts_for([""], [p])[0] if p is not None else None for p in prompts]
    pieces = [as_texts(list(texts)) for texts in continuations]
    opened, readers = ensemble._start(ensemble._conditionings(given))
    rows = [
        text.fork() for text, several in zip(opened, pieces, strict=True) for _ in several
    ]  # what stays in `opened` is not read on, and not kept by the readers
    flat = [piece for several in pieces for piece in several]
    greedy = _read_all(Pace(rows, readers), [tuple(piece.encode()) for piece in flat])
    leaks = ensemble._leaks(rows)
    calls = tuple(reader.calls for reader in readers)
    scored = []
    for text, piece, leak, is_greedy in zip(rows, flat, leaks, greedy, strict=True):
        low, high, members = text.logprob(False)
        score = LogProb(low, high, members, len(piece.encode()), leak, calls)
        scored.append(Continuation(score, is_greedy))
    rest = iter(scored)
    return [[next(rest) for _ in several] for several in pieces]


def _read_all(pace: Pace, symbols: Sequence[Sequence[int]]) -> list[bool]:
    """Read texts to their ends, each at its own pace; whether each is what greedy decoding says."""
    greedy = [True] * len(symbols)
    for row, place in pace.score(symbols):
        text = pace.texts[row]
        # The law is asked for as long as the text may still be greedy, most often once.
        greedy[row] = greedy[row] and _likeliest(text) == symbols[row][place]
    return greedy


def _likeliest(text: PooledText) -> int | None:
    """What greedy decoding writes next; None where nothing can follow."""
    try:
        return int(text.law().argmax())
    except ZeroProbability:
        return None
