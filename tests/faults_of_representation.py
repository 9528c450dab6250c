"""The faults of the representation methods; see `tests/faults.py`."""

from __future__ import annotations

from tests.faults import Mutant

HOME = "training/representation/"
TESTS = "tests/training/representation/"
CLIP_LOSSES, CLIP_REFINE, MODALITY, CVAE, CONSISTENCY, META, MGR, PRIOR, ADARAND = (
    f"{TESTS}test_{name}.py"
    for name in (
        *("clip_losses", "clip_refine", "modality", "cvae", "consistency", "meta_sampling"),
        *("mgr", "gaussian_prior", "adarand"),
    )
)
SAMPLES, SEMI, PRETRAINING = (
    f"{TESTS}test_{name}.py" for name in ("pseudo_samples", "semi_supervised", "pseudo_pretraining")
)


def _fault(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(f"representation: {name}", HOME + file, old, new, tests)


REPRESENTATION_MUTANTS = (
    # CLIP-Refine
    _fault(
        "the paper's RaFA is not halved",
        "clip_losses.py",
        "(b - z).square().sum(1)).mean() / 2",
        "(b - z).square().sum(1)).mean()",
        CLIP_LOSSES,
    ),
    _fault(
        "texts are taught what images are",
        "clip_losses.py",
        "softmax(S_t.T, 1)",
        "softmax(S_t, 1)",
        CLIP_LOSSES,
    ),
    _fault(
        "the teacher has another temperature",
        "clip_losses.py",
        "S_t = S_t.detach().to(S) / T",
        "S_t = S_t.detach().to(S)",
        CLIP_LOSSES,
    ),
    _fault(
        "raw products wherever",
        "clip_losses.py",
        'return ("raw" if scale / 4 <= norms <= 4 * scale else "scaled_cosine"), norms',
        'return "raw", norms',
        CLIP_LOSSES,
        CLIP_REFINE,
    ),
    _fault(
        "each process has its own loss",
        "clip_refine.py",
        "    return torch.cat(list(all_gather(x.contiguous())))",
        "    return x",
        CLIP_REFINE,
    ),
    _fault(
        "z of its own for each modality",
        "clip_refine.py",
        "            return rafa_loss(a, b, z, self.refine.reduction)\n        other",
        "            return rafa_loss(a, b, torch.randn_like(z), self.refine.reduction)\n"
        "        other",
        CLIP_REFINE,
    ),
    _fault(
        "the logit scale is trained",
        "clip_refine.py",
        "                parameter.requires_grad_(False)",
        "                pass",
        CLIP_REFINE,
    ),
    _fault(
        "a caption for all epochs",
        "clip_refine.py",
        "            one.set_epoch(int(state.epoch))",
        "            pass",
        CLIP_REFINE,
    ),
    _fault(
        "the teacher drops out",
        "clip_refine.py",
        "teacher.requires_grad_(False).eval()",
        "teacher.requires_grad_(False).train()",
        CLIP_REFINE,
    ),
    _fault(
        "biases do not decay",
        "clip_refine.py",
        "model.named_parameters() if parameter.requires_grad]",
        'model.named_parameters() if parameter.requires_grad and "bias" not in name]',
        CLIP_REFINE,
    ),
    _fault(
        "captions of a part of the data stay",
        "clip_refine.py",
        "        yield from _captioned(data.dataset)",
        "        pass",
        CLIP_REFINE,
    ),
    _fault(
        "workers that stay see the first epoch",
        "image_text.py",
        "        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()",
        "        self._epoch = torch.zeros((), dtype=torch.int64)",
        CLIP_REFINE,
    ),
    _fault(
        "another teacher of SigLIP",
        "clip_refine.py",
        '"max_position_embeddings", "projection_size"),',
        '"max_position_embeddings"),',
        CLIP_REFINE,
    ),
    _fault(
        "equal cosines count for the query",
        "modality.py",
        "((cosines >= best) & ~own)",
        "((cosines > best) & ~own)",
        MODALITY,
    ),
    _fault(
        "a feature is its own neighbour",
        "modality.py",
        "kernel.triu(1)",
        "kernel.triu(0)",
        MODALITY,
    ),
    # AdaRand
    _fault(
        "absent classes move",
        "gaussian_prior.py",
        "m = torch.where(counts[:, None] > 0, self.alpha * m + (1 - self.alpha) * mean, m)",
        "m = self.alpha * m + (1 - self.alpha) * mean",
        PRIOR,
    ),
    _fault(
        "the paper's means come together",
        "gaussian_prior.py",
        "return (1 - follows).mean() - (1 - between)",
        "return (1 - follows).mean() + (1 - between)",
        PRIOR,
    ),
    _fault(
        "a class keeps away from itself",
        "gaussian_prior.py",
        "between = (u.sum(0).square().sum() - u.square().sum()) / (K * (K - 1))",
        "between = u.sum(0).square().sum() / (K * (K - 1))",
        PRIOR,
    ),
    _fault(
        "slopes of float32",
        "feature_moments.py",
        '    return x.float() if x.device.type == "mps" else x.double()',
        "    return x.float()",
        PRIOR,
    ),
    _fault(
        "the rate goes on to fall",
        "gaussian_prior.py",
        "t = min(1.0, int(self.steps) / self.total_steps)",
        "t = int(self.steps) / self.total_steps",
        PRIOR,
    ),
    _fault(
        "each process its own means",
        "gaussian_prior.py",
        "            dist.all_reduce(sums)\n            dist.all_reduce(counts)",
        "            pass",
        ADARAND,
    ),
    _fault(
        "spread between batches is lost",
        "feature_moments.py",
        " + off.square() * self.n * share",
        "",
        PRIOR,
    ),
    _fault(
        "statistics in training mode",
        "feature_moments.py",
        "torch.no_grad(), evaluating(model):",
        "torch.no_grad():",
        PRIOR,
    ),
    _fault(
        "the term of a micro-batch is not a share",
        "adarand.py",
        "self.adarand(features, labels, self._generator(), num_items_in_batch)",
        "self.adarand(features, labels, self._generator())",
        ADARAND,
    ),
    _fault(
        "an update for each micro-batch",
        "adarand.py",
        "        if self.accelerator.sync_gradients:",
        "        if True:",
        ADARAND,
    ),
    _fault(
        "a resumed run begins with the first prior",
        "adarand.py",
        '            self.adarand.prior.load_state_dict(state["prior"])',
        "            pass",
        ADARAND,
    ),
    _fault(
        "a resumed run draws from the start",
        "adarand.py",
        '        self._batches = state["batches"]',
        "        pass",
        ADARAND,
    ),
    Mutant(
        "representation: an adapter's Linear is the head",
        "training/feature_tap.py",
        "            self.name = adapted_layer(modules, linear[-1])",
        "            self.name = linear[-1]",
        ("tests/training/test_feature_tap.py",),
    ),
    _fault(
        "a rate for the first run alone",
        "adarand.py",
        "                prior.total_steps = None",
        "                pass",
        ADARAND,
    ),
    # Generators
    _fault(
        "the sign of the divergence's logarithm",
        "cvae.py",
        "log_s2.exp() - log_s2 - 1",
        "log_s2.exp() + log_s2 - 1",
        CVAE,
    ),
    _fault(
        "the generator learns",
        "cvae.py",
        "name: parameter.detach() for",
        "name: parameter for",
        CVAE,
    ),
    # MGR
    _fault(
        "samples move running statistics and the head",
        "consistency.py",
        "placed.run(called_with, torch.cat([augmented, x]))",
        "model(torch.cat([augmented, x]))",
        CONSISTENCY,
    ),
    _fault(
        "turned images are stretched",
        "consistency.py",
        "ratio = height / width",
        "ratio = width / height",
        CONSISTENCY,
    ),
    _fault(
        "the finder climbs",
        "meta_sampling.py",
        "(s, -eta * u) for s, u",
        "(s, eta * u) for s, u",
        META,
    ),
    _fault(
        "validation at theta",
        "meta_sampling.py",
        "(p.detach() - eta * step)",
        "(p.detach() - 0 * step)",
        META,
    ),
    _fault(
        "each process its own finder",
        "meta_sampling.py",
        "return _mean_over_processes(grads), value.detach()",
        "return list(grads), value.detach()",
        META,
        MGR,
    ),
    _fault(
        "PCR of a micro-batch is not a share",
        "mgr_trainer.py",
        "            pcr = share * pcr",
        "            pcr = pcr / 1",
        MGR,
    ),
    _fault(
        "PCR of a process is not a share",
        "mgr_trainer.py",
        "                share = share * self.accelerator.num_processes",
        "                pass",
        MGR,
    ),
    _fault(
        "labels that count for nothing count",
        "mgr_trainer.py",
        "share = labels.ne(IGNORED).sum() / num_items_in_batch",
        "share = len(labels) / num_items_in_batch",
        MGR,
    ),
    _fault(
        "the model's own mean is taken",
        "mgr_trainer.py",
        "            self.compute_loss_func = classifier_loss",
        "            pass",
        MGR,
    ),
    _fault(
        "the finder's optimizer begins anew",
        "mgr_trainer.py",
        '        self._finder_optimizer.load_state_dict(state["optimizer"])',
        "        pass",
        MGR,
    ),
    # PP and P-SSL
    _fault(
        "classes are drawn evenly",
        "pseudo_samples.py",
        "torch.multinomial(p.to(device), 1, generator=rng)",
        "torch.multinomial(torch.ones_like(p).to(device), 1, generator=rng)",
        SAMPLES,
    ),
    _fault(
        "agreement by chance counts",
        "relatedness.py",
        "(float((a == b).double().mean()) - chance) / (1 - chance)",
        "float((a == b).double().mean())",
        SAMPLES,
    ),
    _fault(
        "unrelated sources pass",
        "relatedness.py",
        "        if not self.related:\n            raise",
        "        if False:\n            raise",
        SAMPLES,
        SEMI,
    ),
    _fault(
        "targets are flattened",
        "semi_supervised.py",
        "log_softmax(weak / self.temperature, 1)",
        "log_softmax(weak * self.temperature, 1)",
        SEMI,
    ),
    _fault(
        "the mean is of those that count",
        "semi_supervised.py",
        "return (self.kept(weak) * kl).mean()",
        "return (self.kept(weak) * kl).sum() / self.kept(weak).sum()",
        SEMI,
    ),
    _fault(
        "each micro-batch weighs the same",
        "pssl_trainer.py",
        "loss = loss * (y != IGNORED).sum() / num_items_in_batch",
        "loss = loss / self.current_gradient_accumulation_steps",
        SEMI,
    ),
    _fault(
        "processes share a loss twice",
        "pssl_trainer.py",
        "loss = loss * self.accelerator.num_processes",
        "loss = loss * 1",
        SEMI,
    ),
    _fault(
        "all processes have the same samples",
        "pseudo_pretraining.py",
        "seeded(seed, rank, step), device)",
        "seeded(seed, 0, step), device)",
        PRETRAINING,
    ),
    _fault(
        "a resumed run drops out anew",
        "pseudo_pretraining.py",
        '        torch.set_rng_state(own["cpu"])\n',
        "",
        PRETRAINING,
    ),
    # Trainers
    Mutant(
        "representation: weights of other names stay unloaded",
        "training/renamed_weights.py",
        "        model.load_state_dict(loaded.state_dict())",
        "        pass",
        ("tests/training/test_renamed_weights.py",),
    ),
)
