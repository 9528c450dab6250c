"""Learning transfer: a training run from one initialisation carried to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.batch_norm import check_bn_data, reestimate_by
from infer_kit.training.symmetry.calling import state_of
from infer_kit.training.symmetry.matching import match
from infer_kit.training.symmetry.merging import Predict, classification, judged
from infer_kit.training.symmetry.placed import State, whole
from infer_kit.training.symmetry.sgd import gradient
from infer_kit.training.symmetry.spec import Perms, PermSpec
from infer_kit.training.symmetry.trajectory import (
    LinearTrajectory,
    SavedTrajectory,
    Trajectory,
)


@dataclass(frozen=True)
class TransferResult:
    """A trajectory carried to another start.

    Attributes:
        thetas: the states theta_2^0 to theta_2^T, under the last permutation; of batch norms with
            the running statistics that they were judged with.
        perms: that permutation, of the source's units.
        curve: accuracy of each state on the data that judge, shares from 0 to 1; empty without.
        losses: mean loss of each, in nats; empty without.
        best_step: the step of the highest accuracy, of equals the one of the lower loss: where to
            stop early, and to fine-tune from. T without data that judge.
        gradients: number of gradients that were computed.
    """

    thetas: tuple[State, ...]
    perms: Perms
    curve: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    best_step: int = 0
    gradients: int = 0

    @property
    def best(self) -> State:
        """The state of the best step."""
        return self.thetas[self.best_step]


class Transfer:
    """Carries the trajectory of a source network to the initialisation of a target network.

    The target moves by the source's steps under a permutation of hidden units,

        theta_2^t = theta_2^0 + P (theta_1^t - theta_1^0),

    and the permutation is the one under which the source's gradients along its trajectory are
    nearest to the target's, sum over t of |P g_1^t - g_2^t|^2, on the target's data. Parameters
    move; buffers are the target's, but for batch norms' statistics, which are estimated anew for
    every state.

    Source: Chijiwa, "Transferring Learning Trajectories of Neural Networks", ICLR 2024, arXiv
    2305.14122: GMT is algorithm 1, FGMT its fast form (section 3.4).

    Args:
        model: of the architecture of both; left as it is.
        spec: `discover` of the model.
        source: theta_1^0 to theta_1^T.
        target: theta_2^0, a state.
        predict: logits and targets of a batch.
        bn_data: batches for batch norms' statistics; needed by a model that has them.
        judge: batches on which the states are judged: held out, as the best step is chosen by them.
        progress: show a bar.

    Raises:
        InferKitError: states of another architecture, or batch norms and no data.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PermSpec,
        source: Trajectory,
        target: Mapping[str, Tensor],
        predict: Predict = classification,
        bn_data: Iterable[Any] | None = None,
        judge: Iterable[Any] | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(source, (LinearTrajectory, SavedTrajectory)):
            raise InferKitError(
                f"A {type(source).__name__} is given where a trajectory is expected.",
                "Give LinearTrajectory(first, last, steps), or SavedTrajectory(states).",
            )
        target = whole(model, target)
        spec.check_state(state_of(model))
        spec.check_state(source[0])
        spec.check_state(target)
        check_bn_data(model, bn_data)
        for what, data in (("bn_data", bn_data), ("judge", judge)):
            if isinstance(data, Iterator):
                raise InferKitError(
                    f"{what} is a {type(data).__name__}, which can be read once only.",
                    "Give a list or a DataLoader.",
                )
        self.model, self.spec, self.source = model, spec, source
        self.target = {name: tensor.detach() for name, tensor in target.items()}
        self.predict, self.bn_data, self.judge = predict, bn_data, judge
        self.progress = progress

    def gmt(
        self, data: Iterable[Any], batches: int = 1, start: str = "identity", seed: int = 0
    ) -> TransferResult:
        """Gradient matching along the trajectory: T (T + 1) gradients.

        For s = 1 to T the gradients of both at the steps 0 to s - 1 are taken anew, the target's
        under the permutation of before, each pair on new batches, and matched.

        Args:
            data: batches of the target's data, read round and round.
            batches: that make one gradient, when a batch is smaller than the batch of the method.
            start: of the match, "identity" as in the paper, "previous", or another of `match`.
            seed: of the match.
        """
        return self._matched(data, batches, start, seed, fast=False)

    def fgmt(
        self, data: Iterable[Any], batches: int = 1, start: str = "identity", seed: int = 0
    ) -> TransferResult:
        """The fast form: the pairs of earlier steps are kept, so that 2 T gradients are enough.

        Args: as `gmt`.
        """
        return self._matched(data, batches, start, seed, fast=True)

    def naive(self) -> TransferResult:
        """The source's steps as they are: the identity."""
        return self.under(self.spec.identity())

    def random(self, seed: int = 0) -> TransferResult:
        """Under a random permutation."""
        return self.under(self.spec.random(seed))

    def oracle(self, trained: Mapping[str, Tensor], seed: int = 0) -> TransferResult:
        """Under the permutation that a training run of the target itself shows.

        It matches theta_2^T - theta_2^0 with theta_1^T - theta_1^0: what transfer would have to
        find without that run.

        Args:
            trained: theta_2^T, a state.
        """
        own = self._moves(trained, self.target)
        theirs = self._moves(self.source[len(self.source)], self.source[0])
        return self.under(match(self.spec, own, theirs, seed=seed).perms)

    def under(self, perms: Perms, gradients: int = 0) -> TransferResult:
        """The trajectory under a permutation of the source's units, judged."""
        steps = range(len(self.source) + 1)
        thetas = tuple(self._placed(self.state(perms, t)) for t in steps)
        if self.judge is None:
            return TransferResult(thetas, perms, best_step=len(self.source), gradients=gradients)
        points = [
            judged(self.model, theta, self.judge, self.predict)
            for theta in tqdm(thetas, desc="judging", disable=not self.progress)
        ]
        losses, curve = zip(*points, strict=True)
        best = max(range(len(thetas)), key=lambda t: (curve[t], -losses[t]))
        return TransferResult(thetas, perms, curve, losses, best, gradients)

    def state(self, perms: Perms, t: int) -> State:
        """theta_2^t under a permutation."""
        if t == 0:
            return dict(self.target)
        steps = self._moves(self.source[t], self.source[0])
        whole = {name: steps.get(name, tensor) for name, tensor in self.target.items()}
        moved = self.spec.apply(perms, whole)
        return {
            name: tensor + moved[name].to(tensor) if name in steps else tensor
            for name, tensor in self.target.items()
        }

    def _moves(self, to: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> State:
        self.spec.check_state(to)
        to, start = whole(self.model, to), whole(self.model, start)
        return {
            name: to[name].detach() - start[name].detach()
            for name in self.spec.weights
            if name in to
        }

    def _matched(
        self, data: Iterable[Any], batches: int, start: str, seed: int, fast: bool
    ) -> TransferResult:
        if batches < 1:
            raise InferKitError(f"batches={batches}: at least 1 is expected.")
        given = _round(data)
        perms = self.spec.identity()
        theirs: list[State] = []
        own: list[State] = []
        count = 0
        steps = range(1, len(self.source) + 1)
        for s in tqdm(steps, desc="gradient matching", disable=not self.progress):
            if not fast:
                theirs, own = [], []
            for t in range(s, s + 1) if fast else range(1, s + 1):
                batch = list(islice(given, batches))
                theirs.append(self._gradient(self.source[t - 1], batch))
                own.append(self._gradient(self.state(perms, t - 1), batch))
                count += 2
            begin = perms if start == "previous" else start
            perms = match(self.spec, own, theirs, start=begin, seed=seed).perms
        return self.under(perms, count)

    def _gradient(self, state: Mapping[str, Tensor], batches: list[Any]) -> State:
        return gradient(self.model, self._placed(state), batches, self.predict)

    def _placed(self, state: Mapping[str, Tensor]) -> State:
        """The state with the running statistics that are its own."""
        return reestimate_by(self.predict, self.model, state, self.bn_data)


def _round(data: Iterable[Any]) -> Iterator[Any]:
    """The batches, read again from the start when they end."""
    if isinstance(data, Iterator):
        raise InferKitError(
            f"The data are a {type(data).__name__}, which can be read once only.",
            "Give a list or a DataLoader.",
        )
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty:
            raise InferKitError("The data have no batch.", "Give at least one.")
