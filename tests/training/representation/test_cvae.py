"""The CVAE against loops in float64, and what it makes of the digits."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evals.benchmarks.representation_data import accuracy, digits, few, made, train
from infer_kit.errors import InferKitError
from infer_kit.training.representation import ConditionalVAE, Generator, fit_cvae
from infer_kit.training.representation.generators import check_generator, mixture_of


def small(shape: tuple[int, int, int] = (2, 5, 7), seed: int = 0, **sizes: float) -> ConditionalVAE:
    torch.manual_seed(seed)
    model = ConditionalVAE(shape, 3, z_dim=4, width=3, embed_dim=5, **sizes).double()
    model.mean.copy_(torch.randn(shape[0], 1, 1))
    model.std.copy_(torch.rand(shape[0], 1, 1) + 0.5)
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 5, 7), (3, 9, 6), (1, 1, 1)])
def test_it_is_a_generator_of_images_of_any_size(shape: tuple[int, int, int]) -> None:
    model = small(shape)
    check_generator(model)
    assert isinstance(model, Generator)
    assert model.sample(normal(6, 4), torch.arange(6) % 3).shape == (6, *shape)


def test_a_one_hot_mixture_is_its_class_and_a_mixture_is_of_embeddings() -> None:
    model, z = small(), normal(6, 4)
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    hard = model.sample(z, y)
    soft = model.sample(z, torch.nn.functional.one_hot(y, 3).double())
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-12)
    p = normal(6, 3).softmax(1)
    table = model.embedding.weight.T  # [n_classes, embed_dim]
    mixed = torch.stack([sum(p[i, k] * table[k] for k in range(3)) for i in range(6)])
    slow = model._decode(z, mixed) * model.std + model.mean
    torch.testing.assert_close(model.sample(z, p), slow, rtol=0, atol=1e-12)


def test_gradients_go_to_latents_and_probabilities_and_not_to_weights() -> None:
    model = small()
    z, logits = normal(5, 4).requires_grad_(), normal(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, s: model.sample(z, s.softmax(1)), (z, logits))
    model.sample(z, logits.softmax(1)).sum().backward()
    assert bool((z.grad != 0).any()) and bool((logits.grad != 0).any())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_loss_is_the_negative_bound_of_a_loop(noise: float) -> None:
    model = small(noise=noise).requires_grad_(False)
    x, y = normal(4, 2, 5, 7, seed=1), torch.tensor([0, 2, 1, 1])
    generator = torch.Generator().manual_seed(3)
    loss = model.loss(x, y, generator)
    eps = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).double()
    total = 0.0
    for i in range(4):
        e = model.embedding.weight[:, y[i]]
        seen = (x[i] - model.mean) / model.std
        out = model.posterior(torch.cat([model.encoder(seen[None])[0], e]))
        mu, log_s2 = out[:4], out[4:]
        z = torch.stack([mu[k] + exp(float(log_s2[k]) / 2) * eps[i, k] for k in range(4)])
        made = model._decode(z[None], e[None])[0]
        total += float(((seen - made) ** 2).sum()) / (2 * noise**2)
        for k in range(4):
            m, s2 = float(mu[k]), exp(float(log_s2[k]))
            total += 0.5 * (m * m + s2 - float(log_s2[k]) - 1)
    assert float(loss) == pytest.approx(total / 4, rel=1e-12)


def test_it_learns_the_digits_from_20_a_class() -> None:
    data, rest = few(digits(), 20, 0)
    x, y = 50 * data[0] + 7, data[1]  # on another scale
    state = torch.get_rng_state()
    model = fit_cvae(x, y, steps=500, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.mean[0, 0, 0], x.mean(), rtol=1e-5, atol=1e-3)
    classes = torch.arange(10).repeat(40)
    z = torch.randn(400, model.z_dim, generator=torch.Generator().manual_seed(0))
    samples = (model.sample(z, classes) - 7) / 50
    judge = train(made(10, 99), rest, 250, 0)
    assert accuracy(judge, (samples, classes)) > 85
    # They differ within a class, about as the images do.
    within = float(samples.view(40, 10, -1).std(0).mean())
    real = [float(data[0][y == c].flatten(1).std(0).mean()) for c in range(10)]
    assert within > 0.5 * sum(real) / 10


def test_a_seed_is_a_model() -> None:
    x, y = torch.randn(20, 1, 6, 6), torch.arange(20) % 2
    first, again, other = (
        fit_cvae(x, y, steps=5, seed=s, width=4, progress=False).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["latent.weight"], other["latent.weight"])


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, z = small(noise=0.25), normal(3, 4)
    model.save_pretrained(tmp_path / "a/b")
    again = ConditionalVAE.from_pretrained(tmp_path / "a/b")
    y = torch.tensor([0, 1, 2])
    assert torch.equal(again.sample(z, y), model.sample(z, y))
    assert again.noise == 0.25 and not any(p.requires_grad for p in again.parameters())
    config = json.loads((tmp_path / "a/b/config.json").read_text())
    (tmp_path / "a/b/config.json").write_text(json.dumps(config | {"later": 1}))
    with pytest.warns(UserWarning, match="later, unknown here"):
        ConditionalVAE.from_pretrained(tmp_path / "a/b")
    (tmp_path / "a/b/config.json").write_text(json.dumps(config | {"class": "ViT"}))
    with pytest.raises(InferKitError, match="has a ViT, no ConditionalVAE"):
        ConditionalVAE.from_pretrained(tmp_path / "a/b")
    with pytest.raises(InferKitError, match="has no config.json"):
        ConditionalVAE.from_pretrained(tmp_path)


def test_bfloat16_is_near() -> None:
    model, z = small(), normal(4, 4)
    y = torch.arange(4) % 3
    wide, narrow = model.sample(z, y), model.bfloat16().sample(z.bfloat16(), y)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), wide, rtol=0.1, atol=0.1)
    for dtype in (torch.bfloat16, torch.float16):
        p = (4 * normal(64, 3)).to(dtype).softmax(1)  # sums to 1 as well as it can
        assert torch.equal(mixture_of(p, 3), p)
        with pytest.raises(InferKitError, match="does not sum to 1"):
            mixture_of(p * 1.1, 3)


def test_what_cannot_be_is_refused() -> None:
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    for images, labels, classes, match in [
        (x[:, 0], y, None, r"images are \[6, 4, 4\]"),
        ((x * 9).to(torch.uint8), y, None, "images are .* of torch.uint8"),
        (x / 0, y, None, "not finite"),
        (x, y[:5], None, r"labels are \[5\] of torch.int64 for 6 images"),
        (x, y.float(), None, "labels are .* of torch.float32"),
        (x, y - 1, None, "a label of -1"),
        (x, y, 2, "a label of 2, and there are n_classes=2"),
        (x, 2 * y, None, "no image of class 1, 3"),
        (x, y, 5, "no image of class 3, 4"),
    ]:
        with pytest.raises(InferKitError, match=match):
            fit_cvae(images, labels, classes, steps=1, progress=False)
    with pytest.raises(InferKitError, match="steps=0"):
        fit_cvae(x, y, steps=0, progress=False)
    with pytest.raises(InferKitError, match="The loss became"):
        fit_cvae(x, y, steps=50, lr=1e9, progress=False)
    with pytest.raises(InferKitError, match="noise=0"):
        ConditionalVAE((1, 4, 4), 3, noise=0)
    with pytest.raises(InferKitError, match="a shape of three numbers"):
        ConditionalVAE((1, 4, 0), 3)
    model = ConditionalVAE((1, 4, 4), 3, z_dim=4)
    with pytest.raises(InferKitError, match=r"Latents are \[2, 5\]"):
        model.sample(torch.randn(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InferKitError, match="below 3 are expected"):
        model.sample(torch.randn(2, 4), torch.tensor([0, 3]))
    with pytest.raises(InferKitError, match="does not sum to 1"):
        model.sample(torch.randn(2, 4), torch.ones(2, 3))
