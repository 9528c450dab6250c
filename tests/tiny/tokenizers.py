"""A small tokenizer and a LLaVA processor built in memory, for chats with the tiny models."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.vision_parts import FIRST_TEXT, IMAGE
from tests.tiny.vision_tiles import LLAVA_IMAGE_SIZE

_FIRST = ["<pad>", "<bos>", "<eos>", "<unk>"]
_MERGES = ("th", "he", "in", "er", "an", "the", "on", "at", " a", " i", "st", "re", "ing", " the")
_ROLES = {FIRST_TEXT + 128 + len(_MERGES): "<|user|>", FIRST_TEXT + 129 + len(_MERGES): "<|bot|>"}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|bot|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def tiny_tokenizer(vocab_size: int = 160) -> PreTrainedTokenizerFast:
    """All 128 ASCII characters (id 4 + code), 14 merged pieces, roles, `<image>`; BPE.

    Deterministic and lossless on ASCII. pad 0, bos 1, eos 2, unk 3; bos is added unless
    `add_special_tokens=False`. Ids left over are named `<extra_n>`.
    """
    if vocab_size < 160:
        raise ValueError(f"vocab_size must be at least 160, got {vocab_size}")
    names = [*_FIRST, *(chr(code) for code in range(128)), *_MERGES]
    special = _ROLES | {IMAGE: "<image>"}
    names += [special.get(n, f"<extra_{n}>") for n in range(len(names), vocab_size)]
    core = Tokenizer(
        models.BPE({name: n for n, name in enumerate(names)}, _merge_pairs(), unk_token="<unk>")
    )
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(special.values()),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _merge_pairs() -> list[tuple[str, str]]:
    """Each piece from the first split into two known pieces."""
    known, pairs = set(map(chr, range(128))), []
    for piece in _MERGES:
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs.append(next(cut for cut in reversed(cuts) if known.issuperset(cut)))
        known.add(piece)
    return pairs


def tiny_processor() -> LlavaProcessor:
    """The processor of `tiny_lvlm("llava")`: PIL images become 12 by 12 pixels, 9 tokens."""
    size = {"height": LLAVA_IMAGE_SIZE, "width": LLAVA_IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": LLAVA_IMAGE_SIZE}, crop_size=size
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
