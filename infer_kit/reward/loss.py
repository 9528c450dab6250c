r"""The loss of a reward that is trained through a frozen base.

With base scores z and rewards r of the first V ids, and strength β,

$$\log \pi = \mathrm{log\_softmax}(z + \beta r), \qquad
L = -\frac{1}{N} \sum_{\text{labels}} \big(\log \pi(y) + \alpha H(\mathrm{softmax}\, r)\big).$$

z may be logits or log-probabilities: a constant for each input cancels, in r as well.

Source: Chijiwa et al., "Portable Reward Tuning", ICML 2025 (arXiv 2502.12776), equations 6 to 8 and
12. There β = 1 in training; a strength of one's own is ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from infer_kit.errors import InferKitError

IGNORED = -100
"""The label of a position without one, as everywhere in transformers."""

_LEAST_TAIL = 1e-7

Head = Callable[[Tensor], Tensor]


def prt_loss(
    base: Tensor,
    rewards: Tensor,
    labels: Tensor,
    *,
    beta: float = 1.0,
    alpha: float = 0.0,
    num_items: Tensor | float | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Mean cross-entropy of the labels under base and reward together; float32 at least.

    Args:
        base: `[..., V_b]` scores of the frozen base. rewards: `[..., V_r]`.
        labels: `[...]` ids, already shifted against the scores; `IGNORED` where there is none. What
            stands at such places, be it NaN, has no part in the loss.
        beta: β, the strength of the reward.
        alpha: α, weight of the rewards' own entropy; 0 in the paper.
        num_items: N, labels in the whole batch that gradients are accumulated over. Default:
            those given here.
        vocab_size: V, ids that have a meaning; default: the smaller head. Columns beyond it are
            left out.

    Returns:
        A scalar; 0, with gradients 0, where every label is ignored.

    Raises:
        InferKitError: a label beyond V, a head with fewer than V columns, shapes that differ.
    """
    size = _vocab_size(base, rewards, vocab_size)
    if base.shape[:-1] != labels.shape or rewards.shape[:-1] != labels.shape:
        raise InferKitError(
            f"Labels of shape {list(labels.shape)} for base scores {list(base.shape)} and rewards "
            f"{list(rewards.shape)}."
        )
    # What is ignored is taken out before any arithmetic: it may hold NaN.
    kept = labels != IGNORED
    y = _checked(labels[kept], size)
    losses = _losses(base[kept][:, :size], rewards[kept][:, :size], y, beta, alpha)
    return losses.sum() / _items(num_items, y)


def chunked_prt_loss(
    base_hidden: Tensor,
    reward_hidden: Tensor,
    labels: Tensor,
    base_head: Head,
    reward_head: Head,
    *,
    beta: float = 1.0,
    alpha: float = 0.0,
    num_items: Tensor | float | None = None,
    vocab_size: int | None = None,
    chunk: int = 1024,
) -> Tensor:
    """The same from the last hidden states, without a whole `[tokens, V]` matrix at any time.

    Scores of `chunk` labels at a time are made by the models' own heads, and made again for the
    gradients.

    Args:
        base_hidden: `[..., d_b]`. reward_hidden: `[..., d_r]`.
        base_head, reward_head: hidden states `[n, d]` to scores `[n, V]`; the base's runs without
            gradients.
        chunk: labels at a time.
    """
    if chunk < 1:
        raise InferKitError(f"chunk is {chunk}; expected at least 1 label.")
    kept = labels != IGNORED
    y, h_b, h_r = labels[kept], base_hidden[kept], reward_hidden[kept]

    def part(h_b: Tensor, h_r: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            z = base_head(h_b)
        r = reward_head(h_r)
        size = _vocab_size(z, r, vocab_size)
        return _losses(z[:, :size], r[:, :size], _checked(y, size), beta, alpha).sum()

    total = h_r.sum() * 0.0 if not len(y) else h_r.new_zeros((), dtype=_wide(h_r).dtype)
    for start in range(0, len(y), chunk):
        rows = slice(start, start + chunk)
        total = total + checkpoint(part, h_b[rows], h_r[rows], y[rows], use_reentrant=False)
    return total / _items(num_items, y)


@dataclass(frozen=True)
class TopK:
    """The head of a base's distribution at each of n labels.

    Attributes:
        ids: `[n, k]` int64. logprobs: `[n, k]` their log-probabilities.
        gold: `[n]` log-probability of the label itself.
    """

    ids: Tensor
    logprobs: Tensor
    gold: Tensor


def topk_base(topk: TopK, labels: Tensor, vocab_size: int, prior: Tensor | None = None) -> Tensor:
    """`[n, V]` log-probabilities with the mass beyond the top k spread over the other ids.

    The head and the label are exact. Dropping the tail instead would make the reward responsible
    for keeping those ids down; it trains to a far worse reward.

    Args:
        topk: of the labels. labels: `[n]`, none ignored.
        prior: `[V]` relative frequencies by which the tail is spread, 0 taken for next to nothing;
            None: evenly.
    """
    n = len(topk.ids)
    labels = _checked(labels, vocab_size)
    known = torch.zeros(n, vocab_size, dtype=torch.bool, device=labels.device)
    known.scatter_(1, topk.ids, True)
    outside = ~known.gather(1, labels[:, None])[:, 0]
    known.scatter_(1, labels[:, None], True)
    logprobs = _wide(topk.logprobs)
    gold = topk.gold.to(logprobs.dtype)
    tail = 1 - logprobs.exp().sum(-1) - gold.exp() * outside
    share = (~known).to(logprobs.dtype)
    if prior is not None:
        share = share * prior.to(logprobs).clamp(min=torch.finfo(share.dtype).tiny)
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    # Rounded, a peaked head may sum to 1 or more, and no tail would be as bad as a dropped one.
    full = (share * tail.clamp(min=_LEAST_TAIL)[:, None]).log()
    full.scatter_(1, topk.ids, logprobs)
    return full.scatter_(1, labels[:, None], gold[:, None])


def topk_prt_loss(
    topk: TopK,
    rewards: Tensor,
    labels: Tensor,
    *,
    beta: float = 1.0,
    alpha: float = 0.0,
    num_items: Tensor | float | None = None,
    vocab_size: int | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """`prt_loss` where only the head of the base's distribution was kept; not exact.

    Args:
        topk: at the labels that are not ignored, in their order.
        rewards: `[..., V_r]`. labels: `[...]`.
        prior: see `topk_base`.
    """
    kept = labels != IGNORED
    y = labels[kept]
    if len(topk.ids) != len(y):
        raise InferKitError(f"Got the heads of {len(topk.ids)} distributions for {len(y)} labels.")
    size = rewards.shape[-1] if vocab_size is None else vocab_size
    base = topk_base(topk, y, size, prior)
    return prt_loss(
        base,
        rewards[kept],
        y,
        beta=beta,
        alpha=alpha,
        num_items=_items(num_items, y),
        vocab_size=size,
    )


def entropy(scores: Tensor) -> Tensor:
    """`[...]` entropy in nats of softmax(scores `[..., V]`)."""
    logprobs = _wide(scores).log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(-1)


def _losses(z: Tensor, r: Tensor, y: Tensor, beta: float, alpha: float) -> Tensor:
    """`[n]` of n labels; z and r `[n, V]`."""
    scores = _wide(z) + beta * _wide(r)  # widened before they are added: the sum would round
    losses = scores.logsumexp(-1) - scores.gather(-1, y[:, None])[:, 0]
    return losses - alpha * entropy(r) if alpha else losses


def _wide(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _items(num_items: Tensor | float | None, labels: Tensor) -> Tensor | float:
    if num_items is None:
        return max(len(labels), 1)
    return num_items.clamp(min=1) if isinstance(num_items, Tensor) else max(num_items, 1)


def _vocab_size(base: Tensor, rewards: Tensor, wanted: int | None) -> int:
    have = min(base.shape[-1], rewards.shape[-1])
    if wanted is None:
        return have
    if have < wanted:
        raise InferKitError(
            f"The scores have {base.shape[-1]} (base) and {rewards.shape[-1]} (reward) columns, "
            f"fewer than the vocabulary's {wanted}."
        )
    return wanted


def _checked(labels: Tensor, size: int) -> Tensor:
    """The labels, none of them beyond the vocabulary."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < size:
        worst = int(labels.max()) if int(labels.max()) >= size else int(labels.min())
        raise InferKitError(
            f"A label is {worst}, outside the {size} ids that base and reward share.",
            hint=f"Labels are ids below {size}, or {IGNORED} where there is none. Were they made "
            "by another tokenizer?",
        )
    return labels
