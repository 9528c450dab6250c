"""Numbers that are not finite are refused where they come in."""

import torch
from torch import Tensor

from infer_kit.errors import InferKitError

_HINT = "Lower the learning rate, or look for inputs that are not finite."


def check_finite(what: str, *tensors: Tensor, hint: str = _HINT) -> None:
    """Args:
        what: they are, in the plural, for the message. tensors: of any shapes, on one device.

    Raises:
        InferKitError: there are numbers that are not finite.
    """
    # Read once for all of them: each reading waits for the device.
    if not bool(torch.stack([x.detach().isfinite().all() for x in tensors]).all()):
        raise InferKitError(f"{what} have numbers that are not finite.", hint)
