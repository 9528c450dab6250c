"""Random weights with which a tiny model answers its whole context.

The library's own initialisation (std 0.02, gates and projectors at zero) gives logits that hardly
depend on the input, so that equality of tokens would prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PAD, BOS, EOS = 0, 1, 2
_GAIN = 1.2
_LOGIT_STD = 0.7


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every weight anew, in place, from one generator.

    Matrices get std gain/sqrt(fan_in); embeddings 1/sqrt(width), so that the layers' outputs, not
    the last token's own embedding, decide; scalars (the gates of gated cross-attention) 0.8;
    vectors that are all zero (biases, zero-centred norms) small noise; the decay rates of
    recurrent layers exp(-3) to exp(-1), a memory of several tokens. Other vectors keep what the
    family's initialisation gave them.

    Larger gains give more varied text but amplify float32 rounding: with these, cached and
    cache-free logits agree to 1e-5 in every family.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.copy_(torch.rand(weight.shape, generator=generator) * 2 - 3)
            elif weight.dim() >= 2 and weight.numel() > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * _matrix_std(name, weight, id(weight) in embeddings))
            elif weight.numel() == 1:
                weight.fill_(0.8)
            elif not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


def _matrix_std(name: str, weight: Tensor, embedding: bool) -> float:
    if embedding:
        return 1.0 / math.sqrt(weight.shape[-1])
    if "conv1d" in name or name.endswith("conv.conv.weight"):
        return 0.5
    fan_in = weight.shape[-1] if weight.dim() == 2 else weight[0].numel()
    if weight.dim() == 3:  # a stack of experts, [expert, in, out] or [expert, out, in]
        fan_in = min(weight.shape[1:])
    return _GAIN / math.sqrt(fan_in)


def calibrate(model: nn.Module, vocab_size: int) -> None:
    """Scale the output head until the logits of random text have standard deviation 0.7."""
    generator = torch.Generator().manual_seed(1234)
    ids = torch.randint(3, min(vocab_size, 100), (2, 16), generator=generator)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for _ in range(3):  # a soft cap on the logits makes one step inexact
            logits = model(input_ids=ids, use_cache=False).logits[..., :vocab_size].float()
            head.weight.mul_(_LOGIT_STD / logits.std(dim=-1).mean())


def build(make: Callable[[], PreTrainedModel], vocab_size: int, seed: int) -> PreTrainedModel:
    """Random weights, calibrated head, evaluation mode, plain token ids for generation.

    The global generator, from which `make` draws the vectors that stay, is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().float().eval()
    randomise(model, seed)
    calibrate(model, vocab_size)
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = PAD, BOS, EOS
    return model
