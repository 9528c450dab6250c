"""Permutation symmetry of networks: tracing, matching, merging, connectivity, transfer."""

from infer_kit.training.symmetry.activations import activation_match
from infer_kit.training.symmetry.atoms import Axes, fix, unify
from infer_kit.training.symmetry.batch_norm import reestimate_bn
from infer_kit.training.symmetry.calibration import Calibration, calibrate
from infer_kit.training.symmetry.connectivity import (
    LEWC,
    Additivity,
    Orthogonality,
    effective_rank,
    effective_ranks,
    lewc,
    reciprocal_orthogonality,
    weak_additivity,
)
from infer_kit.training.symmetry.data import (
    condense,
    coreset_herding,
    coreset_random,
    features_of,
    gradient_distance,
)
from infer_kit.training.symmetry.figures import barrier_figure, transfer_figure
from infer_kit.training.symmetry.matching import Match, match
from infer_kit.training.symmetry.merging import (
    Curve,
    Predict,
    barrier,
    check_same,
    classification,
    evaluate,
    interpolate,
    next_token,
)
from infer_kit.training.symmetry.rules import Call, rule
from infer_kit.training.symmetry.sgd import Fit, fit
from infer_kit.training.symmetry.spec import Frozen, PermSpec
from infer_kit.training.symmetry.ste import SteMatch, ste_match
from infer_kit.training.symmetry.trace import discover
from infer_kit.training.symmetry.trajectory import LinearTrajectory, SavedTrajectory
from infer_kit.training.symmetry.transfer import Transfer, TransferResult

__all__ = [
    "LEWC",
    "Additivity",
    "Axes",
    "Calibration",
    "Call",
    "Curve",
    "Fit",
    "Frozen",
    "LinearTrajectory",
    "Match",
    "Orthogonality",
    "PermSpec",
    "Predict",
    "SavedTrajectory",
    "SteMatch",
    "Transfer",
    "TransferResult",
    "activation_match",
    "barrier",
    "barrier_figure",
    "calibrate",
    "check_same",
    "classification",
    "condense",
    "coreset_herding",
    "coreset_random",
    "discover",
    "effective_rank",
    "effective_ranks",
    "evaluate",
    "features_of",
    "fit",
    "fix",
    "gradient_distance",
    "interpolate",
    "lewc",
    "match",
    "next_token",
    "reciprocal_orthogonality",
    "reestimate_bn",
    "rule",
    "ste_match",
    "transfer_figure",
    "unify",
    "weak_additivity",
]
