"""The vLLM backend: groups of chats on an engine that runs the plug-ins of groups."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from infer_kit.backends import Answers, MadeBackend
from infer_kit.chats import Chat
from infer_kit.engine.call import end_tokens, pad_token
from infer_kit.errors import InferKitError
from infer_kit.pool import KLBudgetWeights
from infer_kit.pooling import resolve_pooling
from infer_kit.streams import Group, weight_table
from infer_kit.trace import Trace, checked_depth, trace_of
from infer_kit.vllm.description import PoolRule
from infer_kit.vllm.engines import Engine, Job, run_for_figures
from infer_kit.vllm.jobs import WeightedInput, job_of, split_returned
from infer_kit.vllm.names import WORKER
from infer_kit.vllm.prompts import Prompt, PromptMaker
from infer_kit.vllm.sampling import check_call, params_of, resolve
from infer_kit.vllm.settings import check_active
from infer_kit.vllm.worker import statistics_of


@dataclass(frozen=True)
class VllmOutput:
    """What vLLM answered.

    Attributes:
        sequences: `[R, prompt + new]` int64, prompts padded on the left, answers on the right.
        requests: vLLM's own outputs, one a sequence: finish reasons, log-probabilities of the
            pooled distribution, metrics.
    """

    sequences: Tensor
    requests: list[RequestOutput]


class VllmBackend(MadeBackend):
    """Runs groups on vLLM. See `infer_kit.backends.Backend`; memories are vLLM's own caches."""

    def __init__(
        self, model: Any, engine: Engine, processor: Any, chat_template: str | None = None
    ) -> None:
        """Args:
        model: the `vllm.LLM`, as the user knows it. engine: what runs it.
        processor, chat_template: see `RowMaker`.

        Raises:
            InferKitError: the engine runs no groups; says how to start one that does.
        """
        check_active(engine.config)
        self.model = model
        self.engine = engine
        self.prompts = PromptMaker(processor, engine.config, engine.renderer, chat_template)
        self.rows = self.prompts.rows
        self._hollow = self.prompts.model

    def check(self, requests: int = 1, /, **generate_kwargs: Any) -> None:
        check_call(self._keywords(generate_kwargs), requests, self._hollow)

    def render(self, chat: Chat, request: int, answer: bool = True) -> Prompt:
        return self.prompts.prompt(chat, request, answer)

    def why_whole(self, earlier_images: int, later_images: int) -> str | None:
        if self.engine.config.cache_config.enable_prefix_caching:
            return None
        return "the engine was started without prefix caching"

    def prefix(self, context: Prompt, memory: Any, read: bool = True) -> Prompt:
        if read:
            params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
            self.engine.run([Job(((context.input, params),))])
        return context

    def follow(
        self, prefixes: Sequence[Any], beginnings: Sequence[Chat], chat: Chat, request: int
    ) -> list[Prompt]:
        banked = self.why_whole(0, 0) is None
        return [
            self.prompts.prompt([*beginning, *chat], request, begun=banked)
            for beginning in beginnings
        ]

    def is_banked(self, context: Prompt) -> bool:
        return context.begun

    def image_features(self, pictures: Sequence[Any], memory: Any) -> Tensor:
        process = self.rows.processor.image_processor
        features = []
        for picture in pictures:
            made = process(images=[picture], return_tensors="pt")
            packed = {name: _packed(value) for name, value in made.items() if _is_tensor(value)}
            features.append(self.engine.rpc("infer_kit_image_features", packed))
        return torch.tensor(features)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        ids = [self.rows.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        return torch.tensor(self.engine.rpc("infer_kit_text_features", ids))

    def fingerprint(self) -> dict[str, Any]:
        return self.engine.rpc("infer_kit_fingerprint")

    def is_same(self, fingerprint: dict[str, Any]) -> bool:
        own = self.fingerprint()
        if own["names"] != fingerprint.get("names"):
            return False
        pairs = zip(own["sizes"], fingerprint["sizes"], strict=True)
        return all(abs(a - b) <= 1e-3 * max(abs(a), abs(b)) + 1e-8 for a, b in pairs)

    def count(self, chat: Chat) -> int:
        return len(self.prompts.unbounded(chat, 0).ids)

    def limit(self) -> int | None:
        return self.prompts.limit

    def has_images(self, context: Prompt) -> bool:
        return bool(context.images)

    def noised(self, context: Prompt, step: int, seed: int) -> Prompt:
        return self.prompts.noised(context, step, seed)

    def unconditional(self, context: Prompt) -> Prompt:
        return self.prompts.last_token(context)

    def add_model(self, model: Any, processor: Any) -> None:
        raise InferKitError(
            "One vLLM engine runs one model; two models are pooled as one composite.",
            hint="CoupledLLM(expert, hf_overrides=composite_overrides([amateur], weights=[1, -1], "
            "plausibility=0.1, base=expert)), see docs/vllm.md.",
        )

    def prompt_ids(self, context: Prompt) -> list[int]:
        return list(context.ids)

    def decoded(self, ids: Sequence[int]) -> str:
        return self.rows.tokenizer.decode(list(ids))

    def room(self, context: Prompt) -> int | None:
        return max(self.prompts.limit - len(context.ids), 0)

    def clean(self, text: str) -> str:
        return self.rows.without_special_tokens(text)

    def new_memory(self) -> "NoMemory":
        return NoMemory()

    def generate(
        self,
        groups: Sequence[Group],
        pool: Any = "product",
        normalize: bool = False,
        weights: Any = None,
        trace: bool | int = False,
        memory: Any = None,
        limits: Sequence[int] | None = None,
        plausibility: float = 0.0,
        **generate_kwargs: Any,
    ) -> Answers:
        kwargs = self._keywords(generate_kwargs)
        depth = checked_depth(trace)
        traced = bool(trace) and self._can_trace()
        planned = self.jobs(
            groups, pool, normalize, weights, traced, limits, plausibility, kwargs, depth
        )
        streamer = kwargs.get("streamer")
        if streamer is not None:
            streamer.put(torch.tensor([groups[0].streams[groups[0].primary].context.ids]))
        jobs = [plan.job for plan in planned]
        figures: dict[str, Any] = {}
        if traced:
            names = [plan.name for plan in planned]
            outputs, figures = run_for_figures(self.engine, jobs, names, _heard(streamer))
        else:
            outputs = self.engine.run(jobs, _heard(streamer))
        if streamer is not None:
            streamer.end()
        self._check_finished(outputs)
        return self._answers(groups, planned, outputs, pool, kwargs, figures)

    def jobs(
        self,
        groups: Sequence[Group],
        pool: Any,
        normalize: bool,
        weights: Any,
        trace: bool,
        limits: Sequence[int] | None,
        plausibility: float,
        kwargs: dict[str, Any],
        depth: int = 0,
    ) -> list["Plan"]:
        """The requests for groups, one plan a returned sequence.

        Args: as for `generate`; `trace`: whether there is one. depth: its candidates a stream.
        """
        if not groups:
            raise InferKitError("No requests: the list of groups is empty.")
        table = self._weights(groups, pool, normalize, weights, plausibility)
        lengths = [len(group.streams[group.primary].context.ids) for group in groups]
        params = params_of(kwargs, lengths, self._hollow, limits)
        planned = []
        for b, group in enumerate(groups):
            order = [group.primary, *(k for k in range(len(group.streams)) if k != group.primary)]
            inputs = []
            for k in order:
                if group.streams[k].model not in (None, self.model):
                    self.add_model(group.streams[k].model, None)
                inputs.append(WeightedInput(group.streams[k].context.input, table[b][k]))
            experts = tuple(order.index(k) for k in group.experts or ())
            for each in split_returned(params[b]):
                name = uuid4().hex if trace else ""
                rule = PoolRule(
                    pool,
                    plausibility,
                    experts if plausibility else (0,),
                    trace=name,
                    candidates=depth if trace else 0,
                )
                if isinstance(weights, KLBudgetWeights):
                    direction = tuple(weights.direction[k] for k in order)
                    rule = replace(rule, kl_budget=weights.budget, direction=direction)
                job = job_of(inputs, each, rule, self.engine.config, f"Request {b}")
                idle = [k for k in order if table[b][k] == 0 and not rule.needs_all]
                ran = [k for k in order if k not in idle]
                judges = tuple(ran.index(k) for k in group.experts or () if k in ran)
                planned.append(Plan(job, b, ran, idle, name, plausibility, judges))
        return planned

    def score(
        self,
        groups: Sequence[Group],
        chats: Sequence[Chat],
        candidates: Sequence[Sequence[str]],
        tables: Sequence[Sequence[Sequence[float]]],
        pool: Any = "product",
        normalize: bool = False,
        memory: Any = None,
    ) -> Tensor:
        self._check_worker()
        ends = end_tokens(resolve({"max_new_tokens": 1}, 1, self._hollow))
        width = max(len(texts) for texts in candidates)
        scores = torch.full((len(tables), len(groups), width), -torch.inf)
        planned: list[tuple[int, int, str, Job]] = []
        for b, group in enumerate(groups):
            every = torch.tensor([table[b] for table in tables], dtype=torch.float64)
            if normalize:
                every = every / every.sum(1, keepdim=True)
            streams = [WeightedInput(s.context.input, 1.0) for s in group.streams]
            sets = tuple(tuple(row) for row in every.tolist())
            for c, text in enumerate(candidates[b]):
                forced = tuple(self.rows.answer_ids(chats[b], text, ends))
                if not forced:
                    raise InferKitError(f"Candidate {text!r} of prompt {b} has no tokens.")
                name = uuid4().hex
                rule = PoolRule(pool, trace=name, forced=forced, tables=sets)
                params = SamplingParams(
                    temperature=0.0, max_tokens=len(forced), ignore_eos=True, detokenize=False
                )
                job = job_of(streams, params, rule, self.engine.config, f"Request {b}")
                planned.append((b, c, name, job))
        jobs, names = [job for *_, job in planned], [name for _, _, name, _ in planned]
        outputs, kept = run_for_figures(self.engine, jobs, names)
        self._check_finished(outputs)
        for b, c, name, _ in planned:
            scores[:, b, c] = torch.tensor(kept[name]).sum(0)
        return scores

    def _weights(
        self,
        groups: Sequence[Group],
        pool: Any,
        normalize: bool,
        weights: Any,
        plausibility: float,
    ) -> list[list[float]]:
        """`[B][K]` weights, checked as the transformers backend checks them."""
        if not isinstance(pool, str):
            raise InferKitError(
                "A pool that is a function does not run on vLLM: its engine is another process.",
                hint='Use pool="product" or pool="mixture".',
            )
        if weights is not None and not isinstance(weights, KLBudgetWeights):
            raise InferKitError(
                "Weights that are a function of the step do not run on vLLM.",
                hint="Use numbers, or a budget ('kl:0.1').",
            )
        if isinstance(weights, KLBudgetWeights):
            return [list(weights.base) for _ in groups]
        table = weight_table(groups)
        present = torch.tensor(
            [[k < len(group.streams) for k in range(len(table[0]))] for group in groups]
        )
        for experts in {group.experts or (0,) for group in groups}:
            resolve_pooling(pool, torch.tensor(table), present, normalize, plausibility, experts)
        if normalize:
            return [[w / sum(row) for w in row] for row in table]
        return table

    def _can_trace(self) -> bool:
        if self.engine.config.parallel_config.worker_extension_cls == WORKER:
            return True
        warnings.warn(
            f"No traces: the engine was started without worker_extension_cls={WORKER!r}. Pass "
            "trace=False to say that this is expected.",
            stacklevel=5,
        )
        return False

    def _check_worker(self) -> None:
        if self.engine.config.parallel_config.worker_extension_cls != WORKER:
            raise InferKitError(
                "Scoring candidates needs the worker extension of groups.",
                hint=f"Start the engine with worker_extension_cls={WORKER!r}, or as CoupledLLM.",
            )

    def _keywords(self, given: dict[str, Any]) -> dict[str, Any]:
        """The caller's keywords, with the tokenizer at hand for stop strings."""
        if "sampling_params" in given:
            return dict(given)
        kept = {k: v for k, v in given.items() if k != "return_dict_in_generate"}
        return {"tokenizer": self.rows.tokenizer, **kept}

    def _check_finished(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            if output.outputs[0].finish_reason in ("error", None):
                raise InferKitError(
                    "The engine ended a request with an error; its log says why.",
                    hint="A group's streams need to fit into the KV cache together.",
                )

    def _answers(
        self,
        groups: Sequence[Group],
        planned: Sequence["Plan"],
        outputs: Sequence[RequestOutput],
        pool: str,
        kwargs: dict[str, Any],
        figures: dict[str, Any],
    ) -> Answers:
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        if "sampling_params" in kwargs:
            config = resolve({"max_new_tokens": 1}, 1, self._hollow)
        else:
            config = resolve(kwargs, len(groups), self._hollow)
        ends = end_tokens(config)
        ended = [bool(ids) and ids[-1] in ends for ids in tokens]
        prompts = [groups[p.group].streams[groups[p.group].primary].context.ids for p in planned]
        return Answers(
            texts=[self.rows.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens],
            tokens=tokens,
            ended=ended,
            cut=[o.outputs[0].finish_reason == "length" for o in outputs],
            traces=self._traces(groups, planned, pool, tokens, figures) if figures else None,
            engines=("vllm",),
            output=VllmOutput(_padded(prompts, tokens, pad_token(config)), list(outputs)),
        )

    def _traces(
        self,
        groups: Sequence[Group],
        planned: Sequence["Plan"],
        pool: str,
        tokens: Sequence[Sequence[int]],
        kept: dict[str, Any],
    ) -> list[Trace]:
        traces = []
        for plan, ids in zip(planned, tokens, strict=True):
            streams = groups[plan.group].streams
            figures, ran = statistics_of(kept[plan.name]), sorted(plan.ran)
            slots = [plan.ran.index(k) for k in ran]
            traces.append(
                trace_of(
                    figures,
                    0,
                    len(ids),  # asynchronous scheduling draws one more before it knows the end
                    slots=slots,
                    streams=[streams[k].name for k in ran],
                    idle=[streams[k].name for k in sorted(plan.idle)],
                    pool=pool,
                    decode=lambda token: self.rows.tokenizer.decode([token]),
                    plausibility=plan.plausibility,
                    experts=plan.experts,
                )
            )
        return traces


@dataclass(frozen=True)
class Plan:
    """One sequence to be written.

    Attributes:
        job: its requests. group: which group it answers.
        ran: the group's streams that have a say, as they were sent, the primary first.
        idle: those of weight 0.
        name: of its trace.
        plausibility: β of the cut-off. experts: places in `ran` of those that have it.
    """

    job: Job
    group: int
    ran: list[int]
    idle: list[int]
    name: str
    plausibility: float
    experts: tuple[int, ...]


class NoMemory:
    """Stands for a memory of encoded images: vLLM's encoder cache is one for the whole engine."""

    def update(self, other: Any) -> None:
        """Nothing to take over."""

    def copy(self) -> "NoMemory":
        """Another one."""
        return NoMemory()


def _heard(streamer: Any) -> Any:
    if streamer is None:
        return None
    return lambda ids: streamer.put(torch.tensor(list(ids))) if ids else None


def _padded(prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], pad: int) -> Tensor:
    """`[R, prompt + new]`: prompts end where answers begin."""
    before, after = max(map(len, prompts)), max(map(len, tokens))
    out = torch.full((len(tokens), before + after), pad, dtype=torch.long)
    for row, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True)):
        out[row, before - len(prompt) : before] = torch.tensor(list(prompt))
        out[row, before : before + len(ids)] = torch.tensor(list(ids), dtype=torch.long)
    return out


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _packed(value: Tensor) -> dict[str, Any]:
    """A tensor as it crosses to another process."""
    array = value.detach().cpu().contiguous()
    kind = "float32" if array.is_floating_point() else "int64"
    numpy = array.float().numpy() if kind == "float32" else array.long().numpy()
    return {"dtype": kind, "shape": list(array.shape), "data": numpy.tobytes()}
