"""Several texts in one row: a tree of segments that share what they have in common.

A row begins with a root (for instance the image), and every further segment continues from its
parent: it sees the segments above it and itself, and its positions go on from where its parent
ends. So an image is read once for all the questions about it, and a question once for its direct
answer and its rationale, while none of them sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infer_kit.demo.build import IMAGE, PAD

IGNORED = -100


@dataclass
class Row:
    """Segments of one row.

    Attributes:
        image: its number in the batch of images, None without one, a list of several.
        ids, labels, lessons: of each token; a label is the next token or `IGNORED`.
        segments: of each segment first token, end, parent and first position.
    """

    image: int | list[int] | None = None
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    lessons: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int | None, int]] = field(default_factory=list)

    @property
    def images(self) -> list[int]:
        """The numbers of its images."""
        if self.image is None:
            return []
        return [self.image] if isinstance(self.image, int) else self.image

    def add(
        self,
        ids: Sequence[int],
        parent: int | None = None,
        learn: Sequence[int] | range = (),
        lesson: int = 0,
        skip: int = 0,
    ) -> int:
        """Append a segment, and return its number.

        `learn` are the places in it whose token is to be predicted; not the first place, since
        what predicts it would be in the parent. `skip` positions are left out before it.
        """
        start = len(self.ids)
        labels = [IGNORED] * len(ids)
        for place in learn:
            assert place > 0
            labels[place - 1] = ids[place]
        self.ids += ids
        self.labels += labels
        self.lessons += [lesson] * len(ids)
        begin = skip
        if parent is not None:
            first, last, _, position = self.segments[parent]
            begin += position + last - first
        self.segments.append((start, start + len(ids), parent, begin))
        return len(self.segments) - 1


@dataclass
class Batch:
    """Padded rows. ids, labels, lessons, positions: `[B, T]`; mask: `[B, 1, T, T]`, True = seen.

    Without a mask every token sees those before it: for rows of one segment and of one length.
    """

    ids: Tensor
    labels: Tensor
    lessons: Tensor
    positions: Tensor
    mask: Tensor | None
    images: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        """Pad the rows on the right to the longest."""
        n, width = len(rows), max(len(row.ids) for row in rows)
        ids = np.full((n, width), PAD)
        labels = np.full((n, width), IGNORED)
        lessons = np.zeros((n, width), dtype=np.int64)
        positions = np.zeros((n, width), dtype=np.int64)
        mask = np.zeros((n, 1, width, width), dtype=bool)
        causal = np.tri(width, dtype=bool)
        for b, row in enumerate(rows):
            length = len(row.ids)
            ids[b, :length], labels[b, :length] = row.ids, row.labels
            lessons[b, :length] = row.lessons
            for start, end, parent, begin in row.segments:
                positions[b, start:end] = np.arange(begin, begin + end - start)
                mask[b, 0, start:end, start:end] = causal[: end - start, : end - start]
                while parent is not None:
                    above = row.segments[parent]
                    mask[b, 0, start:end, above[0] : above[1]] = True
                    parent = above[2]
            pads = np.arange(length, width)
            mask[b, 0, pads, pads] = True  # a row of the mask with nothing in it gives NaN
        return cls(
            ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            lessons=torch.from_numpy(lessons),
            positions=torch.from_numpy(positions),
            mask=torch.from_numpy(mask),
            images=[i for row in rows for i in row.images],
        )


def project(model: Any, pixels: Tensor) -> Tensor:
    """Pixels `[B, 3, H, W]` to what the language model sees of them, `[B, patches, width]`."""
    seen = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    return model.model.multi_modal_projector(seen)


def losses(model: Any, batch: Batch, features: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy, hit and lesson number of every supervised token, each `[N]`.

    `features` are the projected images, `[images, patches, width]`.
    """
    language = model.model.language_model
    embedded = language.embed_tokens(batch.ids)
    if batch.images:
        assert features is not None
        flat = features[torch.tensor(batch.images)].reshape(-1, features.shape[-1])
        embedded = embedded.masked_scatter((batch.ids == IMAGE)[..., None], flat)
    hidden = language(
        inputs_embeds=embedded,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    supervised = batch.labels != IGNORED
    target = batch.labels[supervised]
    logits = model.lm_head(hidden[supervised])
    loss = F.cross_entropy(logits, target, reduction="none")
    return loss, logits.argmax(-1) == target, batch.lessons[supervised]
