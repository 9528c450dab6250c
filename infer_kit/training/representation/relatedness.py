"""Whether pseudo samples of a source tell anything of a target set: ours, not the paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.representation.classifiers import logits_of
from infer_kit.training.representation.generators import Generator
from infer_kit.training.representation.pseudo_samples import (
    Mode,
    Normalise,
    PseudoSampler,
    source_probabilities,
)
from infer_kit.training.symmetry.calling import evaluating
from infer_kit.training.symmetry.placed import moved

_CHUNK = 256


@dataclass(frozen=True)
class Thresholds:
    """The least that a `RelatednessReport` must have; each a share from 0 to 1.

    The defaults lie between three toys of digits and letters, four draws of labels each: confidence
    was 0.70 to 0.78 of letters for digits and 0.82 to 0.89 of digits 0-4 for 5-9, where UDA lowered
    the accuracy, and 0.94 to 0.98 of coarse classes for their fine ones, where it raised it. Mask
    rates were 0.6 to 0.9 in all three. They are no law: a task of one's own may need others.
    """

    confidence: float = 0.92
    coverage: float = 0.5
    faithfulness: float = 0.6
    agreement: float = 0.05
    mask_rate: float = 0.1


@dataclass(frozen=True)
class RelatednessReport:
    """Whether a source knows enough of a target for its pseudo samples to teach something.

    Attributes:
        confidence: mean of max C(x_target). Where the source does not know the target, its
            classifier wavers: the figure that told the toys apart best.
        coverage: entropy of mean C(x_target), as a share of log K_s: 0 where all targets are one
            source class. Less than 1 need not be bad: a target can be a part of the source.
        faithfulness: share of pseudo samples of which C says the class that it said of the target
            example: whether generator and classifier mean the same.
        mask_rate: share of pseudo samples of which the target network is sure enough to be
            counted. **High is no good sign**: networks are as sure of nonsense.
        agreement: Cohen's kappa of what the target network says of a pseudo sample and of the
            target example that it was made of: 0 for chance, 1 if always the same.
        examples: target examples. samples: pseudo samples.
        thresholds: the least for each.
        source_mean: mean C(x_target), which tells what the report is of; empty where unknown.
    """

    confidence: float
    coverage: float
    faithfulness: float
    mask_rate: float
    agreement: float
    examples: int
    samples: int
    thresholds: Thresholds
    source_mean: tuple[float, ...] = ()

    @property
    def short(self) -> list[str]:
        """What is below its threshold, in words; empty if the report passes."""
        least = asdict(self.thresholds)
        return [
            f"{name.replace('_', ' ')} {getattr(self, name):.2f} < {value:g}"
            for name, value in least.items()
            if not getattr(self, name) >= value
        ]

    @property
    def related(self) -> bool:
        """Whether everything reaches its threshold."""
        return not self.short

    def require(self, probabilities: Tensor | None = None) -> None:
        """Does nothing if the source is related.

        Args:
            probabilities: `[N, K_s]` C(x_target) that pseudo samples are made of; None for any.

        Raises:
            InferKitError: it is not, with the figures; the report is of other probabilities.
        """
        if probabilities is not None and self.source_mean:
            own, given = torch.tensor(self.source_mean), probabilities.float().mean(0).cpu()
            if len(own) != len(given) or (
                len(probabilities) == self.examples and bool(((own - given).abs() > 0.01).any())
            ):
                raise InferKitError(
                    "The report is of another source or other target examples than the sampler's "
                    "probabilities.",
                    "Make it with the classifier, examples and generator of the sampler.",
                )
        if not self.related:
            raise InferKitError(
                f"The source is not related enough to the target for P-SSL: "
                f"{', '.join(self.short)}.",
                "Train without P-SSL; pseudo pre-training alone can help. A classifier or target "
                "network that was trained too short is told so too. allow_unrelated=True goes on "
                "all the same: measure on held-out data whether it helps.",
            )

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can have it."""
        return asdict(self) | {"related": self.related}

    def __str__(self) -> str:
        verdict = "related" if self.related else f"not related ({', '.join(self.short)})"
        return (
            f"{self.examples} target examples, {self.samples} pseudo samples: source confidence "
            f"{self.confidence:.2f}, coverage {self.coverage:.2f}, faithfulness "
            f"{self.faithfulness:.2f}, mask rate {self.mask_rate:.2f}, agreement "
            f"{self.agreement:.2f}: {verdict}"
        )


@torch.no_grad()
def relatedness_report(
    classifier: nn.Module,
    x_target: Tensor,
    generator: Generator,
    *,
    model: nn.Module,
    mode: Mode = "soft",
    normalise: Normalise | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    draws: int = 8,
    mask: float = 0.8,
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> RelatednessReport:
    """Whether pseudo samples of a target set are of use; nothing is trained.

    Args:
        classifier, x_target, generator, mode, normalise: see `pseudo_conditional_samples`. Of the
            classifier `normalise` has to take both target examples and samples of the generator:
            both are on one scale here.
        model: the target network, trained on the labelled target examples.
        prepare: brings samples to what `model` takes, and x_target's scale; None if they are.
        draws: samples for each example.
        mask: probability from which UDA counts a sample.
        thresholds: None for the defaults.
        seed: of the samples.

    Returns:
        The figures, with a verdict; `print` it.

    Raises:
        InferKitError: as `pseudo_conditional_samples`; draws below 1.
    """
    if draws < 1:
        raise InferKitError(f"draws={draws}: at least 1 is expected.")
    rng = torch.Generator().manual_seed(seed)
    p = source_probabilities(classifier, x_target, generator, normalise=normalise)
    index = torch.arange(len(p)).repeat_interleave(draws)
    sampler = PseudoSampler(generator, p, mode, prepare=prepare)
    again, said = [], []
    with evaluating(model):
        own = torch.cat([_target_probabilities(model, part) for part in x_target.split(_CHUNK)])
        for part in index.split(_CHUNK):
            x = sampler.of(part, rng)
            again.append(source_probabilities(classifier, x, generator, normalise=normalise))
            said.append(_target_probabilities(model, x))
    mean, sure = p.mean(0), torch.cat(said)
    classes = sure.argmax(1), own.argmax(1).repeat_interleave(draws)
    same = torch.cat(again).argmax(1) == p.argmax(1).repeat_interleave(draws)
    return RelatednessReport(
        confidence=float(p.amax(1).mean()),
        coverage=float(torch.special.entr(mean).sum()) / log(max(2, len(mean))),
        faithfulness=float(same.float().mean()),
        mask_rate=float((sure.amax(1) >= mask).float().mean()),
        agreement=_kappa(*classes, sure.shape[1]),
        examples=len(p),
        samples=len(index),
        source_mean=tuple(mean.tolist()),
        thresholds=Thresholds() if thresholds is None else thresholds,
    )


def _kappa(a: Tensor, b: Tensor, n_classes: int) -> float:
    """Cohen's: (agreement - chance) / (1 - chance); 0 where chance is all there is."""
    shares = [torch.bincount(y, minlength=n_classes).double() / len(y) for y in (a, b)]
    chance = float((shares[0] * shares[1]).sum())
    return (float((a == b).double().mean()) - chance) / (1 - chance) if chance < 1 else 0.0


def _target_probabilities(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(moved(x, model)), len(x), None, "the target network").softmax(1)
