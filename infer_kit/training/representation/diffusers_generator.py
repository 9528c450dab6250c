"""Class-conditional diffusion models of diffusers as a `Generator`, with mixtures of classes.

Their embeddings of classes are tables that integers look up. A mixture p gives the rows of every
such table mixed, p^T E: of one class it is exactly that class. Classifier-free guidance goes from
the null class's row as always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.training.representation.generators import mixture_of


class DiffusersGenerator:
    """A unet or transformer with classes, a scheduler that draws nothing, and perhaps a VAE.

    Such are `UNet2DModel` with num_class_embeds, and the parts of `DiTPipeline`. A latent z is the
    noise that sampling starts from, flattened; what comes of it follows from z and y alone.

    Args:
        model: with `nn.Embedding` tables of classes and nothing else that is looked up; called as
            model(x, timesteps, class_labels=...). It is put in evaluation mode and frozen.
        scheduler: deterministic, such as `DDIMScheduler`; a copy of it is used.
        vae: that decodes what the model makes; frozen too. None if that is the image.
        steps: of denoising.
        guidance_scale: s in e_null + s (e_y - e_null); 1 is without guidance.
        null_class: row of the null class in the tables; the other rows are the classes, in their
            order. None for the row that a table has beyond the model's own number of classes, as
            with DiT, or for none.
        chunk: examples at a time.
        finish: of decoded images, which are about -1 to 1, what is returned; None for them.
        gradient: samples have a gradient by z and probabilities, through all steps: much memory.
        progress: show a bar of each sampling; in training there would be one a step.

    Attributes:
        z_dim: C H W of the noise. n_classes: without the null class.

    Raises:
        InferKitError: a model without such tables; a scheduler that draws noise; guidance without
            a null class; a number that cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        vae: nn.Module | None = None,
        *,
        steps: int = 50,
        guidance_scale: float = 1.0,
        null_class: int | None = None,
        chunk: int = 32,
        finish: Callable[[Tensor], Tensor] | None = None,
        gradient: bool = False,
        progress: bool = False,
    ) -> None:
        config: Any = getattr(model, "config", None)
        side = getattr(config, "sample_size", None)
        if side is None or getattr(config, "in_channels", None) is None:
            raise InferKitError(
                f"A {type(model).__name__} is given whose config has no sample_size and "
                "in_channels, which the noise's shape is read from.",
                "Give a UNet2DModel or a DiTTransformer2DModel with both.",
            )
        for name, count in (("steps", steps), ("chunk", chunk)):
            if count < 1:
                raise InferKitError(f"{name}={count}: at least 1 is expected.")
        if not (isfinite(guidance_scale) and guidance_scale >= 0):
            raise InferKitError(f"guidance_scale={guidance_scale}: a number from 0 on is expected.")
        sides = (side, side) if isinstance(side, int) else tuple(side)
        self.shape: tuple[int, ...] = (config.in_channels, *sides)
        self.z_dim = prod(self.shape)
        self.model = model.eval().requires_grad_(False)
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self._tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        rows = {table.num_embeddings for table in self._tables}
        if len(rows) != 1:
            raise InferKitError(
                f"The {type(model).__name__} has "
                + (f"tables of {sorted(rows)} rows" if rows else "no table of classes")
                + "; tables of classes of one size are expected.",
                "Class-conditional models have them: UNet2DModel(num_class_embeds=...) without a "
                "class_embed_type, DiTTransformer2DModel.",
            )
        self._rows = rows.pop()
        own = getattr(config, "num_embeds_ada_norm", None)
        if null_class is None and own is not None and own < self._rows:
            null_class = own
        if null_class is not None and not 0 <= null_class < self._rows:
            raise InferKitError(
                f"null_class={null_class} is no row of the tables, which have {self._rows}."
            )
        if null_class is None and guidance_scale != 1:
            raise InferKitError(
                f"guidance_scale={guidance_scale} needs a null class, and the model has none.",
                "Give null_class=, the label that it was trained with instead of a class, or "
                "guidance_scale=1.",
            )
        self._null = null_class
        classes = [row for row in range(self._rows) if row != null_class]
        self._classes, self.n_classes = torch.tensor(classes), len(classes)
        self.steps, self.guidance_scale, self.chunk = steps, guidance_scale, chunk
        self.finish, self.gradient, self.progress = finish, gradient, progress
        self.scheduler = deepcopy(scheduler)
        self._check_scheduler()

    @classmethod
    def from_pretrained(cls, where: str, **options: Any) -> DiffusersGenerator:
        """Of a pipeline's folder or name, see `from_pipeline`.

        Raises:
            MissingExtra: diffusers is not installed.
        """
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise MissingExtra(
                "DiffusersGenerator.from_pretrained needs diffusers, which is not installed.",
                "pip install 'infer-kit[diffusion]'",
            ) from error
        return cls.from_pipeline(DiffusionPipeline.from_pretrained(where), **options)

    @classmethod
    def from_pipeline(cls, pipeline: Any, **options: Any) -> DiffusersGenerator:
        """Of a pipeline's unet or transformer, scheduler and vae, such as a `DiTPipeline`.

        Args:
            options: steps and what follows it of `DiffusersGenerator`, and scheduler, to take
                another one than the pipeline's.

        Raises:
            InferKitError: a pipeline without a model and a scheduler; see the class.
        """
        model = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
        scheduler = options.pop("scheduler", None) or getattr(pipeline, "scheduler", None)
        if model is None or scheduler is None:
            raise InferKitError(
                f"A {type(pipeline).__name__} has no unet or transformer, or no scheduler.",
                "Give DiffusersGenerator its parts.",
            )
        return cls(model, scheduler, getattr(pipeline, "vae", None), **options)

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        """Images of noise and classes; the weights get no gradient.

        Args:
            z: `[B, z_dim]`, standard normal.
            y: `[B]` int64 classes, or `[B, n_classes]` probabilities.

        Returns:
            `[B, C, H, W]` on the model's device and of its dtype; with a gradient if asked for.

        Raises:
            InferKitError: noise or classes of another shape; see `mixture_of`.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim or len(z) != len(y):
            raise InferKitError(
                f"Latents are {list(z.shape)} and classes {list(y.shape)}; [B, {self.z_dim}] and "
                "as many classes are expected.",
                f"Draw z with torch.randn(len(y), {self.z_dim}).",
            )
        like = self._tables[0].weight
        noise = z.to(like).unflatten(1, self.shape)
        p = mixture_of(y, self.n_classes).to(like)
        mixture = p.new_zeros(len(p), self._rows).index_copy(1, self._classes.to(p.device), p)
        parts = list(zip(noise.split(self.chunk), mixture.split(self.chunk), strict=True))
        with (
            torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()),
            tqdm(total=len(parts) * self.steps, desc="diffusion", disable=not self.progress) as bar,
        ):
            return torch.cat([self._decoded(self._denoised(*part, bar.update)) for part in parts])

    def _denoised(self, x: Tensor, mixture: Tensor, tick: Callable[[], Any]) -> Tensor:
        guided = self.guidance_scale != 1
        if guided:
            null = torch.zeros_like(mixture)
            null[:, self._null] = 1
            mixture = torch.cat([mixture, null])
        labels = torch.zeros(len(mixture), dtype=torch.int64, device=x.device)

        def predicted(x: Tensor, t: Tensor) -> Tensor:
            both = torch.cat([x, x]) if guided else x
            out: Tensor = self.model(both, t.expand(len(both)), class_labels=labels).sample
            out = out[:, : self.shape[0]]  # without a learned variance
            if guided:
                conditional, null = out.chunk(2)
                out = null + self.guidance_scale * (conditional - null)
            tick()
            return out

        with self._mixed(mixture):
            return self._walked(x, predicted)

    def _walked(self, x: Tensor, predicted: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """From noise to what is denoised, with some prediction at each step."""
        scheduler = deepcopy(self.scheduler)  # it may keep tensors of the walk, and their graph
        scheduler.set_timesteps(self.steps, device=x.device)
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            out = predicted(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(out, t, x).prev_sample
        return x

    def _decoded(self, x: Tensor) -> Tensor:
        if self.vae is not None:
            config: Any = self.vae.config
            x = x / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
            x = self.vae.decode(x).sample  # type: ignore[operator]
        return x if self.finish is None else self.finish(x)

    @contextmanager
    def _mixed(self, mixture: Tensor) -> Iterator[None]:
        """Every table gives mixtures `[B, rows]` of its rows, whatever the labels."""

        def mix(table: nn.Module, args: Any, output: Tensor) -> Tensor:
            return (mixture @ table.weight).to(output.dtype)  # type: ignore[operator]

        handles = [table.register_forward_hook(mix) for table in self._tables]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_scheduler(self) -> None:
        """The same walk under two states of PyTorch's generator has one end."""
        for name in ("set_timesteps", "step", "scale_model_input", "init_noise_sigma"):
            if not hasattr(self.scheduler, name):
                raise InferKitError(f"A {type(self.scheduler).__name__} has no {name}.")
        ends = []
        with torch.random.fork_rng(devices=[]):
            for seed in range(2):
                torch.random.default_generator.manual_seed(seed)
                ends.append(self._walked(torch.ones(1, 1, 2, 2), lambda x, t: x / 2))
        if not torch.equal(*ends):
            name = type(self.scheduler).__name__
            raise InferKitError(
                f"The {name} draws noise at each step, so that an example would not follow from z.",
                "Give a deterministic one: DDIMScheduler.from_config(scheduler.config).",
            )
