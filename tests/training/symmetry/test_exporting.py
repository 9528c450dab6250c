"""What `discover` says of a model that it cannot trace, and which outputs it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as tf
from torch import Tensor, library, nn

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import discover


def test_a_model_that_cannot_be_exported() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if x.sum() > 0 else self.one(-x)

    with pytest.raises(
        InferKitError,
        match=r"Sequential cannot be exported, so all of it stays frozen. It stopped at the "
        r"operator aten.item in Branch '1', test_exporting.py line \d+ \(return self.one",
    ):
        discover(nn.Sequential(nn.ReLU(), Branch()), torch.randn(2, 6))


def test_a_state_is_no_model() -> None:
    with pytest.raises(InferKitError, match="A OrderedDict is given where a model is expected"):
        discover(nn.Linear(2, 2).state_dict(), torch.randn(1, 2))


def test_an_operator_without_a_fake_implementation(capfd: pytest.CaptureFixture[str]) -> None:
    @library.custom_op("symmetry_test::bare", mutates_args=())
    def bare(x: Tensor) -> Tensor:
        return 2 * x

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return bare(self.one(x))

    with pytest.raises(InferKitError, match=r"at the operator symmetry_test.bare in Bare, "):
        discover(Bare(), torch.randn(2, 6))
    assert not any(capfd.readouterr())


def test_an_example_that_the_model_does_not_take() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(
        InferKitError, match=r"Sequential does not run on this example: RuntimeError: mat1 and mat2"
    ):
        discover(model, torch.randn(2, 7))
    with pytest.raises(InferKitError, match="does not run on this example: TypeError"):
        discover(model, {"pixels": torch.randn(2, 6)})


def test_an_output_that_nobody_needs() -> None:
    """T5 returns its encoder's states, which fixes their order in the stream of the encoder."""
    torch.manual_seed(0)
    model = tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=32, d_model=24, d_kv=6, d_ff=20, num_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )
    )  # fmt: skip
    x = {name: torch.randint(0, 32, (2, 7)) for name in ("input_ids", "decoder_input_ids")}
    whole, spec = discover(model, x), discover(model, x, outputs=lambda out: out.logits)
    assert len(spec.groups) == len(whole.groups) + 1
    shared = {str(size) for name, size in spec.groups.items() if name not in whole.groups}
    assert shared == {"24"}
    assert spec.check(model, x) < 1e-5 and whole.check(model, x) < 1e-5
    moved = spec.apply(spec.random(0), model.state_dict())
    before = model.eval()(**x)
    model.load_state_dict(moved)
    after = model(**x)
    torch.testing.assert_close(before.logits, after.logits)
    assert not torch.allclose(before.encoder_last_hidden_state, after.encoder_last_hidden_state)
    with pytest.raises(InferKitError, match="outputs chooses no tensor of what"):
        discover(model, x, outputs=lambda out: None)


class Counted(nn.Module):
    """Two outputs, and a buffer that the forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.one(x).relu()
        self.seen.mul_(0.5)
        return hidden, self.two(hidden)


def test_outputs_that_compute() -> None:
    model, x = Counted(), torch.randn(2, 6)
    for wrong in (
        lambda out: out[0] + out[1],
        lambda out: out[1][0],
        lambda out: out[1].argmax(-1),
        "logits",
    ):
        with pytest.raises(InferKitError, match="outputs fails on what the model returns"):
            discover(model, x, outputs=wrong)  # type: ignore[arg-type]
    for wrong in (lambda out: len(out), lambda out: torch.ones(3)):
        with pytest.raises(InferKitError, match="outputs chooses no tensor"):
            discover(model, x, outputs=wrong)


def test_a_part_of_a_tuple_beside_a_buffer_that_is_written() -> None:
    model, x = Counted(), torch.randn(2, 6)
    assert "one.weight[0]" not in discover(model, x).groups
    spec = discover(model, x, outputs=lambda out: out[1])
    assert "one.weight[0]" in spec.groups
    assert spec.check(model.double(), x.double()) < 1e-12
    first = discover(model.float(), x, outputs=lambda out: out[0])
    assert "one.weight[0]" not in first.groups


def test_a_buffer_that_keeps_the_order_of_what_is_written_to_it() -> None:
    class Keeps(Counted):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.one(x).relu()
            self.seen.copy_(hidden[0])
            return hidden, self.two(hidden)

    model, x = Keeps().eval(), torch.randn(2, 6)
    spec = discover(model, x, outputs=lambda out: out[1])
    assert spec.axes["one.weight"][0] == spec.axes["seen"][0] == (("seen[0]", 8),)
    order = spec.random(0)
    model(x)
    before = model.seen.clone()
    model.load_state_dict(spec.apply(order, model.state_dict()))
    model(x)
    torch.testing.assert_close(model.seen, before[order["seen[0]"]])


def test_numbers_that_the_model_draws() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)) + torch.rand_like(x[:, :1])

    model, x = Noisy(), torch.randn(2, 6)
    with pytest.raises(InferKitError, match="the same input the model's outputs differ by"):
        discover(model, x).check(model, x)


def test_noise_is_not_blamed_for_a_wrong_order() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).cumsum(-1)) + 1e-6 * torch.rand_like(x[:, :1])

    model, x = Noisy(), torch.randn(2, 6)
    right = discover(model, x)
    moving = discover(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), x)
    names = {"0.weight": "one.weight", "0.bias": "one.bias", "1.weight": "two.weight"}
    axes = {names[n]: a for n, a in moving.axes.items() if n in names}
    wrong = replace(right, groups=moving.groups, axes=right.axes | axes)
    with pytest.raises(InferKitError, match="With its units in another order"):
        wrong.check(model, x)


def test_the_report_names_operators_without_a_rule() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.fft.fft(self.one(x).view(-1, 2, 4)).abs().flatten(1))

    spec = discover(Waves(), torch.randn(2, 6))
    lines = [line for line in str(spec).splitlines() if "which has no rule" in line]
    # Two factors that are fixed, 2 x 4, are all 8.
    assert lines == [
        f"fixed by {spec.unknown[0]}, which has no rule: one.weight[0], one.bias[0], two.weight[1]"
    ]
    assert "no rule" not in str(discover(nn.Linear(6, 8), torch.randn(2, 6)))
