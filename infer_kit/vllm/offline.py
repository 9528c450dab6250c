"""`CoupledLLM`: vLLM's `LLM`, started for groups of streams."""

from collections.abc import Sequence
from typing import Any

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

from infer_kit.errors import InferKitError
from infer_kit.streams import Group
from infer_kit.vllm.backend import VllmBackend
from infer_kit.vllm.engines import OfflineEngine
from infer_kit.vllm.jobs import split_returned
from infer_kit.vllm.names import check_version
from infer_kit.vllm.prompt_groups import checked_groups, group_job
from infer_kit.vllm.settings import check_active, engine_arguments


class CoupledLLM(LLM):
    """`vllm.LLM` with the scheduler, logits processor and worker extension of groups.

    Everything that `vllm.LLM` does it does too, plain requests beside groups.
    """

    def __init__(self, model: str, **arguments: Any) -> None:
        """Args:
        model, arguments: `vllm.LLM`'s.

        Raises:
            InferKitError: `scheduler_cls` is somebody else's, or a setting does not go with groups.
        """
        check_version()
        super().__init__(model, **engine_arguments(**arguments))

    def generate_groups(
        self,
        groups: Sequence[Group],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        pool: str = "product",
        plausibility: float = 0.0,
        normalize: bool = False,
    ) -> list[RequestOutput]:
        r"""Decode groups of prompts: at each step the streams' distributions are pooled.

        Args:
            groups: their streams' `context` is a prompt as `LLM.generate` takes it: a text, a list
                of token ids, or a dictionary with `multi_modal_data`. The primary stream is the
                one whose prompt the output has.
            sampling_params: for all groups, or one for each; act on the pooled distribution.
            pool: "product", $\sum_k w_k \log p_k$, or "mixture", $\sum_k w_k p_k$.
            plausibility: β of the cut-off by the groups' experts, 0 for none.
            normalize: divide each group's weights by their sum.

        Returns:
            One output a group, with n completions each; log-probabilities are the pool's.

        Raises:
            InferKitError: a group cannot run; before any does.
        """
        groups = checked_groups(groups, pool, plausibility, normalize)
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        params = _one_each(sampling_params, len(groups))
        jobs, places = [], []
        config = self.llm_engine.vllm_config
        for b, group in enumerate(groups):
            for each in split_returned(params[b]):
                where = f"Group {b}"
                job = group_job(group, each, pool, plausibility, config, self.renderer, where)
                jobs.append(job)
                places.append(b)
        return _gathered(OfflineEngine(self).run(jobs), places, len(groups))


def _one_each(
    params: SamplingParams | Sequence[SamplingParams], groups: int
) -> Sequence[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * groups
    if len(params) != groups:
        raise InferKitError(f"Got {len(params)} sampling parameters for {groups} groups.")
    return params


def backend_of(model: Any, processor: Any, chat_template: str | None) -> VllmBackend:
    """The backend for a `vllm.LLM`.

    Raises:
        InferKitError: it is something else of vLLM's, or was started without the plug-ins.
    """
    if not isinstance(model, LLM):
        raise InferKitError(
            f"Expected a vllm.LLM, got {type(model).__module__}.{type(model).__name__}.",
            hint="For AsyncLLM see infer_kit.vllm.stream_group; for HTTP, infer-kit serve.",
        )
    check_version()
    check_active(model.llm_engine.vllm_config)
    return VllmBackend(model, OfflineEngine(model), processor, chat_template)


def _gathered(
    outputs: Sequence[RequestOutput], places: Sequence[int], groups: int
) -> list[RequestOutput]:
    """n answers of a group as one output of n completions."""
    gathered: list[RequestOutput | None] = [None] * groups
    for output, place in zip(outputs, places, strict=True):
        first = gathered[place]
        if first is None:
            gathered[place] = output
        else:
            completion = output.outputs[0]
            completion.index = len(first.outputs)
            first.outputs.append(completion)
    return [output for output in gathered if output is not None]
