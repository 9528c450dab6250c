"""A fitted pool of demonstrations on disk: features, chunks and texts; states are read anew."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import infer_kit
from infer_kit.chats import load_images
from infer_kit.errors import InferKitError
from infer_kit.methods.demonstrations import Demonstration

_CONFIG, _TEXTS = "pool.json", "demonstrations.jsonl"
_FEATURES, _IMAGES = "features.safetensors", "images"


@dataclass
class FittedPool:
    """What `ParallelICL.fit` makes of demonstrations.

    Attributes:
        demonstrations: all N of them, images opened.
        features: `[N, D]` float32, or None where nothing compares demonstrations.
        image_width: how many of the D features are of images; None where the user gave them.
        chunks: numbers of the demonstrations of each chunk, or None where they are picked anew for
            every query.
    """

    demonstrations: list[Demonstration]
    features: Tensor | None
    image_width: int | None
    chunks: list[list[int]] | None

    def save(self, folder: Path, settings: dict[str, Any], fingerprint: Any) -> None:
        """Write everything but the states.

        Args:
            settings: the arguments of `ParallelICL`. fingerprint: tells the model from others.
        """
        from safetensors.torch import save_file

        if folder.exists() and not folder.is_dir():
            raise InferKitError(f"save takes a folder, and {str(folder)!r} is a file.")
        if (folder / _CONFIG).is_file() and (folder / _IMAGES).is_dir():
            shutil.rmtree(folder / _IMAGES)  # of the pool that this one takes the place of
        (folder / _IMAGES).mkdir(parents=True, exist_ok=True)
        config = {
            "infer_kit": infer_kit.__version__,
            "settings": settings,
            "chunks": self.chunks,
            "image_width": self.image_width,
            "fingerprint": fingerprint,
        }
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        features = {} if self.features is None else {"features": self.features.contiguous()}
        save_file(features, folder / _FEATURES)
        with (folder / _TEXTS).open("w") as file:
            for n, demonstration in enumerate(self.demonstrations):
                names = []
                for i, picture in enumerate(demonstration.pictures):
                    names.append(f"{_IMAGES}/{n}-{i}.png")
                    picture.save(folder / names[-1])
                file.write(json.dumps(_with_names(demonstration, names)) + "\n")

    @classmethod
    def load(
        cls, folder: Path, is_same: Callable[[Any], bool]
    ) -> tuple["FittedPool", dict[str, Any]]:
        """Read what `save` wrote, with its settings.

        Raises:
            InferKitError: it is not there, or was fitted with another model.
        """
        from safetensors.torch import load_file

        missing = [n for n in (_CONFIG, _TEXTS, _FEATURES) if not (folder / n).is_file()]
        if missing:
            raise InferKitError(f"{folder} holds no fitted pool: {', '.join(missing)} not found.")
        config = json.loads((folder / _CONFIG).read_text())
        if not is_same(config["fingerprint"]):
            raise InferKitError(
                f"The pool in {folder} was fitted with another model: its features and chunks "
                "would not be this model's.",
                hint="fit() the demonstrations again with this model.",
            )
        demonstrations = []
        for n, line in enumerate((folder / _TEXTS).read_text().splitlines()):
            chat = json.loads(line)
            for turn in chat:
                for part in turn["content"]:
                    if part["type"] == "image":
                        part["image"] = str(folder / part["image"])
            demonstrations.append(Demonstration(load_images(chat, n, "Demonstration")))
        features = load_file(folder / _FEATURES).get("features")
        pool = cls(demonstrations, features, config["image_width"], config["chunks"])
        return pool, config["settings"]


def _with_names(demonstration: Demonstration, names: list[str]) -> list[dict[str, Any]]:
    """The chat with file names in place of images."""
    left = iter(names)
    return [
        {
            **turn,
            "content": [
                {"type": "image", "image": next(left)} if part["type"] == "image" else part
                for part in turn["content"]
            ],
        }
        for turn in demonstration.chat
    ]
