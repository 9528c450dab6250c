"""Laws of the loss: `infer_kit.reward.loss`."""

import math

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import (
    IGNORED,
    TopK,
    chunked_prt_loss,
    entropy,
    prt_loss,
    topk_base,
    topk_prt_loss,
)

V = 61


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Base scores, rewards and labels in float64; two labels of eight are ignored."""
    z, r = torch.randn(2, 4, V).double(), torch.randn(2, 4, V).double()
    y = torch.randint(0, V, (2, 4))
    y[0, 1] = y[1, 3] = IGNORED
    return z, r, y


def by_hand(z: Tensor, r: Tensor, y: Tensor, beta: float, alpha: float, n: float) -> float:
    """The definition, a label at a time."""
    total = 0.0
    for place in (y != IGNORED).nonzero().tolist():
        s = [a + beta * b for a, b in zip(z[*place].tolist(), r[*place].tolist(), strict=True)]
        log_z = math.log(sum(math.exp(v) for v in s))
        reward = r[*place].softmax(-1).tolist()
        h = -sum(p * math.log(p) for p in reward)
        total += log_z - s[int(y[*place])] - alpha * h
    return total / n


@pytest.mark.parametrize("beta", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("n", [None, 20.0])
def test_the_loss_is_its_definition(batch, beta: float, alpha: float, n: float | None) -> None:
    loss = prt_loss(*batch, beta=beta, alpha=alpha, num_items=n)
    assert loss.item() == pytest.approx(by_hand(*batch, beta, alpha, n or 6), abs=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_gradient_of_the_rewards(batch, beta: float, alpha: float) -> None:
    z, r, y = batch
    r.requires_grad_()
    prt_loss(z, r, y, beta=beta, alpha=alpha).backward()
    for place in [(0, 0, 3), (1, 2, int(y[1, 2])), (0, 1, 5)]:  # one of them is ignored
        shift = torch.zeros_like(r)
        shift[place] = 1e-5
        up, down = (prt_loss(z, r + s, y, beta=beta, alpha=alpha) for s in (shift, -shift))
        assert r.grad[place].item() == pytest.approx((up - down).item() / 2e-5, abs=1e-6)
    if not alpha:
        kept = y != IGNORED
        pi = (z + beta * r.detach())[kept].softmax(-1)
        onehot = nn.functional.one_hot(y[kept], V)
        torch.testing.assert_close(r.grad[kept], beta * (pi - onehot) / 6, rtol=0, atol=1e-6)
    assert not r.grad[y == IGNORED].any()


def test_shifts_of_an_input_cancel(batch) -> None:
    z, r, y = batch
    shifted = prt_loss(z + torch.randn(2, 4, 1), r - 7 * torch.randn(2, 4, 1), y, beta=0.7)
    assert shifted.item() == pytest.approx(prt_loss(z, r, y, beta=0.7).item(), abs=2e-5)


def test_what_is_ignored_may_be_nan(batch) -> None:
    z, r, y = batch
    want = prt_loss(z, r, y)
    z[y == IGNORED], r[y == IGNORED] = math.nan, math.nan
    r.requires_grad_()
    loss = prt_loss(z, r, y)
    loss.backward()
    assert loss.item() == want.item()
    assert torch.isfinite(r.grad).all() and not r.grad[y == IGNORED].any()


def test_all_ignored_gives_zero_and_zero_gradients(batch) -> None:
    z, r, y = batch
    r.requires_grad_()
    loss = prt_loss(z, r, torch.full_like(y, IGNORED), alpha=0.1)
    loss.backward()
    assert loss.item() == 0 and not r.grad.any()


def test_entropy_value_and_sign() -> None:
    assert entropy(torch.zeros(3, 8)).tolist() == pytest.approx([math.log(8)] * 3)
    assert entropy(torch.tensor([0.0, -math.inf])).item() == 0
    p = torch.tensor([0.7, 0.2, 0.1]).double()
    assert entropy(p.log()).item() == pytest.approx(-(p * p.log()).sum().item())
    flat, sharp, y = torch.zeros(1, 8), 9 * torch.eye(8)[:1], torch.tensor([0])
    for rewards in (flat, sharp):
        gain = prt_loss(flat, rewards, y) - prt_loss(flat, rewards, y, alpha=0.5)
        assert gain.item() == pytest.approx(0.5 * entropy(rewards).item(), abs=1e-6)


def test_columns_beyond_the_vocabulary_have_no_part(batch) -> None:
    z, r, y = batch
    junk = 50 * torch.ones(2, 4, 3).double()
    want = prt_loss(z, r, y, alpha=0.2)
    for wide, narrow in ((True, False), (False, True), (True, True)):
        base = torch.cat([z, junk], -1) if wide else z
        rewards = torch.cat([r, junk], -1) if narrow else r
        assert prt_loss(base, rewards, y, alpha=0.2, vocab_size=V).item() == want.item()
    assert prt_loss(torch.cat([z, junk], -1), r, y, alpha=0.2).item() == want.item()


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_chunked_is_the_whole_with_gradients(chunk: int, alpha: float) -> None:
    """Heads with a bias and a soft-cap; two widths of hidden states, 61 and 64 columns."""
    base, reward = nn.Linear(8, 64), nn.Linear(6, V)
    h_b, h_r = 3 * torch.randn(3, 7, 8), torch.randn(3, 7, 6, requires_grad=True)
    y = torch.randint(0, V, (3, 7))
    y[1] = IGNORED
    told = {"beta": 0.6, "alpha": alpha, "num_items": 30, "vocab_size": V}

    def capped(h: Tensor) -> Tensor:
        return torch.tanh(reward(h) / 2) * 2

    whole = prt_loss(base(h_b).detach(), capped(h_r), y, **told)
    want = torch.autograd.grad(whole, [h_r, *reward.parameters()])
    loss = chunked_prt_loss(h_b, h_r, y, base, capped, chunk=chunk, **told)
    got = torch.autograd.grad(loss, [h_r, *reward.parameters()], retain_graph=True)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-5)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert all(p.grad is None for p in base.parameters())


def test_chunked_with_nan_where_ignored_and_with_nothing_else() -> None:
    base, reward = nn.Linear(8, V), nn.Linear(8, V)
    h_b, h_r = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    y = torch.randint(0, V, (2, 5))
    y[0] = IGNORED
    h_b[0], h_r[0] = math.nan, math.nan
    h_r.requires_grad_()
    loss = chunked_prt_loss(h_b, h_r, y, base, reward)
    loss.backward()
    assert loss.isfinite() and h_r.grad.isfinite().all() and not h_r.grad[0].any()
    h_r.grad = None
    none = chunked_prt_loss(h_b, h_r, torch.full_like(y, IGNORED), base, reward)
    none.backward()
    assert none.item() == 0 and not h_r.grad.any()


def test_bfloat16_is_widened_before_it_is_added() -> None:
    size = 32_000
    z, r = 4 * torch.randn(16, size).bfloat16(), 4 * torch.randn(16, size).bfloat16()
    y = torch.randint(0, size, (16,))
    want = prt_loss(z.double(), r.double(), y, beta=0.7).item()
    assert prt_loss(z, r, y, beta=0.7).item() == pytest.approx(want, abs=1e-4)
    rounded = nn.functional.cross_entropy((z + 0.7 * r).float(), y).item()
    assert abs(rounded - want) > 1e-4  # else the test could not fail


@pytest.fixture
def topk(batch) -> tuple[TopK, Tensor, Tensor]:
    """k = 9: the head of six distributions, their labels, and all of them."""
    z, _, y = batch
    y = y[y != IGNORED]
    full = z.reshape(-1, V)[: len(y)].log_softmax(-1)
    y[0], y[1] = full[0].argmax(), full[1].argmin()  # one label within, one outside
    head, ids = full.topk(9)
    return TopK(ids, head, full.gather(-1, y[:, None])[:, 0]), y, full


@pytest.mark.parametrize("corpus", [False, True])
def test_topk_base_is_a_distribution(topk, corpus: bool) -> None:
    kept, y, full = topk
    prior = torch.rand(V) if corpus else None
    got = topk_base(kept, y, V, prior)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(got.gather(1, kept.ids), kept.logprobs)
    torch.testing.assert_close(got.gather(1, y[:, None])[:, 0], full.gather(1, y[:, None])[:, 0])
    rest = torch.ones(V, dtype=torch.bool)
    rest[kept.ids[1]] = rest[y[1]] = False  # the label is outside of the top k here
    tail = got[1, rest].exp()
    want = prior[rest].double() if corpus else torch.ones(int(rest.sum())).double()
    torch.testing.assert_close(tail / tail.sum(), want / want.sum())


def test_topk_loss_of_everything_is_exact_and_needs_its_tail(batch) -> None:
    z, r, y = batch
    kept = y != IGNORED
    full = z[kept].log_softmax(-1)
    gold = full.gather(-1, y[kept][:, None])[:, 0]
    want = prt_loss(z, r, y, beta=0.5, num_items=9).item()
    found = full.topk(V - 1)
    nearly = TopK(found.indices, found.values, gold)
    assert topk_prt_loss(nearly, r, y, beta=0.5, num_items=9).item() == pytest.approx(want)
    found = full.topk(8)
    some = TopK(found.indices, found.values, gold)
    loss = topk_prt_loss(some, r, y, beta=0.5)
    assert loss.item() == pytest.approx(prt_loss(z, r, y, beta=0.5).item(), abs=0.5)
    by_tail = prt_loss(topk_base(some, y[kept], V), r[kept], y[kept], beta=0.5)
    assert loss.item() == by_tail.item()
    assert torch.isfinite(topk_base(some, y[kept], V)).all()  # no id is left without mass


def test_rounded_heads_leave_no_negative_tail() -> None:
    full = torch.tensor([[0.999, 0.0008, 0.0001, 0.0001]]).log()
    head, ids = full.topk(2)
    kept = TopK(ids, head + 1e-3, full[:, 0])  # as if rounding had made more than 1 of it
    got = topk_base(kept, torch.tensor([0]), 4)
    assert not got.isnan().any()


@pytest.mark.parametrize("label", [V, -1, 5000])
def test_labels_outside_the_vocabulary_are_refused(batch, label: int) -> None:
    z, r, y = batch
    y[0, 0] = label
    told = f"A label is {label}, outside the 61 ids that base and reward share"
    with pytest.raises(InferKitError, match=told) as caught:
        prt_loss(z, r, y)
    assert "another tokenizer" in str(caught.value.hint)
    eye = nn.Identity()
    with pytest.raises(InferKitError, match=told):
        chunked_prt_loss(z, r, y, eye, eye)
    kept = torch.zeros(6, 1).long()
    with pytest.raises(InferKitError, match=told):
        topk_prt_loss(TopK(kept, kept.double(), torch.zeros(6)), r, y)


def test_other_refusals(batch) -> None:
    z, r, y = batch
    with pytest.raises(InferKitError, match="have 61 .base. and 60 .reward. columns, fewer than"):
        prt_loss(z, r[..., :60], y, vocab_size=V)
    with pytest.raises(InferKitError, match=r"Labels of shape \[2, 3\] for base scores"):
        prt_loss(z, r, y[:, :3])
    with pytest.raises(InferKitError, match="chunk is 0; expected at least 1"):
        chunked_prt_loss(z, r, y, nn.Identity(), nn.Identity(), chunk=0)
    few = torch.zeros(2, 1)
    with pytest.raises(InferKitError, match="heads of 2 distributions for 6 labels"):
        topk_prt_loss(TopK(few.long(), few, few[:, 0]), r, y)


def test_no_labels_in_the_whole_batch_give_0() -> None:
    ignored = torch.full((2, 3), IGNORED)
    rewards = torch.randn(2, 3, 5, requires_grad=True)
    for count in (0, torch.tensor(0)):
        loss = prt_loss(torch.randn(2, 3, 5), rewards, ignored, num_items=count)
        assert float(loss.detach()) == 0.0


def test_a_tail_is_never_dropped() -> None:
    """Not for a head that sums to 1, nor for ids that a prior has never seen."""
    labels = torch.tensor([0, 3])
    head = torch.tensor([[1.0, 0.0], [0.75, 0.25]]).log().clamp(min=-20)
    gold = torch.tensor([0.0, -9.0])
    topk = TopK(torch.tensor([[0, 1], [1, 2]]), head, gold)
    prior = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    for given in (None, prior):
        found = topk_base(topk, labels, 5, given)
        assert bool(found.isfinite().all()) and float(found.exp().sum(-1).max()) < 1.001
