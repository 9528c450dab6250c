"""Methods by name: every name builds, options are read and checked."""

from typing import Any

import pytest

from infer_kit.errors import InferKitError
from infer_kit.methods.named import (
    CLASSES,
    build,
    canonical,
    checked_options,
    option_value,
    parse_options,
)
from tests.methods.conftest import SHORT, chat, picture

OPTIONS: dict[str, dict[str, Any]] = {
    "red": {"weight": "0.75", "kind": "cot"},
    "parallel_icl": {"chunks": "[[0, 1], [2]]", "weighting": "uniform"},
    "vcd": {"alpha": "kl:0.1", "noise_step": "300"},
}


@pytest.mark.parametrize(
    "name", [n for n in CLASSES if n not in ("contrastive_decoding", "reward")]
)
def test_every_name_builds_its_class(name: str, lvlm: Any, processor: Any) -> None:
    made = build(name, lvlm, processor, OPTIONS.get(name), trace=False)
    assert type(made).__name__ == CLASSES[name].split(":")[1]
    assert made.trace is False
    assert canonical(name.replace("_", "-").upper()) == name


def test_options_have_their_types(lvlm: Any, processor: Any) -> None:
    red: Any = build("red", lvlm, processor, OPTIONS["red"], prompts=SHORT)
    assert red.weight == 0.75 and red.prompts is SHORT
    assert build("vcd", lvlm, processor, OPTIONS["vcd"], prompts=SHORT).alpha == "kl:0.1"  # type: ignore[attr-defined]
    assert build("parallel_icl", lvlm, processor, OPTIONS["parallel_icl"]).chunks == [[0, 1], [2]]  # type: ignore[attr-defined]


def test_an_amateur_is_a_name_or_a_model(lvlm: Any, processor: Any) -> None:
    with pytest.raises(InferKitError, match="needs amateur"):
        build("contrastive_decoding", lvlm, processor)
    from infer_kit.named_models import load_model

    demo = load_model("demo", device="cpu")
    made = build(
        "contrastive_decoding", demo.model, demo.processor, {"amateur": "demo", "beta": 0.2}
    )
    out = made.generate(chat("what color is the background ?", picture(0)), max_new_tokens=2)
    assert out.trace.streams == ("expert", "amateur")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rde", {}, "Unknown method 'rde'. Did you mean 'red'"),
        ("", {}, "Unknown method ''. There are direct, cot"),
        ("red", {"wieght": 1}, "'red' has no option 'wieght'. Did you mean 'weight'"),
        ("red", {"model": 1}, "'red' has no option 'model'"),
        ("direct", {"trace": True}, "'direct' has no option 'trace'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferKitError, match=message):
        checked_options(name, options)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5), ("kl:0.1", "kl:0.1"), ("true", True), ("null", None), ("[1, 2]", [1, 2]),
        ("a=b", "a=b"), ("", ""), ("007", "007"),
    ],
)  # fmt: skip
def test_values_are_json_or_texts(text: str, value: Any) -> None:
    assert option_value(text) == value
    assert parse_options([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [(["alpha"], "--set takes key=value, got 'alpha'"), (["=1"], "got '=1'"),
     (["a=1", "a=2"], "--set a= is given twice")],
)  # fmt: skip
def test_bad_pairs_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        parse_options(pairs)
