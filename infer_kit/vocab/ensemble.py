"""`Ensemble`: models with different tokenizers over one alphabet; `ReducedLM`: one model."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteriaList
from transformers.utils import ModelOutput

from infer_kit.chats import Chat, as_chats
from infer_kit.engine.arguments import check_evaluating, check_model
from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.call import resolve_call
from infer_kit.errors import InferKitError, UnsupportedArgument
from infer_kit.vocab.alphabet import choose_alphabet
from infer_kit.vocab.conditioning import (
    HEALED,
    Conditioning,
    condition_on_chat,
    condition_on_text,
    continuation_ids,
)
from infer_kit.vocab.language_models import language_model
from infer_kit.vocab.pooled_text import Pool, PooledText, advance_together
from infer_kit.vocab.reading import PREFETCH, Reader
from infer_kit.vocab.reducer import CertifiedReducer, check_eps
from infer_kit.vocab.reduction import Mode, Reduction
from infer_kit.vocab.results import EnsembleOutput, LogProb
from infer_kit.vocab.symbol_lm import StopTexts, SymbolCache, SymbolLM, cut_at
from infer_kit.vocab.token_ensemble import TokenEnsemble
from infer_kit.vocab.trie import Float
from infer_kit.vocab.utf8 import as_text
from infer_kit.vocab.vocabulary import Vocabulary
from infer_kit.vocab.weighting import WeightRule, make_weighting

_LEAKY = 0.05  # canonical mass lost per symbol above which another mode is recommended
_DEFAULT_NEW = 256  # symbols


class Ensemble:
    r"""Several models, with tokenizers of their own, as one model.

    Each model's law is re-expressed, exactly or within `eps`, over a common alphabet; at every
    step the members' laws of the next symbol are pooled, one symbol is chosen, and all members go
    on by it: `"mixture"` $q = \sum_i w_i q_i$, `"product"` $q \propto \prod_i q_i^{w_i}$.

    Members that share a tokenizer are pooled over their tokens, by the engine of `CoupledLM`.

    Pooling step by step over bytes and over tokens are different laws, and greedy decoding over
    bytes is another decoder than over tokens; results name their alphabet. Special tokens but the
    end are given no probability.

    Source: Chijiwa et al., "Lossless Vocabulary Reduction for Auto-Regressive Language Models",
    ICLR 2026 (arXiv 2510.08102). Differs: certified pruning instead of the top K tokens, weights
    learnt from the text, bytes by default (`docs/vocabularies.md` says why).
    """

    def __init__(
        self,
        members: Sequence[tuple[PreTrainedModel, Any]],
        weights: Sequence[float] | str | WeightRule | None = None,
        pool: Pool = "mixture",
        vocabulary: Literal["bytes", "tokens"] | Sequence[bytes] | None = None,
        *,
        mode: Mode = "late",
        eps: float = 1e-3,
        switching_rate: float = 0.01,
        healing: int = HEALED,
        prefetch: float | None = PREFETCH,
        token_warpers: Sequence[LogitsProcessor] = (),
        force: bool = False,
    ) -> None:
        """Args:
        members: (model, its tokenizer) pairs; a `Vocabulary` may stand for a tokenizer.
        weights: one a member (those of a mixture are normalised; default equal, 1 each for a
            product); "bayes", "fixed_share" or "entropy" (`Weighting`); or a function of (laws
            [N, symbols + 1], prior [N]).
        pool: "mixture", "product", or a function of (laws [N, symbols + 1], weights [N]).
        vocabulary: the alphabet: "bytes"; "tokens", of members that share a tokenizer; or byte
            strings such as `common_vocabulary(a, b)`. None: tokens if they can be shared, else
            bytes.
        mode: which segmentations of a text count, see `Reduction`.
        eps: bound on the error of each member's law at each step, in [0, 1); 0 is exact.
        switching_rate: of "fixed_share", per symbol.
        healing: tokens of a prompt's end that are read as bytes, since the prompt may have been
            cut inside a word.
        prefetch: see `Reader`.
        token_warpers: transformers' warpers (temperature, top-p, ...) on each member's token
            logits, before the reduction: part of the member's law. `generate`'s own act on the
            pooled law of symbols.
        force: take a common vocabulary that fits the members badly.

        Raises:
            InferKitError: a tokenizer that cannot be spelled as bytes, an alphabet that does not
                fit, weights or eps out of range.
        """
        self.models, tokenizers = _checked_members(members)
        self.vocabularies = [
            tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.from_hf(tokenizer, model)
            for model, tokenizer in zip(self.models, tokenizers, strict=True)
        ]
        self._tokenizers = [getattr(t, "tokenizer", t) for t in tokenizers]
        if isinstance(pool, str) and pool not in ("mixture", "product"):
            raise InferKitError(f"Unknown pool {pool!r}: use 'mixture', 'product' or a function.")
        check_eps(eps)
        _check_warpers(token_warpers)
        self._weighting = make_weighting(weights, len(self.models), pool, switching_rate)
        self._pool = pool
        self._eps = eps
        self._healing = healing
        self._prefetch = prefetch
        self.alphabet, symbols = choose_alphabet(self.vocabularies, vocabulary, force)
        plain = self._weighting.rule is None and isinstance(pool, str) and not token_warpers
        self._coupled: TokenEnsemble | None = None
        if self.alphabet == "tokens" and plain:
            self._coupled = TokenEnsemble(
                self.models, self._tokenizers, self.vocabularies, self._weighting.prior, str(pool)
            )
            return
        if self.alphabet == "tokens":
            mode, self._eps = "full", 0.0  # one spelling a text: nothing to prune
        self._reductions = [
            Reduction(vocabulary, symbols, mode, token_warpers) for vocabulary in self.vocabularies
        ]
        self._lm = SymbolLM(self._reductions[0].symbols, self.models[0].device)
        self._lm.generation_config.max_new_tokens = _DEFAULT_NEW

    @property
    def tokenizer(self) -> Any:
        """Decodes the alphabet's ids, for streamers: `TextStreamer(ensemble.tokenizer)`."""
        return self._tokenizers[0] if self._coupled is not None else self._lm.tokenizer

    def generate(self, prompt: Any, **generate_kwargs: Any) -> EnsembleOutput:
        """Continue a text or answer a chat; a list of texts or of chats is a batch.

        A batch shares the models' forward calls. Every member reads a chat in its own template.

        Args:
            prompt: a text, a chat (list of `{"role", "content"}`), or a list of either.
            **generate_kwargs: `GenerationMixin.generate`'s. `max_new_tokens` counts symbols of the
                alphabet (default 256). `stop_strings` needs no tokenizer; the text ends with the
                one that was found, as in transformers.

        Raises:
            InferKitError: before any forward pass, for what cannot work.
        """
        prompts, single = _prompts(prompt)
        if self._coupled is not None:
            return self._coupled.generate(prompts, single, generate_kwargs)
        conditionings = [self._conditionings(prompt) for prompt in prompts]
        kwargs, stops = _without_stops(generate_kwargs)
        config = resolve_call(self._lm, kwargs, len(prompts))
        if stops:
            criteria = [*(kwargs.get("stopping_criteria") or ())]
            criteria.append(StopTexts(self._lm.tokenizer, stops))
            kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        texts, readers = self._start(conditionings)
        state = SymbolCache(texts, readers)
        begin = torch.full((len(prompts), 1), self._lm.tokenizer.bos_token_id)
        begin = begin.to(self._lm.device)
        output = self._lm.generate(
            input_ids=begin, attention_mask=torch.ones_like(begin), **{CACHE: state}, **kwargs
        )
        sequences = output.sequences if isinstance(output, ModelOutput) else output
        sequences = sequences[:, 1:]
        written = [cut_at(self._lm.tokenizer.spell(row), stops) for row in sequences]
        answers = [as_text(text) for text in written]
        leak = self._leak(state.texts)
        return EnsembleOutput(
            text=answers[0] if single and len(answers) == 1 else answers,
            alphabet=self.alphabet,
            sequences=sequences,
            tv_bound=state.tv_bound if self._pool == "mixture" else None,
            leak=leak,
            calls=tuple(reader.calls for reader in readers),
            rows=tuple(reader.rows for reader in readers),
            steps=[text.record for text in state.texts] if (config.num_beams or 1) == 1 else [],
            output=output,
        )

    def logprob(self, text: Any, prompt: Any = None, end: bool = False) -> Any:
        """Bounds on the log-probability of a text, or of each of a list of texts.

        Args:
            text: what is scored, not empty.
            prompt: what comes before: None for nothing, a text or a chat (for a list of texts: a
                list, or one for all).
            end: whether the text ends there.

        Returns:
            `LogProb`, or a list of them.
        """
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        prompts = _prompts_for(texts, prompt)
        if self._coupled is not None:
            scores = self._coupled.logprob(texts, prompts, end)
            return scores[0] if single else scores
        for number, piece in enumerate(texts):
            if not isinstance(piece, str) or not piece:
                raise InferKitError(f"Text {number} to score is {piece!r}; expected some text.")
        states, readers = self._start([self._conditionings(prompt) for prompt in prompts])
        symbols = [
            self._symbols(piece, prompt) for piece, prompt in zip(texts, prompts, strict=True)
        ]
        for place in range(max(map(len, symbols))):
            going = [b for b, spelled in enumerate(symbols) if place < len(spelled)]
            advance_together(
                [states[b] for b in going], [symbols[b][place] for b in going], readers
            )
            for member, reader in enumerate(readers):
                reader.forget(state.reducers[member] for state in states)
        leak = self._leak(states)
        calls = tuple(reader.calls for reader in readers)
        scores = []
        for state, piece in zip(states, texts, strict=True):
            low, high, members = state.logprob(end)
            scores.append(LogProb(low, high, members, len(piece.encode()), leak, calls))
        return scores[0] if single else scores

    def law(self, prompt: Any = "") -> Float:
        """[symbols + 1] pooled law of the next symbol after a prompt, END last."""
        if self._coupled is not None:
            raise InferKitError("law() is over an alphabet; give vocabulary='bytes'.")
        prompts, single = _prompts(prompt)
        if not single:
            raise InferKitError(f"law takes one prompt, got {len(prompts)}.")
        (text,), _ = self._start([self._conditionings(prompts[0])])
        return text.law()

    def _conditionings(self, prompt: "str | Chat | None") -> list[Conditioning]:
        """The prompt as each member reads it."""
        found = []
        for vocabulary, tokenizer in zip(self.vocabularies, self._tokenizers, strict=True):
            if prompt is None or isinstance(prompt, str):
                found.append(condition_on_text(vocabulary, prompt or "", self._healing, tokenizer))
            else:
                found.append(condition_on_chat(vocabulary, tokenizer, prompt, self._healing))
        return found

    def _start(
        self, conditionings: Sequence[Sequence[Conditioning]]
    ) -> tuple[list[PooledText], list[Reader]]:
        """Reducers of every member that have read the prompts."""
        readers, columns = [], []
        for member, (model, reduction) in enumerate(
            zip(self.models, self._reductions, strict=True)
        ):
            check_evaluating(model, member)
            reader = Reader(reduction, language_model(model), self._prefetch)
            mine = [row[member] for row in conditionings]
            readers.append(reader)
            columns.append(_opened(reader, mine, self._eps))
        rows = zip(*columns, strict=True)
        return [PooledText(row, self._weighting, self._pool) for row in rows], readers

    def _symbols(self, text: str, prompt: "str | Chat | None") -> tuple[int, ...]:
        """Symbols of a text that follows a prompt."""
        reduction, vocabulary = self._reductions[0], self.vocabularies[0]
        if reduction.map.is_bytes:
            return tuple(text.encode())
        return reduction.of_tokens(continuation_ids(vocabulary, text, prompt))

    def _leak(self, texts: Sequence[PooledText]) -> tuple[float, ...]:
        """Mean over the texts, for each member; warns where it is large."""
        leaks = []
        for member, vocabulary in enumerate(self.vocabularies):
            stats = [text.reducers[member].stats for text in texts]
            symbols = sum(s.symbols for s in stats)
            leak = sum(s.leak for s in stats) / max(symbols, 1)
            leaks.append(leak)
            if leak > _LEAKY:
                warnings.warn(
                    f"Member {member} ({vocabulary.name}) wanted tokens that its tokenizer would "
                    f"not write, {leak:.1%} of its probability a symbol: the text is unlike what "
                    'it was trained on. mode="full" counts them, at more model calls.',
                    stacklevel=3,
                )
        return tuple(leaks)


class ReducedLM(Ensemble):
    """One model over a smaller alphabet: bytes, or any set of byte strings that spells its tokens.

    The law of texts is the model's own (mode "full"), or the model's restricted to what its
    tokenizer would write ("late", the default, quick). See `Ensemble` for the arguments, and for
    `generate`, `logprob` and `law`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        vocabulary: Literal["bytes"] | Sequence[bytes] = "bytes",
        **options: Any,
    ) -> None:
        super().__init__([(model, tokenizer)], vocabulary=vocabulary, **options)


def _opened(
    reader: Reader, conditionings: Sequence[Conditioning], eps: float
) -> list[CertifiedReducer]:
    """Reducers after their prompts, the forced bytes read."""
    answers = reader.begin([c.ids for c in conditionings])
    reducers = [CertifiedReducer(reader.reduction, eps) for _ in conditionings]
    for reducer, answer, conditioning in zip(reducers, answers, conditionings, strict=True):
        reducer.open(answer, conditioning.before)
    reduction = reader.reduction
    spelled = [
        reduction.of_tokens(c.forced) if c.forced or not reduction.map.is_bytes else c.prefix
        for c in conditionings
    ]
    for place in range(max(map(len, spelled))):
        going = [b for b, symbols in enumerate(spelled) if place < len(symbols)]
        steps = [reducers[b].advance(spelled[b][place]) for b in going]
        reader.run(steps, [reducers[b] for b in going])
    for reducer in reducers:
        reducer.condition()
    return reducers


def _checked_members(
    members: Sequence[tuple[PreTrainedModel, Any]],
) -> tuple[list[PreTrainedModel], list[Any]]:
    if not isinstance(members, Sequence) or not members:
        raise InferKitError("An ensemble needs (model, tokenizer) pairs, got none.")
    for number, member in enumerate(members):
        if not isinstance(member, Sequence) or len(member) != 2:
            raise InferKitError(
                f"Member {number} is {type(member).__name__}; expected (model, tokenizer)."
            )
        check_model(member[0], number)
        check_evaluating(member[0], number)
    models, tokenizers = zip(*members, strict=True)
    return list(models), list(tokenizers)


def _check_warpers(warpers: Sequence[LogitsProcessor]) -> None:
    for warper in warpers:
        if not isinstance(warper, LogitsProcessor) or not type(warper).__name__.endswith("Warper"):
            raise InferKitError(
                f"token_warpers has a {type(warper).__name__}; expected warpers of transformers, "
                "which look at the scores alone (TemperatureLogitsWarper, TopPLogitsWarper, ...)."
            )


def _prompts(prompt: Any) -> tuple[list[Any], bool]:
    """Texts and checked chats, and whether there was one, not a list."""
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, Sequence) and prompt and all(isinstance(p, str) for p in prompt):
        return list(prompt), False
    chats, single = as_chats(prompt)
    originals = [prompt] if single else prompt
    return [
        given if isinstance(given, str) else chat
        for given, chat in zip(originals, chats, strict=True)
    ], single


def _prompts_for(texts: Sequence[str], prompt: Any) -> list[Any]:
    if prompt is None:
        return [None] * len(texts)
    prompts, single = _prompts(prompt)
    if single:
        return prompts * len(texts)
    if len(prompts) != len(texts):
        raise InferKitError(f"Got {len(prompts)} prompts for {len(texts)} texts.")
    return prompts


def _without_stops(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The keywords without stop strings, and these as bytes."""
    rest = dict(kwargs)
    given = rest.pop("stop_strings", None)
    config = rest.get("generation_config")
    if config is not None and config.stop_strings is not None:
        given = config.stop_strings if given is None else given
        rest["generation_config"] = copy.deepcopy(config)
        rest["generation_config"].stop_strings = None
    stops = [given] if isinstance(given, str) else list(given or ())
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise UnsupportedArgument(f"stop_strings are texts that are not empty, got {given!r}.")
    return rest, [stop.encode() for stop in stops]
