"""Weights and pools of a call: functions of the step, normalisation, −inf, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError
from infer_kit.pool import Step
from infer_kit.pooling import resolve_pooling
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    MIXTURE,
    OUTPUT,
    PRODUCT,
    SAMPLING,
    SIGNED,
    Crops,
    assert_reference,
    lookup_rows,
    model_of,
    seeded,
    text_rows,
)
from tests.engine.reference import ReferenceLM, pooled_scores
from tests.tiny import reference_logits, text_model

WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampling": SAMPLING,
    "beams": BEAMS | {"max_new_tokens": 4},
}


def falling(position: int) -> list[float]:
    """Weights of three streams at the new token `position`."""
    return [1.0, 1.2 - 0.3 * position, -0.5 if position % 2 else 0.4]


def falling_step(step: Step) -> Tensor:
    """`falling` as a function of the step, `[R, K, n]`."""
    table = torch.tensor([falling(int(p)) for p in step.position]).T
    return table[None].expand(len(step.request), -1, -1)


@pytest.mark.parametrize("way", WAYS)
def test_weights_by_position(way: str) -> None:
    assert_reference(
        model_of("llama"), text_rows(2, 3), falling_step,
        reference_weights=lambda position: [falling(position)] * 2, **WAYS[way],
    )  # fmt: skip


def test_weights_by_position_under_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = Crops(monkeypatch)
    assert_reference(
        model_of("llama"), lookup_rows(3), falling_step,
        reference_weights=lambda position: [falling(position)], **LOOKUP,
    )  # fmt: skip
    assert max(crops.removed) > 0


def test_weights_by_request() -> None:
    """A function sees the request of each sequence, also after beams have been shuffled."""
    table = torch.tensor([[1.0, 0.5], [0.2, -0.4], [0.0, 1.0]])
    assert_reference(
        model_of("qwen3"), text_rows(3, 2), lambda step: table[step.request],
        reference_weights=lambda position: table.tolist(), **BEAMS,
    )  # fmt: skip


@pytest.mark.parametrize("options", [GREEDY, SAMPLING, BEAMS], ids=["greedy", "sampling", "beams"])
@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_a_constant_function_is_a_constant_weight(pool: str, options: dict[str, Any]) -> None:
    weights = torch.tensor([0.6, 0.4])
    lm, rows = CoupledLM([model_of("llama")] * 2, pool=pool), text_rows(2, 2)

    def constant(step: Step) -> Tensor:
        assert step.logprobs.shape[:2] == (len(step.request), 2)
        assert step.logprobs.exp().sum(-1).allclose(torch.ones(()))
        return weights.expand(len(step.request), 2)

    torch.manual_seed(0)
    by_function = lm.generate(rows, constant, **OUTPUT, **options)
    torch.manual_seed(0)
    by_constant = lm.generate(rows, weights, **OUTPUT, **options)
    assert torch.equal(by_function.sequences, by_constant.sequences)
    for a, b in zip(by_function.logits, by_constant.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_a_function_weighs_only_the_streams_that_are_there() -> None:
    a, b = text_rows(2, 2)
    lm = CoupledLM([model_of("llama")] * 2)
    together = lm.generate([a, b[:1]], lambda step: torch.ones(2, 2), **OUTPUT, **GREEDY)
    constant = lm.generate([a, b[:1]], [[1.0, 1.0], [1.0, 0.0]], **OUTPUT, **GREEDY)
    assert torch.equal(together.sequences, constant.sequences)


@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_normalize_divides_by_the_sum(pool: str) -> None:
    models, rows = [model_of("llama")] * 3, text_rows(2, 3)
    weights = [[2.0, 1.0, 0.5], [0.1, 0.1, 0.2]]
    shares = [[w / sum(row) for w in row] for row in weights]
    normalised = CoupledLM(models, pool=pool, normalize=True)
    assert_reference(models, rows, weights, pool, reference_weights=lambda _: shares,
                     lm=normalised, **GREEDY)  # fmt: skip
    table = torch.tensor(weights)
    assert_reference(models, rows, lambda step: table[step.request], pool,
                     reference_weights=lambda _: shares, lm=normalised, **GREEDY)  # fmt: skip


def test_default_weights() -> None:
    """1 each for a product, equal shares of the streams that a request has for a mixture."""
    models, (a, b) = [model_of("llama")] * 3, text_rows(2, 3)
    rows = [a, b[:2]]
    assert_reference(models, rows, reference_weights=lambda _: [[1.0] * 3] * 2, **GREEDY)
    assert_reference(models, rows, pool="mixture",
                     reference_weights=lambda _: [[1 / 3] * 3, [1 / 2] * 2], **GREEDY)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_pool_of_ones_own(way: str) -> None:
    """The harmonic mean; it sees normalised log-probabilities and the weights."""

    def harmonic(logprobs: Tensor, weights: Tensor) -> Tensor:
        assert logprobs.dim() == 4 and weights.shape == logprobs.shape[:2]
        w = weights[..., None, None].to(logprobs.dtype)
        return -((w.log() - logprobs).logsumexp(1))

    weights = [MIXTURE[3], [0.2, 0.2, 0.6]]
    assert_reference(model_of("gpt2"), text_rows(2, 3), weights, harmonic, **WAYS[way])


def test_a_pool_function_runs_streams_of_weight_zero() -> None:
    def last(logprobs: Tensor, weights: Tensor) -> Tensor:
        return logprobs[:, -1]

    assert_reference(model_of("gpt2"), text_rows(2, 3), [[1.0, 1.0, 0.0]] * 2, last, **GREEDY)


# Logits of −inf


class Excluding(nn.Module):
    """A head whose logits of some tokens are −inf."""

    def __init__(self, head: nn.Module, tokens: list[int]) -> None:
        super().__init__()
        self.head, self.tokens = head, tokens

    @property
    def weight(self) -> Tensor:
        return self.head.weight

    def forward(self, states: Tensor) -> Tensor:
        logits = self.head(states)
        logits[..., self.tokens] = -torch.inf
        return logits


@pytest.fixture(scope="module")
def excluding() -> list[Any]:
    """Two models that exclude different tokens, one that excludes none."""
    models = [text_model("llama", seed=seed) for seed in (0, 1, 2)]
    models[0].lm_head = Excluding(models[0].lm_head, list(range(2, 160, 5)))
    models[1].lm_head = Excluding(models[1].lm_head, list(range(2, 160, 3)))
    return models


@pytest.mark.parametrize(
    "weights",
    [PRODUCT[:3], [1.0, -0.5, 0.3], [-0.5, 1.0, 0.3], [1.0, 0.0, 0.5], [0.0, -0.4, 1.0]],
    ids=str,
)
def test_excluded_tokens_stay_excluded(excluding: list[Any], weights: list[float]) -> None:
    """Under any sign of weight; and a stream of weight zero excludes nothing."""
    out = assert_reference(excluding, text_rows(2, 3), [weights] * 2, **GREEDY)
    for logits in out.logits:
        assert not logits.isnan().any() and not (logits == torch.inf).any()
        banned = [k for k in (0, 1) if weights[k] != 0]
        stride = {0: 5, 1: 3}
        for k in banned:
            assert logits[:, 2 :: stride[k]].eq(-torch.inf).all()
        if 0 not in banned:
            assert logits[:, 7].isfinite().all()


def test_excluded_tokens_with_zero_weight_in_one_request_only(excluding: list[Any]) -> None:
    """0 · −inf would be NaN."""
    weights = [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.7, -0.3, 0.0]]
    out = assert_reference(excluding, text_rows(3, 3), weights, **GREEDY)
    assert out.logits[0][1, 7].isfinite() and out.logits[0][0, 5].isfinite()
    positive = [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.7, 0.3, 0.0]]
    out = assert_reference(excluding, text_rows(3, 3), positive, **BEAMS)
    assert not any(logits.isnan().any() for logits in out.logits)


def test_a_mixture_needs_only_one_stream_to_allow(excluding: list[Any]) -> None:
    out = assert_reference(excluding, text_rows(2, 3), [[0.5, 0.5, 0.0]] * 2, "mixture", **GREEDY)
    assert out.logits[0][:, 2].eq(-torch.inf).all()  # both exclude 2 and 17
    assert out.logits[0][:, [5, 7]].isfinite().all()  # one of them excludes 5, the other 7


def test_statistics_with_excluded_tokens(excluding: list[Any]) -> None:
    """A stream is decisive too where the token that it alone excludes would have won."""
    rows, weights = text_rows(2, 3), [[0.01, 1.0, 0.01], [0.0, 0.01, 1.0]]  # they but exclude
    out = CoupledLM(excluding).generate(
        rows, weights, trace=True, return_dict_in_generate=True, **GREEDY
    )
    assert (out.statistics.pooled + out.statistics.divergence).isfinite().all()
    new = out.sequences[:, -GREEDY["max_new_tokens"] :]
    came_back = 0
    for b, tokens in enumerate(new):
        logits = torch.stack(
            [reference_logits(m, dict(row), tokens[None, :-1])
             for m, row in zip(excluding, rows[b], strict=True)]
        )  # fmt: skip
        for t in range(len(tokens)):
            for k in range(3):
                others = [0.0 if j == k else w for j, w in enumerate(weights[b])]
                without = int(pooled_scores(logits[:, t], others, "product").argmax())
                expected = weights[b][k] != 0 and without != int(tokens[t])
                assert bool(out.statistics.decisive[b, t, k]) == expected
                came_back += expected and logits[k, t, without] == -torch.inf
    assert came_back > 0


# The plausibility cut-off


def _cut(pooled: Tensor, expert: Tensor, beta: float) -> Tensor:
    """Scores `[V]` without the tokens whose probability is below β times the best's."""
    p = expert.exp()
    return torch.where(p < beta * p.max(), -torch.inf, pooled)


EXPERTS = {
    "the primary": (None, lambda a, b, c: a),
    "another": ((2,), lambda a, b, c: c),
    "two": ((0, 1), lambda a, b, c: (1.2 * a + 0.4 * b) / 1.6),
    "two, one of negative weight": ((0, 2), lambda a, b, c: (1.2 * a - 0.5 * c) / 0.7),
    "all": ((0, 1, 2), lambda a, b, c: (1.2 * a + 0.4 * b - 0.5 * c) / 1.1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_experts_say_what_is_plausible(experts: str, beta: float, way: str) -> None:
    """Several are their product, whose weights are divided by their sum."""
    named, expert = EXPERTS[experts]
    weights = [1.2, 0.4, -0.5]

    def by_hand(logprobs: Tensor, _: Tensor) -> Tensor:
        parts = list(logprobs[0, :, 0])
        pooled = sum(w * part for w, part in zip(weights, parts, strict=True))
        chosen = expert(*parts)
        return _cut(pooled, chosen - chosen.logsumexp(0), beta)[None, None]

    models, rows = [model_of("llama")] * 3, text_rows(2, 3)
    options = WAYS[way]
    lm = CoupledLM(models, weights, plausibility=beta, experts=named)
    ours = seeded(lambda: lm.generate(rows, **OUTPUT, **options))
    theirs = seeded(lambda: ReferenceLM(models, rows, [weights] * 2, by_hand).write(**options))
    assert torch.equal(ours.sequences, theirs.sequences)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        assert torch.equal(a.isneginf(), b.isneginf()) and bool(a.isneginf().any())
        torch.testing.assert_close(a.softmax(-1), b.softmax(-1), atol=1e-5, rtol=0)


def test_a_mixture_is_cut_off_too() -> None:
    def by_hand(logprobs: Tensor, _: Tensor) -> Tensor:
        a, b = logprobs[0, :, 0].exp()
        return _cut((0.3 * a + 0.7 * b).log(), a.log(), 0.4)[None, None]

    models, rows = [model_of("llama")] * 2, text_rows(2, 2)
    lm = CoupledLM(models, [0.3, 0.7], pool="mixture", plausibility=0.4)
    theirs = ReferenceLM(models, rows, [[0.3, 0.7]] * 2, by_hand).write(**GREEDY)
    assert torch.equal(lm.generate(rows, **GREEDY), theirs.sequences)


def test_a_lone_stream_is_cut_off() -> None:
    (row,) = text_rows(1, 1)
    lm = CoupledLM(model_of("llama"), [1.0], plausibility=0.5)
    out = lm.generate([row], **OUTPUT, **GREEDY)
    plain = model_of("llama").generate(**row[0], **OUTPUT, **GREEDY)
    assert torch.equal(out.sequences, plain.sequences)
    for ours, theirs in zip(out.logits, plain.logits, strict=True):
        p = theirs.softmax(-1)
        expected = theirs.masked_fill(p < 0.5 * p.amax(-1, keepdim=True), -torch.inf)
        assert torch.equal(ours, expected)


def test_experts_follow_the_streams_that_run() -> None:
    present = torch.ones(1, 4, dtype=torch.bool)
    table = [0.0, 1.0, 0.0, -0.5]
    pooling = resolve_pooling("product", table, present, plausibility=0.1, experts=(3, 1))
    assert pooling.streams == (1, 3) and pooling.experts == (1, 0)
    assert not resolve_pooling("product", [0.0, 1.0, 0, 0], present, plausibility=0.1,
                               experts=(1,)).is_identity  # fmt: skip
    off = resolve_pooling("product", table, present, plausibility=0.0, experts=(0,))
    assert off.experts == ()


def test_an_expert_that_does_not_run_is_refused() -> None:
    message = (
        r"Stream 0 says what is plausible \(plausibility=0.1\), but it does not run in request"
    )
    with pytest.raises(InferKitError, match=message + " 1: it is missing or has weight 0"):
        _resolve([[1.0, 1.0], [0.0, 1.0]], plausibility=0.1)
    present = torch.tensor([[True, True], [True, False]])
    with pytest.raises(InferKitError, match="Stream 1 says what is plausible .* in request 1"):
        resolve_pooling("product", [1.0, 1.0], present, plausibility=0.1, experts=(1,))
    with pytest.raises(InferKitError, match="Stream 1 .* in request 1"):  # of a function's weights
        resolve_pooling("product", lambda step: None, present, plausibility=0.1, experts=(1,))
    with pytest.raises(InferKitError, match=r"Stream 2 says .* does not run in request 0"):
        _resolve([1.0, 1.0], plausibility=0.1, experts=(2,))
    assert _resolve([[1.0, 1.0], [0.0, 1.0]]).experts == ()  # without a cut-off nobody asks


def test_of_several_experts_those_that_run_say_what_is_plausible() -> None:
    """Request 1 lacks expert 1, so there expert 0 alone decides."""
    present = torch.tensor([[True, True], [True, True]])
    table = [[0.5, 0.5], [1.0, 0.0]]
    pooling = resolve_pooling("product", table, present, plausibility=0.5, experts=(0, 1))
    logits = torch.randn(2, 2, 1, 50, generator=torch.Generator().manual_seed(0))
    request = torch.arange(2)
    pooled = pooling(logits, pooling.weights_at(logits, request, 0), request)
    both = logits[0].log_softmax(-1).mean(0)
    alone = logits[1, 0].log_softmax(-1)
    for row, expert in ((0, both), (1, alone)):
        kept = expert >= expert.max() + math.log(0.5)
        assert torch.equal(pooled[row].isfinite(), kept)


@pytest.mark.parametrize("beta", [-0.1, 1.1, "0.1", True, math.nan])
def test_a_cut_off_is_between_0_and_1(beta: Any) -> None:
    with pytest.raises(InferKitError, match="plausibility is β between 0 and 1, got"):
        CoupledLM([model_of("llama")] * 2, plausibility=beta)


# What is refused


def _resolve(weights: Any, pool: Any = "product", streams: int = 2, **options: Any) -> Any:
    return resolve_pooling(pool, weights, torch.ones(2, streams, dtype=torch.bool), **options)


@pytest.mark.parametrize(
    ("weights", "pool", "message"),
    [
        ([1.0, math.nan], "product", r"Weights of request 0 are not finite: \[1.0, nan\]"),
        ([[1.0, 1.0], [math.inf, 1.0]], "product", r"Weights of request 1 are not finite: \[inf"),
        ([0.0, 0.0], "product", "All weights of request 0 are 0: no stream would be run"),
        ([[1.0, 1.0], [0.0, 0.0]], "product", "All weights of request 1 are 0"),
        ([1.5, -0.5], "mixture", r"A mixture needs weights ≥ 0, got \[1.5, -0.5\] for request 0"),
        ([0.5, 0.6], "mixture", r"must sum to 1, got \[0.5, 0.6\] \(sum 1.1\) for request 0"),
        (
            [1.0],
            "product",
            r"Weights have shape \[1\]; expected \[2\] \(one a stream\) or \[2, 2\]",
        ),
        ([[1.0, 2.0]] * 3, "product", r"Weights have shape \[3, 2\]"),
    ],
)
def test_refused_weights(weights: Any, pool: str, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        _resolve(weights, pool)


def test_weights_that_cannot_be_normalised() -> None:
    with pytest.raises(InferKitError, match="request 1 sum to 0 and cannot be normalised"):
        _resolve([[1.0, 1.0], [0.5, -0.5]], normalize=True)


def test_what_functions_return_is_checked() -> None:
    lm, rows = CoupledLM([model_of("llama")] * 2), text_rows(2, 2)
    with pytest.raises(InferKitError, match=r"weight function returned a tensor of shape \(3,\)"):
        lm.generate(rows, lambda step: torch.ones(3), **GREEDY)
    for bad in (math.nan, math.inf):
        with pytest.raises(
            InferKitError,
            match=r"weight function returned \[1.0, (nan|inf)\]; weights of a product are finite",
        ):
            lm.generate(rows, lambda step, w=bad: torch.tensor([[1.0, w]] * 2), **GREEDY)
    lm = CoupledLM([model_of("llama")] * 2, pool="mixture")
    with pytest.raises(InferKitError, match="weights of a mixture are finite and ≥ 0 and sum to 1"):
        lm.generate(rows, lambda step: torch.tensor([[1.2, -0.2]] * 2), **GREEDY)
    lm = CoupledLM([model_of("llama")] * 2, pool=lambda logprobs, weights: logprobs)
    with pytest.raises(InferKitError, match=r"pool function returned \[2, 2, 1, 160\]; expected"):
        lm.generate(rows, **GREEDY)


def test_weights_of_a_missing_stream_do_not_count() -> None:
    present = torch.tensor([[True, True], [True, False]])
    pooling = resolve_pooling("mixture", [[0.5, 0.5], [1.0, 7.0]], present)
    assert pooling.weights.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert pooling.present.tolist() == present.tolist()


def test_only_streams_with_weight_are_kept() -> None:
    present = torch.ones(2, 4, dtype=torch.bool)
    pooling = resolve_pooling("product", [[*SIGNED[:3], 0.0], [0.0, 1.0, 0.0, 0.0]], present)
    assert pooling.streams == (0, 1, 2)
    assert pooling.present.tolist() == [[True, True, True], [False, True, False]]
    assert pooling.signed and not pooling.is_identity
    assert resolve_pooling("product", [0.0, 1.0, 0.0, 0.0], present).is_identity
