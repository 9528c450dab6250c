"""Gaussians that fine-tuning pulls features to: one for each class, whose means move, or one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim.adam import adam

from infer_kit.errors import InferKitError
from infer_kit.training.representation.feature_moments import (
    ClassMoments,
    check_features,
    check_labels,
    moments_of,
    precise,
)

VARIANTS = ("paper", "code")
"""Which objective moves the means: that of the publication, or that of its released program."""


class _Gaussian(nn.Module):
    """State in float32 at least, whatever dtype the module is sent to."""

    mu: Tensor
    sigma: Tensor

    def __init__(self, mu: Tensor, sigma: Tensor, dim: int) -> None:
        super().__init__()
        if mu.dim() != dim or mu.shape != sigma.shape or not mu.numel():
            raise InferKitError(
                f"mu is {list(mu.shape)} and sigma {list(sigma.shape)}; "
                f"both as {'[K, D]' if dim == 2 else '[D]'} are expected.",
                "from_features and from_loader make them.",
            )
        if not bool(mu.isfinite().all()) or not bool((sigma.isfinite() & (sigma >= 0)).all()):
            raise InferKitError(
                "mu or sigma has numbers that are not finite, or sigma some below 0."
            )
        wide = torch.promote_types(torch.promote_types(mu.dtype, sigma.dtype), torch.float32)
        self.register_buffer("mu", mu.detach().to(wide, copy=True))
        self.register_buffer("sigma", sigma.detach().to(wide, copy=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, kept in before.items():
            # A model that is brought to bfloat16 with its prior would round the steps away.
            if getattr(self, name).dtype != kept.dtype:
                setattr(self, name, kept.to(getattr(self, name).device))
        return self

    def _draw(self, mu: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
        return mu + sigma * noise


class GaussianPrior(_Gaussian):
    """One Gaussian for all classes, N(mu, diag(sigma^2)): the references of AdaRand.

    `standard(D)` is N(0, I). `from_features` of the source's images is the source's mean and
    standard deviation.

    Args:
        mu, sigma: `[D]`, finite, sigma from 0 on. Kept in float32, or float64 if they are.
    """

    def __init__(self, mu: Tensor, sigma: Tensor) -> None:
        super().__init__(mu, sigma, 1)

    @classmethod
    def standard(cls, n_features: int) -> Self:
        """N(0, I) of so many features."""
        return cls(torch.zeros(n_features), torch.ones(n_features))

    @classmethod
    def from_features(cls, features: Tensor) -> Self:
        """Mean and unbiased standard deviation of features `[N, D]`, N from 2 on.

        Raises:
            InferKitError: others, or some that are not finite.
        """
        moments = ClassMoments(1)
        moments.add(features, None)
        return cls(*(part[0] for part in moments.mean_and_std()))

    @classmethod
    def from_loader(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        layer: str | None = None,
        progress: bool = True,
    ) -> Self:
        """`from_features` of what a model makes of a loader; see `ClassGaussianPrior.from_loader`.

        Labels are passed over.
        """
        moments = moments_of(model, loader, 1, layer, progress)
        return cls(*(part[0] for part in moments.mean_and_std()))

    def sample(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`[B, D]` draws for labels `[B]`, of which only the number counts; without gradient.

        Args:
            generator: on the prior's device; None for PyTorch's own.
        """
        rows = (len(y), len(self.mu))
        return self._draw(self.mu.expand(rows), self.sigma.expand(rows), generator)


class ClassGaussianPrior(_Gaussian):
    r"""A Gaussian for each class, whose mean follows the features and keeps away from the others.

    $z_i \sim N(\mu_{y_i}, \sigma_{y_i}^2)$. An update has two parts:

        m_k <- alpha m_k + (1 - alpha) mean of the g_i with y_i = k     (classes that are there)
        mu  <- one step of Adam down A(mu), with m held fixed

        paper: A = mean_k D(mu_k, m_k) - 1/(K(K-1)) sum_{k != l} D(mu_k, mu_l),    D = 1 - cos
        code:  A = mean_k (cos(mu_k, m_k) - 1)^2 + mean_{k != l} cos(mu_k, mu_l)^2

    sigma stays. The rate is lr cos(7 pi t / 16), where t goes from 0 to 1 over `total_steps`: down
    to 0.195 lr. (If t counted iterations, the rate would change its sign every 16/7 of them.)
    The cosine of a vector of zeros is 0.

    With torch.distributed initialised, `step` and `update` sum over the examples of all processes
    of the default group, so that those that begin with one prior go on with one. All must call.

    Source: Yamaguchi et al., "Adaptive Random Feature Regularization on Fine-tuning Deep Neural
    Networks", CVPR 2024 (arXiv 2403.10097). Differs from it: what t is; nothing is ever
    computed for a pair of classes and a feature, or, for "paper", for a pair.

    Attributes:
        mu, sigma: `[K, D]`. m: `[K, D]` running means of the features, mu at the start.
        exp_avg, exp_avg_sq: Adam's. steps: updates made. All of them are in the state_dict.

    Args:
        mu, sigma: `[K, D]` with K from 2 on, finite, sigma from 0 on. Kept in float32, or float64
            if they are.
        alpha: share of m that stays, from 0 to 1.
        lr: rate of Adam at the start.
        variant: "paper" or "code".
        total_steps: updates until the rate has fallen; None for lr all the time. `AdaRandTrainer`
            puts the steps of its training where it is None.
        adapt: False for a fixed prior: updates are checked and change nothing.

    Raises:
        InferKitError: arguments that cannot be.
    """

    m: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    def __init__(
        self,
        mu: Tensor,
        sigma: Tensor,
        *,
        alpha: float = 0.5,
        lr: float = 1e-2,
        variant: str = "paper",
        total_steps: int | None = None,
        adapt: bool = True,
    ) -> None:
        super().__init__(mu, sigma, 2)
        _check_classes(len(mu))
        if not 0 <= alpha <= 1:
            raise InferKitError(f"alpha={alpha}: a number from 0 to 1 is expected.")
        if not 0 <= lr < float("inf"):
            raise InferKitError(f"lr={lr}: a number from 0 on is expected.")
        if total_steps is not None and total_steps < 1:
            raise InferKitError(f"total_steps={total_steps}: 1 or more are expected, or None.")
        _check_variant(variant)
        self.alpha, self.lr, self.variant, self.adapt = alpha, lr, variant, adapt
        self.total_steps = total_steps
        self.register_buffer("m", self.mu.clone())
        for name in ("exp_avg", "exp_avg_sq"):
            self.register_buffer(name, torch.zeros_like(self.mu))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=self.mu.device))
        self._window: tuple[Tensor, Tensor] | None = None  # sums and counts since the last step

    @classmethod
    def from_features(
        cls, features: Tensor, labels: Tensor, n_classes: int, **options: Any
    ) -> Self:
        """Mean and unbiased standard deviation of the features of each class.

        The pre-trained extractor's features of the target's training images, in evaluation mode.

        Args:
            features: `[N, D]` floating, finite. labels: `[N]` integers from 0.
            n_classes: K. Each has an example. Of a class with one alone, sigma is the pooled
                standard deviation within the classes, sqrt(sum_ki (g_ki - mu_k)^2 / (N - K)).
            options: alpha, lr, variant, total_steps, adapt.

        Raises:
            InferKitError: features or labels that cannot be; a class without an example; one
                example for each class.
        """
        _check_classes(n_classes)
        moments = ClassMoments(n_classes)
        moments.add(features, labels)
        return cls(*moments.mean_and_std(), **options)

    @classmethod
    def from_loader(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        n_classes: int,
        layer: str | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """`from_features` of what a model makes of a loader, in evaluation mode and one pass.

        The model is afterwards in the mode it was in. Memory does not grow with the loader. Nothing
        is exchanged between processes: let each read all of the data, without augmentation.

        Args:
            model: whose features are regularised; of a DistributedDataParallel the module within.
            loader: batches (inputs, labels), or mappings with "labels", which the model takes by
                name, as those of a transformers data collator.
            n_classes: K.
            layer: see `FeatureTap`; None for what the last `nn.Linear` reads.
            progress: show a bar.
            options: alpha, lr, variant, total_steps, adapt.

        Raises:
            InferKitError: as `from_features`; no batch, or one without labels.
        """
        _check_classes(n_classes)
        moments = moments_of(model, loader, n_classes, layer, progress)
        return cls(*moments.mean_and_std(), **options)

    def sample(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`[B, D]` a draw for each label, without gradient.

        Args:
            y: `[B]` integers below K. generator: on the prior's device; None for PyTorch's own.

        Raises:
            InferKitError: labels that cannot be.
        """
        y = self._checked(y)
        return self._draw(self.mu[y], self.sigma[y], generator)

    def loss(self, variant: str | None = None) -> Tensor:
        """A of the means as they are, a scalar; None for the prior's own variant.

        Raises:
            InferKitError: another variant.
        """
        variant = self.variant if variant is None else variant
        _check_variant(variant)
        return objective(precise(self.mu), precise(self.m), variant).to(self.mu.dtype)

    def update(self, features: Tensor, y: Tensor) -> None:
        """After a step: m of the classes that are there, and a step of mu.

        Args:
            features: `[B, D]` as they were in the loss; in any floating dtype, detached here.
            y: `[B]` integers below K.

        Raises:
            InferKitError: others, or features that are not finite.
        """
        self.accumulate(features, y)
        self.step()

    def accumulate(self, features: Tensor, y: Tensor) -> None:
        """A micro-batch for the next `step`, which then equals that of the whole batch.

        Args and raises as `update`.
        """
        y = self._checked(y)
        check_features(features, len(y), self.mu.shape[1], "the prior's")
        if self.adapt:
            sums, counts = self._window = self._window or self._empty()
            sums.index_add_(0, y, features.detach().to(sums.dtype))
            counts += y.bincount(minlength=len(counts))

    def step(self) -> None:
        """The update of all that was given to `accumulate` since the last one.

        Raises:
            InferKitError: that was nothing.
        """
        if not self.adapt:
            return
        sums, counts = self._window or self._empty()
        self._window = None
        if dist.is_initialized():
            # Sums, not features: of one size whatever each process has, and the same bits for all.
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        if not bool(counts.any()):
            raise InferKitError(
                "The prior has no features to follow since its last step.",
                "Call accumulate(features, y) before step(), or update(features, y) alone.",
            )
        mean = sums / counts.clamp(min=1)[:, None]
        m = precise(self.m)
        m = torch.where(counts[:, None] > 0, self.alpha * m + (1 - self.alpha) * mean, m)
        self.m.copy_(m)
        with torch.enable_grad():
            mu = precise(self.mu).detach().requires_grad_()
            A = objective(mu, m, self.variant)
            slope = torch.autograd.grad(A, mu)[0].to(self.mu.dtype)
        adam(
            [self.mu], [slope], [self.exp_avg], [self.exp_avg_sq], [], [self.steps], foreach=False,
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self._rate(), weight_decay=0.0, eps=1e-8,
            maximize=False,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Classes, features, and how far it is."""
        K, D = self.mu.shape
        adapts = f"{self.variant}, {int(self.steps)} updates" if self.adapt else "fixed"
        return f"{K} classes, {D} features, {adapts}"

    def forget(self) -> None:
        """Drops what was accumulated since the last step."""
        self._window = None

    def _empty(self) -> tuple[Tensor, Tensor]:
        counts = torch.zeros(len(self.mu), dtype=torch.int64, device=self.mu.device)
        return torch.zeros_like(precise(self.mu)), counts

    def _rate(self) -> float:
        t = min(1.0, int(self.steps) / self.total_steps) if self.total_steps else 0.0
        return self.lr * cos(7 * pi * t / 16)

    def _checked(self, y: Tensor) -> Tensor:
        if y.device != self.mu.device:
            raise InferKitError(
                f"Labels are on {y.device} and the prior is on {self.mu.device}.",
                "Move it: prior.to(device).",
            )
        return check_labels(y, len(self.mu))


def objective(mu: Tensor, m: Tensor, variant: str) -> Tensor:
    """A of `ClassGaussianPrior`, differentiable. mu, m: `[K, D]`, K from 2 on."""
    K, D = mu.shape
    u, v = _directions(mu), _directions(m)
    follows = (u * v).sum(1)  # cos(mu_k, m_k)
    if variant == "paper":
        # sum_kl u_k u_l = |sum_k u_k|^2, of which those with k = l are taken off.
        between = (u.sum(0).square().sum() - u.square().sum()) / (K * (K - 1))
        return (1 - follows).mean() - (1 - between)
    gram = u @ u.T if K <= D else u.T @ u  # of one Frobenius norm; the smaller is taken
    between = (gram.square().sum() - u.square().sum(1).square().sum()) / (K * (K - 1))
    return (follows - 1).square().mean() + between


def _directions(x: Tensor) -> Tensor:
    norm = vector_norm(x, dim=1, keepdim=True)
    return x / norm.where(norm > 0, 1.0)


def _check_classes(n_classes: int) -> None:
    if n_classes < 2:
        raise InferKitError(
            f"There are {n_classes} classes; two or more are expected, whose means keep apart.",
            "GaussianPrior has one Gaussian for all.",
        )


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise InferKitError(f"variant={variant!r}: one of {', '.join(VARIANTS)} is expected.")
