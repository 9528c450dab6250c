"""Pseudo pre-training against a loop, its checkpoints, two processes, and the new head."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infer_kit.errors import InferKitError
from infer_kit.training.representation import new_head, pseudo_pretrain
from infer_kit.training.representation.seeds import seeded
from tests.training.conftest import farthest, weights
from tests.training.representation.pseudo_nets import Blobs, Stop, plain, rank_of_two


def net(seed: int = 0, classes: int = 4, dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, classes)
    )


def test_it_is_the_plain_loop() -> None:
    """In float64, sample by sample: losses and weights."""
    generator = Blobs()
    model = net(dropout=0.0).double()
    other = copy.deepcopy(model).train()
    found = pseudo_pretrain(
        model, generator, 6, 5, lr=1e-2, seed=9, prepare=Tensor.double, progress=False
    )
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    losses = []
    for step in range(6):
        g = seeded(9, 0, step)
        y = torch.randint(4, (5,), generator=g)
        z = torch.randn(5, 6, generator=g)
        x = torch.stack([generator.means[int(c)] + row for c, row in zip(y, z, strict=True)])
        logits = other(x.double())
        loss = sum(logits[i].logsumexp(0) - logits[i, int(y[i])] for i in range(5)) / 5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert farthest(weights(model), weights(other)) < 1e-9
    assert found.losses == pytest.approx(losses, abs=1e-6)


def test_the_network_learns_the_classes_evenly() -> None:
    generator, model = Blobs(), net().eval()
    found = pseudo_pretrain(model, generator, 200, 32, lr=1e-2, progress=False)
    assert found.accuracy > 0.9 and len(found.losses) == 200 and found.losses[-1] < 0.5
    counts = torch.bincount(torch.cat(generator.asked), minlength=4).double()
    assert (counts - 1600).abs().max() < 4 * (6400 * 3 / 16) ** 0.5
    assert not model.training and not any(m.training for m in model.modules())


def test_the_seed_is_all_that_counts() -> None:
    states = []
    for seed in (1, 1, 2):
        model = net()
        torch.manual_seed(len(states))  # the caller's generators play no part
        before = torch.get_rng_state()
        pseudo_pretrain(model, Blobs(), 5, 8, seed=seed, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(weights(model))
    assert farthest(states[0], states[1]) == 0 and farthest(states[0], states[2]) > 0


@pytest.mark.parametrize("stop", [3, 7])
def test_a_run_that_is_resumed_equals_one_that_was_not(tmp_path: Path, stop: int) -> None:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == at:
            raise Stop
        return cross_entropy(logits, y)

    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    def run(file: Path | None) -> tuple[dict[str, Tensor], tuple[float, ...], float]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        found = pseudo_pretrain(
            model, Blobs(), 10, 8, optimizer=optimizer, loss=loss, prepare=noisy,
            checkpoint=file, checkpoint_every=2, progress=False,
        )  # fmt: skip
        return weights(model), found.losses, found.accuracy

    seen, at = 0, 0
    whole = run(None)
    seen, at = 0, stop
    with pytest.raises(Stop):
        run(tmp_path / "c")
    seen, at = 0, 0
    torch.manual_seed(77)
    resumed = run(tmp_path / "c")
    assert seen == 10 - (stop - 1) // 2 * 2
    assert farthest(whole[0], resumed[0]) == 0 and whole[1:] == resumed[1:]
    seen = 0
    assert run(tmp_path / "c")[1] == whole[1] and seen == 0  # all of it is in the file


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c"
    pseudo_pretrain(net(), Blobs(), 2, 8, checkpoint=file, progress=False)
    with pytest.raises(InferKitError, match=r"of another run, with \{'steps': 2\}"):
        pseudo_pretrain(net(), Blobs(), 3, 8, checkpoint=file, progress=False)
    other = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(InferKitError, match=r"another run, with \{'model': 'Sequential"):
        pseudo_pretrain(other, Blobs(), 2, 8, checkpoint=file, progress=False)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(InferKitError, match="cannot be read as a checkpoint"):
        pseudo_pretrain(net(), Blobs(), 2, 8, checkpoint=file, progress=False)
    with pytest.raises(InferKitError, match="There is no folder"):
        pseudo_pretrain(net(), Blobs(), 2, checkpoint=tmp_path / "no" / "c", progress=False)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InferKitError, match=r"\[8, 5\] for 8 examples; logits \[8, 4\] are exp"):
        pseudo_pretrain(net(classes=5), Blobs(), 2, 8, progress=False)
    with pytest.raises(InferKitError, match=r"gives \[8, 5\] for 8 examples"):
        pseudo_pretrain(nn.LSTM(6, 5), Blobs(), 2, 8, progress=False)
    for name in ("steps", "batch", "checkpoint_every"):
        with pytest.raises(InferKitError, match=f"{name}=0: at least 1"):
            pseudo_pretrain(net(), Blobs(), **{"steps": 2, "progress": False, name: 0})
    with pytest.raises(InferKitError, match="nothing to train"):
        pseudo_pretrain(net().requires_grad_(False), Blobs(), 2, progress=False)
    with pytest.raises(InferKitError, match="no z_dim"):
        pseudo_pretrain(net(), object(), 2, progress=False)  # type: ignore[arg-type]
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(InferKitError, match="no parameter of the model, which would stay"):
        pseudo_pretrain(net(), Blobs(), 2, optimizer=other, progress=False)
    model = net().eval()
    with pytest.raises(InferKitError, match="loss became nan in step 1"):
        pseudo_pretrain(model, Blobs(), 2, loss=lambda s, y: s.sum() * torch.nan, progress=False)
    assert not model.training  # and is left in its mode
    steps = iter(range(9))
    with pytest.raises(InferKitError, match="loss became nan in step 4"):  # the first that is
        pseudo_pretrain(
            net(), Blobs(), 9, loss=lambda s, y: s.sum() * (torch.nan if next(steps) > 2 else 1),
            progress=False,
        )  # fmt: skip


def test_a_new_head() -> None:
    model = net().bfloat16().eval()
    body = weights(model[0])
    head = new_head(model, 300, std=0.02, seed=4)
    assert model[4] is head and head.weight.dtype == torch.bfloat16 and not head.training
    assert (head.in_features, head.out_features) == (16, 300) and not head.bias.any()
    assert float(head.weight.detach().float().std()) == pytest.approx(0.02, rel=0.05)
    assert farthest(body, weights(model[0])) == 0
    assert torch.equal(new_head(model, 300, std=0.02, seed=4).weight, head.weight)
    assert not torch.equal(new_head(model, 300, std=0.02, seed=5).weight, head.weight)
    named = nn.ModuleDict({"head": nn.Linear(3, 2, bias=False), "other": nn.Linear(3, 3)})
    assert new_head(named, 7, "head").bias is None and named["head"].out_features == 7


def test_a_head_with_an_adapter_is_refused() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(net(), peft.LoraConfig(target_modules=["0", "4"], r=2))
    with pytest.raises(InferKitError, match="has an adapter, made for the classes"):
        new_head(adapted, 7)
    whole = peft.LoraConfig(target_modules=["0"], modules_to_save=["4"], r=2)
    adapted = peft.get_peft_model(net(), whole)
    new_head(adapted, 7)
    assert adapted(torch.randn(3, 6)).shape == (3, 7)


def test_a_new_head_of_transformers() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3
    )
    model = ResNetForImageClassification(config)
    new_head(model, 5)
    assert model.config.num_labels == 5 and model.num_labels == 5
    assert sorted(model.config.id2label) == [0, 1, 2, 3, 4]
    output = model(torch.randn(2, 1, 16, 16), labels=torch.tensor([4, 0]))
    assert output.logits.shape == (2, 5) and bool(output.loss.isfinite())
    model.classifier = nn.Identity()
    with pytest.raises(InferKitError, match="no Linear in it"):
        new_head(model, 5)
    model.extra = nn.Linear(8, 9)
    with pytest.raises(InferKitError, match=r"'extra' has 9 outputs and the .* 5 labels"):
        new_head(model, 5)


def test_heads_that_cannot_be_are_refused() -> None:
    for name in ("2", "no", ""):
        with pytest.raises(InferKitError, match=f"'{name}' is no Linear .* '0', '4'|is no Linear"):
            new_head(net(), 3, name)
    with pytest.raises(InferKitError, match="n_classes=0"):
        new_head(net(), 0)
    with pytest.raises(InferKitError, match="std=-1"):
        new_head(net(), 2, std=-1)


def test_two_processes_are_one_with_both_batches_and_resume(tmp_path: Path) -> None:
    mp.spawn(rank_of_two, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert farthest(first, second) == 0
    model, generator = plain(), Blobs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for step in range(8):
        drawn = []
        for rank in range(2):
            g = seeded(5, rank, step)
            y = torch.randint(4, (4,), generator=g)
            drawn.append((generator.means[y] + torch.randn(4, 6, generator=g), y))
        x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        assert not torch.equal(x[:4], x[4:])
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    assert farthest(first, model.state_dict()) < 1e-5
