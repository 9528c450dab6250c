"""`PRTConfig`: what a reward is trained with beyond the arguments of any trainer."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infer_kit.errors import InferKitError

_CACHES = ("none", "full", "hidden", "topk")
_TAILS = ("uniform", "corpus")


@dataclass(frozen=True)
class PRTConfig:
    """Settings of portable reward tuning (Chijiwa et al., ICML 2025, arXiv 2502.12776).

    Attributes:
        beta: β, the strength of the reward in training; 1 in the paper.
        alpha: α, weight of the rewards' own entropy; 0 in the paper.
        base_cache: what is kept of the base for every label of the training data, so that it runs
            once and not in every epoch:
            "none": nothing, the base runs in every step; exact.
            "full": V log-probabilities, 4·V bytes a label; exact.
            "hidden": the last hidden state, on which the base's own head is run; exact, 2·d bytes
            a label in a 16-bit model.
            "topk": the `topk` likeliest ids and the label's own; not exact, 6·topk bytes a label.
        topk: ids kept by the cache "topk".
        tail: how "topk" spreads the mass of the other ids: evenly ("uniform") or as often as they
            are labels of the training data, each counted once more ("corpus").
        chunk: labels at a time whose scores are made from hidden states, by the models' own heads;
            None: all scores at once. It saves memory where the vocabulary is large.
        cache_dir: folder of the cache; default: `base_cache` in the trainer's output folder.
    """

    beta: float = 1.0
    alpha: float = 0.0
    base_cache: Literal["none", "full", "hidden", "topk"] = "none"
    topk: int = 64
    tail: Literal["uniform", "corpus"] = "uniform"
    chunk: int | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("alpha", self.alpha)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InferKitError(f"{name} is {value!r}; expected a number.")
            if not math.isfinite(value):
                raise InferKitError(f"{name} is {value}; expected a finite number.")
        if self.beta == 0:
            raise InferKitError(
                "beta is 0: the reward would have no part in the loss and learn nothing.",
                hint="1 is the paper's strength.",
            )
        _one_of("base_cache", self.base_cache, _CACHES)
        _one_of("tail", self.tail, _TAILS)
        _count("topk", self.topk)
        if self.chunk is not None:
            _count("chunk", self.chunk)
        if self.base_cache != "topk" and self.tail != "uniform":
            raise InferKitError(
                f"tail={self.tail!r} has no effect with base_cache={self.base_cache!r}.",
                hint='The tail is what base_cache="topk" leaves out.',
            )
        if self.base_cache == "none" and self.cache_dir is not None:
            raise InferKitError(
                'cache_dir has no effect with base_cache="none".',
                hint='Choose base_cache="full", "hidden" or "topk", or leave cache_dir out.',
            )


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InferKitError(f"{name} is {value!r}; expected one of {', '.join(known)}.")


def _count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InferKitError(f"{name} is {value!r}; expected a whole number of at least 1.")
