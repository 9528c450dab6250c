"""The transformers backend: groups of chats on `CoupledLM`."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.backends import Answers
from infer_kit.chats import Chat, load_images
from infer_kit.engine.arguments import (
    check_inputs,
    check_model,
    common_vocabulary_size,
    context_length,
)
from infer_kit.engine.cache_name import cache_of
from infer_kit.engine.call import end_tokens, pad_token, resolve_call
from infer_kit.engine.context_prefix import (
    PREFIX,
    ContextPrefix,
    prompt_ids,
    prompt_length,
)
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.image_features import ImageMemory, can_be_joined
from infer_kit.engine.image_noise import add_noise
from infer_kit.engine.model_facts import encodes_images_apart, why_not_continued
from infer_kit.engine.prefill import make_prefix
from infer_kit.engine.rows import RowMaker
from infer_kit.errors import InferKitError
from infer_kit.streams import Group, weight_table
from infer_kit.trace import Trace, checked_depth, trace_of


class TransformersBackend:
    """Runs groups on a transformers model. See `infer_kit.backends.Backend`."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args:
        model, processor, chat_template: see `RowMaker`.
        mode: `CoupledLM`'s: "auto", "fused" or "serial".
        """
        self.model = model
        self.mode = mode
        self.rows = RowMaker(processor, model, chat_template)
        self._single = CoupledLM(model, mode=mode)
        self._tokenizers = {id(model): self.rows.tokenizer}

    def check(self, requests: int = 1, /, **generate_kwargs: Any) -> None:
        resolve_call(self._single, self._keywords(generate_kwargs), requests)

    def render(self, chat: Chat, request: int, answer: bool = True) -> dict[str, Any]:
        row = self.rows.row(load_images(chat, request), request, answer)
        check_inputs(row, self.model, f"Prompt {request}")
        return row

    def why_whole(self, earlier_images: int, later_images: int) -> str | None:
        return why_not_continued(self.model, earlier_images, later_images)

    def prefix(
        self, context: dict[str, Any], memory: ImageMemory, read: bool = True
    ) -> ContextPrefix | None:
        row = memory.encode(self.model, context)
        encoded = row.get("mm_encoder_outputs")
        apart = encodes_images_apart(self.model) and "pixel_values" not in row
        if not read and not (apart and (encoded is None or can_be_joined(encoded["image"]))):
            return None
        return make_prefix(self.model, row, read)

    def follow(
        self,
        prefixes: Sequence[ContextPrefix],
        beginnings: Sequence[Chat],
        chat: Chat,
        request: int,
    ) -> list[dict[str, Any]]:
        chat = load_images(chat, request)
        texts = [self.rows.continuation(before, chat, request) for before in beginnings]
        rows = {text: self.rows.continued_row(text, chat, request) for text in dict.fromkeys(texts)}
        contexts = [
            {**rows[text], PREFIX: prefix} for text, prefix in zip(texts, prefixes, strict=True)
        ]
        for context in contexts:
            check_inputs(context, self.model, f"Prompt {request}")
        return contexts

    def is_banked(self, context: dict[str, Any]) -> bool:
        return PREFIX in context and context[PREFIX].cache is not None

    def image_features(self, pictures: Sequence[Any], memory: ImageMemory) -> Tensor:
        processor = self.rows.processor.image_processor
        rows = [dict(processor(images=[picture], return_tensors="pt")) for picture in pictures]
        return torch.stack([memory.pooled(self.model, row) for row in rows])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        table = self.model.get_input_embeddings().weight
        ids = [self.rows.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        means = [table[torch.tensor(i, dtype=torch.long)].detach().float().mean(0) for i in ids]
        return torch.stack([m.nan_to_num(0.0) for m in means])  # an empty text has no tokens

    def fingerprint(self) -> dict[str, Any]:
        names = hashlib.blake2b(type(self.model).__name__.encode(), digest_size=12)
        sizes = []
        for name, parameter in self.model.named_parameters():
            names.update(f"{name} {list(parameter.shape)}".encode())
            flat = parameter.detach().reshape(-1)
            sizes.append(float(flat[:: max(len(flat) // 65536, 1)].float().abs().mean()))
        return {"names": names.hexdigest(), "sizes": sizes}

    def is_same(self, fingerprint: dict[str, Any]) -> bool:
        own = self.fingerprint()
        if own["names"] != fingerprint.get("names"):
            return False
        pairs = zip(own["sizes"], fingerprint["sizes"], strict=True)
        return all(abs(a - b) <= 1e-3 * max(abs(a), abs(b)) + 1e-8 for a, b in pairs)

    def count(self, chat: Chat) -> int:
        return self.rows.row(load_images(chat, 0), 0)["input_ids"].shape[1]

    def limit(self) -> int | None:
        return context_length(self.model)

    def prompt_ids(self, context: dict[str, Any]) -> list[int]:
        return prompt_ids(context)[0].tolist()

    def decoded(self, ids: Sequence[int]) -> str:
        return self.rows.tokenizer.decode(list(ids))

    def has_images(self, context: dict[str, Any]) -> bool:
        return context.get("pixel_values") is not None

    def noised(self, context: dict[str, Any], step: int, seed: int) -> dict[str, Any]:
        return {**context, "pixel_values": add_noise(context["pixel_values"], step, seed)}

    def unconditional(self, context: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": context["input_ids"][:, -1:]}

    def room(self, context: dict[str, Any]) -> int | None:
        limit = context_length(self.model)
        return None if limit is None else max(limit - prompt_length(context), 0)

    def clean(self, text: str) -> str:
        return self.rows.without_special_tokens(text)

    def new_memory(self) -> ImageMemory:
        return ImageMemory()

    def generate(
        self,
        groups: Sequence[Group],
        pool: Any = "product",
        normalize: bool = False,
        weights: Any = None,
        trace: bool | int = False,
        memory: ImageMemory | None = None,
        limits: Sequence[int] | None = None,
        plausibility: float = 0.0,
        **generate_kwargs: Any,
    ) -> Answers:
        checked_depth(trace)
        lm = self._lm(groups, pool, normalize, plausibility)
        kwargs = self._keywords(generate_kwargs)
        prompt = max(prompt_length(g.streams[g.primary].context) for g in groups)
        output = lm.generate(
            [[stream.context for stream in group.streams] for group in groups],
            weights=weight_table(groups) if weights is None else weights,
            trace=trace,
            images=memory,
            limits=limits,
            **kwargs,
        )
        config = output.generation_config
        ends = end_tokens(config)
        # Only a criterion other than the end token leaves padding after a row without one.
        pads = any((config.stop_strings, kwargs.get("stopping_criteria")))
        new = output.sequences[:, prompt:].tolist()
        longest = [len(ids) for ids in new]
        if limits is not None:
            longest = [limit for limit in limits for _ in range(len(new) // len(groups))]
            new = [ids[:limit] for ids, limit in zip(new, longest, strict=True)]
        tokens = [_unpadded(ids, ends, pad_token(config) if pads else None) for ids in new]
        if config.stop_strings is not None and (config.num_beams or 1) > 1:
            tokens = [self._without_fill(ids, ends, config.stop_strings) for ids in tokens]
        return Answers(
            texts=[self.rows.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens],
            tokens=tokens,
            ended=(ended := [bool(ids) and ids[-1] in ends for ids in tokens]),
            cut=[
                len(ids) == limit and not closed and (limits is not None or not pads)
                for ids, limit, closed in zip(tokens, longest, ended, strict=True)
            ],
            traces=self._traces(output, tokens, groups, pool) if trace else None,
            engines=output.engines,
            output=output,
        )

    def score(
        self,
        groups: Sequence[Group],
        chats: Sequence[Chat],
        candidates: Sequence[Sequence[str]],
        tables: Sequence[Sequence[Sequence[float]]],
        pool: Any = "product",
        normalize: bool = False,
        memory: ImageMemory | None = None,
    ) -> Tensor:
        ends = end_tokens(self._single.generation_config)
        ids = [
            [self.rows.answer_ids(chat, text, ends) for text in texts]
            for chat, texts in zip(chats, candidates, strict=True)
        ]
        for b, (texts, several) in enumerate(zip(candidates, ids, strict=True)):
            for text, tokens in zip(texts, several, strict=True):
                if not tokens:
                    raise InferKitError(f"Candidate {text!r} of prompt {b} has no tokens.")
        rows = [[stream.context for stream in group.streams] for group in groups]
        lm = self._lm(groups, pool, normalize, 0.0)
        return lm.score_candidates(rows, ids, torch.tensor(tables), memory).cpu()

    def _without_fill(self, ids: list[int], ends: set[int], stop: str | list[str]) -> list[int]:
        """Less the end token with which beam search fills rows, a pad id of 0 being none to it."""
        if not ids or ids[-1] not in ends:
            return ids
        text = self.rows.tokenizer.decode(ids[:-1])
        return ids[:-1] if text.endswith((stop,) if isinstance(stop, str) else tuple(stop)) else ids

    def _lm(
        self, groups: Sequence[Group], pool: Any, normalize: bool, plausibility: float
    ) -> CoupledLM:
        """The engine for groups of one shape."""
        models = self._models_of(groups, plausibility)
        others = len({id(model) for model in models}) > 1
        tokenizers = [self._tokenizers.get(id(m)) for m in models] if others else [None]
        return CoupledLM(
            models,
            pool=pool,
            normalize=normalize,
            primary=groups[0].primary,
            mode=self.mode,
            tokenizers=None if None in tokenizers else tokenizers,
            plausibility=plausibility,
            experts=groups[0].experts,
        )

    def add_model(self, model: PreTrainedModel, processor: Any) -> None:
        check_model(model, 1)
        tokenizer = getattr(processor, "tokenizer", processor)
        common_vocabulary_size([self.model, model], [self.rows.tokenizer, tokenizer])
        self._tokenizers[id(model)] = tokenizer

    def _models_of(self, groups: Sequence[Group], plausibility: float) -> list[PreTrainedModel]:
        """One model for each stream, the same in every group."""
        if not groups:
            raise InferKitError("No requests: the list of groups is empty.")
        widest = max(groups, key=lambda group: len(group.streams))
        models = [stream.model or self.model for stream in widest.streams]
        for b, group in enumerate(groups):
            for k, stream in enumerate(group.streams):
                if (stream.model or self.model) is not models[k]:
                    raise InferKitError(
                        f"Stream {k} of request {b} runs on another model than stream {k} of the "
                        "others; order the streams of all groups alike."
                    )
            if group.primary != groups[0].primary:
                raise InferKitError(f"Group {b} has another primary stream than group 0.")
            if plausibility and group.experts != groups[0].experts:
                raise InferKitError(f"Group {b} has other experts than group 0.")
        return models

    def _keywords(self, given: dict[str, Any]) -> dict[str, Any]:
        """The caller's keywords, with an output object asked for, and the tokenizer at hand."""
        kwargs = {"tokenizer": self.rows.tokenizer, **given}
        if given.get("generation_config") is None:
            return {**kwargs, "return_dict_in_generate": True}
        config = copy.deepcopy(given["generation_config"])
        config.return_dict_in_generate = True
        kwargs.pop("return_dict_in_generate", None)
        return {**kwargs, "generation_config": config}

    def _traces(
        self, output: Any, tokens: Sequence[list[int]], groups: Sequence[Group], pool: Any
    ) -> list[Trace]:
        pooling = cache_of(output).pooling
        per_group = len(tokens) // len(groups)
        traces = []
        for row, ids in enumerate(tokens):
            group = groups[row // per_group]
            ran = pooling.present[row // per_group].tolist()
            slots = [slot for slot, runs in enumerate(ran) if runs]
            ran_streams = [pooling.streams[slot] for slot in slots]
            traces.append(
                trace_of(
                    output.statistics,
                    row,
                    len(ids),
                    slots=slots,
                    streams=[group.streams[k].name for k in ran_streams],
                    idle=[s.name for k, s in enumerate(group.streams) if k not in ran_streams],
                    pool=pool if isinstance(pool, str) else "custom",
                    decode=lambda token: self.rows.tokenizer.decode([token]),
                    plausibility=pooling.plausibility,
                    experts=pooling.experts,
                )
            )
        return traces


def _unpadded(ids: list[int], ends: set[int], pad: int | None) -> list[int]:
    """New ids up to and with the first end token; without one, less the padding at the end."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    length = len(ids)
    while length and ids[length - 1] == pad:
        length -= 1
    return ids[:length]
