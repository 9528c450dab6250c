r"""A conditional variational autoencoder of small images: a generator that a CPU trains in seconds.

With p the class as a one-hot vector, or a mixture of classes, and E a table of class embeddings,

$$z \sim N(0, I), \quad x = dec(z, p^T E) + \sigma\,\epsilon, \qquad
  L = \frac{|x - dec(z, p^T E)|^2}{2 \sigma^2} + KL(N(\mu, s^2) \,\|\, N(0, I)), \quad
  (\mu, s) = enc(x, p^T E)$$

Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv 1312.6114; with a
condition: Sohn, Lee and Yan, "Learning Structured Output Representation using Deep Conditional
Generative Models", NeurIPS 2015. Here the prior of z does not depend on the class, the noise is
one number that is given, and the networks are two convolutions each.
"""

from __future__ import annotations

import json
import warnings
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.representation.generators import mixture_of

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_LOOK_EVERY = 20


class ConditionalVAE(nn.Module):
    """Encoder and decoder of images of one size; a `Generator`.

    Without batch norm and dropout: what it gives does not depend on its mode or on the batch.

    Args:
        shape: (C, H, W) of an image.
        n_classes: classes. z_dim: numbers in a latent.
        width: channels of the layer next to the image; the one within has twice as many.
        embed_dim: numbers in a class's embedding.
        noise: sigma of the decoder's Gaussian, where an image has standard deviation 1. A smaller
            one makes sharper images of latents that fill the prior less well.

    Attributes:
        mean, std: `[C, 1, 1]` of the images that it was trained on; the networks see standardised
            ones.

    Raises:
        InferKitError: a number below 1; noise that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_classes: int,
        z_dim: int = 16,
        width: int = 32,
        embed_dim: int = 16,
        noise: float = 0.8,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "shape": list(shape),
            "n_classes": n_classes,
            "z_dim": z_dim,
            "width": width,
            "embed_dim": embed_dim,
            "noise": noise,
        }
        if len(shape) != 3 or min(*shape, n_classes, z_dim, width, embed_dim) < 1:
            raise InferKitError(
                f"{self.config}: a shape of three numbers is expected, and all of them from 1 on.",
                "shape is (channels, height, width).",
            )
        if not (noise > 0 and isfinite(noise)):
            raise InferKitError(f"noise={noise}: a number above 0 is expected.")
        self.shape, self.n_classes, self.z_dim, self.noise = tuple(shape), n_classes, z_dim, noise
        channels, height, breadth = shape
        # Each of two layers halves the sides, rounded up; the decoder's are cut at the end.
        self._small = (2 * width, -(-height // 4), -(-breadth // 4))
        small = prod(self._small)
        self.embedding = nn.Linear(n_classes, embed_dim, bias=False)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.posterior = nn.Linear(small + embed_dim, 2 * z_dim)
        self.latent = nn.Linear(z_dim + embed_dim, small)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        """Images of latents and classes, dec(z, p^T E); the weights get no gradient.

        Args:
            z: `[B, z_dim]`, standard normal.
            y: `[B]` int64 classes, or `[B, n_classes]` probabilities.

        Returns:
            `[B, C, H, W]`, differentiable in z and in probabilities, on the scale of the images
            of training.

        Raises:
            InferKitError: latents or classes of another shape; see `mixture_of`.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim or len(z) != len(y):
            raise InferKitError(
                f"Latents are {list(z.shape)} and classes {list(y.shape)}; [B, {self.z_dim}] and "
                "as many classes are expected.",
                f"Draw z with torch.randn(len(y), {self.z_dim}).",
            )
        p = mixture_of(y, self.n_classes)
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        images: Tensor = functional_call(self, frozen, (z, p))
        return images

    def forward(self, z: Tensor, p: Tensor) -> Tensor:
        """`[B, C, H, W]` images of `[B, z_dim]` latents and `[B, n_classes]` probabilities."""
        return self._decode(z, self._embedded(p)) * self.std + self.mean

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The negative evidence lower bound, in nats, less the constant of the Gaussian.

        Args:
            x: `[B, C, H, W]` images, not standardised. y: as in `sample`.
            generator: on the CPU, of the draw of z; None for PyTorch's own.

        Returns:
            The mean over the images, a tensor with one number.
        """
        mu, log_s2, e = self._encode(x, mixture_of(y, self.n_classes))
        noise = torch.randn(mu.shape, generator=generator).to(mu)
        z = mu + (log_s2 / 2).exp() * noise
        off = (x - self.mean) / self.std - self._decode(z, e)
        misfit = off.square().flatten(1).sum(1) / (2 * self.noise**2)
        kl = (mu.square() + log_s2.exp() - log_s2 - 1).sum(1) / 2
        return (misfit + kl).mean()

    def _embedded(self, p: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(p.to(self.embedding.weight.dtype))
        return embedded

    def _encode(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e = self._embedded(p)
        features = self.encoder((x - self.mean) / self.std)
        mu, log_s2 = self.posterior(torch.cat([features, e], 1)).chunk(2, 1)
        return mu, log_s2, e

    def _decode(self, z: Tensor, e: Tensor) -> Tensor:
        hidden = relu(self.latent(torch.cat([z.to(e), e], 1))).unflatten(1, self._small)
        image: Tensor = self.decoder(hidden)
        return image[..., : self.shape[1], : self.shape[2]]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` to a folder, which is made if missing."""
        from infer_kit import __version__

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"class": "ConditionalVAE", "infer_kit_version": __version__, **self.config}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / _WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ConditionalVAE:
        """What `save_pretrained` wrote, on the CPU, in evaluation mode and without gradients.

        Raises:
            InferKitError: there is no such folder, or another model is in it.
        """
        folder = Path(folder)
        for name in (_CONFIG, _WEIGHTS):
            if not (folder / name).is_file():
                raise InferKitError(
                    f"{str(folder)!r} has no {name}.",
                    "Give a folder that ConditionalVAE.save_pretrained wrote.",
                )
        config = json.loads((folder / _CONFIG).read_text())
        found = config.pop("class", None)
        if found != "ConditionalVAE":
            raise InferKitError(
                f"{str(folder)!r} has a {found or 'model of another kind'}, no ConditionalVAE."
            )
        version = config.pop("infer_kit_version", "unknown")
        known = {"shape", "n_classes", "z_dim", "width", "embed_dim", "noise"}
        if config.keys() - known:
            warnings.warn(
                f"{str(folder)!r} was written by infer_kit {version} and has "
                f"{', '.join(sorted(config.keys() - known))}, unknown here and passed over.",
                stacklevel=2,
            )
        model = cls(**{name: config[name] for name in known & config.keys()})
        state = load_file(folder / _WEIGHTS)
        model.to(state["embedding.weight"].dtype).load_state_dict(state)
        return model.eval().requires_grad_(False)


def fit_cvae(
    images: Tensor,
    labels: Tensor,
    n_classes: int | None = None,
    *,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 4e-3,
    seed: int = 0,
    progress: bool = True,
    **sizes: Any,
) -> ConditionalVAE:
    """Train a `ConditionalVAE` on images, by Adam with a cosine down to 0.

    Everything random follows from the seed, and PyTorch's own generators are left as they are.
    Nothing is synchronised between processes: with the same data and seed each trains the same.

    Args:
        images: `[N, C, H, W]` floating, on any scale; where they are, it is trained.
        labels: `[N]` integers from 0 on.
        n_classes: None for the largest label and 1.
        steps: of the optimizer. batch: images in a step. lr: at the start.
        seed: of weights, batches and latents.
        progress: show a bar.
        sizes: z_dim, width, embed_dim and noise of `ConditionalVAE`.

    Returns:
        In evaluation mode, without gradients, on the images' device.

    Raises:
        InferKitError: images or labels of other shapes or not finite; a class without an image; a
            number that cannot be; a loss that is not finite.
    """
    n_classes = _checked(images, labels, n_classes)
    for name, count in (("steps", steps), ("batch", batch)):
        if count < 1:
            raise InferKitError(f"{name}={count}: at least 1 is expected.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        channels, height, breadth = images.shape[1:]
        model = ConditionalVAE((channels, height, breadth), n_classes, **sizes)
    model.to(images.device)
    x, y = images.detach().float(), labels.long().to(images.device)
    model.mean.copy_(x.mean((0, 2, 3))[:, None, None])
    spread = x.std((0, 2, 3), correction=0)[:, None, None]
    model.std.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad(), tqdm(total=steps, desc="CVAE", disable=not progress) as bar:
        for step in range(steps):
            if not len(order):
                order = torch.randperm(len(y), generator=generator)
            index, order = order[:batch].to(x.device), order[batch:]
            loss = model.loss(x[index], y[index], generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
            if step % _LOOK_EVERY == 0 or step + 1 == steps:
                number = float(loss.detach())
                if not isfinite(number):
                    raise InferKitError(
                        f"The loss became {number} in step {step + 1}.", "Lower the learning rate."
                    )
                bar.set_postfix(loss=f"{number:.1f}", refresh=False)
            bar.update()
    return model.eval().requires_grad_(False)


def _checked(images: Tensor, labels: Tensor, n_classes: int | None) -> int:
    """The number of classes of data that can be trained on."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise InferKitError(
                f"{name} are a {type(given).__name__}; a tensor is expected.",
                "torch.as_tensor makes one of an array.",
            )
    if images.dim() != 4 or not images.is_floating_point() or not images.numel():
        raise InferKitError(
            f"images are {list(images.shape)} of {images.dtype}; floating [N, C, H, W] are "
            "expected.",
            "Of bytes give images.float() / 255; of grey ones without channels images[:, None].",
        )
    if not bool(images.isfinite().all()):
        raise InferKitError("images have numbers that are not finite.")
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InferKitError(
            f"labels are {list(labels.shape)} of {labels.dtype} for {len(images)} images; "
            "integers [N] are expected."
        )
    if int(labels.min()) < 0:
        raise InferKitError(f"labels have a label of {int(labels.min())}; they count from 0.")
    counts = labels.long().cpu().bincount()
    n_classes = len(counts) if n_classes is None else n_classes
    if len(counts) > n_classes:
        raise InferKitError(
            f"labels have a label of {len(counts) - 1}, and there are n_classes={n_classes}."
        )
    empty = [c for c in range(n_classes) if c >= len(counts) or not counts[c]]
    if empty:
        raise InferKitError(
            f"There is no image of class {', '.join(map(str, empty))}, which could not be "
            "generated.",
            "Leave the class out, and number the others anew.",
        )
    return n_classes
