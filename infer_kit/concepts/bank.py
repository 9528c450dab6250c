"""Concept banks: phrases with their features, made once for an encoder."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from infer_kit.concepts.encoders import Encoder, encoder_for, text_features
from infer_kit.concepts.near_duplicates import far_from, first_of_each
from infer_kit.concepts.phrase_lists import LONGEST, cleaned, filled, normalised
from infer_kit.concepts.retrieval import CHUNK
from infer_kit.errors import InferKitError

Dtype = Literal["float32", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
_PROBES = 8  # phrases by which an encoder is recognised
_ALIKE = 0.995  # their least cosine; half precision changes a feature by less


@dataclass(frozen=True, eq=False)
class ConceptBank:
    """Phrases in sorted order, and their unit features.

    Attributes:
        phrases: unlike ones, sorted.
        features: `[N, d]` unit rows, float32 or float16, in memory or mapped from a file.
        encoder: the name of the encoder that made them. prompt: what each phrase was put in.
        dropped: how many phrases were left out when it was made, by reason.
    """

    phrases: tuple[str, ...]
    features: Tensor
    encoder: str
    prompt: str = "{}"
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        odd = next((p for p in self.phrases if "\n" in p or "\r" in p), None)
        if len(self.features) not in (0, len(self.phrases)) or odd is not None:
            raise InferKitError(
                f"A bank has a feature for each phrase and phrases of one line; got "
                f"{len(self.phrases)} phrases and features {list(self.features.shape)}.",
                hint="ConceptBank.build makes one from phrases.",
            )

    @classmethod
    def build(
        cls,
        phrases: Iterable[str],
        encoder: Any,
        prompt: str = "{}",
        classes: Sequence[str] = (),
        longest: int | None = LONGEST,
        dtype: Dtype = "float32",
        folder: str | Path | None = None,
        batch_size: int = 256,
    ) -> "ConceptBank":
        """A bank from a list of phrases.

        Phrases are lower-cased and stripped; equal ones are one. The order of the list makes no
        difference.

        Args:
            phrases: `noun_phrases(captions)` makes them from captions.
            encoder: see `encoder_for`.
            prompt: what a phrase is put in for its feature; the paper encodes bare phrases.
            classes: names that may not be phrases: the label would be read from them.
            longest: longer phrases are left out; None keeps all. `dropped` counts them.
            dtype: "float16" halves a bank; of a million, 99.95 % of the retrieved phrases stay.
            folder: save there while encoding; a call that was interrupted goes on where it was.
            batch_size: texts that are encoded at a time.

        Raises:
            InferKitError: no phrase is left; the prompt has not one "{}"; the folder holds another
                bank.
        """
        model = encoder_for(encoder)
        filled(prompt, [])
        if dtype not in DTYPES:
            raise InferKitError(f"Unknown dtype {dtype!r}: use float32 or float16.")
        if not isinstance(classes, str):
            _check_names(classes)
        names, dropped = cleaned(phrases, classes, longest)
        if not names:
            left_out = ", ".join(f"{n} {why}" for why, n in dropped.items() if n)
            raise InferKitError(
                f"The bank is empty: no phrase is left ({left_out or 'none given'})."
            )
        if folder is not None:
            from infer_kit.concepts.bank_files import build_in

            blank = cls(names, torch.empty(0, model.dim), model.name, prompt, dropped)
            return build_in(Path(folder), blank, model, dtype, batch_size)
        features = text_features(model, filled(prompt, names), batch_size)
        return cls(names, features.to(DTYPES[dtype]), model.name, prompt, dropped)

    def save(self, folder: str | Path) -> Path:
        """Write concepts.txt, features.npy and bank.json to a new folder.

        Raises:
            InferKitError: the folder holds a bank.
        """
        from infer_kit.concepts.bank_files import save

        return save(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: Any = None,
        prompt: str | None = None,
        mmap: bool = False,
    ) -> "ConceptBank":
        """Read a saved bank.

        Args:
            encoder, prompt: what it must have been made with, where given.
            mmap: leave the features in the file, and do not compare their checksum.

        Raises:
            InferKitError: there is no bank; its files changed; another encoder or prompt made it.
        """
        from infer_kit.concepts.bank_files import load

        bank = load(Path(folder), mmap)
        if prompt is not None and prompt != bank.prompt:
            raise InferKitError(
                f"The bank in {str(folder)!r} was made with the prompt {bank.prompt!r}, wanted is "
                f"{prompt!r}.",
                hint="Build a bank with that prompt.",
            )
        if encoder is not None:
            bank.check(encoder_for(encoder))
        return bank

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def dim(self) -> int:
        """d."""
        return int(self.features.shape[1])

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each phrase."""
        return {phrase: n for n, phrase in enumerate(self.phrases)}

    @cached_property
    def mean(self) -> Tensor:
        """`[d]` float32: the mean of the features."""
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.features.device)
        for part in self.features.split(CHUNK):
            total += part.double().sum(0)
        return (total / len(self)).float()

    def to(self, device: Any) -> "ConceptBank":
        """The bank with its features on a device."""
        return replace(self, features=self.features.to(device))

    def rows(self, at: Tensor) -> Tensor:
        """Features of the phrases with these numbers, float32: `[..., d]` of `[...]`."""
        return self.features[at.to(self.features.device)].float()

    def check(self, encoder: Encoder) -> None:
        """Whether an encoder made this bank: some of its phrases are encoded again.

        Raises:
            InferKitError: their features differ.
        """
        if encoder.dim != self.dim:
            raise InferKitError(
                f"The bank has features of {self.dim} numbers, made with {self.encoder!r}; "
                f"{encoder.name!r} makes {encoder.dim}.",
                hint="Build a bank with this encoder.",
            )
        at = torch.linspace(0, len(self) - 1, min(_PROBES, len(self))).long()
        again = text_features(encoder, filled(self.prompt, [self.phrases[n] for n in at.tolist()]))
        cosine = (again * self.rows(at).cpu()).sum(1)
        if not float(cosine.min()) >= _ALIKE:  # nor where it is no number
            n = int(at[int(cosine.argmin())])
            raise InferKitError(
                f"The bank was made with another encoder or prompt: it says {self.encoder!r} and "
                f"{self.prompt!r}, but {encoder.name!r} gives {self.phrases[n]!r} a feature of "
                f"cosine {float(cosine.min()):.3f} to the bank's.",
                hint="Build a bank with this encoder.",
            )

    def without(self, classes: Sequence[str], encoder: Any, cosine: float = 0.9) -> "ConceptBank":
        """The bank without class names, and without phrases close to one.

        Args:
            classes: names. encoder: that of the bank; it encodes them in the bank's prompt.
            cosine: from which on a phrase is close; looked for among 512 neighbours of each name.

        Raises:
            InferKitError: another encoder made the bank; no phrase is left.
        """
        _check_cosine(cosine)
        _check_names(classes)
        if not len(classes):
            raise InferKitError("classes is a list of names, got none.")
        model = encoder_for(encoder)
        self.check(model)
        names = {normalised(name) for name in classes}
        named = torch.tensor([phrase not in names for phrase in self.phrases])
        queries = text_features(model, filled(self.prompt, map(normalised, classes)))
        far = far_from(self.features, queries, cosine)
        return self._kept(
            named & far,
            {
                "class names": int((~named).sum()),
                "close to a class name": int((named & ~far).sum()),
            },
        )

    def deduplicated(self, cosine: float = 0.95) -> "ConceptBank":
        """The bank without phrases that have this cosine, or more, to an earlier one that stays."""
        _check_cosine(cosine)
        kept = first_of_each(self.features, cosine)
        return self._kept(kept, {"near duplicates": int((~kept).sum())})

    def inside(self, classes: Sequence[str]) -> list[str]:
        """Those of some class names that are phrases of the bank."""
        _check_names(classes)
        return [name for name in classes if normalised(name) in self.numbers]

    def _kept(self, kept: Tensor, dropped: Mapping[str, int]) -> "ConceptBank":
        if not bool(kept.any()):
            raise InferKitError("The bank is empty: no phrase is left.")
        phrases = tuple(p for p, stays in zip(self.phrases, kept.tolist(), strict=True) if stays)
        whole = {**self.dropped, **{w: self.dropped.get(w, 0) + n for w, n in dropped.items()}}
        return replace(
            self,
            phrases=phrases,
            features=self.features[kept.to(self.features.device)],
            dropped=whole,
        )


def _check_names(classes: Sequence[str]) -> None:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InferKitError(f"classes is a list of names, got {classes!r}.")


def _check_cosine(cosine: float) -> None:
    if not 0 < cosine <= 1:
        raise InferKitError(f"cosine is between 0 and 1, got {cosine!r}.")


def checksum(phrases: Sequence[str]) -> str:
    """sha256 of the phrases, a line each."""
    return hashlib.sha256("\n".join(phrases).encode()).hexdigest()
