"""torchvision's and timm's networks, where they are installed."""

import pytest

from evals.benchmarks.symmetry_models import zoo
from infer_kit.training.symmetry import discover


def test_their_functions_are_kept() -> None:
    found = {n: made for n, made in zoo().items() if n.startswith(("torchvision", "timm"))}
    if not found:
        pytest.skip("neither torchvision nor timm is installed")
    for name, (model, x) in found.items():
        model, x = model.double(), x.double()
        spec = discover(model, x)
        assert not spec.unknown, name
        assert len(spec.groups) >= 10
        for seed in range(2):
            assert spec.check(model, x, seed=seed) < 1e-12, name
