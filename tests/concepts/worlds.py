"""A closed-form encoder, and images that are made of phrases."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infer_kit.concepts.bank import ConceptBank
from tests.concepts.lassos import unit

COLOURS = ("red", "green", "blue", "yellow", "pink")
THINGS = ("ball", "cube", "cone", "ring", "star", "tree")
PHRASES = tuple(f"{colour} {thing}" for colour in COLOURS for thing in THINGS)
CLASSES = ("forest", "beach", "city")
PARTS = {
    "forest": ("green tree", "green ball", "yellow star"),
    "beach": ("yellow ball", "blue ring", "pink star"),
    "city": ("red cube", "blue cone", "pink cube"),
}
"""What pictures of a class show."""


class WordEncoder:
    """A text's feature is the sum of fixed random vectors of its words and a common one.

    A class is the sum of its parts. A picture's feature is in its first pixels; here features are
    mostly passed as they are.
    """

    logit_scale = 20.0

    def __init__(self, dim: int = 48, name: str = "words", common: float = 1.0) -> None:
        self.dim, self.name, self.common = dim, name, common
        self.encoded = 0

    def vector(self, word: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.name} {word}".encode()))
        return unit(torch.randn(self.dim, generator=generator))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.encoded += len(texts)
        return torch.stack([self._text(text) for text in texts])

    def _text(self, text: str) -> Tensor:
        total = self.common * self.vector("<text>")
        for word in text.split():
            phrases = PARTS.get(word, (word,))
            for phrase in phrases:
                for part in phrase.split():
                    total = total + self.vector(part) / len(phrases)
        return total

    def encode_image(self, pictures: Sequence[Any]) -> Tensor:
        return torch.stack(
            [self.image(PARTS[CLASSES[p.getpixel((0, 0))[0] % 3]]) for p in pictures]
        )

    def image(self, phrases: Sequence[str], noise: float = 0.0, seed: int = 0) -> Tensor:
        """The unit feature of a picture that shows these."""
        generator = torch.Generator().manual_seed(seed)
        total = 0.3 * self.vector("<image>")
        for phrase in phrases:
            for word in phrase.split():
                total = total + self.vector(word) / len(phrases)
        return unit(total + noise * unit(torch.randn(self.dim, generator=generator)))


def bank_of(encoder: WordEncoder, phrases: Sequence[str] = PHRASES, **options: Any) -> ConceptBank:
    return ConceptBank.build(phrases, encoder, **options)


def samples(encoder: WordEncoder, n: int, noise: float = 0.6) -> tuple[Tensor, list[str]]:
    """Image features `[n, d]` and their classes: most parts of a class, and something else."""
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for i in range(n):
        label = CLASSES[i % 3]
        other = PHRASES[int(torch.randint(0, len(PHRASES), (1,), generator=generator))]
        shown = [*PARTS[label][i % 2 :], other]
        features.append(encoder.image(shown, noise, seed=i))
        labels.append(label)
    return torch.stack(features), labels
