"""Loading processors, and naming a torchvision that stands in the way."""

import importlib
import importlib.util
from types import ModuleType

import pytest
import transformers

from infer_kit.errors import InferKitError
from infer_kit.processors import load_processor, torchvision_problem


@pytest.fixture
def broken_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision that can be found but not imported."""

    def import_module(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.fixture
def failing_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(name: str) -> None:
        raise ModuleNotFoundError("Could not import module 'CLIPImageProcessor'.")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", from_pretrained)


@pytest.mark.usefixtures("broken_torchvision")
def test_a_broken_torchvision_is_named() -> None:
    problem = torchvision_problem()
    assert problem is not None and "operator torchvision::nms does not exist" in problem


@pytest.mark.usefixtures("failing_loader", "broken_torchvision")
def test_it_is_named_as_the_reason_why_there_is_no_processor() -> None:
    with pytest.raises(InferKitError, match="cannot be imported") as caught:
        load_processor("model")
    assert caught.value.hint == "pip uninstall -y torchvision torchaudio torchcodec"


@pytest.mark.usefixtures("failing_loader")
def test_other_failures_are_left_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="Could not import module"):
        load_processor("model")
