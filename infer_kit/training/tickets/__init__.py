"""Lottery tickets: networks that are a seed and a bit for each weight.

>>> ticket = make_ticket(model, seed=0, mask_rule=TopK(0.5))
>>> search = IteRand(ticket, k_per=300, r=0.1)
>>> fit(model, loader, loss, epochs=100, optimizer=search.optimizer(lr=0.1), search=search)
>>> ticket.save("ticket.safetensors")
>>> Ticket.load("ticket.safetensors").apply(FreshModel())

Random weights are never trained; a score for each is, and the highest scores form the network.
"""

from infer_kit.training.tickets.allocate import epl as epl
from infer_kit.training.tickets.allocate import erk as erk
from infer_kit.training.tickets.allocate import igq as igq
from infer_kit.training.tickets.allocate import proportional as proportional
from infer_kit.training.tickets.allocate import uniform as uniform
from infer_kit.training.tickets.attention_slt import Head as Head
from infer_kit.training.tickets.attention_slt import draw_source as draw_source
from infer_kit.training.tickets.attention_slt import merge_qk as merge_qk
from infer_kit.training.tickets.attention_slt import merge_vo as merge_vo
from infer_kit.training.tickets.attention_slt import prune_head as prune_head
from infer_kit.training.tickets.episodes import Episodes as Episodes
from infer_kit.training.tickets.episodes import EpisodeSampler as EpisodeSampler
from infer_kit.training.tickets.fit import fit as fit
from infer_kit.training.tickets.fit import warm_up_cosine as warm_up_cosine
from infer_kit.training.tickets.freeze import Freeze as Freeze
from infer_kit.training.tickets.freeze import FrozenMask as FrozenMask
from infer_kit.training.tickets.make import make_ticket as make_ticket
from infer_kit.training.tickets.masks import SupermaskParam as SupermaskParam
from infer_kit.training.tickets.masks import Threshold as Threshold
from infer_kit.training.tickets.masks import TopK as TopK
from infer_kit.training.tickets.meta import ANIL as ANIL
from infer_kit.training.tickets.meta import BOIL as BOIL
from infer_kit.training.tickets.meta import MAML as MAML
from infer_kit.training.tickets.meta import MetaTicket as MetaTicket
from infer_kit.training.tickets.qk_scale import qk_init_scale as qk_init_scale
from infer_kit.training.tickets.rng import RNG_VERSION as RNG_VERSION
from infer_kit.training.tickets.search import EdgePopup as EdgePopup
from infer_kit.training.tickets.search import IteRand as IteRand
from infer_kit.training.tickets.size import TicketSize as TicketSize
from infer_kit.training.tickets.subsetsum import approx_product as approx_product
from infer_kit.training.tickets.subsetsum import best_subset as best_subset
from infer_kit.training.tickets.tickets import Ticket as Ticket

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "RNG_VERSION",
    "EdgePopup",
    "EpisodeSampler",
    "Episodes",
    "Freeze",
    "FrozenMask",
    "Head",
    "IteRand",
    "MetaTicket",
    "SupermaskParam",
    "Threshold",
    "Ticket",
    "TicketSize",
    "TopK",
    "approx_product",
    "best_subset",
    "draw_source",
    "epl",
    "erk",
    "fit",
    "igq",
    "make_ticket",
    "merge_qk",
    "merge_vo",
    "proportional",
    "prune_head",
    "qk_init_scale",
    "uniform",
    "warm_up_cosine",
]
