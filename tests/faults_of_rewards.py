"""The faults of rewards, their composition and their training; see `tests/faults.py`."""

from __future__ import annotations

from tests.faults import Mutant

LOSS, SCORES = "reward/loss.py", "training/prt/scores.py"
COMPOSITION, COMPOSED = "reward/composition.py", "reward/composed_lm.py"
LABELS, PORTABLE, COMPOSE = "reward/labels.py", "reward/portable.py", "reward/compose.py"
MIXIN, BASE = "training/prt/mixin.py", "training/prt/base.py"
CACHE = "engine/stream_cache.py"

LOSSES = "tests/reward/test_loss.py"
FUNCTIONS = "tests/reward/test_composition.py"
MODELS = "tests/reward/test_composed_lm.py"
ARTEFACT = "tests/reward/test_portable.py"
CLASSES = "tests/reward/test_classifiers.py"
TRAINER = "tests/training/test_trainer.py"

REWARD_MUTANTS = (
    Mutant(
        "reward: half-precision scores are added before they are widened",
        LOSS,
        "    scores = _wide(z) + beta * _wide(r)",
        "    scores = _wide(z + beta * r)",
        (LOSSES,),
    ),
    Mutant(
        "reward: the strength is ignored in the loss",
        LOSS,
        "    scores = _wide(z) + beta * _wide(r)",
        "    scores = _wide(z) + _wide(r)",
        (LOSSES,),
    ),
    Mutant(
        "reward: what is ignored has a loss",
        LOSS,
        "    losses = _losses(base[kept][:, :size], rewards[kept][:, :size], y, beta, alpha)\n",
        "    y = labels.clamp(min=0).flatten()\n"
        "    flat = [scores.flatten(0, -2)[:, :size] for scores in (base, rewards)]\n"
        "    losses = _losses(*flat, y, beta, alpha)\n",
        (LOSSES,),
    ),
    Mutant(
        "reward: the entropy's sign is turned",
        LOSS,
        "    return losses - alpha * entropy(r) if alpha else losses\n",
        "    return losses + alpha * entropy(r) if alpha else losses\n",
        (LOSSES,),
    ),
    Mutant(
        "reward: each batch is divided by its own labels",
        LOSS,
        "    return losses.sum() / _items(num_items, y)\n",
        "    return losses.sum() / _items(None, y)\n",
        (LOSSES, TRAINER),
    ),
    Mutant(
        "reward: labels are not shifted",
        SCORES,
        "        labels = labels[:, 1:] if shifted else labels\n",
        "        labels = labels[:, :-1] if shifted else labels\n",
        (TRAINER,),
    ),
    Mutant(
        "reward: the tail of a head is dropped",
        LOSS,
        "    full = (share * tail.clamp(min=_LEAST_TAIL)[:, None]).log()\n",
        "    full = (share * 0.0).log()\n",
        (LOSSES,),
    ),
    Mutant(
        "reward: weights are ignored",
        COMPOSITION,
        "    signed = torch.tensor([[1.0, *(beta * weight for weight in weights)]], dtype=dtype)\n",
        "    signed = torch.tensor([[1.0, *(beta for weight in weights)]], dtype=dtype)\n",
        (FUNCTIONS,),
    ),
    Mutant(
        "reward: shared ids take the mass of the others",
        COMPOSITION,
        "tilted - tilted.logsumexp(-1, keepdim=True) + mass",
        "tilted",
        (FUNCTIONS,),
    ),
    Mutant(
        "reward: the strength is ignored in decoding",
        COMPOSED,
        "+= part.weight * (beta if part.scaled else 1.0)\n",
        "+= part.weight\n",
        (MODELS,),
    ),
    Mutant(
        "reward: padded columns are pooled",
        COMPOSED,
        "        return logits[:, -keep:, : self.vocab_size] if keep else "
        "logits[..., : self.vocab_size]\n",
        "        return logits[:, -keep:] if keep else logits\n",
        (MODELS,),
    ),
    Mutant(
        "reward: members read padded rows without positions",
        COMPOSED,
        '        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}\n',
        '        inputs = {"attention_mask": attention_mask, "position_ids": None}\n',
        (MODELS,),
    ),
    Mutant(
        "reward: members read padding",
        COMPOSED,
        '        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}\n',
        "        inputs: dict[str, Tensor | None] = {}\n",
        (MODELS,),
    ),
    Mutant(
        "reward: states do not follow the beams",
        CACHE,
        "    def reorder_cache(self, beam_idx: Tensor) -> None:\n",
        "    def reorder_cache(self, beam_idx: Tensor) -> None:\n        return\n",
        (MODELS,),
    ),
    Mutant(
        "reward: states are not cropped",
        CACHE,
        "    def crop(self, ",
        "    def crop(self, *_: int) -> None:\n        return\n\n    def _crop(self, ",
        (MODELS,),
    ),
    Mutant(
        "reward: labels are hashed without their lengths",
        LABELS,
        'len(data).to_bytes(4, "big") + data',
        "data",
        (ARTEFACT,),
    ),
    Mutant(
        "reward: the number of labels is taken for their names",
        PORTABLE,
        "        if label_hash(labels) != self.config.labels_sha256:\n",
        "        if len(labels) != self.config.output_size:\n",
        (ARTEFACT,),
    ),
    Mutant(
        "reward: the untuned model counts for the tuned one",
        COMPOSE,
        '_plain("untuned", untuned, -1.0, base, labels)',
        '_plain("untuned", untuned, 1.0, base, labels)',
        (MODELS,),
    ),
    Mutant(
        "reward: classes are mixed up",
        "reward/classifiers.py",
        "for ids in (self.id_map.keys(), self.id_map.values())",
        "for ids in (self.id_map.values(), self.id_map.keys())",
        (CLASSES,),
    ),
)
