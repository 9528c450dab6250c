r"""Pseudo pre-training (PP): a network learns to tell the classes of generated source samples.

$$\min_\theta\; E_{y \sim U(1..K),\; z \sim N(0, I)}\; CE(f_\theta(G(z, y)), y)$$

then the head is replaced, and the network is fine-tuned on target data. It needs a generator of the
source alone: no source data, no network of the target's architecture.

Source: Yamaguchi et al., "Transfer Learning with Pre-trained Conditional Generative Models", 2022,
arXiv 2204.12833. Optimizer and schedule are not told there; the defaults here are ours.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import adapted_layer
from infer_kit.training.representation.classifiers import logits_of
from infer_kit.training.representation.generators import Generator, check_generator, samples_of
from infer_kit.training.representation.optimizers import check_optimizer
from infer_kit.training.representation.seeds import seeded
from infer_kit.training.symmetry.placed import modes

_LOOK_EVERY = 20
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits `[B, K]` and classes `[B]` a tensor with one number."""


@dataclass(frozen=True)
class PseudoPretraining:
    """What came of a run; the network itself was trained in place.

    Attributes:
        losses: of each step, of this process. accuracy: share of the samples of the last tenth of
            the steps that were told right before the step on them, from 0 to 1.
    """

    losses: tuple[float, ...] = field(repr=False)
    accuracy: float


def pseudo_pretrain(
    model: nn.Module,
    generator: Generator,
    steps: int,
    batch: int = 64,
    *,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    loss: Loss = cross_entropy,
    prepare: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool = True,
) -> PseudoPretraining:
    """Train a network, in place, to classify generated source samples.

    Each step has fresh samples, their classes drawn with equal odds. What is drawn in a step
    follows from the seed, the process and the number of the step; dropout and the prepare draw
    from PyTorch's own generators, which start from the seed too and are afterwards as before. So a
    run that was interrupted goes on from its checkpoint and ends with the same bits.

    With DistributedDataParallel each process draws samples of its own and gradients are averaged;
    nothing else is synchronised. The first process writes checkpoints, with what all need.

    Args:
        model: f, of inputs to logits `[B, K]` for the K classes of the generator, or to an output
            with `logits`; or the DistributedDataParallel of such. Afterwards it is in the mode it
            was in; parameters that require no gradient stay as they are.
        generator: G.
        steps: of the optimizer. batch: samples in a step, of each process.
        lr: of AdamW with weight decay 1e-4, where no optimizer is given.
        optimizer: another, of the model's parameters. scheduler: stepped after each step; None for
            a cosine from the optimizer's rate down to 0.
        loss: of logits and classes.
        prepare: brings samples to the model's inputs: size, normalisation, augmentation. Of what
            it draws itself, only PyTorch's generators are reproduced.
        seed: of samples, dropout and prepare.
        checkpoint: file to write to and to go on from; None for none.
        checkpoint_every: steps from one checkpoint to the next; also after the last.
        progress: show a bar, of the first process.

    Raises:
        InferKitError: a model with other outputs than the generator's classes, a number that cannot
            be, nothing to train, a loss that is not finite, a checkpoint of another run.
    """
    check_generator(generator)
    numbers = {"steps": steps, "batch": batch, "checkpoint_every": checkpoint_every}
    for name, number in numbers.items():
        if number < 1:
            raise InferKitError(f"{name}={number}: at least 1 is expected.")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InferKitError(
            "No parameter of the model requires a gradient: there is nothing to train.",
            "model.requires_grad_() makes all of them trainable.",
        )
    if optimizer is not None:
        check_optimizer(optimizer, trained, "model")
    else:
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=1e-4)
    if scheduler is None:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    inner: Any = model.module if wrapped else model
    device = trained[0].device
    spread = dist.is_initialized() and wrapped
    rank = dist.get_rank() if spread else 0
    states = {"model": inner, "optimizer": optimizer, "scheduler": scheduler}
    made_as = {"steps": steps, "batch": batch, "seed": seed, "classes": generator.n_classes}
    file = None if checkpoint is None else _Checkpoint(Path(checkpoint), states, made_as, spread)
    losses, right = torch.zeros(steps, device=device), torch.zeros(steps, device=device)
    others = [] if device.type == "cpu" else [device]
    bar = tqdm(total=steps, desc="pseudo pre-training", disable=not progress or rank > 0)
    with (
        bar,
        modes(model, model.modules()),
        torch.enable_grad(),
        torch.random.fork_rng(devices=others, device_type=others[0].type if others else "cuda"),
    ):
        _seed_own(seeded(seed, rank).initial_seed(), device)
        start = 0 if file is None else file.resume((losses, right), device)
        bar.update(start)
        for step in range(start, steps):
            x, y = _samples(generator, batch, seeded(seed, rank, step), device)
            output = model(x if prepare is None else prepare(x))
            logits = logits_of(output, batch, generator.n_classes)
            value = loss(logits, y)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            scheduler.step()
            losses[step] = value.detach()
            right[step] = (logits.detach().argmax(1) == y).float().mean()
            last = step + 1 == steps
            if step % _LOOK_EVERY == 0 or last:
                bar.set_postfix(loss=f"{_finite(losses[: step + 1]):.3f}", refresh=False)
            bar.update()
            if file is not None and ((step + 1) % checkpoint_every == 0 or last):
                _finite(losses[: step + 1])
                file.save(step + 1, (losses, right), device)
    return PseudoPretraining(tuple(losses.tolist()), float(right[-max(1, steps // 10) :].mean()))


def new_head(
    model: nn.Module, n_classes: int, name: str | None = None, *, std: float = 0.01, seed: int = 0
) -> nn.Linear:
    """Replace the head of a network, in place, by one of other classes.

    Weights are N(0, std^2) and the bias is 0, so that all classes start about equal and the first
    gradients to the pre-trained features are small. The bias, dtype, device and mode are the old
    head's. Of a model of transformers the configuration gets the number of labels; their names
    become LABEL_0 and so on. Make optimizers afterwards: the old head's parameters are no longer
    the model's.

    Args:
        model: not wrapped in DistributedDataParallel.
        n_classes: K of the target.
        name: of the head, an `nn.Linear`; None for the last one of the model.
        std: of the weights. seed: of them; every process has the same.

    Returns:
        The new head.

    Raises:
        InferKitError: no such head, a model that is wrapped, or a number that cannot be.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise InferKitError(
            "The model is wrapped in DistributedDataParallel, which knows the old head.",
            "Give model.module, and wrap it anew.",
        )
    if n_classes < 1 or not 0 <= std < float("inf"):
        raise InferKitError(
            f"n_classes={n_classes}, std={std}: at least one class and a deviation from 0 on are "
            "expected."
        )
    modules = dict(model.named_modules())
    linear = [found for found, module in modules.items() if isinstance(module, nn.Linear) and found]
    if (name is None and not linear) or (name is not None and name not in linear):
        told = "The model has no" if name is None else f"{name!r} is no"
        raise InferKitError(
            f"{told} Linear in it that could be the head.",
            f"It has {', '.join(map(repr, linear)) or 'none'}; name one by name=.",
        )
    name = linear[-1] if name is None else name
    if (layer := adapted_layer(modules, name)) != name:
        raise InferKitError(
            f"The head {layer!r} has an adapter, made for the classes that it has.",
            "Replace the head before get_peft_model, or name it in modules_to_save.",
        )
    old, config = modules[name], getattr(model, "config", None)
    assert isinstance(old, nn.Linear)
    labels = getattr(config, "num_labels", None)
    if labels is not None and old.out_features != labels:
        raise InferKitError(
            f"{name!r} has {old.out_features} outputs and the model's configuration {labels} "
            "labels: it is not the head.",
            "Name the head by name=; a model without one was loaded without its classifier.",
        )
    head = nn.Linear(old.in_features, n_classes, bias=old.bias is not None)
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(std * drawn)
        if head.bias is not None:
            head.bias.zero_()
    head.to(old.weight).train(old.training)
    parent, _, own = name.rpartition(".")
    setattr(modules[parent], own, head)
    if labels is not None:
        config.num_labels = n_classes  # type: ignore[union-attr]
        if hasattr(model, "num_labels"):
            model.num_labels = n_classes  # type: ignore[assignment]
    return head


def _samples(
    generator: Generator, batch: int, rng: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    y = torch.randint(generator.n_classes, (batch,), generator=rng).to(device)
    z = torch.randn(batch, generator.z_dim, generator=rng).to(device)
    with torch.no_grad():
        return samples_of(generator, z, y), y


def _finite(losses: Tensor) -> float:
    """The last of the losses."""
    if not isfinite(number := float(losses[-1])):
        first = int((~losses.isfinite()).nonzero()[0])
        raise InferKitError(
            f"The loss became {float(losses[first])} in step {first + 1}.", "Lower the rate."
        )
    return number


def _seed_own(seed: int, device: torch.device) -> None:
    """PyTorch's generators of the CPU and this device; torch.manual_seed would seed all."""
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class _Checkpoint:
    """A file with all that a run needs to go on."""

    def __init__(
        self, file: Path, states: dict[str, Any], made_as: dict[str, int], spread: bool
    ) -> None:
        if not file.parent.is_dir():
            raise InferKitError(
                f"There is no folder {str(file.parent)!r} to write {file.name!r} to."
            )
        self.file, self.states, self.spread = file, states, spread
        self.rank, world = (dist.get_rank(), dist.get_world_size()) if spread else (0, 1)
        self.writes = not dist.is_initialized() or dist.get_rank() == 0
        model: nn.Module = states["model"]
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.made_as: dict[str, Any] = made_as | {
            "processes": world,
            "optimizer": type(states["optimizer"]).__name__,
            "model": f"{type(model).__name__} {hashlib.sha256(repr(shapes).encode()).hexdigest()}",
        }

    def save(self, step: int, told: tuple[Tensor, Tensor], device: torch.device) -> None:
        """All of it or nothing."""
        own = {
            "told": [tensor[:step].cpu() for tensor in told],
            "cpu": torch.get_rng_state(),
            "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        every: list[Any] = [own]
        if self.spread:
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, own)
        if self.writes:
            kept = {name: value.state_dict() for name, value in self.states.items()}
            fresh = self.file.with_name(f".{self.file.name}.part")
            torch.save({**kept, "made as": self.made_as, "step": step, "processes": every}, fresh)
            os.replace(fresh, self.file)
        if dist.is_initialized():
            dist.barrier()

    def resume(self, told: tuple[Tensor, Tensor], device: torch.device) -> int:
        """Bring everything into the state of the file, if there is one; the next step."""
        if not self.file.exists():
            return 0
        try:
            kept = torch.load(self.file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InferKitError(
                f"{str(self.file)!r} cannot be read as a checkpoint: {error}",
                "Delete it to start anew.",
            ) from error
        found = kept.get("made as") if isinstance(kept, dict) else None
        if found != self.made_as:
            other = {k: v for k, v in (found or {}).items() if self.made_as.get(k) != v}
            raise InferKitError(
                f"{str(self.file)!r} is the checkpoint of another run"
                + (f", with {other}." if other else "."),
                "Run it as it was begun, or choose another file.",
            )
        for name, value in self.states.items():
            value.load_state_dict(kept[name])
        own = kept["processes"][self.rank]
        for tensor, saved in zip(told, own["told"], strict=True):
            tensor[: len(saved)] = saved.to(tensor)
        torch.set_rng_state(own["cpu"])
        if own["device"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(own["device"], device)
        step: int = kept["step"]
        return step
