"""Heads against plain loops, and random heads that compute a given one once pruned."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from evals.benchmarks.tickets_attention import (
    WIDTHS,
    exponential_fit,
    head_errors,
    points,
    pruned_heads,
    random_targets,
)
from infer_kit.errors import InferKitError
from infer_kit.training.tickets.attention_slt import (
    Head,
    Masks,
    draw_source,
    merge_qk,
    merge_vo,
    prune_head,
)


def slow_attention(head: Head, x: Tensor) -> list[list[float]]:
    """One head on `[T, d1]`, in Python numbers."""

    def times(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
        return [[sum(p * q for p, q in zip(r, c, strict=True)) for c in zip(*b)] for r in a]  # noqa: B905

    q, k, v, o = (m.tolist() for m in head.matrices)
    rows = x.tolist()
    keys = [list(c) for c in zip(*times(rows, k), strict=True)]
    weights = []
    for row in times(times(rows, q), keys):
        odds = [math.exp(score / math.sqrt(len(q[0]))) for score in row]
        weights.append([odd / sum(odds) for odd in odds])
    return times(times(weights, times(rows, v)), o)


def test_a_head_is_attention() -> None:
    head = draw_source(0, d1=3, d2=2, n_k=5, n_v=4)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow = torch.tensor(slow_attention(head, x), dtype=torch.float64)
    torch.testing.assert_close(head(x), slow)
    merged = (x @ merge_qk(head.q, head.k) @ x.T).softmax(-1) @ x @ merge_vo(head.v, head.o)
    torch.testing.assert_close(head(x), merged)


def test_heads_are_summed_as_multi_head_attention() -> None:
    heads = draw_source(0, d1=3, d2=2, n_k=4, heads=(5,))
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = heads(x[:, None]).sum(1)
    one_by_one = sum(Head(*m)(x) for m in zip(*heads.matrices, strict=True))
    torch.testing.assert_close(out, one_by_one)
    torch.testing.assert_close(heads(x[0]).sum(0), out[0])


def test_a_masked_head_has_zeros() -> None:
    head = draw_source(0, d1=3, d2=2, n_k=4)
    masks = Masks(*(m > 0 for m in head.matrices))
    for pruned, whole in zip(head.masked(masks).matrices, head.matrices, strict=True):
        assert torch.equal(pruned, whole.clamp_min(0))


def test_the_source_is_that_of_the_theory() -> None:
    source = draw_source(0, d1=4, d2=3, n_k=256, n_v=300, heads=(2,))
    assert source.q.shape == source.k.shape == (2, 4, 256)
    assert source.v.shape == (2, 4, 300) and source.o.shape == (2, 300, 3)
    for matrix, bound in zip(source.matrices, (4, 4, 1, 1), strict=True):
        assert matrix.dtype == torch.float64
        uniform = matrix.flatten() / bound
        assert stats.kstest(uniform.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    again, other = draw_source(0, 4, 3, 256, 300, (2,)), draw_source(1, 4, 3, 256, 300, (2,))
    named = draw_source(0, 4, 3, 256, 300, (2,), name="layer 1")
    for matrix, same, *others in zip(
        *(h.matrices for h in (source, again, other, named)), strict=True
    ):
        assert torch.equal(matrix, same)
        assert not any(torch.equal(matrix, o) for o in others)
    assert not torch.equal(source.q, source.k)


def test_the_pruned_head_is_the_source_under_its_masks() -> None:
    target, source = random_targets(1), draw_source(0, 2, 1, 20, 25, heads=(1,))
    found = prune_head(target, source)
    for mask, kept, whole in zip(found.masks, found.head.matrices, source.matrices, strict=True):
        assert mask.dtype == torch.bool and torch.equal(kept, whole * mask)
    W_QK = merge_qk(target.q, target.k)
    reached = merge_qk(found.head.q, found.head.k)  # with the source's own 1/√n_K
    torch.testing.assert_close((reached - W_QK).abs().amax((1, 2)), found.qk_error)
    W_VO = merge_vo(target.v, target.o)
    reached = merge_vo(found.head.v, found.head.o)
    torch.testing.assert_close((reached - W_VO).abs().amax((1, 2)), found.vo_error)
    assert float(found.qk_error) < 0.05 and float(found.vo_error) < 0.05


def test_heads_in_a_batch_are_pruned_as_alone() -> None:
    target, source = random_targets(6), draw_source(0, 2, 1, 21, heads=(6,))
    together = prune_head(target, source)
    x = points(1, 4)
    for i in range(6):
        one, wide = (Head(*(m[i] for m in h.matrices)) for h in (target, source))
        alone = prune_head(one, wide)
        for mask, batched in zip(alone.masks, together.masks, strict=True):
            assert torch.equal(mask, batched[i])
        torch.testing.assert_close(alone.qk_error, together.qk_error[i])
        torch.testing.assert_close(alone.head(x)[0], together.head(x)[i])


def test_the_error_falls_exponentially_with_the_width() -> None:
    target = random_targets(30)
    found = [pruned_heads(target, n, seed=n) for n in WIDTHS]
    medians = [float(head_errors(target, p.head, tokens=4).median()) for p in found]
    assert medians[-1] < 1e-4
    assert float(found[-1].qk_error.median()) < 1e-5
    assert float(found[-1].vo_error.median()) < 1e-5
    assert exponential_fit(WIDTHS, medians)[1] > 0.2
    means = [float(head_errors(target, p.head, tokens=4).mean()) for p in found]
    assert exponential_fit(WIDTHS, means)[1] > 0.1


def test_the_error_does_not_grow_with_the_tokens() -> None:
    target = random_targets(20)
    pruned = pruned_heads(target, 24).head
    few, many = (head_errors(target, pruned, tokens) for tokens in (4, 1024))
    assert float(many.median()) <= 2 * float(few.median())
    assert float(many.mean()) <= 2 * float(few.mean())


def test_a_head_that_does_not_fit_is_refused() -> None:
    head = draw_source(0, d1=3, d2=2, n_k=5)
    wrong = (
        {"q": head.q[:, :4]},
        {"v": head.v[:2]},
        {"o": head.o[:4]},
        {"k": head.k[None]},
        {"o": head.o[0]},
    )
    for change in wrong:
        with pytest.raises(InferKitError, match=r"The matrices of a head do not fit: q \[3, "):
            dataclasses.replace(head, **change)
    with pytest.raises(InferKitError, match="n_v = 0, and a width is 1 or more"):
        draw_source(0, 3, 2, 5, 0)


def test_a_source_that_does_not_fit_is_refused() -> None:
    target = draw_source(0, d1=2, d2=1, n_k=2)
    with pytest.raises(InferKitError, match=r"Target and source have .* \[2, 1\] and \[3, 1\]"):
        prune_head(target, draw_source(0, 3, 1, 12))
    with pytest.raises(InferKitError, match=r"\[2, 1\] and \[4, 2, 1\]"):
        prune_head(target, draw_source(0, 2, 1, 12, heads=(4,)))
    with pytest.raises(InferKitError, match="source's n_K = 1 columns are fewer than the d1 = 2"):
        prune_head(target, draw_source(0, 2, 1, 1, 12))
    with pytest.raises(InferKitError, match="source's n_V = 100 .* n_V = 81 is the limit"):
        prune_head(target, draw_source(0, 2, 1, 12, 100))
    source = draw_source(0, 2, 1, 12)
    bad = dataclasses.replace(source, v=source.v / 0)
    with pytest.raises(InferKitError, match="24 of the 24 numbers of the source's v"):
        prune_head(target, bad)
    with pytest.raises(InferKitError, match="the target's o are not finite"):
        prune_head(dataclasses.replace(target, o=target.o * torch.nan), source)
