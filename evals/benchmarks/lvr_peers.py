"""The peers of the vocabulary benchmark behind one interface, each as its own users run it.

Making a scorer is the peer's start-up (the first one of a process also imports the peer);
`score(text)` is log P that the model's text begins with `text`. The caller times both. No forward
of the model serves two calls of `score`. A peer that is not installed raises `MissingExtra`, whose
hint has the line that installs it.

* `BareForward`: the limit. One forward a token along the text's own tokens, log P of those tokens.
* `GenlmBytes`: genlm-bytes 0.2.0, a beam over trie states. Its beam keeps `width` states above the
  share `threshold`, log P is the mass that is left. It sums the masses of a large vocabulary in
  float32, one token after another, and loses the tail: the root's mass comes out below 1 and log P
  too high, by 0.03 nats in 54 tokens at V = 151,644. `float64=True` has it sum them in float64,
  to compare values; times are taken without.
* `ByteSampler`: byte-sampler, commit f27de98: log P by the chain of its laws of the next byte, over
  canonical token sequences. Byte-level BPE only. On transformers 5 a cache no longer answers to the
  names that it reads; it is given one that does.
"""

import asyncio
import math
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from infer_kit.engine.cache_name import CACHE, cache_of
from infer_kit.errors import MissingExtra

GENLM = "pip install genlm-bytes==0.2.0 genlm-backend==0.3.1"
BYTE_SAMPLER = "pip install git+https://github.com/SewoongLab/byte-sampler@f27de98"


def installed(module: str, name: str, line: str) -> Any:
    """The module of a peer.

    Raises:
        MissingExtra: it, or a package that it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{name} is not installed ({error})", hint=line) from error


def forward_calls(model: PreTrainedModel, action: Callable[[], Any]) -> int:
    """How many forwards of `model` an action makes."""
    calls: list[None] = []
    handle = model.base_model.register_forward_hook(lambda *_: calls.append(None))
    try:
        action()
    finally:
        handle.remove()
    return len(calls)


class BareForward:
    """The model alone: what any reduction has to pay at least."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def score(self, text: str) -> float:
        """log P of the text's tokens, one forward each; the last token is fed to nothing."""
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        cache, given, total = None, self.tokenizer.bos_token_id, 0.0
        for token in tokens:
            output = self.model(torch.tensor([[given]]), **{CACHE: cache}, use_cache=True)
            cache, given = cache_of(output), token
            logits: Tensor = output.logits[0, -1]
            total += float(logits[token] - logits.logsumexp(0))
        return total


class GenlmBytes:
    """genlm-bytes: the start-up spells the vocabulary and builds the trie and its matrix.

    Args:
        prefix: what the tokenizer puts before a text (SentencePiece's space).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prefix: bytes = b""
    ) -> None:
        self.peer = installed("genlm.bytes", "genlm-bytes", GENLM)
        backend = installed("genlm.backend", "genlm-backend", GENLM)
        self.prefix = prefix
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: sparse matrices are a beta
            self.lm = backend.AsyncTransformer(model, tokenizer)
            self.trie = self.peer.AsyncTokenByteTrie.from_vocab(self.lm.byte_vocab)

    def score(
        self, text: str, width: int = 5, threshold: float = 1e-3, float64: bool = False
    ) -> float:
        """log P of the text's bytes; -inf where no state is left."""
        self.lm.clear_cache()
        tree = self.trie.trie
        if float64:
            tree.batch_weight_sum = exact_masses(tree)
        try:
            return asyncio.run(self._score(self.prefix + text.encode(), width, threshold))
        finally:
            if float64:
                del tree.batch_weight_sum

    async def _score(self, text: bytes, width: int, threshold: float) -> float:
        mode = import_module("genlm.bytes.trie").TrieMode.WITHOUT_EOS  # as its own prefill does
        start = self.peer.LazyTrieState.initial(self.lm, self.trie, mode)
        params = self.peer.BeamParams(K=width, prune_threshold=threshold)
        beam = self.peer.ByteBeamState([await start.materialize()], params)
        try:
            for byte in text:
                beam = await (beam.prune() << byte)
        finally:
            await self.trie.cleanup()
        return float(beam.logZ) if len(beam) else -math.inf


def exact_masses(tree: Any) -> Callable[..., Tensor]:
    """Masses of a genlm-bytes trie's nodes in float64: [rows, nodes] from rows of token weights."""
    matrix = tree.M.double()

    def masses(rows: list[Tensor], mode: Any = None) -> Tensor:
        return torch.sparse.mm(torch.stack(rows).double()[:, tree.token_ids], matrix)

    return masses


class ByteSampler:
    """byte-sampler: the start-up reads the merges and sorts the vocabulary."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        peer = installed("byte_sampling", "byte-sampler", BYTE_SAMPLER)
        self.conditioning = peer.ByteConditioning(model, tokenizer)

    @torch.inference_mode()
    def score(self, text: str) -> float:
        """log P of the text's bytes given that tokens are canonical."""
        sampler = self.conditioning.get_bytewise_sampler(batch_size=1)
        sampler.rcm.cache = NamedCache()
        total = 0.0
        for byte in text.encode():
            law = sampler.get_dists().log_softmax(-1)  # [1, 257]
            total += float(law[0, byte])
            sampler.add_context([bytes([byte])])
        return total


class NamedCache(DynamicCache):
    """A cache whose layers can be read and replaced under the names that transformers 4 had."""

    @property
    def key_cache(self) -> list[Tensor]:
        return [layer.keys for layer in self.layers]

    @key_cache.setter
    def key_cache(self, tensors: list[Tensor]) -> None:
        for layer, tensor in zip(self.layers, tensors, strict=True):
            layer.keys = tensor

    @property
    def value_cache(self) -> list[Tensor]:
        return [layer.values for layer in self.layers]

    @value_cache.setter
    def value_cache(self, tensors: list[Tensor]) -> None:
        for layer, tensor in zip(self.layers, tensors, strict=True):
            layer.values = tensor
