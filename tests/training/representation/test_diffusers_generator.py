"""Tiny random diffusion models: classes as diffusers samples them, mixtures row by row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.training.representation import DiffusersGenerator, Generator
from infer_kit.training.representation.generators import check_generator


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match="needs diffusers") as error:
        DiffusersGenerator.from_pretrained("somewhere")
    assert "pip install 'infer-kit[diffusion]'" in error.value.hint


def needed() -> object:
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


def unet(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return needed().UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
        layers_per_block=1, norm_num_groups=4, num_class_embeds=classes,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip


def pipeline(classes: int = 5, learned_variance: bool = True) -> object:
    diffusers = needed()
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, num_layers=2, sample_size=4,
        out_channels=4 if learned_variance else 2, patch_size=2, num_embeds_ada_norm=classes,
        norm_num_groups=2,
    )  # fmt: skip
    for p in transformer.parameters():
        nn.init.normal_(p, std=0.3)  # adaLN-Zero would begin without an effect of the class
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2, sample_size=8,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer, vae, ddim())


def ddim(**options: object) -> object:
    return needed().DDIMScheduler(num_train_timesteps=40, clip_sample=False, **options)


def made(model: nn.Module | None = None, **options: object) -> DiffusersGenerator:
    options = {"steps": 3, "progress": False} | options
    return DiffusersGenerator(unet() if model is None else model, ddim(), **options)


def noise(n: int, like: DiffusersGenerator) -> Tensor:
    return torch.randn(n, like.z_dim, generator=torch.Generator().manual_seed(1))


def test_it_is_a_generator_that_leaves_gradients_and_samples_alone() -> None:
    source = made()
    check_generator(source)
    assert isinstance(source, Generator)
    assert (source.z_dim, source.n_classes) == (64, 4)
    z, y = noise(3, source), torch.tensor([0, 3, 1])
    x = source.sample(z.requires_grad_(), y)
    assert x.shape == (3, 1, 8, 8) and not x.requires_grad
    assert torch.equal(source.sample(z, y), x)  # nothing is drawn or kept
    assert not torch.allclose(source.sample(z, y.flip(0)), x)
    assert not any(table._forward_hooks for table in source.model.modules())


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_unet_is_the_ddim_of_a_loop(guidance: float) -> None:
    model = unet()
    source = made(model, guidance_scale=guidance, null_class=0)
    assert source.n_classes == 3
    z, y = noise(2, source), torch.tensor([2, 0])
    got = source.sample(z, y)
    scheduler = ddim()
    scheduler.set_timesteps(3)
    alphas = scheduler.alphas_cumprod.double().tolist()
    times = scheduler.timesteps.tolist()
    for i in range(2):
        x = z[i].view(1, 1, 8, 8)
        for k, t in enumerate(times):
            with torch.no_grad():
                own = model(x, t, class_labels=y[i : i + 1] + 1).sample
                null = model(x, t, class_labels=torch.tensor([0])).sample
            e = null + guidance * (own - null)
            a = alphas[t]
            b = alphas[times[k + 1]] if k + 1 < len(times) else 1.0  # set_alpha_to_one
            x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
            x = b**0.5 * x0 + (1 - b) ** 0.5 * e
        torch.testing.assert_close(got[i : i + 1], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("learned_variance", [True, False])
def test_dit_is_its_pipeline(guidance: float, learned_variance: bool) -> None:
    # 1,000 classes, as the pipeline takes row 1000 for the null class whatever the table.
    pipe = pipeline(1000, learned_variance)
    pipe.set_progress_bar_config(disable=True)
    source = DiffusersGenerator.from_pipeline(
        pipe, steps=4, guidance_scale=guidance, progress=False
    )
    assert (source.z_dim, source.n_classes) == (32, 1000)
    y = [7, 999, 7]
    drawn = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    got = source.sample(drawn.flatten(1), torch.tensor(y))
    expected = pipe(
        y, guidance_scale=guidance, generator=torch.Generator().manual_seed(3),
        num_inference_steps=4, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close((got / 2 + 0.5).clamp(0, 1), expected, rtol=1e-4, atol=1e-5)
    assert float((expected[0] - expected[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_mixture_is_one_class_whose_row_is_mixed(guidance: float) -> None:
    pipe = pipeline()
    source = DiffusersGenerator.from_pipeline(
        pipe, steps=3, guidance_scale=guidance, progress=False
    )
    assert source.n_classes == 5
    z = noise(3, source)
    y = torch.tensor([4, 0, 2])
    hard, soft = (source.sample(z, one) for one in (y, nn.functional.one_hot(y, 5).float()))
    torch.testing.assert_close(soft, hard, rtol=0, atol=0)
    p = torch.randn(3, 5).softmax(1)
    mixed = source.sample(z, p)
    tables = [module for module in pipe.transformer.modules() if isinstance(module, nn.Embedding)]
    assert len(tables) == 2  # one for each block
    for i in range(3):
        kept = [table.weight.detach().clone() for table in tables]
        for table, old in zip(tables, kept, strict=True):
            table.weight[3] = sum(p[i, k] * old[k] for k in range(5))
        alone = source.sample(z[i : i + 1], torch.tensor([3]))
        for table, old in zip(tables, kept, strict=True):
            table.weight.copy_(old)
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_gradients_are_there_if_asked_for() -> None:
    source = made(guidance_scale=2.0, null_class=3, gradient=True, chunk=1)
    z, logits = noise(2, source).requires_grad_(), torch.zeros(2, 3, requires_grad=True)
    weight = torch.randn(2, 1, 8, 8)
    value = (source.sample(z, logits.softmax(1)) * weight).sum()
    value.backward()
    assert all(p.grad is None for p in source.model.parameters())
    for tensor, place in ((z, (1, 5)), (logits, (0, 2))):
        ends = []
        for e in (1e-2, -1e-2):
            with torch.no_grad():
                tensor[place] += e
                ends.append(float((source.sample(z, logits.softmax(1)) * weight).sum()))
                tensor[place] -= e
        slope = (ends[0] - ends[1]) / 2e-2
        assert float(tensor.grad[place]) == pytest.approx(slope, rel=2e-2, abs=1e-3)


def test_chunks_are_the_whole_and_finish_is_applied(capsys: pytest.CaptureFixture[str]) -> None:
    model = unet()
    whole, parts = made(model), made(model, chunk=2, finish=lambda x: x[:, :, :4], progress=True)
    z, y = noise(5, whole), torch.arange(5) % 4
    torch.testing.assert_close(parts.sample(z, y), whole.sample(z, y)[:, :, :4])
    assert "9/9" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_a_scheduler_of_several_steps_begins_anew() -> None:
    scheduler = needed().DPMSolverMultistepScheduler(num_train_timesteps=40)
    source = DiffusersGenerator(unet(), scheduler, steps=4, progress=False, chunk=1)
    z, y = noise(2, source), torch.tensor([1, 1])
    both = source.sample(z, y)
    torch.testing.assert_close(source.sample(z[1:], y[1:]), both[1:])


def test_a_pipeline_is_loaded_from_a_folder(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    source = DiffusersGenerator.from_pretrained(str(tmp_path), steps=2, progress=False)
    own = DiffusersGenerator.from_pipeline(pipe, steps=2, progress=False)
    z, y = noise(2, own), torch.tensor([1, 4])
    torch.testing.assert_close(source.sample(z, y), own.sample(z, y))


def test_what_cannot_be_is_refused() -> None:
    diffusers = needed()
    with pytest.raises(InferKitError, match="A Linear is given whose config has no sample_size"):
        DiffusersGenerator(nn.Linear(1, 1), ddim())
    plain = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4,), layers_per_block=1,
        norm_num_groups=2, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        attention_head_dim=2,
    )  # fmt: skip
    with pytest.raises(InferKitError, match="has no table of classes"):
        made(plain)
    with pytest.raises(InferKitError, match="guidance_scale=2.0 needs a null class"):
        made(guidance_scale=2.0)
    with pytest.raises(InferKitError, match="null_class=4 is no row"):
        made(null_class=4)
    with pytest.raises(InferKitError, match="DDPMScheduler draws noise at each step") as error:
        DiffusersGenerator(unet(), diffusers.DDPMScheduler(), steps=3, progress=False)
    assert "DDIMScheduler.from_config" in error.value.hint
    with pytest.raises(InferKitError, match="A str has no set_timesteps"):
        DiffusersGenerator(unet(), "ddim")
    for name in ("steps", "chunk"):
        with pytest.raises(InferKitError, match=f"{name}=0"):
            made(**{name: 0})
    source = made()
    with pytest.raises(InferKitError, match=r"Latents are \[2, 63\]"):
        source.sample(torch.randn(2, 63), torch.tensor([0, 1]))
    with pytest.raises(InferKitError, match="the generator has 4 classes"):
        source.sample(noise(2, source), torch.ones(2, 5) / 5)
