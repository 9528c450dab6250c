"""`CoupledLM`: several streams behind one unmodified `generate()`."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from infer_kit.engine.arguments import (
    check_evaluating,
    check_model,
    check_rows,
    common_vocabulary_size,
    present_streams,
)
from infer_kit.engine.cache_name import CACHE, CACHE_NAMES
from infer_kit.engine.call import (
    LengthLimits,
    check_limits,
    pad_token,
    resolve_call,
    warn_of_padding_penalty,
    without_inner_states,
)
from infer_kit.engine.context_prefix import prompt_ids
from infer_kit.engine.image_features import ImageMemory
from infer_kit.engine.recording import Recorder
from infer_kit.engine.requests import Rows, entries_by_model, left_padded, token_ids
from infer_kit.engine.stream_cache import StreamCache
from infer_kit.engine.teacher_forcing import candidate_scores, teacher_forced
from infer_kit.errors import InferKitError, UnsupportedArgument
from infer_kit.pool import PoolFunction
from infer_kit.pooling import Weights, as_table, resolve_pooling
from infer_kit.token_statistics import TokenStatistics, token_statistics
from infer_kit.trace import checked_depth


class CoupledConfig(PreTrainedConfig):
    """What `generate` needs to know of the pool: how many tokens it chooses from.

    A config of its own, since a member's would drag its attention and expert dispatch along.
    """

    model_type = "infer_kit_coupled"

    def __init__(self, vocab_size: int = 0, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        super().__init__(**kwargs)


@dataclass(frozen=True)
class Scores:
    """Teacher-forced log-probabilities, natural logarithms.

    Attributes:
        pooled: for each request `[n]` log π of each token of its continuation.
        streams: for each request `[n, K]` log p_k; NaN for streams that did not run.
        statistics: all figures, padded to the longest continuation.
    """

    pooled: list[Tensor]
    streams: list[Tensor]
    statistics: TokenStatistics


class CoupledLM(PreTrainedModel, GenerationMixin):
    r"""K streams, each one model reading one context, decoded as one causal language model.

    At every step the next-token distributions of a request's streams are pooled, one token is
    chosen, and all streams advance by it:

    $\log \pi(y) = \sum_k w_k \log p_k(y) - \log Z$ (`pool="product"`), or
    $\log \pi(y) = \log \sum_k w_k p_k(y)$ (`pool="mixture"`).

    The state of all streams is the cache of one call, so the unmodified
    `GenerationMixin.generate` supplies greedy search, sampling, beams, streamers, stopping,
    processors, prompt lookup and assisted decoding. Processors act on the pooled scores and see the
    primary stream's prompt.

    Guarantees, tested: streams of weight 0 are not run; with weights (1, 0) tokens and logits are
    those of `models[0].generate()`, bit for bit in float32 for one request; equal streams whose
    weights sum to 1 are one stream; requests together are requests alone.
    """

    config_class = CoupledConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        models: PreTrainedModel | Sequence[PreTrainedModel],
        weights: Weights | None = None,
        pool: str | PoolFunction = "product",
        mode: str = "auto",
        primary: int = 0,
        normalize: bool = False,
        tokenizers: Sequence[Any] | None = None,
        plausibility: float = 0.0,
        experts: Sequence[int] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Args:
        models: one model for each stream (the same object as often as it has streams; those
            are decoded as one batch), or a single model for any number of streams.
        weights: default weights for `generate`: `[K]`, or a function of the step
            (`infer_kit.pool.Step` to `[R, K]` or `[R, K, n]`). None: 1 each for a product, 1/K
            for a mixture.
        pool: "product", "mixture", or a function of (logprobs `[R, K, n, V]`, weights
            `[R, K]`) that returns `[R, n, V]`; a function runs every stream, those of weight 0 too.
        mode: "fused" decodes the streams of one model as one batch and raises where its cache
            does not allow it; "serial" decodes one by one; "auto" is fused, or warns and goes
            serial.
        primary: the stream whose prompt the output, the processors and the stopping criteria see.
        normalize: divide each request's weights by their sum (then temperature keeps its usual
            meaning for a product).
        tokenizers: one for each model; needed where the models' heads differ in size, to check
            that the ids they share mean the same tokens.
        plausibility: β in [0, 1]: a token stays only if the expert gives it at least β times the
            probability of the expert's best token. Applied before all processors; 0 is off.
        experts: the streams whose distribution (of several: the product by their weights, which
            are normalised) is the expert. None for the primary stream.
        vocab_size: how many ids are pooled, where the caller knows that the models' ids mean the
            same up to there; no tokenizers are compared then.

        Raises:
            InferKitError: a model cannot be a stream (encoder-decoder, a cache of its own, in
                training mode), or arguments contradict each other.
            VocabularyMismatch: the models do not name the same tokens.
        """
        self_models = (models,) if isinstance(models, PreTrainedModel) else tuple(models)
        if not self_models:
            raise InferKitError("CoupledLM needs at least one model.")
        for index, model in enumerate(self_models):
            check_model(model, index)
        if vocab_size is None:
            vocab_size = common_vocabulary_size(self_models, tokenizers)
        super().__init__(CoupledConfig(vocab_size=vocab_size))
        self._models = self_models  # a tuple: not registered, so nothing here owns their weights
        self._any_number = isinstance(models, PreTrainedModel)
        if primary < 0 or (not self._any_number and primary >= len(self_models)):
            raise InferKitError(
                f"primary={primary} is no stream: they are numbered from 0, in the order of the "
                f"{len(self_models)} model(s)."
            )
        if mode not in ("auto", "fused", "serial"):
            raise InferKitError(f"Unknown mode {mode!r}: use 'auto', 'fused' or 'serial'.")
        if isinstance(pool, str) and pool not in ("product", "mixture"):
            raise InferKitError(f"Unknown pool {pool!r}: use 'product', 'mixture' or a function.")
        if weights is not None and not callable(weights):
            as_table(weights)
        if isinstance(plausibility, str | bool) or not 0 <= plausibility <= 1:
            raise InferKitError(f"plausibility is β between 0 and 1, got {plausibility!r}.")
        self._plausibility = float(plausibility)
        self._experts = (primary,) if experts is None else tuple(experts)
        self._weights = weights
        self._pool: str | PoolFunction = pool
        self._mode = mode
        self._primary = primary
        self._normalize = normalize
        self._is_stateful = any(model._is_stateful for model in self_models)
        self.generation_config = copy.deepcopy(self._primary_model.generation_config)
        self.generation_config.use_cache = True  # some models ship False, which loses the state
        self.generation_config.cache_implementation = None
        self.eval()

    @property
    def _primary_model(self) -> PreTrainedModel:
        return self.model_of(self._primary)

    def model_of(self, stream: int) -> PreTrainedModel:
        """The model that reads stream number `stream`."""
        return self._models[0 if self._any_number else stream]

    @property
    def device(self) -> torch.device:
        return self._primary_model.device

    @property
    def dtype(self) -> torch.dtype:
        return self._primary_model.dtype

    def get_input_embeddings(self) -> torch.nn.Module:
        """The primary model's; assisted decoding asks for it."""
        return self._primary_model.get_input_embeddings()

    @torch.no_grad()
    def generate(
        self,
        rows: Rows | None = None,
        weights: Weights | None = None,
        *,
        trace: bool | int = False,
        images: ImageMemory | None = None,
        limits: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write one continuation for each request (more with `num_return_sequences`).

        Args:
            rows: `rows[b][k]` is what the processor returned for the prompt of stream k of request
                b: a mapping with `input_ids` `[1, S]`, no padding. Requests may have unequally
                many streams: leave the last ones out, or put None.
            weights: `[K]`, `[B, K]` or a function of the step; None for those of the constructor.
            trace: also return `statistics` (`TokenStatistics`) on the output; needs
                `return_dict_in_generate=True`. A number n: also keep each stream's n best tokens.
            images: encoded images to share with other calls; None shares them within this one.
            limits: most new tokens of each request, in place of `max_new_tokens`. A request that
                reached its own is padded while others go on (transformers pads only where there is
                an end token; without one, cut the row).
            **kwargs: whatever `GenerationMixin.generate` takes, except what cannot work with
                several streams, which is refused by name.

        Returns:
            What `generate` returns. Sequences start with the primary stream's prompt, left-padded.
            An output object also says how the streams ran (`engines`, "fused" or "serial" for each
            model) and the `generation_config` in force.
            Hidden states and attentions are None. To continue, call
            `generate(None, input_ids=<sequences and new ids>, past_key_values=<returned>)`.

        Raises:
            InferKitError: before any forward pass, for input that cannot work.
        """
        depth = checked_depth(trace)
        if rows is None:
            if any(value is not None for value in (weights, images, limits)) or trace:
                raise InferKitError(
                    "A continued state keeps its weights, images and limits, and has no trace."
                )
            return self._continue(kwargs)
        if limits is not None:
            check_limits(limits, len(rows))
            kwargs["max_new_tokens"] = max(limits)
        config = resolve_call(self, kwargs, len(rows), bool(trace))
        kwargs = without_inner_states(kwargs, config)
        images = ImageMemory() if images is None else images
        # Finished beams leave the running ones, so theirs are scored afterwards.
        record = bool(trace) and config.num_beams in (None, 1)
        new = limits
        if new is None and config.max_new_tokens is not None:
            new = [config.max_new_tokens] * len(rows)
        cache = self._prepare(rows, weights, new, images, record, depth)
        ids, mask = self._primary_prompts(rows, config)
        if limits is not None:
            criteria = [*(kwargs.get("stopping_criteria") or ()), LengthLimits(ids, limits)]
            kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        output = super().generate(input_ids=ids, attention_mask=mask, **{CACHE: cache}, **kwargs)
        sequences = output.sequences if isinstance(output, ModelOutput) else output
        # Beam search without an end token fills with -1 where the pad id is 0.
        sequences.masked_fill_(sequences < 0, pad_token(config))
        if isinstance(output, ModelOutput):
            output.engines = cache.engines
            output.generation_config = config
        if record:
            assert cache.recorder is not None
            output.statistics = cache.recorder.finish(output.sequences[:, -1])
            cache.recorder = None  # the state may be continued
        elif trace:
            written = output.sequences[:, ids.shape[1] :]
            output.statistics = self._statistics(rows, weights, images, written, depth=depth)
        return output

    def _continue(self, kwargs: dict[str, Any]) -> Any:
        """Go on from a returned state; see `generate`."""
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        ids = kwargs.get("input_ids")
        if not isinstance(cache, StreamCache) or not isinstance(ids, Tensor):
            raise InferKitError(
                "generate() needs rows; to continue a state, it needs input_ids (all tokens so "
                f"far, then the new ones) and {CACHE} (as a call of this model returned it)."
            )
        if ids.dim() != 2 or ids.shape[0] != len(cache.request) or ids.shape[1] <= cache.seen:
            raise InferKitError(
                f"The state holds {len(cache.request)} sequences of {cache.seen} tokens; input_ids "
                f"of shape {list(ids.shape)} do not go on from there."
            )
        allowed = ("input_ids", "attention_mask", *CACHE_NAMES)
        config = resolve_call(self, kwargs, len(ids), allowed=allowed)
        if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
            raise UnsupportedArgument(
                "A continued state goes on with the sequences that it has: num_beams and "
                "num_return_sequences must be 1."
            )
        for index, model in enumerate(self._models):
            check_evaluating(model, index)
        kwargs = {k: v for k, v in kwargs.items() if k not in CACHE_NAMES}
        output = super().generate(**{CACHE: cache}, **without_inner_states(kwargs, config))
        if isinstance(output, ModelOutput):
            output.engines = cache.engines
        return output

    def score(
        self,
        rows: Rows,
        continuations: Sequence[Sequence[int] | Tensor],
        weights: Weights | None = None,
    ) -> Scores:
        """Log-probabilities of given continuations, in one pass a stream.

        Args:
            rows: as in `generate`. continuations: for each request its token ids, not empty.
            weights: as in `generate`.
        """
        if len(rows) != len(continuations):
            raise InferKitError(
                f"score needs one continuation for every request: got {len(continuations)} for "
                f"{len(rows)}."
            )
        ids = [token_ids(tokens, request) for request, tokens in enumerate(continuations)]
        for request, tokens in enumerate(ids):
            if not len(tokens):
                raise InferKitError(f"The continuation of request {request} is empty.")
            if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
                raise InferKitError(
                    f"The continuation of request {request} has token ids from {int(tokens.min())} "
                    f"to {int(tokens.max())}; there are {self.config.vocab_size} tokens."
                )
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)
        lengths = [len(tokens) for tokens in ids]
        statistics = self._statistics(rows, weights, ImageMemory(), padded, lengths)
        return Scores(
            pooled=[row[:n] for row, n in zip(statistics.pooled, lengths, strict=True)],
            streams=[row[:n] for row, n in zip(statistics.logprobs, lengths, strict=True)],
            statistics=statistics,
        )

    @torch.no_grad()
    def _statistics(
        self,
        rows: Rows,
        weights: Weights | None,
        images: ImageMemory,
        continuations: Tensor,
        lengths: Sequence[int] | None = None,
        depth: int = 0,
    ) -> TokenStatistics:
        """Figures for `continuations` `[R, n]`, R / B of each request, teacher-forced."""
        cache = self._prepare(rows, weights, lengths, images, record=False)
        pooling = cache.pooling
        parts = []
        for part in teacher_forced(cache, continuations):
            w = pooling.weights_at(part.logits, cache.request, part.position)
            identity = pooling.is_identity
            pooled = part.logits[:, 0] if identity else pooling(part.logits, w, cache.request)
            parts.append(token_statistics(pooling, part.logits, w, pooled, part.chosen, depth))
        return TokenStatistics.concatenate(parts)

    @torch.no_grad()
    def score_candidates(
        self,
        rows: Rows,
        candidates: Sequence[Sequence[Sequence[int] | Tensor]],
        weights: Tensor,
        images: ImageMemory | None = None,
    ) -> Tensor:
        """log π of fixed candidates under several sets of weights, from one pass a stream.

        Args:
            rows: as in `generate`.
            candidates: `candidates[b][c]`, token ids of candidate c for request b.
            weights: `[W, B, K]`.

        Returns:
            `[W, B, C]` float32, C the most candidates of a request; −inf where one has fewer.
        """
        ids = [[token_ids(c, b) for c in several] for b, several in enumerate(candidates)]
        if len(ids) != len(rows) or not all(ids) or not all(len(c) for cs in ids for c in cs):
            raise InferKitError("Every request needs at least one candidate, and none is empty.")
        table = as_table(weights)
        if self._normalize:
            table = table / table.sum(-1, keepdim=True)
        if bool((table == 0).all(-1).any()):
            raise InferKitError("Some request has weight 0 for every stream.")
        lengths = [max(len(c) for c in several) for several in ids]
        memory = ImageMemory() if images is None else images
        cache = self._prepare(rows, None, lengths, memory, record=False)
        return candidate_scores(cache, ids, table)

    def _prepare(
        self,
        rows: Rows,
        weights: Weights | None,
        new_tokens: Sequence[int] | None,
        images: ImageMemory,
        record: bool,
        depth: int = 0,
    ) -> StreamCache:
        """The empty state of a call, its input checked."""
        models = self._models_of(rows)
        for index, model in enumerate(self._models):
            check_evaluating(model, index)
        check_rows(rows, models, self._primary, new_tokens)
        pooling = resolve_pooling(
            self._pool,
            self._weights if weights is None else weights,
            present_streams(rows, len(models)),
            self._normalize,
            self._plausibility,
            self._experts,
        ).on(self.device)
        return StreamCache(
            entries=entries_by_model(rows, models, pooling, images),
            pooling=pooling,
            requests=len(rows),
            prompt_length=max(len(prompt) for prompt in self._prompts(rows)),
            vocab_size=self.config.vocab_size,
            device=self.device,
            mode=self._mode,
            recorder=Recorder(pooling, depth) if record else None,
        )

    def _prompts(self, rows: Rows) -> list[Tensor]:
        """The ids of each request's primary prompt."""
        primary = [row[self._primary] for row in rows]
        return [prompt_ids(inputs)[0] for inputs in primary if inputs is not None]

    def _primary_prompts(self, rows: Rows, config: GenerationConfig) -> tuple[Tensor, Tensor]:
        """The primary prompts `[B, longest]`, left-padded, and their mask."""
        prompts = self._prompts(rows)
        warn_of_padding_penalty({len(prompt) for prompt in prompts}, config)
        return left_padded(prompts, pad_token(config), self.device)

    def _models_of(self, rows: Rows) -> tuple[PreTrainedModel, ...]:
        """One model for each of the K streams of this call."""
        if self._any_number:
            return self._models * max((len(row) for row in rows), default=1)
        return self._models

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: StreamCache | None = None,
        attention_mask: Tensor | None = None,
        cache: StreamCache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        return {"input_ids": input_ids, CACHE: past_key_values if cache is None else cache}

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: StreamCache | None = None,
        attention_mask: Tensor | None = None,
        cache: StreamCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Advance every stream by `input_ids` `[R, n]`; pooled logits `[R, n, V]`, float32.

        The first call of a cache prefills the prompts that the cache was made with; the ids of the
        primary prompt that `generate` passes are then known already, and only drafts after them
        are fed.
        """
        cache = past_key_values if cache is None else cache
        if cache is None:
            raise InferKitError("CoupledLM is called through generate(rows) or score(rows, ...).")
        first = cache.seen == 0
        if first:
            logits = cache.prefill(input_ids.shape[0])
            drafts = input_ids[:, cache.seen :]
            input_ids = input_ids[:, cache.seen - 1 :]
            if drafts.shape[1]:
                logits = torch.cat([logits, cache.step(drafts)], dim=2)
        else:
            logits = cache.step(input_ids)
        pooled = self._pool_step(cache, input_ids, logits)
        return CausalLMOutputWithPast(logits=pooled, **{CACHE: cache})

    def _pool_step(self, cache: StreamCache, fed: Tensor, logits: Tensor) -> Tensor:
        pooling = cache.pooling
        if pooling.is_identity and cache.recorder is None:
            return logits[:, 0]
        position = cache.new_tokens - fed.shape[1] + 1
        weights = pooling.weights_at(logits, cache.request, position)
        pooled = logits[:, 0] if pooling.is_identity else pooling(logits, weights, cache.request)
        if cache.recorder is not None:
            cache.recorder.offer(fed, logits, weights, pooled)
            pooled = pooled.clone()  # assisted decoding writes processed scores into what it gets
        return pooled
