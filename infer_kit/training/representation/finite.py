"""Numbers that are not finite are refused where they come in."""

from torch import Tensor

from infer_kit.errors import InferKitError

_HINT = "Lower the learning rate, or look for inputs that are not finite."


def check_finite(x: Tensor, what: str, hint: str = _HINT) -> None:
    """Args:
        x: of any shape. what: it is, in the plural, for the message.

    Raises:
        InferKitError: there are numbers that are not finite.
    """
    if not bool(x.detach().isfinite().all()):
        raise InferKitError(f"{what} have numbers that are not finite.", hint)
