"""The trainer of CLIP-Refine: its loss by hand, resuming, processes, what is saved and refused."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, normalize, softmax
from torch.utils.data import ConcatDataset, Subset
from transformers import AutoModel, CLIPModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from infer_kit.errors import InferKitError
from infer_kit.processors import load_processor
from infer_kit.training.representation import (
    CaptionedImages,
    CLIPRefineConfig,
    CLIPRefineTrainer,
    features_of_pairs,
    measure_clip,
    refine_arguments,
)
from infer_kit.training.representation.seeds import seeded
from tests.tiny.dual import save_dual_encoder

WORDS = ("a", "cat", "dog", "red", "blue", "photo", "of", "house")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual_encoder(request.param, tmp_path_factory.mktemp("dual") / request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual_encoder("clip", tmp_path_factory.mktemp("dual") / "only")


def pairs(n: int = 24, seed: int = 0) -> CaptionedImages:
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(n)]
    texts = [[" ".join(rng.choice(WORDS, 4)) for _ in range(3)] for _ in range(n)]
    return CaptionedImages(images, texts, seed)


def trainer_of(folder: Path, out: Path, **given: Any) -> CLIPRefineTrainer:
    model = AutoModel.from_pretrained(folder)
    options = {
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "seed": 3,
        "num_train_epochs": 2,
    } | given.pop("args", {})  # fmt: skip
    given = {"train_dataset": pairs(), "processor": load_processor(folder)} | given
    trainer = CLIPRefineTrainer(model, refine_arguments(out, **options), **given)
    trainer.remove_callback(PrinterCallback)
    return trainer


def features(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    texts = {k: v for k, v in inputs.items() if k != "pixel_values"}
    a = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    return a, model.get_text_features(**texts).pooler_output


def test_features_are_those_before_they_are_normalised(saved: Path, tmp_path: Path) -> None:
    trainer = trainer_of(saved, tmp_path)
    inputs = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.eval()
    both = zip(features_of_pairs(model, inputs), features(model, inputs), strict=True)
    for found, expected in both:
        assert torch.equal(found, expected) and found.requires_grad


@pytest.mark.parametrize("similarity", ["raw", "scaled_cosine"])
@pytest.mark.parametrize("reference", ["shared", "zero", "apart"])
def test_the_loss_is_the_formula(
    saved: Path, tmp_path: Path, similarity: Any, reference: Any
) -> None:
    config = CLIPRefineConfig(
        alpha=0.3, temperature=2.0, lam_rand=0.7, lam_kd=1.3, lam_align=0.2,
        similarity=similarity, reference=reference,
    )  # fmt: skip
    trainer = trainer_of(saved, tmp_path, refine=config)
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():  # a student that has moved
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, inputs)
    a, b = (f.double() for f in features(trainer.model, inputs))
    teacher = AutoModel.from_pretrained(saved)
    t, u = (f.double() for f in features(teacher, inputs))
    scale = teacher.logit_scale.exp().double()
    if similarity == "raw":
        S, S_t = a @ b.T, t @ u.T
    else:
        S = scale * normalize(a, dim=1) @ normalize(b, dim=1).T
        S_t = scale * normalize(t, dim=1) @ normalize(u, dim=1).T
    eye = torch.eye(8, dtype=torch.float64)
    hycd = sum(
        kl_div(log_softmax(s / 2, 1), 0.3 * eye + 0.7 * softmax(q / 2, 1), reduction="batchmean")
        for s, q in ((S, S_t), (S.T, S_t.T))
    )
    generator = seeded(3, 0)
    z = torch.randn(a.shape, generator=generator).double()
    other = torch.randn(a.shape, generator=generator).double() if reference == "apart" else z
    if reference == "zero":
        z = other = torch.zeros_like(a)
    expected = 1.3 * hycd / 2 + 0.7 * (mse_loss(a, z) + mse_loss(b, other)) + 0.2 * mse_loss(a, b)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5)


def test_what_is_trained_and_what_is_not(saved: Path, tmp_path: Path) -> None:
    trainer = trainer_of(saved, tmp_path, eval_dataset=pairs(10, 5))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    teacher = {n: p.clone() for n, p in trainer._teacher.state_dict().items()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert trainer.model.training and not any(m.training for m in trainer._teacher.modules())
    assert all(torch.equal(trainer._teacher.state_dict()[n], p) for n, p in teacher.items())
    assert all(torch.equal(before[n], p) for n, p in teacher.items() if n in before)
    for name, parameter in after.items():
        # What no image and no text goes through keeps its weights but for decay.
        assert torch.equal(before[name], parameter) == name.startswith("logit_"), name
    trainer.create_optimizer()
    (group,) = (g for g in trainer.optimizer.param_groups if g["params"])
    assert group["weight_decay"] == 0.1 and len(group["params"]) == len(
        [p for p in after.values() if p.requires_grad]
    )
    found = trainer.evaluate()
    for name in ("loss", "gap", "alignment", "uniformity", "image_to_text_r1", "text_to_image_r5"):
        assert np.isfinite(found[f"eval_{name}"])
    trainer.save_model(str(tmp_path / "refined"))
    again = AutoModel.from_pretrained(tmp_path / "refined")
    assert type(again) is type(trainer.model)
    assert all(torch.equal(p, after[n]) for n, p in again.named_parameters())
    load_processor(tmp_path / "refined")


def test_parts_of_the_loss_are_logged(clip: Path, tmp_path: Path) -> None:
    trainer = trainer_of(clip, tmp_path, args={"logging_strategy": "steps", "logging_steps": 2})
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert entry["loss_hycd"] + entry["loss_rafa"] == pytest.approx(entry["loss"], rel=1e-4)


class _Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(
    clip: Path, tmp_path: Path
) -> None:
    args = {
        "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3,
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
    }  # fmt: skip
    whole = trainer_of(clip, tmp_path / "whole", args=args)
    whole.train()
    cut = trainer_of(clip, tmp_path / "cut", args=args)
    cut.add_callback(_Kill(5))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = trainer_of(clip, tmp_path / "cut", args=args)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 9
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


def test_captions_are_drawn_anew_in_each_epoch() -> None:
    data = pairs(40)
    drawn = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        drawn.append([example["text"] for example in (data[n] for n in range(40))])
    assert drawn[0] == drawn[2] and drawn[0] != drawn[1]
    assert all(text in own for text, own in zip(drawn[1], data.captions, strict=True))
    which = [own.index(text) for text, own in zip(drawn[0], data.captions, strict=True)]
    assert min(which.count(k) for k in range(3)) >= 5


def test_the_trainer_says_which_epoch_it_is(clip: Path, tmp_path: Path) -> None:
    data, seen = pairs(16), []

    class Seen(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(data.epoch)

    trainer = trainer_of(clip, tmp_path, train_dataset=data)
    trainer.add_callback(Seen())
    trainer.train()
    assert seen == [0, 0, 1, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_captions_are_drawn_anew_of_parts_of_the_data_too(
    clip: Path, tmp_path: Path, workers: int
) -> None:
    """A split, with workers that stay from one epoch to the next."""
    data = pairs(16)
    parts = ConcatDataset([Subset(data, range(8)), Subset(data, range(8, 16))])
    args = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0,
            "num_train_epochs": 3}  # fmt: skip
    trainer = trainer_of(clip, tmp_path, train_dataset=parts, args=args)
    collate, rows = trainer.data_collator, []

    def kept(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return collate(examples) | {"texts": [example["text"] for example in examples]}

    trainer.data_collator = kept
    compute = trainer.compute_loss

    def seen(model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        rows.append(inputs.pop("texts"))
        return compute(model, inputs, *args, **options)

    trainer.compute_loss = seen
    trainer.similarity = "raw"  # so that no batch is read to decide
    trainer.train()
    epochs = [sorted(rows[n] + rows[n + 1]) for n in (0, 2, 4)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_evaluation_is_of_every_pair(clip: Path, tmp_path: Path) -> None:
    """Though training drops what does not fill a batch."""
    data = pairs(13, seed=1)
    trainer = trainer_of(clip, tmp_path, eval_dataset=data)
    assert trainer.args.per_device_eval_batch_size == 8 and trainer.args.dataloader_drop_last
    found = trainer.evaluate()
    whole = measure_clip(
        (trainer.model, load_processor(clip)),
        data.images, [data[n]["text"] for n in range(13)], ks=(1, 5),
    ).modality  # fmt: skip
    assert found["eval_gap"] == pytest.approx(whole.gap, rel=1e-4)
    assert found["eval_image_to_text_r1"] == whole.image_to_text[1]
    assert trainer.args.dataloader_drop_last  # as it was


def test_evaluation_decides_nothing_and_is_of_the_models_own_logits(
    saved: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(saved, tmp_path, eval_dataset=pairs(8, seed=1))
    model = trainer.model.eval()
    found = trainer.evaluate()["eval_loss"]
    assert trainer.similarity is None
    with torch.no_grad():
        a, b = features(model, next(iter(trainer.get_eval_dataloader())))
        S = model.logit_scale.exp() * normalize(a, dim=1) @ normalize(b, dim=1).T
        pair = torch.arange(len(S))
        wanted = (cross_entropy(S, pair) + cross_entropy(S.T, pair)) / 2
    assert found == pytest.approx(float(wanted), rel=1e-5)


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
    }  # fmt: skip
    dist.init_process_group("gloo", f"file://{folder}/store-{world}", rank=rank, world_size=world)
    trainer = trainer_of(
        Path(folder) / "model",
        Path(folder) / f"out-{world}",
        args={
            "per_device_train_batch_size": 8 // world, "num_train_epochs": 1, "max_steps": 1,
            "learning_rate": 1.0, "weight_decay": 0.0, "optim": "sgd", "max_grad_norm": 1e9,
            "ddp_backend": "gloo",
        },
    )  # fmt: skip
    trainer.train()
    if rank == 0:
        torch.save(trainer.model.state_dict(), f"{folder}/{world}.pt")
    os._exit(0)


def test_two_processes_are_one_of_twice_the_pairs(tmp_path: Path) -> None:
    save_dual_encoder("clip", tmp_path / "model")
    for world in (1, 2):
        mp.spawn(_rank, (world, str(tmp_path)), world)
    one, two = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2))
    start = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    moved = max(float((one[n] - start[n]).abs().max()) for n in one)
    assert moved > 1e-2
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5 * moved, msg=name)


def test_similarity_is_that_of_the_models_own_scale(clip: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(clip)
    with torch.no_grad():
        inputs = next(iter(trainer_of(clip, tmp_path).get_train_dataloader()))
        a, b = features(model, inputs)
        size = float((a.norm(dim=1) * b.norm(dim=1)).mean())
    for times, kind in ((1, "raw"), (20, "scaled_cosine"), (0.05, "scaled_cosine")):
        model.logit_scale.data.fill_(float(np.log(times * size)))
        model.save_pretrained(tmp_path / kind)
        load_processor(clip).save_pretrained(tmp_path / kind)
        trainer = trainer_of(tmp_path / kind, tmp_path / "out", args={"max_steps": 1})
        trainer.train()
        assert trainer.similarity == kind
        assert trainer.product_of_norms == pytest.approx(size, rel=0.2)


def test_what_cannot_work_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="24 pairs are less than a batch of 64"):
        trainer_of(clip, tmp_path, args={"per_device_train_batch_size": 64}).train()
    with pytest.raises(InferKitError, match="There is no train_dataset"):
        trainer_of(clip, tmp_path, train_dataset=None).train()
    with pytest.raises(InferKitError, match="Neither processor nor data_collator"):
        trainer_of(clip, tmp_path, processor=None)
    with pytest.raises(InferKitError, match="refine is a dict; expected a CLIPRefineConfig"):
        trainer_of(clip, tmp_path, refine={"alpha": 1})
    model = AutoModel.from_pretrained(clip)
    other = copy.deepcopy(model.config)
    other.projection_dim = 12
    with pytest.raises(InferKitError, match="The teacher has projection_dim=12, and the model 8"):
        trainer_of(clip, tmp_path, teacher=CLIPModel(other))
    other = copy.deepcopy(model.config)
    other.text_config.vocab_size = 99
    with pytest.raises(InferKitError, match="teacher has vocab_size=99"):
        trainer_of(clip, tmp_path, teacher=CLIPModel(other))
    with pytest.raises(InferKitError, match="teacher .*has no image and text features"):
        trainer_of(clip, tmp_path, teacher=nn.Linear(2, 2))
    siglip = AutoModel.from_pretrained(save_dual_encoder("siglip", tmp_path / "siglip"))
    other = copy.deepcopy(siglip.config)
    other.text_config.projection_size = 12
    with pytest.raises(InferKitError, match="The teacher has projection_size=12, and the model"):
        trainer_of(tmp_path / "siglip", tmp_path, teacher=type(siglip)(other))
    with pytest.raises(InferKitError, match="compute_loss_func would replace the loss"):
        trainer_of(clip, tmp_path, compute_loss_func=print)
    with pytest.raises(InferKitError, match="which has no other to be told from"):
        trainer_of(clip, tmp_path, args={"per_device_train_batch_size": 1}).train()
    with pytest.raises(InferKitError, match="Tokenizer.* without image_processor"):
        trainer_of(clip, tmp_path, processor=load_processor(clip).tokenizer)
    trainer_of(clip, tmp_path, processor=None, processing_class=load_processor(clip))
    with pytest.raises(InferKitError, match="label_smoothing_factor is 0.1"):
        trainer_of(clip, tmp_path, args={"label_smoothing_factor": 0.1})
    with pytest.raises(InferKitError, match="model is a NoneType"):
        CLIPRefineTrainer(None, refine_arguments(tmp_path))
    broken = trainer_of(clip, tmp_path, args={"max_steps": 1})
    with torch.no_grad():
        broken.model.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(InferKitError, match="image features have numbers that are not finite"):
        broken.train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"lam_kd": -1.0}, "lam_kd=-1.0"),
        ({"lam_kd": 0.0, "lam_rand": 0.0}, "All weights of the loss are 0"),
        ({"reduction": "sum"}, "reduction='sum'"),
        ({"reference": "random"}, "reference='random'"),
        ({"similarity": "cosine"}, "similarity='cosine'"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        CLIPRefineConfig(**given)


def test_data_that_cannot_be(clip: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(InferKitError, match="2 images and 1 captions"):
        CaptionedImages([image] * 2, ["a"])
    for lacking in ([], None, 3, "", [None]):
        with pytest.raises(InferKitError, match="Image 1 has no caption"):
            CaptionedImages([image] * 2, ["a", lacking])  # type: ignore[list-item]
    with pytest.raises(InferKitError, match="2 images and 1 captions"):
        CaptionedImages([image] * 2, "ab")
    with pytest.raises(InferKitError, match="Image 0: image 'nowhere.png' cannot be read"):
        CaptionedImages(["nowhere.png"], ["a"])[0]
    trainer = trainer_of(clip, tmp_path, train_dataset=[{"picture": 1}] * 8)
    with pytest.raises(InferKitError, match="and no 'image' and no 'text'"):
        trainer.train()
    long = CaptionedImages([image] * 8, [" ".join(WORDS * 6)] * 8)
    with pytest.warns(UserWarning, match="reads 24 tokens; the longest text has"):
        trainer_of(clip, tmp_path, train_dataset=long, args={"max_steps": 1}).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer_of(clip, tmp_path, args={"max_steps": 1}).train()
