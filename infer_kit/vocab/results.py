"""What ensembles and reduced models return."""

import math
from dataclasses import dataclass, field
from typing import Any

from infer_kit.vocab.pooled_text import Record


@dataclass(frozen=True)
class EnsembleOutput:
    """Continuations of one prompt or of a list of prompts.

    For one prompt with one returned sequence `text` is a string; otherwise a list,
    `num_return_sequences` entries a prompt.

    Attributes:
        text: what was written, up to a stop text and without an incomplete last character.
        alphabet: what was pooled: "bytes", "symbols" (a vocabulary of one's own) or "tokens".
        sequences: [R, n] ids of the alphabet, padded; tokens with their prompts for "tokens".
        tv_bound: largest bound, over all steps of all sequences, on the total variation between
            the law drawn from and the exact one; 0 is exact, None where there is no bound (pools
            but a mixture, weights "fixed_share", "entropy" and functions). `steps[r].tv_bounds`
            has each one's.
        leak: for each member, canonical mass lost per symbol, of the sequence with most (mode
            "late", "early").
        calls: for each member, its forward calls, the prompt's included.
        rows: for each member, the token positions that its forwards computed after the prompts.
        steps: for each sequence weights, bounds and members' log-probabilities of each symbol
            that its members have read (the last one of a text need not be); empty under beam
            search and for "tokens".
        output: what `generate` returned.
    """

    text: Any
    alphabet: str
    sequences: Any = field(repr=False)
    tv_bound: float | None
    leak: tuple[float, ...]
    calls: tuple[int, ...]
    rows: tuple[int, ...]
    steps: list[Record] = field(repr=False)
    output: Any = field(repr=False)


@dataclass(frozen=True)
class LogProb:
    """The log-probability of a text, between certified bounds, in nats.

    Attributes:
        low, high: bounds; equal, and none, where there are none (see `EnsembleOutput.tv_bound`).
        members: the same for each member alone.
        length: of the text, in bytes.
        leak: for each member, canonical mass lost per symbol.
        calls: for each member, forward calls shared by all texts of the call.
    """

    low: float
    high: float
    members: tuple[tuple[float, float], ...]
    length: int
    leak: tuple[float, ...]
    calls: tuple[int, ...]

    @property
    def bits_per_byte(self) -> float:
        """At most this many bits a byte (from `low`)."""
        return -self.low / (self.length * math.log(2))
