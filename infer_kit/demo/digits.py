"""Two tiny classifiers of scikit-learn's 8x8 digits, and a task that they were not trained for.

>>> from infer_kit.demo import digits
>>> data = digits.task(seed=0)
>>> base = digits.pretrain("cnn", data, seed=0)
>>> digits.accuracy(base, data.test)

The 1,797 images are dealt out once a seed: some to pretrain on, as they are, and the others, each
turned, moved and noised (`CHANGE`), to the downstream task's training, validation and test parts.
No image is in two parts. Models are trained in about a second; none is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from infer_kit.errors import InferKitError

SIDE = 8
NAMES: tuple[str, ...] = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
"""The labels, by class number."""

SHARES = {"pretraining": 0.4, "train": 0.3, "validation": 0.1, "test": 0.2}
"""Of the images, in each part."""

Body = Literal["mlp", "cnn"]


@dataclass(frozen=True)
class Change:
    """What is done to an image.

    Attributes:
        degrees: turned by, counter-clockwise. shift: moved to the right, in pixels.
        noise: standard deviation of what is added to each pixel, whose values are in [0, 1].
        drawn: whether turn and shift are drawn for each image, evenly between minus and plus these.
    """

    degrees: float
    shift: float
    noise: float
    drawn: bool = False


CHANGE = Change(degrees=25.0, shift=0.5, noise=0.15)
"""Of the downstream task."""

MILD = Change(degrees=20.0, shift=0.7, noise=0.15, drawn=True)
"""Of the pretraining of a strong base, beside the images as they are."""


@dataclass(frozen=True)
class Part:
    """Images `[n, 1, 8, 8]` in [0, 1] before noise, their classes `[n]`, where they come from."""

    images: Tensor
    labels: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        """What a trainer of transformers collates."""
        return {"pixel_values": self.images[at], "labels": self.labels[at]}

    def with_shuffled_labels(self, seed: int) -> Part:
        """The same images with each other's labels: nothing can be learned from them."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return Part(self.images, self.labels[order], self.places)


@dataclass(frozen=True)
class Task:
    """Four parts without an image in common; the first as it is, the others changed."""

    pretraining: Part
    train: Part
    validation: Part
    test: Part


class DigitMLPConfig(PretrainedConfig):
    """Of `DigitMLP`."""

    model_type = "infer_kit_digit_mlp"

    def __init__(self, width: int = 64, **options: Any) -> None:
        super().__init__(**_named(options))
        self.width = width


class DigitCNNConfig(PretrainedConfig):
    """Of `DigitCNN`."""

    model_type = "infer_kit_digit_cnn"

    def __init__(self, channels: int = 16, width: int = 64, **options: Any) -> None:
        super().__init__(**_named(options))
        self.channels = channels
        self.width = width


class _Digits(PreTrainedModel):
    """Features by `body`, and scores of the ten digits by `classifier`."""

    main_input_name = "pixel_values"
    base_model_prefix = "body"

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """Classify images `[B, 1, 8, 8]`: `logits` `[B, 10]`, and `loss` where labels are given."""
        logits = self.classifier(self.body(pixel_values))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def freeze_head(self) -> None:
        """Train no more of the model than its features: what a reward of vision trains."""
        self.classifier.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DigitMLP(_Digits):
    """Two hidden layers over the 64 pixels."""

    config_class = DigitMLPConfig

    def __init__(self, config: DigitMLPConfig) -> None:
        super().__init__(config)
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIDE * SIDE, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()


class DigitCNN(_Digits):
    """Two convolutions and a hidden layer."""

    config_class = DigitCNNConfig

    def __init__(self, config: DigitCNNConfig) -> None:
        super().__init__(config)
        wide = 2 * config.channels
        self.body = nn.Sequential(
            nn.Conv2d(1, config.channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.channels, wide, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(wide * (SIDE // 2) ** 2, config.width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()


def task(seed: int = 0, change: Change = CHANGE) -> Task:
    """The images dealt out by a seed, every class in the same shares.

    Args:
        change: of the three downstream parts.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)
    random = torch.Generator().manual_seed(seed)
    dealt: dict[str, list[Tensor]] = {name: [] for name in SHARES}
    for digit in range(len(NAMES)):
        places = (labels == digit).nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=random)]
        start, share = 0, 0.0
        for name, part in SHARES.items():
            share += part
            end = round(share * len(places))
            dealt[name].append(places[start:end])
            start = end
    parts = {}
    for name, of_digits in dealt.items():
        places = torch.cat(of_digits)
        mine = images[places]
        if name != "pretraining":
            mine = changed(mine, change, random)
        parts[name] = Part(mine, labels[places], places)
    return Task(**parts)


def changed(images: Tensor, change: Change, random: torch.Generator) -> Tensor:
    """Images `[n, 1, 8, 8]` turned, moved, and noised."""
    n = len(images)
    ones = torch.ones(n)
    drawn = (torch.rand(2, n, generator=random) * 2 - 1) if change.drawn else ones.expand(2, n)
    angle = drawn[0] * torch.tensor(change.degrees).deg2rad()
    # An affine grid says, for each place of the result, where in the image to look.
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin(), angle.sin()
    moved = drawn[1] * change.shift * 2 / SIDE
    matrix[:, :, 2] = -matrix[:, :, 0] * moved[:, None]
    grid = nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = nn.functional.grid_sample(images, grid, align_corners=False)
    return turned + change.noise * torch.randn(images.shape, generator=random)


def make(body: Body, seed: int = 0) -> Any:
    """An untrained model: "mlp" is a `DigitMLP`, "cnn" a `DigitCNN`.

    Raises:
        InferKitError: another name.
    """
    if body not in ("mlp", "cnn"):
        raise InferKitError(f"There is no digit model {body!r}; there are mlp and cnn.")
    torch.manual_seed(seed)
    model = DigitMLP(DigitMLPConfig()) if body == "mlp" else DigitCNN(DigitCNNConfig())
    return model.eval()


def pretrain(
    body: Body, data: Task, seed: int = 0, *, strong: bool = False, epochs: int = 25
) -> Any:
    """A base: a model trained on the images as they are.

    Args:
        strong: train on mildly changed images (`MILD`) too, fresh ones in each epoch.
    """
    model = make(body, seed)
    part = data.pretraining
    random = torch.Generator().manual_seed(seed)

    def fresh() -> Part:
        if not strong:
            return part
        images = torch.cat([part.images, changed(part.images, MILD, random)])
        return Part(images, part.labels.repeat(2), part.places.repeat(2))

    fit(model, fresh, epochs=epochs, lr=2e-3, seed=seed)
    return model


def fit(model: Any, part: Any, *, epochs: int, lr: float, seed: int = 0, batch: int = 64) -> None:
    """Train by Adam with a cosine schedule, on cross-entropy; parameters without grad stay.

    Args:
        part: a `Part`, or a function that gives the next epoch's.
    """
    random = torch.Generator().manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
    model.train()
    for _ in range(epochs):
        now: Part = part() if callable(part) else part
        for at in torch.randperm(len(now), generator=random).split(batch):
            adam.zero_grad()
            model(now.images[at], labels=now.labels[at]).loss.backward()
            adam.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def logits(model: Any, part: Part) -> Tensor:
    """`[n, 10]` scores of a part's images."""
    scores: Tensor = model(pixel_values=part.images).logits
    return scores


def accuracy(model: Any, part: Part) -> float:
    """Share of a part's images that are given their true class."""
    return float((logits(model, part).argmax(-1) == part.labels).float().mean())


def nll(model: Any, part: Part) -> float:
    """Mean negative log-likelihood of the true classes, nats an image."""
    return float(nn.functional.cross_entropy(logits(model, part).float(), part.labels))


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """The names of the ten digits, where a config does not bring its own."""
    if "id2label" in options or "num_labels" in options:
        return options
    return {
        **options,
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: number for number, name in enumerate(NAMES)},
    }
