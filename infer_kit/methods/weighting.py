r"""How much each chunk of demonstrations counts.

Source: Yamaguchi et al., "Parallel In-context Learning for Large Vision Language Models", CVPR
2026, arXiv 2603.16092. Weights of one request are positive and sum to 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.methods.recipe import is_number
from infer_kit.pool import Step, WeightFunction

WEIGHTINGS = ("similarity", "uniform", "entropy")


def similarity_weights(
    similarity: Tensor, chunks: Sequence[Sequence[int]], temperature: float
) -> list[float]:
    r"""Chunks like the query count for more: $w = \mathrm{softmax}_k(s_k / \tau)$.

    $s_k = \frac{1}{|C_k|} \sum_{i \in C_k} s_i$ is the mean similarity of chunk k to the query.
    Published without a temperature, which is τ = 1: weights are then nearly uniform, since a gap
    of 0.2 between two chunks gives 0.55 and 0.45. A small τ sends the weight of all chunks but the
    likest to 0.

    Args:
        similarity: `[N]` floats, of each demonstration to the query; float64 inside.
        chunks: K non-empty lists of indices.
        temperature: τ, positive.

    Returns:
        K weights.

    Raises:
        InferKitError: the temperature is not positive and finite, or a similarity not finite.
    """
    _check_temperature(temperature)
    if similarity.dim() != 1 or not similarity.isfinite().all():
        raise InferKitError(
            f"Similarities {list(similarity.shape)}: expected finite numbers, one a demonstration."
        )
    s = similarity.detach().to("cpu", torch.float64)
    means = torch.stack([s[list(members)].mean() for members in chunks])
    return _softmax(means, temperature, dim=0).tolist()


def uniform_weights(chunks: int) -> list[float]:
    """1/K for each of K chunks."""
    return [1 / chunks] * chunks


def entropy_weights(temperature: float) -> WeightFunction:
    r"""Chunks that are sure of the next token count for more, step by step.

    $w = \mathrm{softmax}_k(-H_k / \tau)$ at every position, $H_k = -\sum_v p_k(v) \ln p_k(v)$ in
    nats; a token with $p_k(v) = 0$ adds 0.

    A request with fewer streams than others of its batch has uniform log-probabilities for those
    it lacks. Whoever runs the group sets their weights to 0 afterwards, and the rest then sum to
    less than 1: pass `normalize=True` for ragged groups, which gives exactly the softmax over the
    streams that are there. A mixture is refused without it.

    Args:
        temperature: τ in nats, positive. A small τ follows the surest stream alone.

    Returns:
        A function from a `Step` to weights `[R, K, n]` float32.
    """
    _check_temperature(temperature)

    def weights(step: Step) -> Tensor:
        lowest = torch.finfo(step.logprobs.dtype).min  # finite, so that 0 · (-inf) is not formed
        entropy = -(step.logprobs.exp() * step.logprobs.clamp_min(lowest)).sum(-1)
        return _softmax(-entropy.double(), temperature, dim=1).float()

    return weights


def _softmax(scores: Tensor, temperature: float, dim: int) -> Tensor:
    """Of `scores / temperature`. The largest becomes 0 first: its quotient may overflow."""
    return ((scores - scores.amax(dim, keepdim=True)) / temperature).softmax(dim)


def _check_temperature(temperature: float) -> None:
    if not is_number(temperature) or temperature <= 0:
        raise InferKitError(
            f"temperature={temperature!r}: expected a positive, finite number.",
            hint='For equal weights use weighting="uniform".',
        )
