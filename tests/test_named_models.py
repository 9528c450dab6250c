"""Models by name: those that ship, folders, and what is neither."""

from pathlib import Path

import pytest
import torch

from infer_kit.demo import MODEL_DIR, PROMPTS
from infer_kit.errors import InferKitError
from infer_kit.named_models import folder_of, load_model


@pytest.mark.parametrize("name", ["demo", "demo-icl", "demo-text-a", "demo-text-b"])
def test_every_bundled_model_loads_ready_to_answer(name: str) -> None:
    loaded = load_model(name, device="cpu")
    assert not loaded.model.training and loaded.model.dtype == torch.float32
    assert (loaded.prompts is PROMPTS) == (name == "demo")
    assert (getattr(loaded.processor, "image_processor", None) is None) == ("text" in name)


def test_a_folder_with_a_model_is_taken_before_a_bundled_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(folder_of("demo")) == MODEL_DIR
    (tmp_path / "demo").mkdir()
    assert Path(folder_of("demo")) == MODEL_DIR
    (tmp_path / "demo" / "config.json").write_text("{}")
    assert folder_of("demo") == "demo"
    with pytest.raises(InferKitError, match="No model at 'demo'"):
        load_model("demo")


def test_arguments_are_from_pretraineds() -> None:
    assert load_model("demo", device="cpu", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(InferKitError, match="The model 'demo' cannot be loaded on .cpu.: .*wrong"):
        load_model("demo", device="cpu", wrong=1)


def test_what_is_no_model_or_backend_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="Unknown backend 'tpu'"):
        load_model("demo", backend="tpu")
    with pytest.raises(InferKitError, match="No model at '.*': "):
        load_model(str(tmp_path))


def test_settings_of_the_processor_reach_it() -> None:
    loaded = load_model("demo", device="cpu", processor_arguments={"do_normalize": False})
    assert loaded.processor.image_processor.do_normalize is False
    assert load_model("demo", device="cpu").processor.image_processor.do_normalize is True
    with pytest.raises(InferKitError, match="The processor of .* has no setting 'do_normalise'"):
        load_model("demo", device="cpu", processor_arguments={"do_normalise": False})
