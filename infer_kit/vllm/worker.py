"""What is added to vLLM's workers: methods that `collective_rpc` calls by name.

Given as `worker_extension_cls`; vLLM mixes the class into its worker.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from vllm.forward_context import set_forward_context

from infer_kit.token_statistics import TokenStatistics
from infer_kit.vllm.processor import CoupledLogitsProcessor, find


class CoupledWorker:
    """Mixed into vLLM's worker."""

    model_runner: Any
    vllm_config: Any

    def infer_kit_take_traces(self, names: Sequence[str]) -> dict[str, Any]:
        """The figures of groups that have ended, as lists; they are forgotten here.

        Returns:
            By the name that a group gave as `trace`: the fields of `TokenStatistics` of one
            sequence, `[1, T, …]`; for forced tokens their log π, `[T, W]`. Names of which nothing
            is kept are left out.
        """
        processor = self._infer_kit_processor()
        out: dict[str, Any] = {}
        for name in names:
            steps = processor.take(name)
            parts = [steps[step] for step in sorted(steps)]
            if parts and isinstance(parts[0], TokenStatistics):
                joined = TokenStatistics.concatenate(parts)  # type: ignore[arg-type]
                out[name] = {field: values.tolist() for field, values in joined.tensors().items()}
            elif parts:
                out[name] = torch.stack(parts).tolist()  # type: ignore[arg-type]
        return out

    def infer_kit_image_features(self, packed: dict[str, dict[str, Any]]) -> list[float]:
        """`[D]` mean of what the language model reads of one picture.

        Args:
            packed: what the image processor returned: dtype, shape and bytes of each tensor.
        """
        model = self.model_runner.get_model()
        kind = next(model.parameters())
        inputs = {}
        for name, value in packed.items():
            flat = torch.frombuffer(bytearray(value["data"]), dtype=getattr(torch, value["dtype"]))
            tensor = flat.reshape(value["shape"]).to(kind.device)
            inputs[name] = tensor.to(kind.dtype) if tensor.is_floating_point() else tensor
        with torch.inference_mode(), set_forward_context(None, self.vllm_config):
            features = model.embed_multimodal(**inputs)
        return torch.cat(list(features)).float().mean(0).tolist()

    def infer_kit_text_features(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """`[N, D]` means of the model's own token embeddings."""
        model = self.model_runner.get_model()
        device = next(model.parameters()).device
        means = []
        with torch.inference_mode():
            for each in ids:
                tokens = torch.tensor(list(each), dtype=torch.long, device=device)
                means.append(model.embed_input_ids(tokens).float().mean(0).nan_to_num(0.0))
        return torch.stack(means).tolist()

    def infer_kit_fingerprint(self) -> dict[str, Any]:
        """What tells the model from others; of the first worker's part of it."""
        model = self.model_runner.get_model()
        names = hashlib.blake2b(type(model).__name__.encode(), digest_size=12)
        sizes = []
        for name, parameter in model.named_parameters():
            names.update(f"{name} {list(parameter.shape)}".encode())
            flat = parameter.detach().reshape(-1)
            sizes.append(float(flat[:: max(len(flat) // 65536, 1)].float().abs().mean()))
        return {"names": names.hexdigest(), "sizes": sizes}

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
    whole = ("chosen", "runner_up", "top", "candidates")
    return TokenStatistics(
        **{
            name: torch.tensor(
                value,
                dtype=torch.bool
                if name == "decisive"
                else torch.int64
                if name in whole
                else torch.float32,
            )
            for name, value in values.items()
        }
    )
