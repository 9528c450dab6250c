"""What the unmodified `generate()` supplies: ends, processors, criteria, streamers, drafts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

from infer_kit.engine.coupled_lm import CoupledLM
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    OUTPUT,
    PRODUCT,
    SAMPLING,
    SIGNED,
    assert_engine,
    assert_reference,
    model_of,
    text_rows,
)
from tests.engine.reference import ReferenceLM
from tests.tiny import shared_text_model, text_model
from tests.tiny.tokenizers import tiny_tokenizer

WEIGHTS = [SIGNED[:2], PRODUCT[:2], [0.3, 1.0]]
LONG = GREEDY | {"max_new_tokens": 10}


@pytest.fixture(scope="module")
def written() -> list[list[int]]:
    """What the three requests write greedily."""
    rows = text_rows(3, 2)
    out = ReferenceLM([model_of("llama")] * 2, rows, WEIGHTS).write(**LONG)
    return out.sequences[:, -10:].tolist()


def _check(requests: int = 3, **options: Any) -> Any:
    rows = text_rows(requests, 2)
    return assert_reference(model_of("llama"), rows, WEIGHTS[:requests], **options)


# Ends


def test_one_row_ends_early(written: list[list[int]]) -> None:
    end = written[1][2]
    assert end not in written[0][:6]
    out = _check(**LONG, eos_token_id=end, pad_token_id=0)
    assert out.sequences[1, -10:].tolist()[3:] == [0] * 7


@pytest.mark.parametrize("way", ["greedy", "sampling", "beams"])
def test_lists_of_end_tokens(written: list[list[int]], way: str) -> None:
    options = {"greedy": LONG, "sampling": SAMPLING, "beams": BEAMS | {"max_new_tokens": 8}}[way]
    _check(**options, eos_token_id=[row[3] for row in written], pad_token_id=0)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_with_a_length_penalty(
    written: list[list[int]], penalty: float, early: bool | str
) -> None:
    ends = sorted({token for row in written for token in row[1:4]})
    options = BEAMS | {"max_new_tokens": 7, "num_beams": 3}
    out = _check(2, **options, length_penalty=penalty, early_stopping=early, eos_token_id=ends)
    assert out.sequences.shape[0] == 4


def test_a_row_alone_is_not_run_on_after_its_end(written: list[list[int]]) -> None:
    out = _check(1, **LONG, eos_token_id=written[0][4])
    assert len(out.logits) <= 5


# Processors see the pooled scores and the primary prompt

PROCESSORS: dict[str, dict[str, Any]] = {
    "no repeated n-grams": {"no_repeat_ngram_size": 1},
    "bias": {"sequence_bias": [[[40], 8.0], [[40, 41], 9.0]]},
    "least length": {"min_new_tokens": 6, "eos_token_id": list(range(3, 80))},
    "bad words": {"bad_words_ids": [[n] for n in range(10, 90)]},
    "repetition penalty": {"repetition_penalty": 1.8},
    "forced end": {"forced_eos_token_id": 7},
    "growing end": {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 9},
    "renormalised": {"renormalize_logits": True},
    "prefix": {"prefix_allowed_tokens_fn": lambda batch, ids: [5 + batch, 20, 21, 22]},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_processors(name: str, way: str) -> None:
    _check(**(LONG if way == "greedy" else BEAMS), **PROCESSORS[name])


@pytest.mark.parametrize(
    "warp", [{"top_p": 0.7}, {"min_p": 0.05}, {"typical_p": 0.6}, {"epsilon_cutoff": 0.01}], ids=str
)
def test_warpers(warp: dict[str, Any]) -> None:
    _check(max_new_tokens=5, do_sample=True, temperature=1.3, **warp, num_return_sequences=2)


def test_beam_sampling() -> None:
    _check(max_new_tokens=5, do_sample=True, num_beams=3, temperature=1.5)


class OddOnly(LogitsProcessor):
    """Allows odd tokens, and notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append((input_ids.clone(), scores.clone()))
        scores = scores.clone()
        scores[:, ::2] = -torch.inf
        return scores


def test_a_processor_of_ones_own() -> None:
    processor = OddOnly()
    out = _check(**LONG, logits_processor=LogitsProcessorList([processor]))
    assert bool((out.sequences[:, -10:] % 2 == 1).all())
    ids, scores = processor.seen[0]
    assert torch.equal(ids, out.sequences[:, :-10])
    assert torch.equal(scores, out.logits[0])


class AfterToken(StoppingCriteria):
    """Ends each row for itself, behind a token."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self.tokens)


def test_a_criterion_of_ones_own(written: list[list[int]]) -> None:
    criterion = AfterToken([row[2 + n] for n, row in enumerate(written)])
    out = _check(**LONG, stopping_criteria=StoppingCriteriaList([criterion]))
    assert len(out.logits) < 10


def test_stop_strings(written: list[list[int]]) -> None:
    tokenizer = tiny_tokenizer()
    stops = [tokenizer.decode(row[2:4]) for row in written[:2]]
    out = _check(**LONG, stop_strings=stops, tokenizer=tokenizer)
    texts = [tokenizer.decode(ids) for ids in out.sequences[:2, -len(out.logits) :]]
    assert all(stop in text for stop, text in zip(stops, texts, strict=True))


@pytest.mark.parametrize(
    "config",
    [
        WatermarkingConfig(bias=4.0, seeding_scheme="selfhash"),
        SynthIDTextWatermarkingConfig(keys=[654, 400, 836], ngram_len=3),
    ],
    ids=["green list", "SynthID"],
)
def test_watermarks(config: Any) -> None:
    options = SAMPLING if isinstance(config, SynthIDTextWatermarkingConfig) else GREEDY
    marked = _check(**options, watermarking_config=config)
    plain = _check(**options)
    assert not torch.equal(marked.sequences, plain.sequences)


def test_a_generation_config_object() -> None:
    config = GenerationConfig(max_new_tokens=7, num_beams=3, eos_token_id=2, pad_token_id=0)
    lm, rows = CoupledLM([model_of("llama")] * 2), text_rows(2, 2)
    ours = lm.generate(rows, WEIGHTS[:2], generation_config=config)
    theirs = ReferenceLM([model_of("llama")] * 2, rows, WEIGHTS[:2]).write(
        max_new_tokens=7, num_beams=3
    )
    assert torch.equal(ours, theirs.sequences)


def test_the_primary_models_generation_config_is_kept_but_for_the_cache() -> None:
    model = text_model("llama")
    model.generation_config.max_new_tokens = 3
    model.generation_config.use_cache = False
    model.generation_config.cache_implementation = "static"
    out = CoupledLM([model] * 2).generate(text_rows(1, 2), **OUTPUT)
    assert len(out.logits) == 3
    assert_engine(out, "fused")
    assert model.generation_config.use_cache is False


# Outputs


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_transition_scores(way: str) -> None:
    options = {"greedy": GREEDY, "beams": BEAMS}[way] | {"output_scores": True}
    model, rows = model_of("llama"), text_rows(2, 2)
    lm, reference = CoupledLM([model] * 2), ReferenceLM([model] * 2, rows, WEIGHTS[:2])
    both = []
    for owner, out in (
        (lm, lm.generate(rows, WEIGHTS[:2], **OUTPUT, **options)),
        (reference, reference.write(**options)),
    ):
        beams = out.beam_indices if way == "beams" else None
        both.append(
            owner.compute_transition_scores(
                out.sequences, out.scores, beams, normalize_logits=way == "greedy"
            )
        )
    torch.testing.assert_close(*both, atol=1e-5, rtol=0)


def test_hidden_states_and_attentions_are_none() -> None:
    lm = CoupledLM([model_of("llama")] * 2)
    with pytest.warns(UserWarning, match="output_hidden_states=True has no effect"):
        out = lm.generate(text_rows(1, 2), output_hidden_states=True, **OUTPUT, **GREEDY)
    assert not any(out.hidden_states or ())


def test_generation_in_bfloat16_pools_in_float32() -> None:
    model = text_model("llama").bfloat16()
    out = CoupledLM([model] * 2).generate(text_rows(2, 2), WEIGHTS[:2], **OUTPUT, **GREEDY)
    assert {logits.dtype for logits in out.logits} == {torch.float32}
    lm = CoupledLM([model, shared_text_model("gpt2")])
    assert lm.generate(text_rows(2, 2), WEIGHTS[:2], **OUTPUT, **GREEDY).logits[0].dtype == (
        torch.float32
    )
