"""Picking a backend by what the user passed."""

import pytest

from infer_kit.backends import backend_for
from infer_kit.engine.backend import TransformersBackend
from infer_kit.errors import InferKitError
from tests.tiny import shared_text_model
from tests.tiny.tokenizers import tiny_tokenizer


def test_a_transformers_model_gets_the_transformers_backend() -> None:
    backend = backend_for(shared_text_model("llama"), tiny_tokenizer())
    assert isinstance(backend, TransformersBackend)


def test_an_adapter_wrapper_is_pointed_to_its_base() -> None:
    class Wrapper:
        def get_base_model(self) -> None: ...

    with pytest.raises(InferKitError, match="Expected a transformers model") as caught:
        backend_for(Wrapper(), tiny_tokenizer())
    assert "get_base_model()" in str(caught.value.hint)
