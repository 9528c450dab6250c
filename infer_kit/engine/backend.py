"""The transformers backend: groups of chats on `CoupledLM`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.backends import Answers
from infer_kit.chats import Chat, load_images
from infer_kit.engine.arguments import check_call, check_inputs, context_length
from infer_kit.engine.cache_name import cache_of
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.image_features import ImageMemory
from infer_kit.engine.rows import RowMaker
from infer_kit.errors import InferKitError
from infer_kit.streams import Group, weight_table
from infer_kit.trace import Trace, trace_of


class TransformersBackend:
    """Runs groups on a transformers model. See `infer_kit.backends.Backend`."""

    def __init__(
        self, model: PreTrainedModel, processor: Any, chat_template: str | None = None
    ) -> None:
        self.model = model
        self.rows = RowMaker(processor, model, chat_template)

    def check(self, requests: int = 1, **generate_kwargs: Any) -> None:
        check_call(CoupledLM(self.model), generate_kwargs, requests)

    def render(self, chat: Chat, request: int) -> dict[str, Any]:
        row = self.rows.row(load_images(chat, request), request)
        check_inputs(row, self.model, f"Prompt {request}")
        return row

    def room(self, context: dict[str, Any]) -> int | None:
        limit = context_length(self.model)
        return None if limit is None else max(limit - context["input_ids"].shape[1], 0)

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
        trace: bool = False,
        memory: ImageMemory | None = None,
        **generate_kwargs: Any,
    ) -> Answers:
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
        lm = CoupledLM(models, pool=pool, normalize=normalize, primary=groups[0].primary)
        output = lm.generate(
            [[stream.context for stream in group.streams] for group in groups],
            weights=weight_table(groups) if weights is None else weights,
            trace=trace,
            images=memory,
            **{**generate_kwargs, "return_dict_in_generate": True},
        )
        prompt = max(g.streams[g.primary].context["input_ids"].shape[1] for g in groups)
        ends, pad = _special_ids(lm, generate_kwargs)
        tokens = [_unpadded(row, ends, pad) for row in output.sequences[:, prompt:]]
        decode = self.rows.tokenizer.decode
        traces = None
        if trace:
            per_group = len(tokens) // len(groups)
            traces = [
                self._trace(output, row, len(tokens[row]), groups[row // per_group], pool)
                for row in range(len(tokens))
            ]
        return Answers(
            texts=[decode(ids, skip_special_tokens=True) for ids in tokens],
            tokens=tokens,
            finished=[
                len(ids) < output.sequences.shape[1] - prompt or bool(ends & set(ids[-1:]))
                for ids in tokens
            ],
            traces=traces,
            engines=output.engines,
            output=output,
        )

    def _trace(self, output: Any, row: int, length: int, group: Group, pool: Any) -> Trace:
        pooling = cache_of(output).pooling
        return trace_of(
            output.statistics,
            row,
            length,
            streams=[
                group.streams[k].name if k < len(group.streams) else f"stream {k}"
                for k in pooling.streams
            ],
            pool=pool if isinstance(pool, str) else "custom",
            decode=lambda token: self.rows.tokenizer.decode([token]),
        )


def _special_ids(lm: CoupledLM, kwargs: dict[str, Any]) -> tuple[set[int], int | None]:
    """The end tokens and the pad token in force."""
    config = kwargs.get("generation_config") or lm.generation_config
    eos = kwargs.get("eos_token_id", config.eos_token_id)
    ends = set(eos) if isinstance(eos, list) else {eos} - {None}
    pad = kwargs.get("pad_token_id", config.pad_token_id)
    return {int(token) for token in ends}, pad


def _unpadded(row: Tensor, ends: set[int], pad: int | None) -> list[int]:
    """New ids up to and with the first end token; without one, less the padding at the end."""
    ids = row.tolist()
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    while ids and ids[-1] == pad:
        ids.pop()
    return ids
