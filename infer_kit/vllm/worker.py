"""What is added to vLLM's workers: methods that `collective_rpc` calls by name.

Given as `worker_extension_cls`; vLLM mixes the class into its worker.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from infer_kit.token_statistics import TokenStatistics
from infer_kit.vllm.processor import CoupledLogitsProcessor, find


class CoupledWorker:
    """Mixed into vLLM's worker."""

    model_runner: Any

    def infer_kit_take_traces(self, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The figures of groups that have ended, as lists; they are forgotten here.

        Returns:
            By group, the fields of `TokenStatistics` of one sequence, `[1, T, …]`.
        """
        processor = self._infer_kit_processor()
        out = {}
        for name in groups:
            steps = processor.traces.pop(name, {})
            parts = [steps[step] for step in sorted(steps)]
            if parts:
                joined = TokenStatistics.concatenate(parts)
                out[name] = {f.name: getattr(joined, f.name).tolist() for f in fields(joined)}
        return out

    def _infer_kit_processor(self) -> CoupledLogitsProcessor:
        runner = self.model_runner
        if hasattr(runner, "input_batch") and hasattr(runner.input_batch, "logitsprocs"):
            processors = runner.input_batch.logitsprocs.all
        else:
            processors = runner.sampler.logits_processors
        processor = find(processors)
        assert processor is not None
        return processor


def statistics_of(values: dict[str, Any]) -> TokenStatistics:
    """`TokenStatistics` from what `infer_kit_take_traces` returns."""
    whole = ("chosen", "runner_up", "top")
    return TokenStatistics(
        **{
            f.name: torch.tensor(
                values[f.name],
                dtype=torch.bool
                if f.name == "decisive"
                else torch.int64
                if f.name in whole
                else torch.float32,
            )
            for f in fields(TokenStatistics)
        }
    )
