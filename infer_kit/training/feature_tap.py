"""The features of a network: what its head reads, or what one of its modules gives."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn

from infer_kit.errors import InferKitError


class FeatureTap:
    """Keeps the features of a forward, with their gradients.

    >>> with FeatureTap(model) as tap:
    ...     logits = model(x)
    ...     features = tap.take()

    Args:
        model: the module whose forward runs; of a DistributedDataParallel the module within.
        layer: name of the module whose output they are; None for the input of the last `nn.Linear`.

    Raises:
        InferKitError: no such module, or no Linear.
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        modules = dict(model.named_modules())
        if layer is None:
            linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
            if not linear:
                raise InferKitError(
                    "The model has no Linear whose input could be the features.",
                    "Name the module whose output they are by layer=.",
                )
            self.name = adapted_layer(modules, linear[-1])
        elif layer in modules:
            self.name = layer
        else:
            raise InferKitError(
                f"layer={layer!r} is no module of the model.",
                f"It has {', '.join(map(repr, filter(None, modules)))}.",
            )
        self._module, self._given = modules[self.name], layer is None
        self._seen: list[Tensor] = []
        self._handle: Any = None

    def __enter__(self) -> FeatureTap:
        self._handle = self._module.register_forward_hook(self._look, with_kwargs=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._handle.remove()
        self._seen.clear()

    def take(self) -> Tensor:
        """`[B, d]` the features of the forward since the last call, flattened for each example.

        Raises:
            InferKitError: the module ran not once since then.
        """
        seen, self._seen = self._seen, []
        if len(seen) != 1:
            raise InferKitError(
                f"{self.name!r} ran {len(seen)} times for a batch; once is expected.",
                "Name another module by layer=.",
            )
        return seen[0]

    def _look(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        value = (args[0] if args else kwargs["input"]) if self._given else output
        if not isinstance(value, Tensor):
            raise InferKitError(
                f"{self.name!r} gives a {type(value).__name__}; features are a tensor.",
                "Name another module by layer=.",
            )
        self._seen.append(value.flatten(1).clone())  # which what follows may work on in place


def adapted_layer(modules: dict[str, nn.Module], name: str) -> str:
    """The layer that a Linear is a part of: an adapter's, as LoRA's, works inside its layer.

    Args:
        modules: of a model, by name. name: of the Linear.

    Returns:
        The layer's name, or the Linear's own.
    """
    parts = name.split(".")
    above = (".".join(parts[:n]) for n in range(1, len(parts)))
    return next((at for at in above if hasattr(modules[at], "base_layer")), name)
