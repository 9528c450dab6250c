"""Permutation symmetry of networks: tracing, matching, merging, connectivity, transfer."""

from infer_kit.training.symmetry.matching import Match, match
from infer_kit.training.symmetry.rules import rule
from infer_kit.training.symmetry.spec import Frozen, PermSpec
from infer_kit.training.symmetry.trace import discover

__all__ = ["Frozen", "Match", "PermSpec", "discover", "match", "rule"]
