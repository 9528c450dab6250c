"""A weight that sets itself: the divergence is the budget at every token, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.methods.contrastive import CFG, ICD, VCD, ContextAware, ContrastiveDecoding
from infer_kit.methods.red import RED
from tests.methods.conftest import SHORT
from tests.methods.contrast import (
    GREEDY,
    QUESTIONS,
    SAMPLING,
    TEXTS,
    group_of,
    last_logits,
    log_p,
)
from tests.tiny import shared_text_model, tiny_tokenizer

NATS = 0.2

# Each with its base (weights at no contrast) and direction.
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any], list[float], list[float]]] = {
    "VCD": (lambda m, p, s: VCD(m, p, s, beta=0, noise_step=900), {}, [1, 0], [1, -1]),
    "ICD": (lambda m, p, s: ICD(m, p, s, beta=0), {}, [1, 0], [1, -1]),
    "ICD and noise": (
        lambda m, p, s: ICD(m, p, s, beta=0, noise_step=900), {}, [2, 0, 0], [2, -1, -1],
    ),
    "CFG": (lambda m, p, s: CFG(m, p, s), {}, [1, 0], [1, -1]),
    "ContextAware": (
        lambda m, p, s: ContextAware(m, p, s), {"context": "it is red"}, [1, 0], [1, -1],
    ),
    "RED": (lambda m, p, s: RED(m, p, s, prompts=SHORT), {"rationale": "it is red"}, [1, 0],
            [0, 1]),
}  # fmt: skip


def spent(weights: Tensor, base: Tensor, parts: Tensor) -> float:
    """KL of Π p_k^{w_k} / Z from Π p_k^{b_k} / Z, by definition; parts `[K, V]`."""
    pi, start = (log_p((w[:, None] * parts).sum(0)) for w in (weights, base))
    return float((pi.exp() * (pi - start)).sum())


def check(out: Any, streams: list[Any], base: list[float], direction: list[float]) -> None:
    weights, tokens = torch.as_tensor(out.trace.weights), out.trace.token_ids.tolist()
    w0, d = torch.tensor(base).double(), torch.tensor(direction).double()
    reached = 0
    for t in range(len(tokens)):
        s = float(((weights[t] - w0) * d).sum() / (d * d).sum())
        torch.testing.assert_close(weights[t], w0 + s * d, atol=1e-4, rtol=1e-5)
        parts = torch.stack([log_p(last_logits(m, row, tokens[:t])) for m, row in streams])
        divergence = spent(w0 + s * d, w0, parts)
        if s < 100 - 1e-3:
            assert divergence == pytest.approx(NATS, abs=1e-4)
            reached += 1
        else:
            assert divergence <= NATS + 1e-4
    assert reached > 2


@pytest.mark.parametrize("way", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("name", METHODS)
def test_the_budget_is_spent(lvlm, processor, name: str, way: dict[str, Any]) -> None:
    make, options, base, direction = METHODS[name]
    method = make(lvlm, processor, f"kl:{NATS}")
    out = method.generate(QUESTIONS[0], **options, **way)
    group = group_of(method, QUESTIONS[0], **options)
    check(out, [(lvlm, s.context) for s in group.streams], base, direction)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_budget_of_contrastive_decoding(text_pair, tau: float) -> None:
    expert, tokenizer = text_pair
    weak = shared_text_model("gpt2")
    method = ContrastiveDecoding(expert, weak, tokenizer, f"kl:{NATS}", beta=0.0, temperature=tau)
    out = method.generate(TEXTS[1], **GREEDY)
    contexts = [s.context for s in group_of(method, TEXTS[1]).streams]
    streams = list(zip((expert, weak), contexts, strict=True))
    check(out, streams, [1, 0], [1, -1 / tau])


def test_a_batch_and_beams_spend_as_singles_do(text_pair) -> None:
    model, tokenizer = text_pair
    cfg = CFG(model, tokenizer, scale=f"kl:{NATS}")
    together = cfg.generate(TEXTS, **GREEDY)
    for b, messages in enumerate(TEXTS):
        alone = cfg.generate(messages, **GREEDY).trace
        assert together.trace[b].token_ids.tolist() == alone.token_ids.tolist()
        torch.testing.assert_close(
            torch.as_tensor(together.trace[b].weights), torch.as_tensor(alone.weights),
            atol=1e-2, rtol=1e-2,
        )  # fmt: skip
    beams = cfg.generate(TEXTS[1], num_beams=3, **GREEDY)
    contexts = [s.context for s in group_of(cfg, TEXTS[1]).streams]
    check(beams, [(model, context) for context in contexts], [1, 0], [1, -1])


def test_a_larger_budget_contrasts_more(lvlm, processor) -> None:
    small, large = (
        VCD(lvlm, processor, f"kl:{nats}", noise_step=900).generate(
            QUESTIONS[0], **GREEDY | {"max_new_tokens": 1}
        ).trace.weights[0]
        for nats in (0.05, 0.5)
    )  # fmt: skip
    assert small[0] < large[0] and small[1] > large[1]


def test_groups_of_another_method_take_a_number(lvlm, processor) -> None:
    """Composed, a budget would be dropped in silence."""
    group = RED(lvlm, processor, prompts=SHORT).group(QUESTIONS[0], rationale="x")
    with pytest.raises(InferKitError, match=r"alpha='kl:0.2' is solved for VCD's own two streams"):
        VCD(lvlm, processor, "kl:0.2").contrast(group)


def test_the_setting_may_be_changed(text_pair) -> None:
    model, tokenizer = text_pair
    cfg = CFG(model, tokenizer, scale="kl:0.2")
    cfg.scale = 2.5
    assert cfg.generate("what?", **GREEDY).trace.weights[0].tolist() == [2.5, -1.5]
    assert CFG(model, tiny_tokenizer(), scale=2.5).setting == 2.5


def test_a_budget_is_not_lost_in_groups(lvlm, processor) -> None:
    """Groups have numbers for weights: a method with a budget neither makes nor runs them."""
    cfg = CFG(lvlm, processor, scale="kl:0.2")
    group = CFG(lvlm, processor).group(QUESTIONS[0])
    for call in (lambda: cfg.group(QUESTIONS[0]), lambda: cfg.run([group], **GREEDY)):
        with pytest.raises(InferKitError, match="The weights of this CFG are set at every step"):
            call()
