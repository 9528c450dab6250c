"""`import infer_kit` stays light, and its lazy names resolve."""

import importlib
import subprocess
import sys

import pytest

import infer_kit
from infer_kit.training import representation

HEAVY = (
    "torch",
    "transformers",
    "vllm",
    "torchvision",
    "datasets",
    "lm_eval",
    "numpy",
    "matplotlib",
)


def loaded_by(statement: str) -> set[str]:
    """Heavy packages in a fresh interpreter after a statement."""
    code = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    assert loaded_by("import infer_kit; dir(infer_kit)") == set()


def test_the_command_line_loads_nothing_heavy_either() -> None:
    assert loaded_by("import infer_kit.cli") == set()


def test_the_demo_package_loads_nothing_heavy_either() -> None:
    assert loaded_by("import infer_kit.demo") == set()


def test_representation_methods_load_transformers_with_their_trainers_alone() -> None:
    home = "infer_kit.training.representation"
    assert loaded_by(f"import {home}") == set()
    found = loaded_by(f"from {home} import rafa_loss, ClassGaussianPrior, mgr_step")
    assert "torch" in found and "transformers" not in found


@pytest.mark.parametrize("name", representation._HOME)
def test_every_representation_method_has_a_name(name: str) -> None:
    assert getattr(representation, name).__name__ == name
    assert name in dir(representation)


@pytest.mark.parametrize("name", infer_kit._HOME)
def test_every_name_resolves_to_its_home(name: str) -> None:
    home = importlib.import_module(infer_kit._HOME[name])
    assert getattr(infer_kit, name) is getattr(home, name)


def test_there_are_few_names() -> None:
    assert len(infer_kit.__all__) <= 40


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(
        AttributeError, match="has no attribute 'CoupledLm'. Did you mean 'CoupledLM'"
    ):
        _ = infer_kit.CoupledLm
