"""Whether an optimizer is of what is to be trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from infer_kit.errors import InferKitError


def check_optimizer(optimizer: torch.optim.Optimizer, trained: Iterable[Tensor], of: str) -> None:
    """Args:
        optimizer: given. trained: parameters. of: whose they are, for the message.

    Raises:
        InferKitError: the optimizer has none of the parameters.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in trained):
        raise InferKitError(
            f"The optimizer has no parameter of the {of}, which would stay as it is.",
            f"Make it of the {of}'s parameters(), after its head is replaced and it is moved.",
        )
