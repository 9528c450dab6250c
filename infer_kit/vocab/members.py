"""What users pass to `Ensemble`: members, prompts and texts, checked."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from transformers import LogitsProcessor, PreTrainedModel

from infer_kit.backends import is_vllm
from infer_kit.chats import as_chats
from infer_kit.engine.arguments import check_model, context_length
from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.vocab.conditioning import Conditioning
from infer_kit.vocab.utf8 import check_characters
from infer_kit.vocab.vocabulary import Vocabulary


def engine_member(members: Any, weights: Any, vocabulary: Any) -> tuple[Any, Any] | None:
    """The (engine, tokenizer) of an ensemble on vLLM, or None for one on transformers.

    Raises:
        InferKitError: several engines, or weights or an alphabet, which are the composite's.
    """
    pairs = members if isinstance(members, Sequence) else []
    engines = [m for m in pairs if isinstance(m, Sequence) and len(m) == 2 and is_vllm(m[0])]
    if not engines:
        return None
    if len(members) > 1:
        raise InferKitError(
            "One vLLM engine holds all members of an ensemble, as one composite.",
            hint="CoupledLLM(a, hf_overrides=composite_overrides([b], weights=[0.5, 0.5], "
            "mode='mixture', base=a)), then Ensemble([(llm, tokenizer)]).",
        )
    if weights is not None or vocabulary not in (None, "tokens"):
        raise InferKitError(
            "An ensemble on vLLM has the weights and the tokens of its composite.",
            hint="Give them to composite_overrides; other alphabets run on transformers.",
        )
    return engines[0][0], engines[0][1]


def checked_members(
    members: Sequence[tuple[PreTrainedModel, Any]],
) -> tuple[list[PreTrainedModel], list[Any]]:
    if not isinstance(members, Sequence) or not members:
        raise InferKitError("An ensemble needs (model, tokenizer) pairs, got none.")
    for number, member in enumerate(members):
        if not isinstance(member, Sequence) or len(member) != 2:
            raise InferKitError(
                f"Member {number} is {type(member).__name__}; expected (model, tokenizer).",
                hint="Give one list of pairs: Ensemble([(model_a, tok_a), (model_b, tok_b)]).",
            )
        check_model(member[0], number, "Member")
    models, tokenizers = zip(*members, strict=True)
    return list(models), list(tokenizers)


def check_numbers(healing: Any, prefetch: Any) -> None:
    if not isinstance(healing, int) or healing < 0:
        raise InferKitError(f"healing is {healing!r}; expected a number of tokens, 0 or more.")
    if prefetch is not None and not (isinstance(prefetch, Real) and 0 < float(prefetch) <= 1):
        raise InferKitError(f"prefetch is {prefetch!r}; expected a share above 0, or None.")


def check_warpers(warpers: Sequence[LogitsProcessor]) -> None:
    if isinstance(warpers, LogitsProcessor):
        raise InferKitError(
            f"token_warpers is a {type(warpers).__name__}; expected a list of warpers."
        )
    for warper in warpers:
        if not isinstance(warper, LogitsProcessor) or not type(warper).__name__.endswith("Warper"):
            raise InferKitError(
                f"token_warpers has a {type(warper).__name__}; expected warpers of transformers, "
                "which look at the scores alone (TemperatureLogitsWarper, TopPLogitsWarper, ...)."
            )


def as_prompts(prompt: Any) -> tuple[list[Any], bool]:
    """Texts and checked chats, and whether there was one, not a list."""
    if isinstance(prompt, str):
        return [prompt], True
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
    if not listed or not prompt or any(isinstance(p, bytes) for p in prompt):
        raise InferKitError(
            f"Expected a text, a chat or a list of either as prompt, got {prompt!r}.",
            hint='A chat is a list of {"role": ..., "content": ...}.',
        )
    if all(isinstance(p, str) for p in prompt):
        return list(prompt), False
    chats, single = as_chats(prompt)
    originals = [prompt] if single else prompt
    return [
        given if isinstance(given, str) else chat
        for given, chat in zip(originals, chats, strict=True)
    ], single


def prompts_for(texts: Sequence[str], prompt: Any) -> list[Any]:
    if prompt is None:
        return [None] * len(texts)
    prompts, single = as_prompts(prompt)
    if single:
        return prompts * len(texts)
    if len(prompts) != len(texts):
        raise InferKitError(f"Got {len(prompts)} prompts for {len(texts)} texts.")
    return prompts


def as_texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence) or isinstance(texts, bytes) or not texts:
        raise InferKitError(f"Expected a text or a list of texts to score, got {text!r}.")
    for number, piece in enumerate(texts):
        if not isinstance(piece, str) or not piece:
            raise InferKitError(f"Text {number} to score is {piece!r}; expected some text.")
        check_characters(piece, f"Text {number} to score")
    return list(texts)


def check_lengths(
    member: int, model: PreTrainedModel, vocabulary: Vocabulary, prompts: Sequence[Conditioning]
) -> None:
    """Raise for prompts that are longer than the model takes."""
    limit = context_length(model)
    for number, prompt in enumerate(prompts):
        length = len(prompt.ids) + len(prompt.forced)
        if limit is not None and length > limit:
            raise PromptTooLong(
                f"Prompt {number} is {length:,} tokens to member {member} ({vocabulary.name}), "
                f"which takes {limit:,}."
            )
