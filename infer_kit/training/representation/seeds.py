"""Random numbers that follow from a place in a run, so that a resumed run draws the same."""

import hashlib

import torch


def seeded(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers follow from some integers, the same in each process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
