"""What a ticket takes on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TicketSize:
    """Bits of a ticket file.

    Attributes:
        weights: how many are masked. searched: those that are not frozen.
        kept: those in the network.
        mask_bits: packed masks. generation_bits: which event drew each kept weight (IteRand).
        raw_bits: tensors that are not masked. header_bits: names, shapes, metadata and padding.
        dense_bits: the masked weights and the other tensors as a plain state dict holds them.
    """

    weights: int
    searched: int
    kept: int
    mask_bits: int
    generation_bits: int
    raw_bits: int
    header_bits: int
    dense_bits: int

    @property
    def total_bits(self) -> int:
        """8 times the size of the file."""
        return self.mask_bits + self.generation_bits + self.raw_bits + self.header_bits

    @property
    def per_weight(self) -> float:
        """Bits of masks and generations for each masked weight, header and other tensors not in."""
        return (self.mask_bits + self.generation_bits) / self.weights

    @property
    def compression(self) -> float:
        """How many times smaller than a mask with a bit for every weight: 1 / (1 - F)."""
        return self.weights / self.mask_bits

    def __str__(self) -> str:
        lines = [
            ("weights", f"{self.weights:,} ({self.kept:,} kept, {self.searched:,} searched)"),
            ("masks", f"{self.mask_bits:,} bits"),
            ("generations", f"{self.generation_bits:,} bits"),
            ("other tensors", f"{self.raw_bits:,} bits"),
            ("header", f"{self.header_bits:,} bits"),
            ("file", f"{self.total_bits:,} bits, {self.total_bits / self.weights:.3f} a weight"),
            ("dense model", f"{self.dense_bits:,} bits, {self.dense_bits / self.total_bits:.1f}x"),
        ]
        return "\n".join(f"{name:14} {said}" for name, said in lines)
