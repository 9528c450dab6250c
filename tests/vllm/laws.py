"""What the tests of methods on both backends share: pictures, chats, and when answers are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

Chat = list[dict[str, Any]]


def picture(number: int, size: int = 20) -> Image.Image:
    """The same number, the same pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def chat(text: str, *images: Any) -> Chat:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def demonstrations(count: int, images: bool = True) -> list[dict[str, Any]]:
    """Questions and answers, of unequal length."""
    demos: list[dict[str, Any]] = [
        {
            "question": f"what is in {n}?" + " then" * (n % 3),
            "answer": "the " * (n % 2) + f"ring {n}",
        }
        for n in range(count)
    ]
    return [demo | {"image": picture(50 + n)} for n, demo in enumerate(demos)] if images else demos


def check_traces(ours: Any, theirs: Any) -> None:
    """Traces of one answer or of several, 1e-4."""
    if not isinstance(ours, list | tuple):
        ours, theirs = [ours], [theirs]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.streams == b.streams and a.idle == b.idle and a.pool == b.pool
        assert a.tokens == b.tokens and a.token_ids.tolist() == b.token_ids.tolist()
        for name in ("pooled", "logprobs", "runner_up_pooled", "divergence"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-4, nan_ok=True), name
        assert a.weights == pytest.approx(b.weights, rel=2e-3, abs=2e-3)
        if a.pool == "product":
            assert a.parts == pytest.approx(b.parts, rel=2e-3, abs=1e-4)
        assert a.runner_up == b.runner_up and a.top == b.top
        assert np.array_equal(a.decisive, b.decisive)
        assert (a.plausibility, a.experts) == (b.plausibility, b.experts)
        assert a.candidates == b.candidates
        for name in ("candidate_logprobs", "floors", "pooled_floor"):
            pairs = (getattr(a, name), getattr(b, name))
            if a.candidates is None:
                assert pairs == (None, None)
            else:
                for one, other in zip(*pairs, strict=True):
                    assert one == pytest.approx(other, abs=1e-4), name


def check_same(ours: Any, theirs: Any) -> None:
    """Answers of vLLM and of transformers: texts, tokens, traces."""
    assert ours.text == theirs.text
    found, wanted = ours.sequences, theirs.sequences
    assert torch.equal(found, wanted), (found.tolist(), wanted.tolist())
    assert (ours.trace is None) == (theirs.trace is None)
    if ours.trace is not None:
        check_traces(ours.trace, theirs.trace)


class Heard:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.prompt: list[int] = []
        self.tokens: list[int] = []
        self.puts = 0
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        if self.puts:
            self.tokens += value.reshape(-1).tolist()
        else:
            assert value.dim() == 2 and value.shape[0] == 1
            self.prompt = value[0].tolist()
        self.puts += 1

    def end(self) -> None:
        self.ended = True
