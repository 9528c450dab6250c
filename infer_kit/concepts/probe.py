"""A linear probe: trained on image features, then applied to features rebuilt from phrases."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from infer_kit.concepts.classes import checked_classes
from infer_kit.errors import InferKitError

_INIT = 0.01  # standard deviation of the first weights, as published


@dataclass(frozen=True)
class ProbeRecipe:
    r"""How a probe is trained. The defaults are the paper's for all data but ImageNet.

    Attributes:
        optimizer: "adamw", or "sgd" (momentum 0.9, Nesterov). rate: learning rate.
        weight_decay, batch_size, epochs: as named.
        warm_up: steps of linear warm-up.
        schedule: what the rate is multiplied by at the share t of training: "cosine",
            $\tfrac12(1+\cos \pi t)$, our choice where the paper's is not known; or "cosine_7_16",
            $\cos(7\pi t/16)$, the paper's for ImageNet.
    """

    optimizer: str = "adamw"
    rate: float = 3e-3
    weight_decay: float = 0.1
    batch_size: int = 64
    epochs: int = 100
    warm_up: int = 50
    schedule: str = "cosine"


IMAGENET = ProbeRecipe("sgd", 0.1, 1e-6, 1024, 100, 0, "cosine_7_16")
"""The paper's recipe for ImageNet."""


@dataclass(frozen=True)
class LinearProbe:
    """$W z + b$: a head for `ZeroShotCBM(..., head=probe)`.

    Attributes:
        classes: their names. weight: W, `[C, d]` float32. bias: b, `[C]` float32.
    """

    classes: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    @classmethod
    def train(
        cls,
        features: Any,
        labels: Sequence[str],
        classes: Sequence[str],
        recipe: ProbeRecipe | None = None,
        seed: int = 0,
    ) -> "LinearProbe":
        """Train on unit image features.

        Args:
            features: `[N, d]`, of `image_features`. labels: the class of each.
            recipe: None is `ProbeRecipe()`; of ImageNet take `IMAGENET`.
            seed: of the first weights and the order of images.

        Raises:
            InferKitError: labels are no classes, or do not fit the features.
        """
        names = checked_classes(classes)
        x, y = _checked(features, labels, names)
        how = recipe or ProbeRecipe()
        generator = torch.Generator().manual_seed(seed)
        layer = torch.nn.Linear(x.shape[1], len(names))
        with torch.no_grad():
            layer.weight.normal_(0, _INIT, generator=generator)
            layer.bias.zero_()
        steps = how.epochs * -(-len(x) // how.batch_size)
        optimiser = _optimiser(layer, how)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _factor(how, s, steps))
        with tqdm(total=steps, desc="training the probe", disable=steps < 1000) as bar:
            for _ in range(how.epochs):
                for at in torch.randperm(len(x), generator=generator).split(how.batch_size):
                    loss = torch.nn.functional.cross_entropy(layer(x[at]), y[at])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    scheduler.step()
                    bar.update()
        return cls(names, layer.weight.detach(), layer.bias.detach())

    def logits(self, z: Tensor) -> Tensor:
        """`[B, C]` of features `[B, d]`."""
        return z @ self.weight.to(z).T + self.bias.to(z)

    def save(self, folder: str | Path) -> Path:
        """Write probe.safetensors and probe.json to a folder."""
        from safetensors.torch import save_file

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight, "bias": self.bias}, where / "probe.safetensors")
        (where / "probe.json").write_text(json.dumps({"classes": self.classes}, indent=2) + "\n")
        return where

    @classmethod
    def load(cls, folder: str | Path) -> "LinearProbe":
        """Read a saved probe."""
        from safetensors.torch import load_file

        where = Path(folder)
        if not (where / "probe.json").is_file():
            raise InferKitError(f"{str(folder)!r} holds no probe: there is no probe.json.")
        tensors = load_file(where / "probe.safetensors")
        names = json.loads((where / "probe.json").read_text())["classes"]
        return cls(tuple(names), tensors["weight"], tensors["bias"])


def _optimiser(layer: torch.nn.Module, how: ProbeRecipe) -> torch.optim.Optimizer:
    if how.optimizer == "adamw":
        return torch.optim.AdamW(layer.parameters(), how.rate, weight_decay=how.weight_decay)
    if how.optimizer == "sgd":
        return torch.optim.SGD(
            layer.parameters(), how.rate, 0.9, weight_decay=how.weight_decay, nesterov=True
        )
    raise InferKitError(f"Unknown optimizer {how.optimizer!r} in {asdict(how)}: adamw or sgd.")


def _factor(how: ProbeRecipe, step: int, steps: int) -> float:
    if step < how.warm_up:
        return (step + 1) / how.warm_up
    t = (step - how.warm_up) / max(1, steps - how.warm_up)
    if how.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * t))
    if how.schedule == "cosine_7_16":
        return math.cos(7 * math.pi * t / 16)
    raise InferKitError(f"Unknown schedule {how.schedule!r}: cosine or cosine_7_16.")


def _checked(
    features: Any, labels: Sequence[str], classes: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(features).detach().float().cpu()
    if x.dim() != 2 or len(x) != len(labels) or not len(x):
        raise InferKitError(
            f"features have shape {list(x.shape)} and there are {len(labels)} labels; expected "
            "[N, d] and N of them."
        )
    numbers = {name: c for c, name in enumerate(classes)}
    unknown = next((n for n, name in enumerate(labels) if name not in numbers), None)
    if unknown is not None:
        raise InferKitError(f"Label {unknown} is {labels[unknown]!r}, which is no class.")
    return x, torch.tensor([numbers[name] for name in labels])
