r"""Meta-learning: from what a few steps of SGD solve a new task.

One inner loop for all, over a task's support set with loss L:

    phi = phi_0;  S times:  phi <- phi - a grad_phi L(support; f_phi)

and the outer loss is the mean of L(query; f_phi) over the tasks. The learners differ in what the
outer optimizer moves and what the inner loop does:

    MAML        moves phi_0; the inner loop moves everything    Finn et al., ICML 2017
    ANIL        moves phi_0; the inner loop moves the head      Raghu et al., ICLR 2020
    BOIL        moves phi_0; the inner loop moves the rest      Oh et al., ICLR 2021
    MetaTicket  moves scores s, f_phi = f(mask(s) phi); phi_0 is random and stays

MetaTicket: Chijiwa et al., "Meta-ticket: Finding optimal subnetworks for few-shot learning within
randomly initialized neural networks", NeurIPS 2022, arXiv 2205.15619. Built on `torch.func`: all
tasks of a batch run at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.contents import inside
from infer_kit.training.tickets.episodes import Episodes
from infer_kit.training.tickets.make import make_ticket
from infer_kit.training.tickets.maskable import matching
from infer_kit.training.tickets.masks import Threshold
from infer_kit.training.tickets.rng import kaiming_normal
from infer_kit.training.tickets.tickets import Ticket

Loss = Callable[[Tensor, Tensor], Tensor]
Weights = dict[str, Tensor]


def inner(
    loss: Callable[[Weights], Tensor],
    start: Weights,
    rates: Mapping[str, float],
    steps: int,
    first_order: bool,
) -> Weights:
    """The inner loop of one task.

    Args:
        loss: of the support set under these weights. start: phi_0 of what is moved.
        rates: a, by name. steps: S. first_order: take the gradient as a constant in the outer one.
    """
    phi = start
    for _ in range(steps):
        slope = grad(loss)(phi)
        if first_order:
            slope = {name: g.detach() for name, g in slope.items()}
        phi = {name: w - rates[name] * slope[name] for name, w in phi.items()}
    return phi


class _Learner(nn.Module):
    """What MAML, ANIL, BOIL and MetaTicket share; see the module."""

    def __init__(
        self,
        model: nn.Module,
        rates: Mapping[str, float],
        steps: int,
        first_order: bool,
        loss: Loss,
    ) -> None:
        super().__init__()
        _check_batch_norm(model)
        if steps < 1:
            raise InferKitError(f"inner_steps={steps}: at least one step is expected.")
        self.model, self.loss = model, loss
        self.rates = {name: rate for name, rate in rates.items() if rate}
        self.steps, self.first_order = steps, first_order

    def forward(self, episodes: Episodes) -> Tensor:
        """The outer loss: the mean of the query losses, a tensor with one number."""

        def task(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            return self.loss(self._call(self._solved(x, y), query_x), query_y)

        with self._thresholds():
            losses = self._each(task)(
                episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y
            )
        mean: Tensor = losses.mean()
        return mean

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """`[T, m, C]` outputs for the queries, each task after its inner loop."""

        def task(x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
            return self._call(self._solved(x, y), query_x)

        with self._thresholds():
            each = self._each(task)
            out: Tensor = each(episodes.support_x, episodes.support_y, episodes.query_x)
        return out

    def accuracy(self, episodes: Episodes) -> Tensor:
        """`[T]` share of queries whose largest output is their label."""
        return (self.predict(episodes).argmax(-1) == episodes.query_y).float().mean(-1)

    @torch.no_grad()
    def solve(self, x: Tensor, y: Tensor) -> nn.Module:
        """An ordinary model for one task.

        Args:
            x: `[n, ...]` support examples. y: `[n]` their labels.

        Returns:
            A copy of the model with the weights after the inner loop.
        """
        with self._thresholds():
            phi = self._solved(x, y)
        model = self._plain()
        targets = dict(model.named_parameters())
        for name, weight in self._effective(phi).items():
            targets[name].copy_(weight)
        return model

    def _solved(self, x: Tensor, y: Tensor) -> Weights:
        start: Weights = {
            name: p for name, p in self.model.named_parameters() if name in self.rates
        }

        def loss(phi: Weights) -> Tensor:
            return self.loss(self._call(phi, x), y)

        return inner(loss, start, self.rates, self.steps, self.first_order)

    def _call(self, phi: Weights, x: Tensor) -> Tensor:
        out: Tensor = functional_call(self.model, phi, (x,))
        return out

    def _each(self, task: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return vmap(task, randomness="different")

    def _thresholds(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _plain(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def _effective(self, phi: Weights) -> Weights:
        return phi


class MAML(_Learner):
    """Model-agnostic meta-learning: Finn, Abbeel and Levine, ICML 2017, arXiv 1703.03400.

    As it is run beside Meta-ticket the outer optimizer is AdamW, 6e-4 for a ResNet-12 and 1e-3 for
    an MLP.

    >>> learner = MAML(model, inner_lr=0.5)
    >>> optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    >>> learner(episodes).backward()

    Args:
        model: maps `[n, ...]` examples to `[n, C]` outputs; without running statistics.
        inner_lr: a. inner_steps: S. first_order: no gradient through the inner gradients.
        loss: of outputs and labels, a tensor with one number.

    Raises:
        InferKitError: a batch normalisation with running statistics; no inner step.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float = 0.5,
        inner_steps: int = 1,
        first_order: bool = False,
        loss: Loss = nn.functional.cross_entropy,
    ) -> None:
        rates = {name: inner_lr for name, _ in model.named_parameters()}
        super().__init__(model, rates, inner_steps, first_order, loss)


class _HeadLearner(_Learner):
    """ANIL and BOIL: of head and body the inner loop moves one."""

    moves_head: ClassVar[bool]

    def __init__(
        self,
        model: nn.Module,
        head: str,
        inner_lr: float = 0.5,
        inner_steps: int = 1,
        first_order: bool = False,
        loss: Loss = nn.functional.cross_entropy,
    ) -> None:
        in_head = _head(model, head)
        names = [name for name, _ in model.named_parameters()]
        moved = [name for name in names if (name in in_head) == self.moves_head]
        super().__init__(model, dict.fromkeys(moved, inner_lr), inner_steps, first_order, loss)


class ANIL(_HeadLearner):
    """Almost no inner loop: only the head is moved there.

    Raghu et al., "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv 1909.09157.

    Args:
        head: name of the module or parameters that classify. Others: as of `MAML`.
    """

    moves_head = True


class BOIL(_HeadLearner):
    """Body only inner loop: everything but the head is moved there.

    Oh et al., "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, arXiv
    2008.08882.

    Args:
        head: name of the module or parameters that classify. Others: as of `MAML`.
    """

    moves_head = False


class MetaTicket(_Learner):
    """A mask over random weights from which a few steps of SGD solve a new task.

    Only scores are learnt. The inner loop moves the random weights under the mask, and with the
    same rate what is not masked: biases, normalisation, and the head, which every task starts from
    the same random numbers.

    >>> learner = MetaTicket(model, head="4")
    >>> optimizer = learner.optimizer(lr=10.0)
    >>> learner(episodes).backward()
    >>> learner.ticket.save("ticket.safetensors")

    Args:
        model: as of `MAML`; `make_ticket` masks it as the paper does: phi_0 of kaiming_normal, the
            head's too, a `Threshold` with q = 0, all but the head. Or a ticket of your
            own, not from a file.
        head: name of the module or parameters that classify.
        head_lr: another inner rate of the head: 0 is BOIL's variant, None the same.
        seed: of weights and scores, for a model. Others: as of `MAML`.

    Raises:
        InferKitError: as `MAML` and `make_ticket`; a ticket from a file.
    """

    def __init__(
        self,
        model: nn.Module | Ticket,
        head: str,
        inner_lr: float = 0.5,
        inner_steps: int = 1,
        first_order: bool = False,
        loss: Loss = nn.functional.cross_entropy,
        head_lr: float | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(model, Ticket):
            ticket = model
        else:
            _check_batch_norm(model)
            _draw_head(model, head, seed)
            ticket = make_ticket(model, seed, "kaiming_normal", Threshold(0.0), exclude=[head])
        scores = {id(layer.scores) for layer in ticket.layers().values()}
        network = ticket.model
        assert network is not None
        fixed = _head(network, head)
        rates = {
            name: inner_lr if head_lr is None or name not in fixed else head_lr
            for name, p in network.named_parameters()
            if id(p) not in scores
        }
        super().__init__(network, rates, inner_steps, first_order, loss)
        self.ticket = ticket

    def optimizer(self, lr: float = 10.0, momentum: float = 0.9) -> torch.optim.SGD:
        """SGD on the scores, without weight decay, with the paper's rate."""
        scores = [layer.scores for layer in self.ticket.layers().values()]
        return torch.optim.SGD(scores, lr=lr, momentum=momentum)

    @contextmanager
    def _thresholds(self) -> Iterator[None]:
        """Scores do not change within a batch of tasks: one threshold, found outside of `vmap`."""
        layers = [layer for layer in self.ticket.layers().values() if layer.level is None]
        for layer, level in [(layer, layer.threshold()) for layer in layers]:
            layer.level = level
        try:
            yield
        finally:
            for layer in layers:
                layer.level = None

    def _plain(self) -> nn.Module:
        return self.ticket.materialize()

    def _effective(self, phi: Weights) -> Weights:
        out = dict(phi)
        for name, layer in self.ticket.layers().items():
            out[name] = layer(out.pop(f"{inside(name)}original"))
        return out


def _head(model: nn.Module, head: str) -> set[str]:
    """Names of the head's parameters."""
    return set(matching([name for name, _ in model.named_parameters()], [head]))


@torch.no_grad()
def _draw_head(model: nn.Module, head: str, seed: int) -> None:
    """phi_0 of the head: kaiming_normal weights, biases 0."""
    named = dict(model.named_parameters())
    for name in _head(model, head):
        parameter = named[name]
        if parameter.dim() < 2:
            parameter.zero_()
        else:
            parameter.copy_(kaiming_normal(seed, name, parameter.shape))


def _check_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise InferKitError(
                f"{name!r} keeps running statistics, which the tasks of a batch cannot share.",
                "Build it with track_running_stats=False, or call "
                "torch.func.replace_all_batch_norm_modules_(model) first.",
            )
