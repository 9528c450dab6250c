"""Which layer's input the features are, also where adapters are in a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.representation import ClassGaussianPrior, FeatureConsistency


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x.flatten(1)).relu())
        return out


def test_features_are_what_the_last_linear_reads() -> None:
    model, x = Net(), torch.randn(4, 6)
    with FeatureTap(model) as tap:
        logits = model(x)
        features = tap.take()
    assert tap.name == "head" and torch.equal(model.head(features), logits)
    with pytest.raises(InferKitError, match="ran 0 times for a batch"), FeatureTap(model) as tap:
        tap.take()


@pytest.mark.parametrize("targets", ["all-linear", ["body", "head"], ["body"]])
@pytest.mark.parametrize("kept", [None, ["head"]])
def test_an_adapter_of_the_head_is_in_it(targets: str | list[str], kept: list[str] | None) -> None:
    peft = pytest.importorskip("peft")
    if kept and "head" in targets:
        pytest.skip("the head is trained whole, or by an adapter")
    model, x = Net(), torch.randn(4, 1, 2, 3)
    config = peft.LoraConfig(target_modules=targets, modules_to_save=kept, r=2)
    adapted = peft.get_peft_model(model, config)
    with FeatureTap(adapted) as tap:
        adapted(x)
        features = tap.take()
    assert features.shape == (4, 5)
    prior = ClassGaussianPrior.from_loader(
        adapted, [(x, torch.tensor([0, 1, 0, 1]))], 2, progress=False
    )
    assert prior.mu.shape == (2, 5)
    FeatureConsistency(augment=lambda x, _: 2 * x)(adapted, x).backward()
    heads = [p for name, p in adapted.named_parameters() if "head" in name]
    assert heads and all(p.grad is None for p in heads)
    assert any(p.grad is not None for p in adapted.parameters())
