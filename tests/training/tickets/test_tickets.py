"""A ticket's file, bit for bit; and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import Freeze, IteRand, Threshold, Ticket, TopK, make_ticket
from tests.training.tickets import tasks

RULES = {
    "layer": {},
    "dynamic": {"scale": "dynamic", "init": "signed_constant"},
    "frozen": {
        "mask_rule": TopK(0.5, scope="global"), "frozen": Freeze(0.35, 0.25, "erk", "proportional"),
        "scale": "static", "scores": "kaiming_normal",
    },
    "threshold": {"mask_rule": Threshold(0.2), "init": "kaiming_normal"},
}  # fmt: skip


def _disturb(ticket: Ticket, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in ticket.layers().values():
            layer.scores += torch.randn(layer.scores.shape, generator=g) * layer.scores.std()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_a_file_gives_the_same_network(family: str, rule: str, tmp_path: Path) -> None:
    model = tasks.FAMILIES[family]()
    ticket = make_ticket(model, 11, **RULES[rule])
    search = IteRand(ticket, k_per=2, r=0.5) if rule == "layer" else None
    for i in range(24):
        _disturb(ticket, i)
        if search is not None:
            search.step()
    expected = tasks.output(family, model)
    ticket.save(tmp_path / "t")
    assert ticket.bits().total_bits == 8 * (tmp_path / "t").stat().st_size
    read = Ticket.load(tmp_path / "t")
    assert torch.equal(tasks.output(family, read.apply(tasks.FAMILIES[family]())), expected)
    plain = ticket.materialize()
    assert torch.equal(tasks.output(family, plain), expected)
    assert not any("parametrizations" in name for name in plain.state_dict())
    # The search goes on as before.
    assert torch.equal(tasks.output(family, model), expected)
    if family in ("gpt2", "llama", "vit"):
        assert torch.equal(tasks.output(family, read.materialize()), expected)


def test_another_process_makes_the_same_network(tmp_path: Path) -> None:
    model = tasks.FAMILIES["gpt2"]()
    ticket = make_ticket(model, 5, qk_scale="n**0.25", include=["*"])
    search = IteRand(ticket, k_per=1, r=0.3)
    for i in range(12):
        _disturb(ticket, i)
        search.step()
    ticket.save(tmp_path / "t")
    script = (
        "import torch; from infer_kit.training.tickets import Ticket\n"
        "from tests.training.tickets import tasks\n"
        f"model = Ticket.load({str(tmp_path / 't')!r}).materialize()\n"
        f"torch.save(tasks.output('gpt2', model), {str(tmp_path / 'out')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
    assert torch.equal(torch.load(tmp_path / "out"), tasks.output("gpt2", model))


def test_bits_a_weight() -> None:
    plain = make_ticket(tasks.mlp(64, 256, 256, 10)).bits()
    assert plain.per_weight <= 1.05 and plain.total_bits / plain.weights <= 1.05
    for p, r in ((0.25, 0.25), (0.35, 0.35), (0.45, 0.45)):
        rule = TopK(0.5, scope="global")
        size = make_ticket(tasks.mlp(64, 256, 256, 10), mask_rule=rule, frozen=Freeze(p, r)).bits()
        assert abs(size.compression * (1 - p - r) - 1) <= 0.01
        assert abs(size.per_weight - (1 - p - r)) <= 0.01


def test_qk_scale_multiplies_queries_and_keys_alone() -> None:
    for family, name in (("gpt2", "transformer.h.0.attn.c_attn.weight"), ("llama", None)):
        models = [tasks.FAMILIES[family]() for _ in range(2)]
        plain, larger = make_ticket(models[0]), make_ticket(models[1], qk_scale="n**0.25")
        for key, weight in plain.weights().items():
            factor = larger.weights()[key] / weight
            width = 8 if family == "gpt2" else 4
            if key == name:
                assert torch.allclose(factor[:, :32], torch.tensor(width**0.25))
                assert torch.equal(factor[:, 32:], torch.ones(16, 16))
            elif "q_proj" in key or "k_proj" in key:
                assert torch.allclose(factor, torch.tensor(width**0.25))
            elif "c_attn" not in key:
                assert torch.equal(larger.weights()[key], weight)


def test_a_shared_weight_is_refused() -> None:
    with pytest.raises(InferKitError, match=r"'lm_head.weight' is the same tensor as"):
        make_ticket(tasks.gpt2(tied=True))
    model = tasks.gpt2(tied=True)
    ticket = make_ticket(model, exclude=["lm_head"])
    again = Ticket.apply(ticket, tasks.gpt2(tied=True))
    assert torch.equal(tasks.output("gpt2", again), tasks.output("gpt2", model))
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with pytest.raises(InferKitError, match="one mask cannot serve two layers"):
        make_ticket(net)


def test_other_models_are_refused(tmp_path: Path) -> None:
    ticket = make_ticket(tasks.mlp(64, 32, 10))
    ticket.save(tmp_path / "t")
    read = Ticket.load(tmp_path / "t")
    with pytest.raises(InferKitError, match=r"another architecture: '0.weight' has shape"):
        read.apply(tasks.mlp(64, 16, 10))
    with pytest.raises(InferKitError, match=r"for another architecture \(Sequential\)"):
        read.apply(tasks.mlp(64, 32, 32, 10))
    with pytest.raises(InferKitError, match="Convert the model first"):
        read.apply(tasks.mlp(64, 32, 10).double())
    with pytest.raises(InferKitError, match="under a ticket search"):
        read.apply(ticket.model)
    with pytest.raises(InferKitError, match="does not say how to build a Sequential"):
        read.materialize()
    with pytest.raises(InferKitError, match="masks and no scores"):
        IteRand(read)
    with pytest.raises(InferKitError, match="parametrization already"):
        make_ticket(ticket.model)


def test_another_seed_is_refused(tmp_path: Path) -> None:
    one, two = (make_ticket(tasks.mlp(64, 32, 10), seed) for seed in (1, 2))
    with pytest.raises(InferKitError, match="belongs to another ticket: another seed"):
        two.model.load_state_dict(one.model.state_dict())
    one.save(tmp_path / "t")
    with safe_open(str(tmp_path / "t"), "pt") as file:
        said = file.metadata()
    tensors = load_file(tmp_path / "t")
    forged = said | {"spec": said["spec"].replace('"seed":1', '"seed":2')}
    save_file(tensors, tmp_path / "u", forged)
    with pytest.raises(
        InferKitError, match="seed 2 and the masks give here, or the other tensors, are not"
    ):
        Ticket.load(tmp_path / "u").apply(tasks.mlp(64, 32, 10))
    save_file(tensors, tmp_path / "v", said | {"format": "ticket 1, rng 2"})
    with pytest.raises(InferKitError, match=r"versions \(ticket 1, rng 2\)"):
        Ticket.load(tmp_path / "v")
    save_file(tensors, tmp_path / "w")
    with pytest.raises(InferKitError, match="no ticket"):
        Ticket.load(tmp_path / "w")
    tensors["0.weight"] = tensors["0.weight"][:-1].clone()
    save_file(tensors, tmp_path / "x", said)
    with pytest.raises(InferKitError, match="damaged: '0.weight' has 255 bytes for 2048 bits"):
        Ticket.load(tmp_path / "x")


def test_a_changed_tensor_that_is_not_masked_is_refused(tmp_path: Path) -> None:
    def net(length: int = 10) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(4, 4))
        model.place = nn.Parameter(torch.zeros(length, 8))
        return model

    make_ticket(net()).save(tmp_path / "t")
    with pytest.raises(InferKitError, match=r"'place' has shape \[10, 8\] in the ticket"):
        Ticket.load(tmp_path / "t").apply(net(20))
    with safe_open(str(tmp_path / "t"), "pt") as file:
        said = file.metadata()
    tensors = load_file(tmp_path / "t")
    tensors["1.weight"] *= -1
    save_file(tensors, tmp_path / "u", said)
    with pytest.raises(InferKitError, match="or the other tensors, are not those"):
        Ticket.load(tmp_path / "u").apply(net())
    save_file(tensors, tmp_path / "v", said | {"dtype": "floot32"})
    with pytest.raises(InferKitError, match="damaged: AttributeError"):
        Ticket.load(tmp_path / "v")


def test_random_weights_that_changed_are_not_saved(tmp_path: Path) -> None:
    model = tasks.mlp(8, 8, 4)
    ticket = make_ticket(model)
    model.requires_grad_(True)
    model(torch.ones(2, 8)).sum().backward()
    assert ticket.weights()["0.weight"].grad is None
    model.to(torch.bfloat16).float()
    with pytest.raises(InferKitError, match=r"'0.weight' is not what seed 0 gives any more"):
        ticket.save(tmp_path / "t")
    assert not list(tmp_path.iterdir())
    gpt = tasks.gpt2()
    grown = make_ticket(gpt)
    gpt.resize_token_embeddings(50)
    with pytest.raises(InferKitError, match="no longer the one of the ticket: 'lm_head.weight'"):
        grown.save(tmp_path / "t")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [tasks.LlamaForCausalLM, tasks.GPT2LMHeadModel])
def test_a_file_tells_dtype_and_attention(kind: type, attention: str, tmp_path: Path) -> None:
    made = tasks.llama() if kind is tasks.LlamaForCausalLM else tasks.gpt2()
    settings = {"dtype": torch.bfloat16, "attn_implementation": attention}
    model = kind._from_config(made.config, **settings).eval()
    make_ticket(model).save(tmp_path / "t")
    again = Ticket.load(tmp_path / "t").materialize()
    ids = torch.arange(24)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.config._attn_implementation == attention


def test_scores_start_as_they_are_asked_to() -> None:
    for scores, size in (("edge_popup", 1 / 8), ("kaiming_uniform", (6 / 64) ** 0.5)):
        ticket = make_ticket(tasks.mlp(64, 64, 10), scores=scores)
        found = ticket.layers()["0.weight"].scores.detach()
        assert 0.99 * size < float(found.abs().max()) <= size
        assert torch.equal(
            found, make_ticket(tasks.mlp(64, 64, 10), scores=scores).layers()["0.weight"].scores
        )


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    make_ticket(tasks.mlp(64, 32, 10)).save(tmp_path / "t")
    (tmp_path / "u").write_bytes((tmp_path / "t").read_bytes()[:keep])
    with pytest.raises(InferKitError, match="no whole safetensors file"):
        Ticket.load(tmp_path / "u")
    with pytest.raises(InferKitError, match="There is no file"):
        Ticket.load(tmp_path / "none")


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    ticket = make_ticket(tasks.mlp(64, 32, 10))
    with torch.no_grad():
        ticket.layers()["2.weight"].scores[0, :3] = torch.nan
    with pytest.raises(InferKitError, match="There is no folder"):
        make_ticket(tasks.mlp(64, 32, 10)).save(tmp_path / "none" / "t")
    for use in (ticket.bits, ticket.materialize, lambda: ticket.save(tmp_path / "t")):
        with pytest.raises(InferKitError, match=r"3 of the 320 scores of '2.weight'"):
            use()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "orthogonal"}, "init='orthogonal': use one of"),
        ({"scores": "zeros"}, "scores='zeros'"),
        ({"scale": "auto"}, "scale='auto'"),
        ({"mask_rule": 0.5}, "a TopK or a Threshold is expected"),
        ({"mask_rule": Threshold(), "scale": "static"}, "no fixed sparsity below 1"),
        ({"include": ["head"]}, "No layer that can be masked matches 'head'"),
        ({"exclude": ["*"]}, "no weights to mask"),
        ({"train": ["norm"]}, "No parameter matches 'norm'"),
        ({"qk_scale": "n**0.25"}, "no queries and keys"),
        ({"qk_scale": "n"}, "qk_scale='n'"),
        ({"mask_rule": TopK(1.0), "scale": "static"}, "no fixed sparsity below 1"),
        ({"seed": "a"}, "seed='a', frozen=None: an int and a Freeze"),
        ({"frozen": 0.5}, "seed=0, frozen=0.5: an int and a Freeze"),
        ({"include": "weight"}, "'weight' is one name, and a list of names is expected"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        make_ticket(tasks.mlp(8, 8, 4), **arguments)


def _empty() -> nn.Module:
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(torch.empty(0, 4))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "parametrization already"),
        (
            lambda: torch.nn.utils.prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
            "pruning",
        ),
        (lambda: nn.LazyLinear(4), "has no shape yet"),
        (_empty, r"has no numbers: shape \[0, 4\]"),
        (lambda: nn.Linear(4, 4, device="meta"), "has no storage yet"),
        (lambda: torch.compile(nn.Linear(4, 4)), "wrapped in a OptimizedModule"),
    ],
)
def test_what_cannot_be_masked_is_refused(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        make_ticket(model())


def test_what_is_refused_is_not_changed(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(InferKitError, match="No parameter matches 'nope'"):
        make_ticket(model, train=["nope"])
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    with pytest.raises(InferKitError, match="is a folder"):
        make_ticket(model).save(tmp_path)
