"""Answers of the in-context model in full context and in chunks, by the library itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from infer_kit.demo.icl.episodes import Episode
from infer_kit.methods.parallel_icl import ParallelICL
from infer_kit.streams import Group

SHOTS = (0, 1, 2, 4, 8, 16)
CHUNKS = (1, 2, 4)
"""Chunks are k-means clusters of what the model itself sees."""

ANSWER: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}
QUERIES_AT_ONCE = 64
LATENCY_SHOTS = (4, 16, 64, 256)
LATENCY_WAYS: dict[str, dict[str, Any]] = {
    "K=2, bank": {"chunks": 2},
    "K=4, bank": {"chunks": 4},
    "K=4, bank, uniform": {"chunks": 4, "weighting": "uniform"},
    "K=4, no bank": {"chunks": 4, "bank": False},
}
"""Arguments of `ParallelICL`; weights by similarity unless said."""


Chat = list[dict[str, Any]]


def name_of(chunks: int, weighting: str) -> str:
    """What a way of answering is called."""
    return "full context" if chunks == 1 else f"K={chunks}, {weighting}"


def answers(
    model: Any, processor: Any, episodes: Sequence[Episode], shots: int, chunks: int
) -> dict[str, list[str]]:
    """Way to the answer of each episode's query after its first `shots` demonstrations.

    Every episode has demonstrations of its own, so each is fitted; queries are answered together.
    """
    picl = ParallelICL(model, processor, chunks, trace=False)
    weightings = ("uniform", "similarity") if chunks > 1 else ("uniform",)
    groups: dict[str, list[Group]] = {name_of(chunks, weighting): [] for weighting in weightings}
    for episode in episodes:
        picl.fit(episode.records(shots))
        for weighting in weightings:
            picl.weighting = weighting
            groups[name_of(chunks, weighting)].append(picl.group([episode.query.turn()]))
    out = {}
    for way, every in groups.items():
        batches = range(0, len(every), QUERIES_AT_ONCE)
        texts = [picl.run(every[n : n + QUERIES_AT_ONCE], **ANSWER).text for n in batches]
        out[way] = [
            t.strip() for some in texts for t in ([some] if isinstance(some, str) else some)
        ]
    return out


def guesses(model: Any, processor: Any, episodes: Sequence[Episode]) -> list[str]:
    """The answer to each query without demonstrations."""
    chats = [[episode.query.turn()] for episode in episodes]
    texts = []
    for chat in chats:
        row = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        new = model.generate(**row, **ANSWER)[0, row["input_ids"].shape[1] :]
        texts.append(processor.decode(new, skip_special_tokens=True).strip())
    return texts


def accuracies(
    model: Any,
    processor: Any,
    episodes: Sequence[Episode],
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[int, float]]:
    """Way to number of shots to the share of right answers; chunks need as many shots."""

    def share(given: Sequence[str]) -> float:
        pairs = zip(given, episodes, strict=True)
        return sum(text == episode.query.answer for text, episode in pairs) / len(episodes)

    out: dict[str, dict[int, float]] = {}
    for shots in SHOTS:
        for chunks in CHUNKS:
            if chunks > max(shots, 1):
                continue
            progress(f"{shots} shots, K={chunks}")
            given = (
                answers(model, processor, episodes, shots, chunks)
                if shots
                else {name_of(1, ""): guesses(model, processor, episodes)}
            )
            for way, texts in given.items():
                out.setdefault(way, {})[shots] = share(texts)
    return out


def fitted_steps() -> int:
    """How often `accuracies` calls `progress`."""
    return sum(chunks <= max(shots, 1) for shots in SHOTS for chunks in CHUNKS)


def most_shots(model: Any, processor: Any, episode: Episode) -> int:
    """The largest of `LATENCY_SHOTS` whose context the model takes, with a query and its answer."""
    limit = model.config.get_text_config(decoder=True).max_position_embeddings
    one = processor.apply_chat_template(
        episode.demonstrations[0].turns(), tokenize=True, return_dict=True, return_tensors="pt"
    )["input_ids"].shape[1]
    return max(shots for shots in LATENCY_SHOTS if (shots + 2) * one <= limit)


def latencies(
    model: Any, processor: Any, episode: Episode, shots: int, rounds: int
) -> dict[str, float]:
    """Median CPU seconds of a query, by way, in interleaved rounds.

    From chat to answer: image processing, rendering, features, weights, prefill and decoding. The
    full context is read by plain `model.generate()`.

    Args:
        episode: with at least `shots` demonstrations.
    """
    demos = episode.records(shots)
    turns = [turn for shown in episode.demonstrations[:shots] for turn in shown.turns()]
    query: Chat = [episode.query.turn()]

    def plain() -> None:
        row = processor.apply_chat_template(
            [*turns, *query],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        model.generate(**row, **ANSWER)

    sides: dict[str, Callable[[], Any]] = {"full context": plain}
    for name, arguments in LATENCY_WAYS.items():
        picl = ParallelICL(model, processor, chunking="balanced", trace=False, **arguments)
        sides[name] = partial(picl.fit(demos).generate, query, **ANSWER)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            started = time.process_time()
            side()
            if turn:  # the first round warms up
                times[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
