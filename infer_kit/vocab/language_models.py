"""Language models over forests of tokens: which of the two engines reads a model."""

from transformers import PreTrainedModel

from infer_kit.vocab.batched_kv import BatchedKV as BatchedKV
from infer_kit.vocab.forest_facts import why_no_tree
from infer_kit.vocab.tree_kv import TreeKV as TreeKV


def language_model(model: PreTrainedModel) -> TreeKV | BatchedKV:
    """`TreeKV` where the model can do it, else `BatchedKV`; both give the same numbers.

    The choice is read off the model's class and config (`why_no_tree` says why not): attention
    "sdpa" or "eager" through transformers' common interface, positions as an argument, and nothing
    but keys and values in the cache. So flash and flex attention, ALiBi (BLOOM, MPT), recurrent and
    hybrid models (Mamba, Jamba, Falcon-H1, Qwen3-Next) get `BatchedKV`. No model is tried, and
    neither engine turns into the other when a forward fails.

    Raises:
        InferKitError: the model is an encoder-decoder.
    """
    return TreeKV(model) if why_no_tree(model) is None else BatchedKV(model)
