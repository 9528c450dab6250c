"""Scores of a base tilted by rewards: identities, excluded ids, shared ids, the stability bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.reward.composition import compose_logprobs, compose_shared


def scores(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_strength_zero_is_the_base_bit_for_bit() -> None:
    base, reward = scores(4, 5, 61), scores(4, 5, 61, seed=1)
    assert torch.equal(compose_logprobs(base, [reward], beta=0.0), base.log_softmax(-1))
    assert torch.equal(compose_logprobs(base, [reward], [0.0]), base.log_softmax(-1))
    assert torch.equal(compose_logprobs(base, []), base.log_softmax(-1))


def test_a_constant_for_each_input_cancels() -> None:
    base, reward = scores(6, 61), scores(6, 61, seed=1)
    shift = 3 * scores(6, 1, seed=2)
    plain = compose_logprobs(base, [reward], beta=1.5)
    for shifted in (
        compose_logprobs(base + shift, [reward], beta=1.5),
        compose_logprobs(base, [reward + shift], beta=1.5),
    ):
        assert float((shifted - plain).abs().max()) <= 2e-5


def test_fine_tuned_models_are_rewards_and_back() -> None:
    """Proposition 3.1: r = log(ft / base) has E_base[e^r] = 1, and gives ft again."""
    base, tuned = scores(20, 61).log_softmax(-1), scores(20, 61, seed=1).log_softmax(-1)
    reward = tuned - base
    np.testing.assert_allclose((base.exp() * reward.exp()).sum(-1), 1.0, atol=1e-5)
    assert float((compose_logprobs(base, [reward]) - tuned).abs().max()) <= 1e-5


def test_a_centred_reward_is_the_implicit_one() -> None:
    base, tuned, untuned = (scores(8, 61, seed=seed) for seed in range(3))
    centred = compose_logprobs(base, [tuned - untuned], beta=0.7)
    implicit = compose_logprobs(base, [tuned, untuned], [1.0, -1.0], beta=0.7)
    assert float((centred - implicit).abs().max()) <= 1e-5


def test_it_is_the_product_in_float64() -> None:
    base, *rewards = (scores(7, 40, seed=seed).double() for seed in range(4))
    weights, beta = (0.5, -1.0, 2.0), 1.3
    joint = base.softmax(-1)
    for weight, reward in zip(weights, rewards, strict=True):
        joint = joint * reward.softmax(-1) ** (beta * weight)
    expected = joint / joint.sum(-1, keepdim=True)
    found = compose_logprobs(base, rewards, weights, beta).exp()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    single = [part.bfloat16() for part in (base, *rewards)]
    exact = [part.double() for part in single]
    rounded = compose_logprobs(single[0], single[1:], weights, beta)
    assert rounded.dtype == torch.float32
    wanted = compose_logprobs(exact[0], exact[1:], weights, beta)
    assert float((rounded - wanted).abs().max()) <= 1e-4


def test_what_the_base_excludes_stays_excluded() -> None:
    base, reward = scores(3, 10), scores(3, 10, seed=1)
    base[:, 4] = -math.inf
    reward[:, 7] = -math.inf
    for weight in (-2.0, 1.0):
        found = compose_logprobs(base, [reward], [weight])
        assert torch.isneginf(found[:, 4]).all() and torch.isneginf(found[:, 7]).all()
        assert not found.isnan().any() and not torch.isposinf(found).any()
    without = compose_logprobs(base, [reward], [0.0])
    assert not torch.isneginf(without[:, 7]).any()


def test_padded_columns_are_left_out() -> None:
    base, reward = scores(3, 64), scores(3, 61, seed=1)
    found = compose_logprobs(base, [reward])
    assert found.shape == (3, 61)
    assert torch.equal(found, compose_logprobs(base[:, :61], [reward]))
    assert compose_logprobs(base, [reward], vocab_size=50).shape == (3, 50)
    with pytest.raises(InferKitError, match="61 columns, the vocabulary has 62 ids"):
        compose_logprobs(base, [reward], vocab_size=62)
    with pytest.raises(InferKitError, match="Got 2 weights for 1 rewards"):
        compose_logprobs(base, [reward], [1.0, 2.0])


# Shared ids


def test_shared_ids_keep_their_mass_and_the_others_theirs() -> None:
    base, reward = scores(9, 64), scores(9, 61, seed=1)
    mine, theirs = torch.randperm(64)[:40], torch.randperm(61)[:40]
    found = compose_shared(base, reward, mine, theirs, beta=1.4)
    before = base.log_softmax(-1)
    others = [id for id in range(64) if id not in mine.tolist()]
    assert float((found[:, others] - before[:, others]).abs().max()) == 0.0
    masses = [part[:, mine].exp().sum(-1) for part in (found, before)]
    assert float((masses[0] - masses[1]).abs().max()) <= 1e-6
    inside = (before[:, mine] + 1.4 * reward[:, theirs]).log_softmax(-1)
    assert float((found[:, mine].log_softmax(-1) - inside).abs().max()) <= 1e-5
    shifted = compose_shared(base, reward + scores(9, 1, seed=4), mine, theirs, beta=1.4)
    assert float((shifted - found).abs().max()) <= 1e-5


def test_all_ids_shared_is_the_plain_composition() -> None:
    base, reward = scores(9, 61), scores(9, 61, seed=1)
    ids = torch.arange(61)
    found = compose_shared(base, reward, ids, ids, 0.8)
    assert float((found - compose_logprobs(base, [reward], beta=0.8)).abs().max()) <= 1e-5


def test_ids_without_mass_stay_without() -> None:
    base, reward = scores(2, 8), scores(2, 8, seed=1)
    base[:, :3] = -math.inf
    found = compose_shared(base, reward, torch.arange(3), torch.arange(3))
    assert torch.isneginf(found[:, :3]).all() and not found.isnan().any()
    partly = compose_shared(base, reward, torch.arange(5), torch.arange(5))
    assert torch.isneginf(partly[:, :3]).all()
    np.testing.assert_allclose(partly.exp().sum(-1), 1.0, atol=1e-6)


def test_shared_ids_are_checked() -> None:
    base, reward = scores(2, 8), scores(2, 8)
    with pytest.raises(InferKitError, match=r"\[2\] ids of the base and \[3\] of the reward"):
        compose_shared(base, reward, torch.arange(2), torch.arange(3))
    with pytest.raises(InferKitError, match="shared twice"):
        compose_shared(base, reward, torch.tensor([1, 1]), torch.tensor([1, 2]))


def test_a_new_base_moves_the_result_within_the_bound() -> None:
    """KL(pi_p || pi_q) <= C (e + t) + log(1 + C t), e = KL(p || q), t = sqrt(e / 2)."""
    draws, size = 16_000, 12
    generator = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(draws, size, generator=generator)).double().log_softmax(-1)
    near = torch.rand(draws, 1, generator=generator).double()
    q = (p + near * torch.randn(draws, size, generator=generator)).log_softmax(-1)
    reward = 1.5 * torch.randn(draws, size, generator=generator).double()
    tilted = [compose_logprobs(base, [reward]) for base in (p, q)]
    apart = (tilted[0].exp() * (tilted[0] - tilted[1])).sum(-1)
    epsilon = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    most = (reward - (p + reward).logsumexp(-1, keepdim=True)).exp().amax(-1)
    t = (epsilon / 2).sqrt()
    bound = most * (epsilon + t) + (1 + most * t).log()
    assert bool((apart <= bound + 1e-12).all())
    assert float((apart / bound).max()) > 0.3
