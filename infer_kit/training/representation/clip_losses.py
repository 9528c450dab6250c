r"""Losses on the features of image-text pairs.

For features a of images and b of their texts, `[B, d]`, **not normalised**, and similarities S =
a b^T `[B, B]`, S' those of a frozen teacher:

$$RaFA = mse(a, z) + mse(b, z), \quad z \sim N(0, I) \text{ one draw for both}$$
$$HyCD = \tfrac12 [KL(q_1 \| softmax(S)) + KL(q_2 \| softmax(S^T))], \quad
  q_1 = \alpha I + (1-\alpha)\, softmax(S'), \; q_2 \text{ of } S'^T$$

Source: Yamaguchi et al., "Post-pre-training for Modality Alignment in Vision-Language Foundation
Models" (CLIP-Refine), CVPR 2025, arXiv 2504.12717. With alpha = 1 HyCD is the usual contrastive
loss, with alpha = 0 self-distillation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss, normalize, softmax

from infer_kit.errors import InferKitError
from infer_kit.training.representation.finite import check_finite

Reduction = Literal["mean", "paper"]
Similarity = Literal["raw", "scaled_cosine"]
SIMILARITIES = ("raw", "scaled_cosine")


def rafa_loss(a: Tensor, b: Tensor, z: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Random feature alignment: both features of a pair are pulled to one random vector.

    In expectation over z it is a penalty on the norms: E|a - z|^2 = |a|^2 + d.

    Args:
        a, b: `[B, d]` features of images and texts, not normalised.
        z: `[B, d]` references, without gradient.
        reduction: "mean" over B and d of both squared distances, added: what the published runs
            used. "paper": sum over d, and half the mean over the pairs, which is d/2 times larger.

    Returns:
        A scalar, float32 at least.

    Raises:
        InferKitError: shapes that differ, no pair, features that are not finite, or another
            reduction.
    """
    a, b = _pair(a, b)
    if z.shape != a.shape:
        raise InferKitError(
            f"z is {list(z.shape)} and the features are {list(a.shape)}.",
            "Give one reference for each pair: torch.randn_like(a).",
        )
    z = z.detach().to(a)
    if reduction == "mean":
        return mse_loss(a, z) + mse_loss(b, z)
    if reduction == "paper":
        return ((a - z).square().sum(1) + (b - z).square().sum(1)).mean() / 2
    raise InferKitError(f'reduction={reduction!r}: "mean" or "paper" is expected.')


def align_loss(a: Tensor, b: Tensor) -> Tensor:
    """The squared distance of a pair, mean over B and d: a control, which collapses uniformity.

    Args:
        a, b: `[B, d]` features.

    Returns:
        A scalar, float32 at least.
    """
    return mse_loss(*_pair(a, b))


def similarities(a: Tensor, b: Tensor, kind: Similarity, scale: float | Tensor = 1.0) -> Tensor:
    """S of HyCD: how alike each image and each text is.

    Args:
        a, b: `[B, d]` features. kind: "raw": a b^T. "scaled_cosine": scale times the cosine.
        scale: exp(logit_scale); of "raw" not used.

    Returns:
        `[B, B]`, images along the first axis; float32 at least.
    """
    a, b = _pair(a, b)
    if kind == "raw":
        return a @ b.T
    if kind == "scaled_cosine":
        return scale * normalize(a, dim=1) @ normalize(b, dim=1).T
    raise InferKitError(f"similarity={kind!r}: one of {', '.join(SIMILARITIES)} is expected.")


def hycd_loss(S: Tensor, S_t: Tensor | None, alpha: float = 0.5, T: float = 1.0) -> Tensor:
    """Hybrid contrastive distillation: the targets mix the pairs with what a teacher says.

    Args:
        S: `[B, B]` similarities of the student, of image i and text j; pairs on the diagonal.
        S_t: those of the teacher, which get no gradient; None with alpha = 1.
        alpha: share of the pairs in the targets, from 0 (distillation) to 1 (contrastive).
        T: temperature of both softmaxes; 1 as published, for raw products or scaled cosines.

    Returns:
        A scalar: the mean of both directions, each a mean over the batch, in nats.

    Raises:
        InferKitError: S is not square, S_t has another shape or is missing, alpha is outside of
            [0, 1], T is not positive, or a similarity is not finite.
    """
    if S.dim() != 2 or S.shape[0] != S.shape[1] or not len(S):
        raise InferKitError(f"S is {list(S.shape)}; [B, B] is expected: each image by each text.")
    if not 0 <= alpha <= 1:
        raise InferKitError(f"alpha={alpha}: a number from 0 to 1 is expected.")
    if not T > 0:
        raise InferKitError(f"T={T}: a temperature above 0 is expected.")
    check_finite("Similarities", S)
    S = S.to(torch.promote_types(S.dtype, torch.float32)) / T
    q1 = q2 = alpha * torch.eye(len(S), dtype=S.dtype, device=S.device)
    if alpha < 1:
        if S_t is None or S_t.shape != S.shape:
            told = "is missing" if S_t is None else f"is {list(S_t.shape)}"
            raise InferKitError(
                f"S_t {told}, and S is {list(S.shape)}.",
                "The teacher has to read the same batch.",
            )
        check_finite("The teacher's similarities", S_t)
        S_t = S_t.detach().to(S) / T
        q1 = q1 + (1 - alpha) * softmax(S_t, 1)
        q2 = q2 + (1 - alpha) * softmax(S_t.T, 1)
    by_image = kl_div(log_softmax(S, 1), q1, reduction="batchmean")
    by_text = kl_div(log_softmax(S.T, 1), q2, reduction="batchmean")
    return (by_image + by_text) / 2


def contrastive_loss(S: Tensor) -> Tensor:
    """The mean of both directions' cross-entropies: `hycd_loss` with alpha = 1."""
    return hycd_loss(S, None, alpha=1.0)


def natural_similarity(a: Tensor, b: Tensor, scale: float) -> tuple[Similarity, float]:
    """Whether raw products of features are on the scale of the model's own logits.

    Raw products with temperature 1 are right where |a||b| is about exp(logit_scale), as in CLIP
    ViT-B/32 (text norms 9.8, so that a product is about 100 times the cosine). Elsewhere their
    softmax would be flat, or one pair of all.

    Args:
        a, b: `[B, d]` features of some pairs. scale: exp(logit_scale).

    Returns:
        "raw" if mean(|a||b|) is within a factor of 4 of the scale, else "scaled_cosine"; and that
        mean.
    """
    a, b = _pair(a, b)
    norms = float((a.norm(dim=1) * b.norm(dim=1)).mean())
    return ("raw" if scale / 4 <= norms <= 4 * scale else "scaled_cosine"), norms


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or a.shape != b.shape or not len(a):
        raise InferKitError(
            f"Features are {list(a.shape)} of images and {list(b.shape)} of texts; [B, d] of both "
            "are expected.",
            "Give the features of pairs, row by row.",
        )
    check_finite("Features", a, b)
    dtype = torch.promote_types(a.dtype, torch.float32)
    return a.to(dtype), b.to(dtype)
