"""Keywords of `Ensemble.generate`, made those of `GenerationMixin.generate` over an alphabet."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from infer_kit.engine.cache_name import CACHE_NAMES
from infer_kit.errors import UnsupportedArgument
from infer_kit.vocab.utf8 import check_characters

DEFAULT_NEW = 256  # symbols

_REFUSED = {
    **dict.fromkeys(
        ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", *CACHE_NAMES),
        "the prompt, a text or a chat, is the first argument",
    ),
    **dict.fromkeys(
        ("max_length", "min_length"),
        "it counts the prompt's tokens, of which every member has others; give max_new_tokens or "
        "min_new_tokens",
    ),
}


_OF_THE_CONSTRUCTOR = frozenset(
    ("weights", "pool", "vocabulary", "mode", "eps", "switching_rate", "healing", "prefetch",
     "token_warpers", "force")
)  # fmt: skip
_DRAFTS = ("assistant_model", "prompt_lookup_num_tokens")


def _check_ids(kwargs: Mapping[str, Any], end: int) -> None:
    """Raise for ids that are those of a tokenizer, where ids are symbols and END comes last."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if kwargs.get(name) is not None:
            raise UnsupportedArgument(
                f"{name}={kwargs[name]} cannot work here: it names a token of one tokenizer, and "
                "the members go on by symbols of an alphabet.",
                hint="Leave it out. Every member's end token is END already; stop_strings ends at "
                "a text.",
            )
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        given = kwargs.get(name)
        for id in given if isinstance(given, Sequence) else () if given is None else (given,):
            if not 0 <= int(id) <= end:
                raise UnsupportedArgument(
                    f"{name} has {id}, but the alphabet has the symbols 0 to {end - 1} and END "
                    f"({end})."
                )


def alphabet_keywords(
    kwargs: Mapping[str, Any], end: int | None
) -> tuple[dict[str, Any], list[bytes]]:
    """The keywords without stop strings, and these as bytes.

    Args:
        kwargs: of `Ensemble.generate`.
        end: the alphabet's END, where its ids are not a tokenizer's. Ids in a `generation_config`,
            which most often is a model's own, then mean nothing and are left out.

    Raises:
        UnsupportedArgument: a keyword that cannot work with several tokenizers.
    """
    for name in kwargs:
        if name in _OF_THE_CONSTRUCTOR:
            raise UnsupportedArgument(f"{name} is an option of the ensemble, not of generate.")
    if "seed" in kwargs:
        raise UnsupportedArgument("generate takes no seed.", "Call torch.manual_seed(...) before.")
    for name, reason in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedArgument(f"{name} cannot work here: {reason}.")
    rest = dict(kwargs)
    given = rest.pop("stop_strings", None)
    config = rest.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise UnsupportedArgument(
            f"generation_config is a {type(config).__name__}; expected a GenerationConfig.",
            hint="Settings can be given as keywords as well.",
        )
    if rest.get("max_new_tokens", 0) is None:
        del rest["max_new_tokens"]  # the default
    if config is not None and config.max_length not in (None, 20) and not config.max_new_tokens:
        raise UnsupportedArgument(
            f"generation_config has max_length={config.max_length}, which cannot work here: it "
            "counts the prompt's tokens, of which every member has others; give max_new_tokens."
        )
    if end is not None:
        _check_ids(kwargs, end)
    for name in _DRAFTS if end is not None else ():
        if kwargs.get(name, getattr(config, name, None)) is not None:
            raise UnsupportedArgument(
                f"{name} cannot work here: it proposes tokens of one tokenizer, and the members go "
                "on by symbols of an alphabet.",
                hint="Leave it out; likely tokens are read ahead as it is (prefetch).",
            )
    if config is not None:
        config = rest["generation_config"] = copy.deepcopy(config)
        given = config.stop_strings if given is None else given
        config.stop_strings = config.max_length = None
        if end is not None:
            config.eos_token_id = config.pad_token_id = config.bos_token_id = None
    sampling = rest.get("do_sample", getattr(config, "do_sample", None))
    if end is not None and sampling and rest.get("top_k") is None:
        # transformers' own default, 50, would cut the law whose error is bounded.
        if config is None:
            rest["top_k"] = 0
        elif config.top_k is None:
            config.top_k = 0
    stops = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) and s for s in stops):
        raise UnsupportedArgument(f"stop_strings are texts that are not empty, got {given!r}.")
    for stop in stops:
        check_characters(stop, "A stop string")
    return rest, [stop.encode() for stop in stops]
