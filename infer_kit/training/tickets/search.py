"""Searching a ticket: edge-popup, and IteRand, which draws pruned weights anew."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import rng
from infer_kit.training.tickets.freeze import SEARCHED
from infer_kit.training.tickets.masks import SupermaskParam, Threshold, TopK
from infer_kit.training.tickets.tickets import Ticket, check_finite

_CHECK_EVERY = 100
_SEARCHES: weakref.WeakKeyDictionary[torch.optim.Optimizer, EdgePopup]
_SEARCHES = weakref.WeakKeyDictionary()


def search_of(optimizer: torch.optim.Optimizer) -> EdgePopup | None:
    """The search that is attached to an optimizer."""
    return _SEARCHES.get(optimizer)


class EdgePopup:
    """SGD on the scores of fixed random weights.

    Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020, arXiv
    1911.13299, with signed scores and Kaiming bounds as it is run beside IteRand; the original has
    TopK(p, signed=False) and scores="edge_popup".

    >>> ticket = make_ticket(model, mask_rule=TopK(0.5))
    >>> search = EdgePopup(ticket)
    >>> optimizer = search.optimizer(lr=0.1)
    >>> for x, y in batches:
    ...     loss_of(model(x), y).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()

    Args:
        ticket: from `make_ticket`.

    Raises:
        InferKitError: a ticket that was read from a file.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.layers = ticket.layers()
        self.steps = 0
        self._attached: weakref.ref[torch.optim.Optimizer] | None = None

    def groups(self, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the scores, and what else learns, without decay."""
        model = self.ticket.model
        assert model is not None
        scores = [layer.scores for layer in self.layers.values()]
        ours = {id(s) for s in scores}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
        groups: list[dict[str, Any]] = [{"params": scores, "weight_decay": weight_decay}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        return groups

    def optimizer(
        self, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-4
    ) -> torch.optim.SGD:
        """SGD over `groups`, attached; the defaults are those of IteRand on CIFAR-10."""
        optimizer = torch.optim.SGD(self.groups(weight_decay), lr=lr, momentum=momentum)
        self.attach(optimizer)
        return optimizer

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call `step` before every step of an optimizer, whoever drives it.

        So a trainer needs no callback, and a step that a gradient scaler skips is not counted.

        Raises:
            InferKitError: the optimizer lacks scores, or the search is attached to one already.
        """
        if self._attached is not None:
            raise InferKitError(
                "The search is attached to an optimizer already.", "One search has one optimizer."
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, layer in self.layers.items() if id(layer.scores) not in held]
        if missing:
            raise InferKitError(
                f"The optimizer does not train the scores of {missing[0]!r}"
                + (f" and {len(missing) - 1} more tensors." if missing[1:] else "."),
                "Give it groups() of this search.",
            )
        self._attached = weakref.ref(optimizer)
        _SEARCHES[optimizer] = self
        return optimizer.register_step_pre_hook(lambda *_: self.step())

    def ensure_attached(self, optimizer: torch.optim.Optimizer) -> None:
        """`attach`, unless it is attached to this optimizer."""
        if self._attached is None or self._attached() is not optimizer:
            self.attach(optimizer)

    def step(self) -> None:
        """To be called before each optimizer step, unless it is attached.

        Raises:
            InferKitError: scores that are not finite. On a CPU that is seen at the next step,
                elsewhere within 100, so that the device is not waited for at each.
        """
        cpu = next(iter(self.layers.values())).scores.device.type == "cpu"
        if cpu or self.steps % _CHECK_EVERY == 0:
            check_finite(self.layers)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the states of model and optimizer."""
        return {"steps": self.steps, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InferKitError: the state is of other settings, under which other weights are drawn.
        """
        given = {name: value for name, value in state.items() if name != "steps"}
        if given != self._settings():
            raise InferKitError(
                f"The checkpoint is of {given}, this search is {self._settings()}.",
                "Resume with the settings of the checkpoint.",
            )
        self.steps = state["steps"]

    def _settings(self) -> dict[str, Any]:
        return {"kind": type(self).__name__}


class IteRand(EdgePopup):
    """Edge-popup that draws a part of the pruned weights anew, now and then.

        before optimizer step i = 1, 2, ..., if i % k_per == 0, in all layers:
            m = mask(s, p rerand_rate);  b ~ Bernoulli(r)
            w <- w where m or not b, else a fresh draw of the same distribution

    Chijiwa et al., "Pruning Randomly Initialized Neural Networks with Iterative Randomization",
    NeurIPS 2021, arXiv 2106.09269. r = 0 is edge-popup exactly. What is drawn follows from (seed,
    name, position, number of the event), so that a run that resumes makes the same draws without a
    state of a generator, and all ranks of a distributed run the same ones. Frozen weights are never
    drawn anew.

    Args:
        ticket: from `make_ticket`.
        k_per: steps from one event to the next; 300 on CIFAR-10 and 1000 on ImageNet.
        r: share of the pruned weights that is drawn anew.
        rerand_rate: the share p times this counts as pruned, from 0 to 1.

    Raises:
        InferKitError: k_per below 1, r or rerand_rate outside [0, 1]; a rerand_rate with a
            Threshold, which has no share p, or under which only frozen weights count as pruned.
    """

    def __init__(
        self, ticket: Ticket, k_per: int = 300, r: float = 0.1, rerand_rate: float = 1.0
    ) -> None:
        super().__init__(ticket)
        if k_per < 1 or not 0 <= r <= 1 or not 0 < rerand_rate <= 1:
            raise InferKitError(
                f"IteRand(k_per={k_per}, r={r}, rerand_rate={rerand_rate}): k_per is a number of "
                "steps from 1 on, r a share from 0 to 1, rerand_rate one above 0."
            )
        if rerand_rate != 1 and isinstance(ticket.spec.rule, Threshold):
            raise InferKitError(
                "A Threshold prunes no fixed share, so that there is nothing for rerand_rate to "
                "scale.",
                "Leave rerand_rate at 1, or use TopK.",
            )
        rule = ticket.spec.rule
        if rerand_rate != 1 and isinstance(rule, TopK):
            replace(rule, p=rule.p * rerand_rate).check(ticket.spec.sizes())
        self.k_per, self.r, self.rerand_rate = k_per, r, rerand_rate
        self._before = 0
        for layer in self.layers.values():
            if layer.gens is not None:
                self._before = max(self._before, int(layer.gens.max()))
            layer.keep_generations()

    @property
    def events(self) -> int:
        """How many times weights have been drawn anew, by searches before this one too."""
        return self._before + self.steps // self.k_per

    def step(self) -> None:
        """To be called before each optimizer step, unless it is attached; see `EdgePopup.step`."""
        super().step()
        if self.steps % self.k_per == 0:
            weights = self.ticket.weights()
            for name, layer in self.layers.items():
                self._redraw(name, layer, weights[name])

    @torch.no_grad()
    def _redraw(self, name: str, layer: SupermaskParam, weight: Tensor) -> None:
        pruned = ~layer.mask(self.rerand_rate)
        if layer.frozen is not None:
            pruned &= layer.frozen == SEARCHED
        index = pruned.flatten().nonzero().squeeze(1)
        u = rng.uniform(self.ticket.spec.seed, f"{name}#redraw", index, self.events)
        index = index[u < self.r]
        gens = layer.gens
        assert gens is not None
        fresh = self.ticket.spec.redraw(name, index, self.events)
        place = torch.unravel_index(index, weight.shape)
        weight[place] = fresh.to(weight.dtype)
        gens[place] = self.events

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the states of model and optimizer."""
        return super().state_dict() | {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; see `EdgePopup.load_state_dict`."""
        rest = dict(state)
        before = rest.pop("before", 0)
        super().load_state_dict(rest)
        self._before = before

    def _settings(self) -> dict[str, Any]:
        mine = {"k_per": self.k_per, "r": self.r, "rerand_rate": self.rerand_rate}
        return super()._settings() | mine
