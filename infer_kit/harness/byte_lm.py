"""Models with different tokenizers, pooled over bytes, in lm-evaluation-harness."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lm_eval.api.model import LM
from tqdm import tqdm

from infer_kit.engine.arguments import context_length
from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.harness.arguments import (
    COMPOSED,
    POOLED,
    check_model,
    check_names,
    configuration_hash,
    number,
    parse_weights,
    split_names,
)
from infer_kit.harness.generation import (
    before_stop,
    device_for,
    read_batch_size,
    read_generation,
)
from infer_kit.harness.lm_cache import OwnCache
from infer_kit.named_models import load_model
from infer_kit.vocab.continuations import score_continuations
from infer_kit.vocab.ensemble import Ensemble

_OPTIONS = (
    *("pretrained", *POOLED, *COMPOSED),
    *("dtype", "trust_remote_code", "device", "batch_size", "max_batch_size"),
)
_CHAT = "\x00infer_kit chat\x00"  # a chat on its way through the harness, which knows texts alone


class EnsembleLM(OwnCache, LM):
    r"""Several models as one over bytes; harness requests are texts, and texts they stay.

    `loglikelihood` is $\log P(\text{continuation} \mid \text{context})$ as `Ensemble.logprob` has
    it, the certified lower bound where there are two; so continuations that exclude each other
    never have more than probability 1 together. `is_greedy` says whether greedy decoding of
    bytes writes the continuation. `generate_until` is `Ensemble.generate`.
    """

    def __init__(self, pretrained: Any = None, **options: Any) -> None:
        """Args:
        pretrained: the first model: a folder, a name on the hub, or a bundled one.
        ensemble: the others, separated by `+` or `;`; without it one model is read over bytes.
        vocabulary: "bytes".
        weights: `0.5+0.5`, one a model, or bayes, fixed_share, entropy.
        pool, eps, mode, switching_rate, healing: of `Ensemble`.
        bytes_per_token: tasks count tokens (`max_gen_toks`); so many bytes are written for each.
        dtype, trust_remote_code, device: of the models. batch_size: texts scored or written at
            once; "auto" is 16.

        Raises:
            InferKitError: before anything is loaded: an unknown argument, a model that is not
                there, weights that do not fit, several processes.
        """
        super().__init__()
        check_names(options, _OPTIONS)
        options = {name: value for name, value in options.items() if value is not None}
        self.configuration = configuration_hash("infer-kit", {"pretrained": pretrained, **options})
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InferKitError(
                "An ensemble over bytes is evaluated by one process.",
                hint="Run it without torchrun and accelerate launch; batch_size= uses the GPU.",
            )
        if options.get("vocabulary", "bytes") != "bytes":
            raise InferKitError(
                f"vocabulary={options['vocabulary']}: the harness pools over bytes."
            )
        others = split_names(options["ensemble"], "ensemble") if "ensemble" in options else []
        names = [pretrained, *others]
        weights = parse_weights(options.get("weights"), len(names))
        trusted = bool(options.get("trust_remote_code"))
        whats = ["pretrained", *["ensemble"] * len(others)]
        for name, what in zip(names, whats, strict=True):
            check_model(name, what, trust_remote_code=trusted)
        self.bytes_per_token = number(options.get("bytes_per_token"), "bytes_per_token", 4.0)
        if self.bytes_per_token <= 0:
            raise InferKitError(f"bytes_per_token={self.bytes_per_token:g} must be positive.")
        self.batch_size = read_batch_size(options.get("batch_size", 1))
        self.names = [str(name) for name in names]
        loading = {k: options[k] for k in ("dtype", "trust_remote_code") if k in options}
        members = [
            load_model(n, device=device_for(options.get("device")), **loading) for n in self.names
        ]
        settings = {
            k: options[k] for k in ("pool", "mode", "switching_rate", "healing") if k in options
        }
        self.ensemble = Ensemble(
            [(member.model, member.processor) for member in members],
            weights=weights,
            vocabulary="bytes",
            eps=number(options.get("eps"), "eps", 1e-3),
            **settings,
        )
        self._device = self.ensemble.models[0].device
        self._widest = 0.0

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of each (context, continuation)."""
        asked = [tuple(request.args) for request in requests]
        found = self._scored(asked, "loglikelihood", disable_tqdm)
        return [found[pair] for pair in asked]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """log-probability of each whole text; no windows, so it must fit into the models."""
        asked = [("", *request.args) for request in requests]
        found = self._scored(asked, "loglikelihood_rolling", disable_tqdm)
        return [found[pair][0] for pair in asked]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to a stop text, which is left out."""
        asked = [(str(context), dict(kwargs)) for context, kwargs in (r.args for r in requests)]
        settings = [self._writing(kwargs) for _, kwargs in asked]
        texts = [""] * len(asked)
        bar = tqdm(total=len(asked), desc="generate_until", disable=disable_tqdm)

        def alike(n: int) -> tuple[str, bool]:
            return json.dumps(settings[n], sort_keys=True), asked[n][0].startswith(_CHAT)

        order = sorted(range(len(asked)), key=lambda n: (alike(n), -len(asked[n][0])))
        for _, group in itertools.groupby(order, alike):
            for batch in _batches(group, self.batch_size):
                prompts = [_prompt(asked[n][0]) or "" for n in batch]
                stops = settings[batch[0]].get("stop_strings", [])
                written = self.ensemble.generate(prompts, **settings[batch[0]]).text
                for n, text in zip(batch, written, strict=True):
                    texts[n] = before_stop(text, stops)
                    self.cache_hook.add_partial("generate_until", asked[n], texts[n])
                bar.update(len(batch))
        bar.close()
        return texts

    def _scored(
        self, asked: Sequence[tuple[str, str]], what: str, disable_tqdm: bool
    ) -> dict[tuple[str, str], tuple[float, bool]]:
        """Scores of distinct (context, continuation) pairs; a context is read once."""
        found: dict[tuple[str, str], tuple[float, bool]] = {}
        wanted: dict[str, list[str]] = {}
        for context, text in dict.fromkeys(asked):
            if text:
                wanted.setdefault(context, []).append(text)
            else:
                found[context, text] = (0.0, True)
        self._check_lengths(wanted)
        total = sum(map(len, wanted.values()))
        bar = tqdm(total=total, desc=what, disable=disable_tqdm)
        for batch in _batches_of_contexts(wanted, self.batch_size):
            prompts = [_prompt(context) for context, _ in batch]
            scores = score_continuations(self.ensemble, prompts, [texts for _, texts in batch])
            for (context, texts), several in zip(batch, scores, strict=True):
                for text, score in zip(texts, several, strict=True):
                    low, high = score.logprob.low, score.logprob.high
                    self._widest = max(self._widest, high - low)
                    answer = (low, score.is_greedy)
                    found[context, text] = answer
                    rolling = what == "loglikelihood_rolling"
                    key = (text,) if rolling else (context, text)
                    self.cache_hook.add_partial(what, key, low if rolling else answer)
                bar.update(len(texts))
        bar.close()
        return found

    def _check_lengths(self, wanted: dict[str, list[str]]) -> None:
        """Raise for texts that are longer than a model takes, before any is scored."""
        members = zip(self.ensemble.models, self.ensemble.vocabularies, strict=True)
        for model, vocabulary in members:
            limit = context_length(model)
            if limit is None:
                continue
            for context, texts in wanted.items():
                known = "" if context.startswith(_CHAT) else context  # chats: by the ensemble
                longest = known + max(texts, key=len)
                # A token has a byte at least, but for the one that begins a text.
                if len(longest.encode()) >= limit and len(vocabulary.encode(longest)) >= limit:
                    raise PromptTooLong(
                        f"A text of {len(vocabulary.encode(longest)):,} tokens "
                        f"({longest[:40]!r}…) is longer than {vocabulary.name} takes "
                        f"({limit:,}); texts are not cut here.",
                        hint="Split the documents, or use fewer examples (--num_fewshot).",
                    )

    def _writing(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        """A task's `generation_kwargs` as keywords of `Ensemble.generate`."""
        kwargs, stops, tokens = read_generation(gen_kwargs, self.max_gen_toks)
        kwargs["max_new_tokens"] = max(1, round(tokens * self.bytes_per_token))
        return {**kwargs, "stop_strings": stops} if stops else kwargs

    # Chats: every member reads them in its own template.

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat itself, as a text that only this class reads."""
        if not add_generation_prompt:
            raise InferKitError(
                "gen_prefix with --apply_chat_template cannot work here: every member has a "
                "template of its own, and an answer that is begun is none of its turns.",
                hint="Leave out one of the two.",
            )
        return _CHAT + json.dumps(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The members' own templates; they are logged and hashed with the results."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise InferKitError(
                f"--apply_chat_template {chat_template}: members have templates of their own.",
                hint="Give --apply_chat_template without a name.",
            )
        templates = []
        for name, tokenizer in zip(self.names, self._tokenizers(), strict=True):
            template = getattr(tokenizer, "chat_template", None)
            if not template:
                raise InferKitError(
                    f"{name} has no chat template.",
                    hint="Leave --apply_chat_template out, or give its tokenizer one.",
                )
            templates.append(f"{name}: {template}")
        return "\n".join(templates)

    def _tokenizers(self) -> list[Any]:
        return list(self.ensemble._tokenizers)

    @property
    def tokenizer_name(self) -> str:
        """Tells the request caches of different ensembles apart."""
        return "bytes of " + " and ".join(self.names).replace("/", "__")

    @property
    def max_gen_toks(self) -> int:
        """Of tasks that do not say, as in `hf`."""
        return 256

    def get_model_info(self) -> dict[str, Any]:
        """For the results file: what was pooled, and how exact the scores were."""
        return {
            "infer_kit": self.configuration,
            "infer_kit_ensemble": repr(self.ensemble),
            "bytes_per_token": self.bytes_per_token,
            "widest_bound_nats": self._widest,
        }


def _prompt(context: str) -> Any:
    """A text, a chat, or None for nothing."""
    return json.loads(context.removeprefix(_CHAT)) if context.startswith(_CHAT) else context or None


def _batches(items: Iterable[int], size: int) -> Iterator[list[int]]:
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]


def _batches_of_contexts(
    wanted: dict[str, list[str]], size: int
) -> Iterator[list[tuple[str, list[str]]]]:
    """Contexts with their texts, at most `size` texts together; long contexts first."""
    batch: list[tuple[str, list[str]]] = []
    for context, texts in sorted(wanted.items(), key=lambda item: -len(item[0])):
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            if batch and sum(len(several) for _, several in batch) + len(part) > size:
                yield batch
                batch = []
            batch.append((context, part))
    if batch:
        yield batch
