"""The cache object that is the state of all streams of one `generate` call."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from infer_kit.engine.groups import StreamGroup, build_group
from infer_kit.engine.prefill import Entry
from infer_kit.engine.recording import Recorder
from infer_kit.pooling import Pooling


class StreamCache(Cache):
    """What `generate` carries between steps as its cache.

    `generate` sees one cache over the primary stream's padded prompt; inside are the caches of
    every stream. One call makes one, so one `CoupledLM` serves several threads.

    Attributes:
        seen: tokens fed so far, counted along the primary's padded prompt; 0 before the prefill.
        engines: "fused" or "serial", for each model in order; known after the prefill.
        request: `[R]` int64, the request that each sequence belongs to.
    """

    is_compileable = False
    is_linear = (False,)  # without layers `generate` would take it for a state without a length

    def __init__(
        self,
        entries: Sequence[tuple[object, list[Entry]]],
        pooling: Pooling,
        requests: int,
        prompt_length: int,
        vocab_size: int,
        device: torch.device,
        mode: str = "auto",
        recorder: Recorder | None = None,
    ) -> None:
        """Args:
        entries: for each model, the streams that run on it, ordered by request and stream.
        pooling: how their logits become one.
        requests: B, the number of requests.
        prompt_length: length of the primary's padded prompt.
        vocab_size: the common first V tokens that are pooled.
        device: where pooling happens, the primary model's.
        mode: "auto", "fused" or "serial".
        recorder: collects each stream's part in each token, if asked for.
        """
        super().__init__(layers=[])
        self.pooling = pooling
        self.recorder = recorder
        self.seen = 0
        self._entries = entries
        self._prompt_length = prompt_length
        self._vocab_size = vocab_size
        self._mode = mode
        self._groups: list[StreamGroup] = []
        self._record_past = False
        self.request = torch.arange(requests, device=device)

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(group.engine for group in self._groups)

    @property
    def new_tokens(self) -> int:
        """Tokens fed after the prompt."""
        return self.seen - self._prompt_length

    def prefill(self, sequences: int) -> Tensor:
        """Run every prompt once, then copy its state for each of its sequences.

        Args:
            sequences: R, a multiple of the number of requests (beams, returned sequences).

        Returns:
            Logits `[R, K, 1, V]` at the last prompt position.
        """
        requests = len(self.request)
        for model, entries in self._entries:
            self._groups.append(build_group(model, entries, requests, self._mode))
        self._entries = ()  # the inputs, pixels among them, are not needed again
        logits = self._by_stream([group.prompt_logits for group in self._groups])
        for group in self._groups:
            del group.prompt_logits
        self.seen = self._prompt_length
        if sequences > requests:
            index = torch.arange(requests, device=self.request.device)
            index = index.repeat_interleave(sequences // requests)
            self.reorder_cache(index)
            logits = logits.index_select(0, index)
        if self._record_past:
            self.activate_past_recording()
        return logits

    def step(self, ids: Tensor) -> Tensor:
        """Feed `ids` `[R, n]` to every stream; logits `[R, K, n, V]`."""
        self.seen += ids.shape[1]
        return self._by_stream([group.step(ids.to(group.owner.device)) for group in self._groups])

    def _by_stream(self, logits: Sequence[Tensor]) -> Tensor:
        """Group logits `[rows, n, V']` as one `[R, K, n, V]` float32 tensor.

        A stream that a sequence lacks gets zeros, and has weight 0.
        """
        streams = len(self.pooling.streams)
        device = self.request.device
        if len(logits) == 1 and len(logits[0]) == len(self.request) * streams:
            (group,) = self._groups
            if group.engine == "fused":  # rows are ordered by sequence, then stream
                rows = logits[0][..., : self._vocab_size].float()
                return rows.view(len(self.request), streams, *rows.shape[1:])
        n = logits[0].shape[1]
        merged = torch.zeros(
            len(self.request), streams, n, self._vocab_size, dtype=torch.float32, device=device
        )
        for group, rows in zip(self._groups, logits, strict=True):
            place = (group.owner.to(device), group.stream.to(device))
            merged.index_put_(place, rows[..., : self._vocab_size].to(device, torch.float32))
        return merged

    # What `generate` asks of a cache.

    @property
    def is_croppable(self) -> bool:
        return bool(self._groups) and all(group.is_croppable for group in self._groups)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for group in self._groups:
            group.gather(beam_idx)
        self.request = self.request.index_select(0, beam_idx.to(self.request.device))
        if self.recorder is not None:
            self.recorder.gather(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        index = torch.arange(len(self.request), device=self.request.device)
        self.reorder_cache(index.repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """Remembered until the prefill is over: recording a long prompt would waste memory."""
        self._record_past = True
        for group in self._groups:
            group.record_past()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens of every stream."""
        if tokens_to_remove > 0:
            raise ValueError("crop takes minus the number of tokens to remove.")
        for group in self._groups:
            group.crop(-tokens_to_remove)
        self.seen += tokens_to_remove
        if self.recorder is not None:
            self.recorder.crop(-tokens_to_remove)
