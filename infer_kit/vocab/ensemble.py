"""`Ensemble`: models with different tokenizers over one alphabet; `ReducedLM`: one model."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from infer_kit.engine.arguments import check_evaluating
from infer_kit.engine.call import resolve_call
from infer_kit.errors import InferKitError
from infer_kit.vocab.alphabet import choose_alphabet
from infer_kit.vocab.conditioning import (
    HEALED,
    Conditioning,
    answer_ids,
    condition_on_chat,
    condition_on_text,
    split_ids,
)
from infer_kit.vocab.keywords import alphabet_keywords
from infer_kit.vocab.language_models import language_model
from infer_kit.vocab.members import (
    as_prompts,
    as_texts,
    check_lengths,
    check_numbers,
    check_warpers,
    checked_members,
    engine_member,
    prompts_for,
)
from infer_kit.vocab.pace import Pace
from infer_kit.vocab.pooled_text import Pool, PooledText
from infer_kit.vocab.reading import PREFETCH, Reader
from infer_kit.vocab.reducer import CertifiedReducer, Steps, ZeroProbability, check_eps
from infer_kit.vocab.reduction import Mode, Reduction
from infer_kit.vocab.results import EnsembleOutput, LogProb
from infer_kit.vocab.submap import SubwordMap
from infer_kit.vocab.symbol_call import cut_at, generate_symbols
from infer_kit.vocab.symbol_lm import SymbolLM, SymbolTokenizer
from infer_kit.vocab.token_ensemble import TokenEnsemble
from infer_kit.vocab.trie import Float
from infer_kit.vocab.utf8 import as_text
from infer_kit.vocab.vocabulary import Vocabulary
from infer_kit.vocab.weighting import WeightRule, make_weighting

_LEAKY = 0.05  # canonical mass lost per symbol above which another mode is recommended


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
        switching_rate: float | None = None,
        healing: int = HEALED,
        prefetch: float | None = PREFETCH,
        token_warpers: Sequence[LogitsProcessor] = (),
        force: bool = False,
    ) -> None:
        """Args:
        members: (model, its tokenizer) pairs; a `Vocabulary` may stand for a tokenizer. On vLLM
            one pair, (engine, tokenizer): the engine's model is a composite of the members
            (`infer_kit.vllm.composite`), and the weights are its own.
        weights: one a member (those of a mixture are normalised; default equal, 1 each for a
            product; a member of weight 0 is left out, of results too); "bayes", "fixed_share" or
            "entropy" (`Weighting`); or a function of (laws [N, symbols + 1], prior [N]).
        pool: "mixture", "product", or a function of (laws [N, symbols + 1], weights [N]) that
            gives masses [symbols + 1], which are normalised.
        vocabulary: the alphabet: "bytes"; "tokens", of members that share a tokenizer; or byte
            strings such as `common_vocabulary(a, b)`. None: tokens if they can be shared, else
            bytes.
        mode: which segmentations of a text count, see `Reduction`.
        eps: bound on the error of each member's law at each step, in [0, 1); 0 is exact.
        switching_rate: of "fixed_share", per symbol (default 0.01).
        healing: how many tokens of a prompt's end are read as bytes at least, since the prompt may
            have been cut inside a word; 0 takes its tokens as they are.
        prefetch: see `Reader`.
        token_warpers: transformers' warpers (temperature, top-p, ...) on each member's token
            logits, before the reduction: part of the member's law. `generate`'s own act on the
            pooled law of symbols.
        force: take a common vocabulary that fits the members badly.

        Raises:
            InferKitError: a tokenizer that cannot be spelled as bytes, an alphabet that does not
                fit, weights or eps out of range.
        """
        engine = engine_member(members, weights, vocabulary)
        if engine is not None:
            from infer_kit.vllm.text_ensemble import EngineEnsemble

            self._coupled: Any = EngineEnsemble(*engine)
            self.alphabet, self.models, self._pool = "tokens", [engine[0]], pool
            self.vocabularies = [self._coupled.vocabulary]
            return
        models, tokenizers = checked_members(members)
        if not callable(pool) and pool not in ("mixture", "product"):
            raise InferKitError(f"Unknown pool {pool!r}: use 'mixture', 'product' or a function.")
        check_eps(eps)
        check_numbers(healing, prefetch)
        check_warpers(token_warpers)
        weighting = make_weighting(weights, len(models), pool, switching_rate)
        plain = weighting.rule is None and isinstance(pool, str)
        kept = [i for i, weight in enumerate(weighting.prior) if weight or not plain]
        self._weighting = replace(weighting, prior=tuple(weighting.prior[i] for i in kept))
        self.models, tokenizers = [models[i] for i in kept], [tokenizers[i] for i in kept]
        self.vocabularies = [
            tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.from_hf(tokenizer, model)
            for model, tokenizer in zip(self.models, tokenizers, strict=True)
        ]
        self._tokenizers = [getattr(t, "tokenizer", t) for t in tokenizers]
        self._pool = pool
        self._eps = eps
        self._healing = healing
        self._prefetch = prefetch
        self.alphabet, symbols, method = choose_alphabet(self.vocabularies, vocabulary, force)
        self._coupled = None
        if self.alphabet == "tokens" and plain and not token_warpers:
            self._coupled = TokenEnsemble(
                self.models, self._tokenizers, self.vocabularies, self._weighting.prior, str(pool)
            )
            return
        if self.alphabet == "tokens":
            mode, self._eps = "full", 0.0  # one spelling a text: nothing to prune
        self._reductions = [
            Reduction(vocabulary, SubwordMap(vocabulary, symbols, method), mode, token_warpers)
            for vocabulary in self.vocabularies
        ]
        self._lm = SymbolLM(self._reductions[0].symbols, self.models[0].device)

    def __repr__(self) -> str:
        names = ", ".join(vocabulary.name for vocabulary in self.vocabularies)
        return f"{type(self).__name__}({names}; {self.alphabet}, pool {self._pool!r})"

    @property
    def tokenizer(self) -> SymbolTokenizer:
        """Decodes the alphabet's ids, for streamers: `TextStreamer(ensemble.tokenizer)`."""
        return self._lm.tokenizer if self._coupled is None else self._coupled.tokenizer

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
        prompts, single = as_prompts(prompt)
        if self._coupled is not None:
            return self._coupled.generate(prompts, single, generate_kwargs)
        kwargs, stops = alphabet_keywords(generate_kwargs, self._lm.tokenizer.eos_token_id)
        config = resolve_call(self._lm, kwargs, len(prompts))
        texts, readers = self._start(self._conditionings(prompts))
        output, state = generate_symbols(self._lm, texts, readers, kwargs, config, stops)
        sequences = output.sequences if isinstance(output, ModelOutput) else output
        sequences = sequences[:, 1:]
        copies = len(sequences) // len(prompts)
        written = [
            cut_at(self._spell(row, prompts[place // copies]), stops)
            for place, row in enumerate(sequences)
        ]
        answers = [as_text(text) for text in written]
        leaks = self._leaks(state.texts)
        return EnsembleOutput(
            text=answers[0] if single and len(answers) == 1 else answers,
            alphabet=self.alphabet,
            sequences=sequences,
            tv_bound=state.tv_bound,
            leak=tuple(max(column) for column in zip(*leaks, strict=True)),
            calls=tuple(reader.calls for reader in readers),
            rows=tuple(reader.rows for reader in readers),
            steps=[text.record for text in state.texts] if (config.num_beams or 1) == 1 else [],
            output=output,
        )

    def logprob(self, text: Any, prompt: Any = None, end: bool = False) -> Any:
        """Bounds on the log-probability of a text, or of each of a list of texts.

        Given the prompt; weights that are learnt start after it. Without a prompt a model that
        needs a token to start from reads its begin token first, which a prompt has before it only
        if the tokenizer puts it there.

        Args:
            text: what is scored, not empty.
            prompt: what comes before: None for nothing, a text or a chat (for a list of texts: a
                list, or one for all).
            end: whether the text ends there, and END's probability counts.

        Returns:
            `LogProb`, or a list of them.
        """
        single = isinstance(text, str)
        texts = as_texts(text)
        prompts = prompts_for(texts, prompt)
        if self._coupled is not None:
            scores = self._coupled.logprob(texts, prompts, end)
            return scores[0] if single else scores
        split = [self._split(piece, before) for piece, before in zip(texts, prompts, strict=True)]
        symbols = [spelled for _, spelled in split]
        states, readers = self._start(self._conditionings([before for before, _ in split]))
        for _ in Pace(states, readers).score(symbols):
            pass
        if end:
            for member, reader in enumerate(readers):
                reducers = [state.reducers[member] for state in states]
                reader.run([reducer.read_ends() for reducer in reducers], reducers)
        leaks = self._leaks(states)
        calls = tuple(reader.calls for reader in readers)
        scores = []
        for state, piece, leak in zip(states, texts, leaks, strict=True):
            low, high, members = state.logprob(end)
            scores.append(LogProb(low, high, members, len(piece.encode()), leak, calls))
        return scores[0] if single else scores

    def law(self, prompt: Any = "") -> Float:
        """[symbols + 1] pooled law of the next symbol after a prompt, END last; sums to 1.

        That is given that a symbol comes which all members can write and which keeps the text valid
        UTF-8, as `generate` draws it. `logprob` is not given that: mass that leads to no text is
        missing from it.
        """
        if self._coupled is not None:
            raise InferKitError("law() is over an alphabet; give vocabulary='bytes'.")
        prompts, single = as_prompts(prompt)
        if not single:
            raise InferKitError(f"law takes one prompt, got {len(prompts)}.")
        (text,), _ = self._start(self._conditionings(prompts))
        return text.law()

    def _conditionings(self, prompts: Sequence[Any]) -> list[list[Conditioning]]:
        """The prompts as each member reads them."""
        prefixes = {vocabulary.prefix for vocabulary in self.vocabularies}
        if self.alphabet != "bytes" and len(prefixes) > 1 and not all(prompts):
            raise InferKitError(
                "Some members' tokenizers put a space before a text and some do not, so that over "
                "these symbols a text without a prompt begins differently for each.",
                hint="Give a prompt, or pool over bytes.",
            )
        rows = []
        for prompt in prompts:
            row = []
            for reduction, tokenizer in zip(self._reductions, self._tokenizers, strict=True):
                if not prompt or isinstance(prompt, str):
                    text = condition_on_text(reduction, prompt or "", self._healing, tokenizer)
                    row.append(text)
                else:
                    row.append(condition_on_chat(reduction, tokenizer, prompt, self._healing))
            rows.append(row)
        return rows

    def _start(
        self, conditionings: Sequence[Sequence[Conditioning]]
    ) -> tuple[list[PooledText], list[Reader]]:
        """Reducers of every member that have read the prompts."""
        columns = list(zip(*conditionings, strict=True))
        for member, (model, column) in enumerate(zip(self.models, columns, strict=True)):
            check_evaluating(model, member, "Member")
            check_lengths(member, model, self.vocabularies[member], column)
        readers = [
            Reader(reduction, language_model(model), self._prefetch)
            for model, reduction in zip(self.models, self._reductions, strict=True)
        ]
        opened = [
            _opened(reader, column, self._eps)
            for reader, column in zip(readers, columns, strict=True)
        ]
        rows = zip(*opened, strict=True)
        return [PooledText(row, self._weighting, self._pool) for row in rows], readers

    def _split(self, text: str, prompt: Any) -> tuple[Any, tuple[int, ...]]:
        """A prompt and the symbols of a text after it.

        Where symbols are not bytes, one that begins in the prompt belongs to the text.
        """
        reduction, vocabulary = self._reductions[0], self.vocabularies[0]
        if reduction.map.is_bytes:
            return prompt, tuple(text.encode())
        if not prompt:
            return prompt, reduction.of_tokens(vocabulary.encode(text))
        if not isinstance(prompt, str):
            return prompt, reduction.of_tokens(answer_ids(vocabulary, text))
        _, ids = split_ids(vocabulary, text, prompt, self._tokenizers[0])
        both = prompt + text
        kept = len(both) - len(vocabulary.spell(ids).decode())
        return both[: max(kept, 0)], reduction.of_tokens(ids)

    def _spell(self, ids: Tensor, prompt: Any) -> bytes:
        """What symbols say after a prompt: without a dummy prefix where there is none."""
        text = self._lm.tokenizer.spell(ids)
        is_whole = not prompt and self.alphabet != "bytes"
        return text.removeprefix(self.vocabularies[0].prefix) if is_whole else text

    def _leaks(self, texts: Sequence[PooledText]) -> list[tuple[float, ...]]:
        """For each text and member; warns where a member's mean is large."""
        stats = [[reducer.stats for reducer in text.reducers] for text in texts]
        symbols = max(sum(row[0].symbols for row in stats), 1)
        for member, vocabulary in enumerate(self.vocabularies):
            leak = sum(row[member].leak for row in stats) / symbols
            if leak > _LEAKY:
                warnings.warn(
                    f"Member {member} ({vocabulary.name}) wanted tokens that its tokenizer would "
                    f"not write, {leak:.1%} of its probability a symbol: it is little trained, or "
                    'the text is unlike what it was trained on. mode="full" counts them, at more '
                    "model calls.",
                    stacklevel=3,
                )
        return [tuple(s.leak / max(s.symbols, 1) for s in row) for row in stats]


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
    try:
        reader.run([_forced(r, s) for r, s in zip(reducers, spelled, strict=True)], reducers)
    except ZeroProbability as error:
        if not reduction.warpers:
            raise
        raise ZeroProbability(
            f"token_warpers leave {reduction.vocabulary.name!r} no token for the end of the "
            "prompt, which is read in bytes.",
            hint="healing=0 reads it in tokens; or use weaker warpers.",
        ) from error
    for reducer in reducers:
        reducer.condition()
    return reducers


def _forced(reducer: CertifiedReducer, symbols: Sequence[int]) -> Steps:
    for place, symbol in enumerate(symbols):
        reducer.ahead = symbols[place + 1 :]
        yield from reducer.advance(symbol)
