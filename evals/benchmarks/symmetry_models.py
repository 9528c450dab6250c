"""Small networks of all kinds whose units `symmetry` finds, and larger ones where there are any."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

Made = tuple[nn.Module, Any]


class Residual(nn.Module):
    """Blocks of an MLP on a residual stream; without `anchored` nothing tells its units apart but
    the blocks themselves."""

    def __init__(self, blocks: int, width: int, hidden: int, anchored: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, width) if anchored else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, 5) if anchored else None
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) if self.first else x[:, :1].expand(-1, self.width)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x) if self.last else x.square().sum(-1)


class GroupedCNN(nn.Module):
    """GroupNorm, a grouped convolution, flatten, a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.two = nn.Conv2d(8, 16, 3, groups=4)
        self.hidden = nn.Linear(16 * 4 * 4, 24)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        x = F.max_pool2d(torch.relu(self.two(F.pad(x, (1, 1, 1, 1)))), 2).flatten(1)
        return self.out(torch.relu_(self.hidden(x)))


class Attention(nn.Module):
    """One block of attention on a stream, queries, keys and values apart."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.out = nn.Linear(width, 5)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, t, c = x.shape
        q, k, v = (
            layer(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c)
        return self.out(x + self.o(y))


class GroupedQueries(nn.Module):
    """Six query heads that read two heads of keys; with sdpa's own way or by repetition."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 8), nn.Linear(12, 8)
        self.o = nn.Linear(24, 5)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 6, 4).transpose(1, 2)
        k, v = (layer(x).view(b, t, 2, 4).transpose(1, 2) for layer in (self.k, self.v))
        if not self.own:
            k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.own)
        return self.o(y.transpose(1, 2).flatten(2))


class TiedLM(nn.Module):
    """A language model whose head is its embedding, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.tokens.weight
        self.unused = nn.Parameter(torch.zeros(7, 3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class BasicBlock(nn.Module):
    """As in ResNets for images."""

    def __init__(self, come: int, go: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(come, go, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(go)
        self.conv2 = nn.Conv2d(go, go, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(go)
        self.down = (
            nn.Sequential(nn.Conv2d(come, go, 1, stride, bias=False), nn.BatchNorm2d(go))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += self.down(x)
        return F.relu(y, inplace=True)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip


class ConvNeXt(nn.Module):
    """Depthwise convolution, LayerNorm over channels, a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, 2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm = nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.gamma = nn.Parameter(torch.rand(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.down(F.gelu(self.up(self.norm(y))))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


class Mixer(nn.Module):
    """MLPs over the tokens and over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.tokens = nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 4))
        self.channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Gated(nn.Module):
    """A gated unit by glu, RMS norm, a transposed and a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(3, 16, 3, 2, 1)
        self.two = nn.ConvTranspose1d(8, 12, 4, 2, groups=2)
        self.norm = nn.RMSNorm(12)
        self.bias = nn.Parameter(torch.randn(12))
        self.three = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(F.glu(self.one(x), 1)).movedim(1, -1)
        return self.three(torch.clamp(self.norm(x) - self.bias, min=-1)).amax(1)


class Summed(nn.Module):
    """Attention and an MLP by einsum, mixture of experts in it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 6, 10) / 3)
        self.back = nn.Parameter(torch.randn(3, 10, 5) / 3)
        self.gate = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,eih->beh", x, self.experts).relu()
        share = self.gate(x).softmax(-1)
        return torch.einsum("beh,eho,be->bo", hidden, self.back, share)


def images(size: int = 8) -> Tensor:
    """Two, drawn at random."""
    return torch.randn(2, 3, size, size)


def ids(vocabulary: int = 30) -> Tensor:
    """Two rows of seven."""
    return torch.randint(0, vocabulary, (2, 7))


def _text(config: tf.PretrainedConfig, kind: Any, attention: str) -> Made:
    config._attn_implementation = attention
    return kind(config), {"input_ids": ids()}


_SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24,
}  # fmt: skip


def gpt2(attention: str = "sdpa") -> Made:
    config = tf.GPT2Config(
        vocab_size=30,
        n_embd=16,
        n_head=4,
        n_layer=2,
        n_positions=12,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _text(config, tf.GPT2LMHeadModel, attention)


def bert(attention: str = "sdpa") -> Made:
    config = tf.BertConfig(**_SIZES, max_position_embeddings=12)
    return _text(config, tf.BertForMaskedLM, attention)


def llama(attention: str = "sdpa") -> Made:
    config = tf.LlamaConfig(**_SIZES, num_key_value_heads=2)
    return _text(config, tf.LlamaForCausalLM, attention)


def vit() -> Made:
    sizes = {k: v for k, v in _SIZES.items() if k != "vocab_size"}
    config = tf.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=5)
    return tf.ViTForImageClassification(config), {"pixel_values": images()}


def mlp() -> Made:
    layers = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 5)]
    return nn.Sequential(*layers), torch.randn(4, 6)


def shake(model: nn.Module, loud: bool = True) -> None:
    """Biases, scales and running statistics that tell units apart.

    Args:
        loud: weights that are drawn small become 8 times as large, so that attention is not even.
            In deep networks that would multiply rounding, too.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.25)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
            elif tensor.dim() > 1 and not tensor.any():  # heads that begin at 0
                tensor.normal_(std=0.1)
            elif loud and tensor.dim() > 1 and tensor.std() < 0.05:  # as transformers draws them
                tensor.mul_(8)


def zoo(seed: int = 0) -> dict[str, Made]:
    """Networks of all kinds, and torchvision's and timm's where they are installed."""
    torch.manual_seed(seed)
    found: dict[str, Made] = {
        "MLP": mlp(),
        "residual MLP": (Residual(4, 32, 48), torch.randn(2, 6)),
        "CNN: flatten, GroupNorm, grouped": (GroupedCNN(), images()),
        "tied LM": (TiedLM(), ids()),
        "encoder layer": (
            nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), torch.randn(2, 5, 16),
        ),
        "ResNet, BN": (resnet(), images()),
        "ConvNeXt block": (ConvNeXt(), images()),
        "MLP-Mixer": (Mixer(), images()),
        "transformers GPT-2": gpt2(),
        "transformers BERT": bert(),
        "transformers LLaMA (GQA, RoPE)": llama(),
        "transformers ViT": vit(),
    }  # fmt: skip
    try:
        import torchvision.models as tv

        for name in ("resnet18", "vgg11_bn", "densenet121", "mobilenet_v3_small"):
            found[f"torchvision {name}"] = getattr(tv, name)(), images(64)
        found["torchvision vit_b_16"] = tv.vit_b_16(image_size=64), images(64)
    except (ImportError, RuntimeError):  # RuntimeError: of another build than torch's
        pass
    try:
        import timm

        for name in _TIMM:
            model = timm.create_model(name)
            found[f"timm {name}"] = model, images(model.default_cfg["input_size"][1])
    except (ImportError, RuntimeError):
        pass
    for name, (model, _) in found.items():
        shake(model, loud=not name.startswith(("torchvision", "timm")))
    return found


_TIMM = (
    "resnet50", "vit_tiny_patch16_224", "convnext_atto", "mixer_s16_224", "regnety_002",
    "efficientnet_b0", "swin_tiny_patch4_window7_224",
)  # fmt: skip
