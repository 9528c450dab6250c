"""The linear layer of GPT-2 in transformers, which has its weight the other way round."""

from torch import nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' `Conv1D`: y = x W + b with W `[in, out]`.

    Told by its name and attribute, since those who have no transformers model need not load it.
    """
    return type(module).__name__.endswith("Conv1D") and hasattr(module, "nf")
