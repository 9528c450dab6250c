"""Ways of explaining pictures of the tiny CLIP's world, measured on held-out pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.deletion import DeletionCurve, deletion_curve
from infer_kit.concepts.encoders import Encoder, encoder_for, image_features
from infer_kit.concepts.measures import Evaluation, evaluate
from infer_kit.demo.clip import CLASSES, PHRASES, Sample, held_out
from infer_kit.demo.clip.world import THINGS

PUBLISHED, CENTRED = "published", "centred"
WAYS: dict[str, dict[str, Any]] = {
    PUBLISHED: {"alpha": 1e-5},
    "alpha 1e-3": {"alpha": 1e-3},
    "w ≥ 0": {"alpha": 1e-5, "positive": True},
    CENTRED: {"alpha": 1e-3, "center": "modality"},
    "published, pairs": {"alpha": 1e-5, "pairs": True},
    "centred, pairs": {"alpha": 1e-3, "center": "modality", "pairs": True},
}
"""Settings by what they are called. "pairs": the bank has "red circle and blue square", … too, and
so more phrases than the features have dimensions."""

COUNTS = (0, 1, 2, 4, 8, 16)
_FIRST = 6  # phrases that are compared with what a picture shows: as many as it has things
_MEAN_SEED = 1_000_003  # of the pictures whose mean feature centres


@dataclass(frozen=True)
class Way:
    """A setting, measured.

    Attributes:
        evaluation: accuracies and their controls. deletion: the curve.
        phrases: in the bank. true: share of the six first phrases that have positive weight and
            are true of the picture.
    """

    evaluation: Evaluation
    deletion: DeletionCurve
    phrases: int
    true: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can have them."""
        return asdict(self)


class World:
    """The encoder with its banks, and the mean feature of pictures."""

    def __init__(self, encoder: Any = "demo-clip") -> None:
        self.encoder: Encoder = encoder_for(encoder)
        names = [" ".join(thing) for thing in THINGS]
        pairs = [f"{a} and {b}" for a, b in combinations(names, 2)]
        self.banks = {
            False: ConceptBank.build(PHRASES, self.encoder),
            True: ConceptBank.build([*PHRASES, *pairs], self.encoder, longest=None),
        }
        others = held_out(200, _MEAN_SEED)
        self.image_mean = image_features(self.encoder, [s.picture for s in others]).mean(0)

    def model(self, way: str) -> ZeroShotCBM:
        """The concept bottleneck of a way."""
        options = dict(WAYS[way])
        bank = self.banks[options.pop("pairs", False)]
        if "center" in options:
            options["image_mean"] = self.image_mean
        return ZeroShotCBM(self.encoder, bank, CLASSES, **options)


def measured(
    world: World,
    samples: Sequence[Sample],
    progress: Callable[[str], Any] = lambda way: None,
    seed: int = 0,
    names: Sequence[str] = tuple(WAYS),
) -> dict[str, Way]:
    """Ways on some pictures.

    Args:
        progress: called with the name of each way before it. seed: of the controls.
        names: the ways.
    """
    features = image_features(world.encoder, [sample.picture for sample in samples])
    labels = [sample.label for sample in samples]
    found = {}
    for way in names:
        progress(way)
        model = world.model(way)
        found[way] = Way(
            evaluation=evaluate(model, labels=labels, features=features, seed=seed),
            deletion=deletion_curve(model, labels=labels, features=features, counts=COUNTS,
                                    seed=seed),
            phrases=len(model.bank),
            true=_true(model, features, samples),
        )  # fmt: skip
    return found


def _true(model: ZeroShotCBM, features: Tensor, samples: Sequence[Sample]) -> float:
    shares = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*say nothing")  # the table has the cosines
        explained = model.explain(features=features)
    for one, sample in zip(explained, samples, strict=True):
        first = list(zip(one.phrases[:_FIRST], one.weights[:_FIRST].tolist(), strict=True))
        right = [w > 0 and set(p.split(" and ")) <= set(sample.phrases) for p, w in first]
        shares.append(sum(right) / max(1, len(first)))
    return float(torch.tensor(shares).mean())
