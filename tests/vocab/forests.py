"""Walks over forests of tokens, each answer compared with a plain forward."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.vocab import tree_kv
from infer_kit.vocab.language_models import BatchedKV, TreeKV
from tests.tiny import TEXT_GRID, TEXT_SWEEP, available, shared_text_model, text_model
from tests.tiny.text import WINDOW

# Why the others have a row a node.
ROWS = {
    "bloom": "takes no positions",
    "mpt": "takes no positions",
    "llama4_text": "place in the cache for its position",
    "qwen3_next": "of its own kind",
    "qwen3_5_text": "of its own kind",
    "lfm2": "a layer of its cache is a LinearAttentionLayer",
    "falcon_h1": "of its own kind",
    "bamba": "of its own kind",
    "jamba": "of its own kind",
    "granitemoehybrid": "keep a state",
}
TREES = tuple(family for family in (*TEXT_GRID, *TEXT_SWEEP) if family not in ROWS)
# Beyond tests/tiny's lists: what they need, and whether their state can be kept by rows.
OTHERS: dict[str, tuple[dict[str, Any], bool]] = {
    "mamba": ({"state_size": 8}, True),
    "mamba2": ({"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}, True),
    "roformer": ({"is_decoder": True}, True),  # no positions as an argument, and no padding
    "gpt_neo": ({"num_layers": 2, "attention_types": [[["global", "local"], 1]],
                 "num_heads": 4, "window_size": WINDOW}, True),
    "rwkv": ({"attention_hidden_size": 32}, False),
    "recurrent_gemma": ({"num_hidden_layers": 3, "lru_width": 32}, False),
    "minimax": ({"num_local_experts": 4, "num_experts_per_tok": 2}, False),
    "nemotron_h": (
        {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "n_routed_experts": 4},
        False,
    ),
    "openai-gpt": ({"n_embd": 32, "n_head": 4, "n_layer": 2}, False),
}  # fmt: skip
# Float32 inside, whatever the model's type: rotary tables, scores, states. The others are exact.
FLOAT32_INSIDE = {"bloom", "mpt", "gptj", "llama4_text", "qwen3_5_text", "falcon_h1", "bamba"}
# Float64 fails in their own forwards: experts in one product, or a constant of XGLM's.
NO_FLOAT64 = {"qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba"}
NO_FLOAT64 |= {"granitemoehybrid", "xglm"}
FLOAT64 = tuple(f for f in (*TREES, *ROWS) if f not in FLOAT32_INSIDE | NO_FLOAT64)


def model_of(family: str, **overrides: Any) -> PreTrainedModel:
    found, why = available(family)
    if not found:
        pytest.skip(why)
    return text_model(family, **overrides) if overrides else shared_text_model(family)


def double(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).double()


def last_logits(model: PreTrainedModel, sequence: Sequence[int]) -> Tensor:
    """`[len(sequence), V]` of a plain forward: no cache, no mask, one sequence."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(sequence)]), use_cache=False).logits[0]


class Walk:
    """Random tokens over a forest, and what the forest answered to every sequence."""

    def __init__(self, forest: TreeKV | BatchedKV, model: PreTrainedModel, seed: int = 0) -> None:
        self.forest, self.model, self.random = forest, model, random.Random(seed)
        self.sequence: dict[int, tuple[int, ...]] = {}
        self.answers: dict[tuple[int, ...], Tensor] = {}
        self.live: list[int] = []

    def prefill(self, lengths: Sequence[int]) -> list[int]:
        prompts = [[self.random.randrange(3, 160) for _ in range(n)] for n in lengths]
        return self._answered([tuple(p) for p in prompts], *self.forest.prefill(prompts))

    def extend(self, parents: Sequence[int]) -> list[int]:
        nodes = [(parent, self.random.randrange(3, 160)) for parent in parents]
        sequences = [(*self.sequence[parent], token) for parent, token in nodes]
        return self._answered(sequences, *self.forest.extend(nodes))

    def keep(self, live: Sequence[int]) -> None:
        self.forest.keep(live)
        self.live = list(live)

    def _answered(
        self, sequences: list[tuple[int, ...]], handles: list[int], logits: Tensor
    ) -> list[int]:
        assert logits.shape == (len(sequences), 160) and not logits.requires_grad
        self.sequence |= zip(handles, sequences, strict=True)
        self.answers |= zip(sequences, logits, strict=True)
        self.live += handles
        return handles

    def errors(self) -> tuple[float, float]:
        """The largest error of a logit, by the largest logit, and of a probability."""
        beginnings = {s[:n] for s in self.answers for n in range(len(s))}
        worst, scale, probability = 0.0, 0.0, 0.0
        for sequence in self.answers.keys() - beginnings:
            plain = last_logits(self.model, sequence)
            for n, row in enumerate(plain, 1):
                answer = self.answers.get(sequence[:n])
                if answer is not None:
                    worst = max(worst, float((answer - row).abs().max()))
                    scale = max(scale, float(row.abs().max()))
                    laws = (answer.double().softmax(-1), row.double().softmax(-1))
                    probability = max(probability, float((laws[0] - laws[1]).abs().max()))
        return worst / scale, probability

    def error(self) -> float:
        return self.errors()[0]

    def rounding(self, exact: PreTrainedModel) -> tuple[float, float]:
        """The largest error of a logit of the forest, and of a plain forward, from a model in
        float64, by the largest logit."""
        forest, plain, scale = 0.0, 0.0, 0.0
        for sequence, answer in self.answers.items():
            law = last_logits(exact, sequence)[-1]
            forest = max(forest, float((answer - law).abs().max()))
            plain = max(plain, float((last_logits(self.model, sequence)[-1] - law).abs().max()))
            scale = max(scale, float(law.abs().max()))
        return forest / scale, plain / scale


def walk(forest: TreeKV | BatchedKV, model: PreTrainedModel, seed: int | None = None) -> float:
    """Error of a logit after prompts on both sides of the window, forks, branches and `keep`."""
    return walked(forest, model, seed).error()


def walked(forest: TreeKV | BatchedKV, model: PreTrainedModel, seed: int | None = None) -> Walk:
    """Prompts on both sides of the window, forks and deep branches, `keep` in between."""
    w = Walk(forest, model, zlib.crc32(type(model).__name__.encode()) if seed is None else seed)
    tips = w.prefill([3, 11, 1, 20])
    for step in range(12):
        forks = [w.random.choice(w.live) for _ in range(2)]
        tips[step % 4] = w.extend([*forks, tips[step % 4], tips[step % 4]])[-1]
        if step % 3 == 2:
            w.keep(tips + w.random.sample(w.live, 2))
    tips += w.prefill([5, 9])  # beside trees that have grown
    w.extend([tips[0], tips[5]])
    w.keep([tips[0], tips[5]])
    tip = tips[0]
    for _ in range(2 * WINDOW):
        tip = w.extend([tip])[0]
    w.keep([tip])
    w.extend([tip])  # it sees all there is
    w.extend([tip, tip])
    return w


@pytest.fixture
def no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache closes gaps at every `keep`, or nearly."""
    monkeypatch.setattr(tree_kv, "_GARBAGE", 0)
