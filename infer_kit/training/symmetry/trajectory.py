"""The way of a training run through weight space, to be carried to another start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.merging import check_same
from infer_kit.training.symmetry.placed import State


class LinearTrajectory:
    """The straight line theta^0 + lambda_t (theta^T - theta^0) between two checkpoints.

    Source: Chijiwa, "Transferring Learning Trajectories of Neural Networks", ICLR 2024, arXiv
    2305.14122, section 3.3: where the states in between were not saved.

    Args:
        first, last: states at the start and at the end of training.
        steps: T, from 1 on.
        schedule: "uniform" for lambda_t = t / T; "cosine" for steps in proportion to
            1 + cos(pi t / T), which grow smaller as a learning rate does.

    Raises:
        InferKitError: states that differ in a tensor's name or shape, no step, no such schedule.
    """

    def __init__(
        self,
        first: Mapping[str, Tensor],
        last: Mapping[str, Tensor],
        steps: int,
        schedule: str = "uniform",
    ) -> None:
        check_same(first, last)
        if steps < 1:
            raise InferKitError(f"steps={steps}: a trajectory has at least 1 step.")
        if schedule not in ("uniform", "cosine"):
            raise InferKitError(
                f"There is no schedule {schedule!r}.", 'Give "uniform" or "cosine".'
            )
        self._first, self._last = dict(first), dict(last)
        parts = [1.0 if schedule == "uniform" else 1 + cos(pi * t / steps) for t in range(steps)]
        self.lambdas = tuple(sum(parts[:t]) / sum(parts) for t in range(steps + 1))

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.lambdas) - 1

    def __getitem__(self, t: int) -> State:
        """theta^t, from 0 to T."""
        at = self.lambdas[_step(t, len(self))]
        return {
            name: (
                torch.lerp(value.detach(), self._last[name].detach().to(value), at)
                if value.is_floating_point()
                else value
            )
            for name, value in self._first.items()
        }


class SavedTrajectory:
    """The states that a run has saved, theta^0 first.

    Args:
        states: states, or functions without arguments that load one, such as
            `lambda: safetensors.torch.load_file(path)`; called each time that the state is needed.

    Raises:
        InferKitError: fewer than two states, or states that differ in a tensor's name or shape.
    """

    def __init__(self, states: Sequence[Mapping[str, Tensor] | Callable[[], State]]) -> None:
        if len(states) < 2:
            raise InferKitError(
                f"{len(states)} states make no trajectory.", "Give the first and at least one more."
            )
        for t, state in enumerate(states):
            # A module is callable as well, and is no function that loads a state.
            if isinstance(state, nn.Module) or not (isinstance(state, Mapping) or callable(state)):
                raise InferKitError(
                    f"State {t} of a trajectory is a {type(state).__name__}, where tensors by "
                    "name, or a function that loads them, are expected.",
                    "Give states, or lambda: load_file(path).",
                )
        self._states = list(states)
        given = [state for state in self._states if isinstance(state, Mapping)]
        for state in given[1:]:
            check_same(given[0], state)

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self._states) - 1

    def __getitem__(self, t: int) -> State:
        """theta^t, from 0 to T."""
        state = self._states[_step(t, len(self))]
        return dict(state) if isinstance(state, Mapping) else state()


Trajectory = LinearTrajectory | SavedTrajectory


def _step(t: int, steps: int) -> int:
    if not 0 <= t <= steps:
        raise IndexError(f"step {t} of a trajectory with steps 0 to {steps}")
    return t
