"""Lets vLLM's vision models be imported where torchvision is not installed.

They import transformers' torchvision image processors for a helper or two; the Pillow ones have the
same helpers. Python imports a module of this name at its start where its folder is on the path, so
the processes that vLLM starts have it too. In use only where torchvision is missing.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

_PREFIX = "transformers.models."


class _Pillow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves `image_processing_pil_x` under the name `image_processing_x`."""

    def find_spec(self, name, path=None, target=None):
        package, _, last = name.rpartition(".")
        if not name.startswith(_PREFIX) or not last.startswith("image_processing_"):
            return None
        if last.startswith("image_processing_pil_") or package == "transformers.models.auto":
            return None
        pillow = f"{package}.{last.replace('image_processing_', 'image_processing_pil_')}"
        if importlib.util.find_spec(pillow) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return ModuleType(spec.name)

    def exec_module(self, module):
        package, _, last = module.__name__.rpartition(".")
        pillow = importlib.import_module(
            f"{package}.{last.replace('image_processing_', 'image_processing_pil_')}"
        )
        for name, value in vars(pillow).items():
            if not name.startswith("__"):
                setattr(module, name, value)
                setattr(module, name.removesuffix("Pil"), value)


if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.insert(0, _Pillow())
