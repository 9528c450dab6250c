r"""P-SSL: learning from labelled target examples and, without labels, from pseudo samples.

For labelled x, y, pseudo samples x_p and a strong augmentation T, with the unlabelled term UDA

$$L = CE(x, y) + \lambda_u r(t)\; mean_B\, 1[\max p(x_p) \ge \tau]\,
  KL(sharpen(p(x_p), T) \,\|\, p(T(x_p))), \quad sharpen(p, T) \propto p^{1/T}$$

or the consistency of features |g(T(x_p)) - g(x_p)|^2. r(t) = min(1, t / (0.4 steps)).

Sources: Yamaguchi et al., "Transfer Learning with Pre-trained Conditional Generative Models", 2022,
arXiv 2204.12833; UDA: Xie et al., "Unsupervised Data Augmentation for Consistency Training",
NeurIPS 2020, arXiv 1904.12848. The weights, the ramp, and features as the alternative are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.representation.classifiers import logits_of, mean_cross_entropy
from infer_kit.training.representation.consistency import FeatureConsistency
from infer_kit.training.representation.finite import check_finite
from infer_kit.training.representation.pseudo_samples import (
    PseudoSampler,
)
from infer_kit.training.representation.relatedness import RelatednessReport

Consistency = Literal["uda", "features"]


@dataclass(frozen=True)
class UDALoss:
    """The KL of a network's sharpened words on x from its words on the augmented x.

    Args:
        temperature: T of the sharpening, 1 for none.
        mask: the least max p(x) of an example that counts; others count as 0 in the mean, so that
            few sure examples make a small loss.

    Raises:
        InferKitError: a temperature that is not above 0, a mask outside [0, 1].
    """

    temperature: float = 0.4
    mask: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InferKitError(f"temperature={self.temperature}: a number above 0 is expected.")
        if not 0 <= self.mask <= 1:
            raise InferKitError(f"mask={self.mask}: a probability from 0 to 1 is expected.")

    def __call__(self, weak: Tensor, strong: Tensor) -> Tensor:
        """The loss, whose gradient goes to `strong` alone.

        Args:
            weak: `[B, K]` logits of x. strong: `[B, K]` logits of the augmented x.

        Returns:
            A tensor with one number: the mean over all B, in nats; float32 at least.

        Raises:
            InferKitError: logits of other shapes, or not finite.
        """
        if weak.shape != strong.shape or weak.dim() != 2 or not weak.numel():
            raise InferKitError(
                f"Logits are {list(weak.shape)} of x and {list(strong.shape)} of the augmented x; "
                "[B, K] of both are expected."
            )
        wide = torch.promote_types(weak.dtype, torch.float32)
        weak, strong = weak.detach().to(wide), strong.to(wide)
        check_finite("Logits", weak, strong)
        target = log_softmax(weak / self.temperature, 1)  # which is sharpen(softmax(weak), T)
        kl = kl_div(log_softmax(strong, 1), target, reduction="none", log_target=True).sum(1)
        return (self.kept(weak) * kl).mean()

    def kept(self, weak: Tensor) -> Tensor:
        """`[B]` bool: which examples count."""
        wide = weak.detach().to(torch.promote_types(weak.dtype, torch.float32))
        return wide.softmax(1).amax(1) >= self.mask


def ramp(step: int, steps: int, share: float = 0.4) -> float:
    """Weight that rises evenly from 0 to 1 over a share of the steps, and then is 1.

    Args:
        step: from 0. steps: of the whole run. share: from 0, which is 1 from the start, to 1.

    Raises:
        InferKitError: a step before 0, no steps, or a share outside [0, 1].
    """
    if step < 0 or steps < 1 or not 0 <= share <= 1:
        raise InferKitError(
            f"step={step}, steps={steps}, share={share}: a step from 0 on, at least one step and a "
            "share from 0 to 1 are expected."
        )
    return min(1.0, step / (share * steps)) if share else 1.0


class SemiSupervisedLoss(NamedTuple):
    """A batch's loss and its parts.

    Attributes:
        loss: supervised + weight * ramp * unlabelled. supervised: cross-entropy.
        unlabelled: of the pseudo samples, without weight and ramp.
        kept: share of pseudo samples that count; 1 for features.
        logits: `[B, K]` of the labelled examples.
    """

    loss: Tensor
    supervised: Tensor
    unlabelled: Tensor
    kept: Tensor
    logits: Tensor


class PseudoSemiSupervised:
    """The loss of P-SSL, for a loop of one's own; `PSSLTrainer` is a ready one.

    >>> pssl = PseudoSemiSupervised(PseudoSampler(generator, p), report)
    >>> for step, (x, y) in enumerate(batches):
    ...     pssl(model, x, y, step, steps).loss.backward()

    Labelled examples, pseudo samples and augmented pseudo samples go through the model as one
    batch, in one forward: a batch norm has one mean for all, and DistributedDataParallel one
    forward for a backward. What the model says of plain pseudo samples is a target of UDA, without
    a gradient.

    Compare with pseudo = the labelled images themselves, consistency="features",
    allow_unrelated=True: on toys of digits that gained more than any pseudo samples, as the
    augmentation does most of it.

    Nothing is synchronised between processes: each has its own pseudo samples, and gradients are
    averaged as always; give each process another `rng`.

    Args:
        pseudo: where pseudo samples come from, or a tensor `[N, C, H, W]` of such, or of real
            unlabelled images, of which some are drawn for each batch.
        report: of `relatedness_report` for this source and target. P-SSL hurts where they are
            unrelated, so that without a report, or with one that does not pass, it is refused.
        allow_unrelated: go on all the same.
        consistency: "uda", or "features" of `FeatureConsistency`, which trains no head.
        weight: lambda_u. ratio: pseudo samples for each labelled example, 2 to 7 as suggested.
        ramp_share: see `ramp`.
        uda: temperature and mask of UDA; None for 0.4 and 0.8.
        features: augmentation, layer and reduction, the augmentation for "uda" too; None for the
            defaults.

    Raises:
        InferKitError: an unrelated source, an unknown consistency, a number that cannot be.
    """

    def __init__(
        self,
        pseudo: PseudoSampler | Tensor,
        report: RelatednessReport | None = None,
        *,
        allow_unrelated: bool = False,
        consistency: Consistency = "uda",
        weight: float = 1.0,
        ratio: int = 2,
        ramp_share: float = 0.4,
        uda: UDALoss | None = None,
        features: FeatureConsistency | None = None,
    ) -> None:
        if consistency not in ("uda", "features"):
            raise InferKitError(f"consistency={consistency!r}: 'uda' or 'features' is expected.")
        if not 0 <= weight < float("inf"):
            raise InferKitError(f"weight={weight}: a number from 0 on is expected.")
        if ratio < 1:
            raise InferKitError(f"ratio={ratio}: at least one pseudo sample for each is expected.")
        ramp(0, 1, ramp_share)
        if isinstance(pseudo, Tensor):
            if not pseudo.is_floating_point() or not len(pseudo):
                raise InferKitError(
                    f"pseudo is {list(pseudo.shape)} of {pseudo.dtype}; floating [N, C, H, W] is "
                    "expected."
                )
        elif not isinstance(pseudo, PseudoSampler):
            raise InferKitError(
                f"pseudo is a {type(pseudo).__name__}; a PseudoSampler or a tensor is expected."
            )
        if not allow_unrelated:
            if report is None:
                raise InferKitError(
                    "Nothing tells whether the source is related to the target, and P-SSL hurts "
                    "where it is not.",
                    "Give relatedness_report(...), or allow_unrelated=True.",
                )
            if not isinstance(report, RelatednessReport):
                raise InferKitError(
                    f"report is a {type(report).__name__}; expected what relatedness_report gives."
                )
            report.require(pseudo.probabilities if isinstance(pseudo, PseudoSampler) else None)
        self.pseudo, self.consistency = pseudo, consistency
        self.weight, self.ratio, self.ramp_share = weight, ratio, ramp_share
        self.uda = UDALoss() if uda is None else uda
        self.features = FeatureConsistency() if features is None else features

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        step: int,
        steps: int,
        rng: torch.Generator | None = None,
        call: Callable[[nn.Module, Tensor], Any] | None = None,
    ) -> SemiSupervisedLoss:
        """The loss of a batch.

        Args:
            model: of inputs to `[B, K]` logits, or to an output with `logits`; its mode is kept.
            x: `[B, C, H, W]` labelled examples. y: `[B]` int64 classes; -100 is passed over.
            step, steps: of the optimizer, for the ramp.
            rng: of pseudo samples and augmentation; None for PyTorch's own.
            call: runs the model on a batch; None for `model(batch)`.

        Raises:
            InferKitError: pseudo samples of another shape than x; another output.
        """
        plain = self._drawn(self.ratio * len(x), rng).to(x)
        if plain.shape[1:] != x.shape[1:]:
            raise InferKitError(
                f"Pseudo samples are {list(plain.shape[1:])} and labelled examples "
                f"{list(x.shape[1:])}.",
                "PseudoSampler(..., prepare=) brings them to one size and scale.",
            )
        sizes = [len(x), len(plain), len(plain)]
        batch = torch.cat([x, plain, self.features.augment(plain, rng)])
        logits, features = self._through(model, batch, call)
        labelled, weak, strong = logits.split(sizes)
        supervised = mean_cross_entropy(labelled, y)
        if features is None:
            unlabelled, kept = self.uda(weak, strong), self.uda.kept(weak).float().mean()
        else:
            _, g, g_augmented = features.split(sizes)
            unlabelled, kept = self.features.of(g_augmented, g), torch.ones_like(supervised)
        weight = self.weight * ramp(step, steps, self.ramp_share)
        return SemiSupervisedLoss(
            supervised + weight * unlabelled, supervised, unlabelled, kept, labelled
        )

    def _drawn(self, n: int, rng: torch.Generator | None) -> Tensor:
        if isinstance(self.pseudo, PseudoSampler):
            return self.pseudo.draw(n, rng)
        device = "cpu" if rng is None else rng.device
        index = torch.randint(len(self.pseudo), (n,), generator=rng, device=device)
        return self.pseudo[index.to(self.pseudo.device)]

    def _through(
        self, model: nn.Module, batch: Tensor, call: Callable[[nn.Module, Tensor], Any] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits and, if they are asked for, features of a batch, in one forward."""
        if self.consistency == "uda":
            output, features = model(batch) if call is None else call(model, batch), None
        else:
            wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
            inner: Any = model.module if wrapped else model
            with FeatureTap(inner, self.features.layer) as tap:
                output = model(batch) if call is None else call(model, batch)
                features = tap.take()
        return logits_of(output, len(batch)), features
