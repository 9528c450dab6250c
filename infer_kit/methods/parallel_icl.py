r"""Parallel-ICL: many demonstrations in chunks, each chunk a context of its own, one answer.

Source: Yamaguchi, Chijiwa, Sakao, Hasegawa, "Parallel In-context Learning for Large Vision Language
Models", CVPR 2026, arXiv 2603.16092.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.backends import backend_for
from infer_kit.chats import Chat, as_chats, load_images, question_of
from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.methods.chunk_prompts import ChunkPrompts
from infer_kit.methods.chunking import CHUNKINGS, chunk, given_chunks
from infer_kit.methods.demonstrations import as_demonstrations, pictures_of, question_key
from infer_kit.methods.features import (
    demonstration_features,
    encoder_for,
    given_features,
    query_features,
)
from infer_kit.methods.fitted_pool import FittedPool
from infer_kit.methods.recipe import MethodOutput, Recipe, is_number
from infer_kit.methods.selection import (
    SELECTIONS,
    check_seed,
    is_whole,
    select,
    unknown_name,
)
from infer_kit.methods.weighting import (
    WEIGHTINGS,
    entropy_weights,
    similarity_weights,
    uniform_weights,
)
from infer_kit.streams import Group, Stream


@dataclass(frozen=True)
class ParallelICLOutput(MethodOutput):
    """The answers of Parallel-ICL, see `MethodOutput`.

    Attributes:
        weights: `[K]` floats, one a chunk; for a list of queries a list of them. None where they
            change with every step (see the trace).
        chunks: the numbers of each chunk's demonstrations; for a list of queries a list of them.
        banked: whether the chunks' states were read once, in `fit`; for a list, one each.
    """

    weights: Any
    chunks: Any
    banked: Any


class ParallelICL(Recipe):
    r"""$p(y_i) = \prod_k p(y_i \mid y_{<i}, C_k, x, q)^{w_k} / Z$ over chunks $C_k$.

    The chunks partition the demonstrations; $w = \mathrm{softmax}_k(s_k / \tau)$, $s_k$ the mean
    similarity of a chunk's demonstrations to the query, $\cos_{image} + \cos_{text}$.
    Demonstrations precede the query, so the states of the chunks are the same for every query: they
    are read once, in `fit` (the bank), and a query costs the prefill of itself alone.

    `chunks=1, bank=False` is full-context in-context learning: `model.generate()` on all the
    demonstrations and the query, token for token and, in float32, bit for bit.

    Differs from the published code: chunks are the clusters themselves (there: equal slices of the
    sorted labels); what is sampled is the product (there its probabilities, taken for logits); a
    temperature; the number of chunks stays as asked after selection.

    Example:
        >>> picl = ParallelICL(model, processor, chunks=4).fit(demonstrations)
        >>> picl.generate(query, max_new_tokens=16).text
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        chunks: int | Sequence[int] | Sequence[Sequence[int]] = 4,
        chunking: str = "kmeans",
        weighting: str | Sequence[float] = "similarity",
        temperature: float = 1.0,
        pool: str = "product",
        selection: str | None = None,
        shots: int | None = None,
        encoder: Any = None,
        bank: bool | None = None,
        system: str | None = None,
        seed: int = 0,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args:
        model, processor: a transformers model and its own processor.
        chunks: K, from 1 to the number of demonstrations; or chunks of your own, as a label for
            each demonstration or as lists of their numbers.
        chunking: "kmeans" (true clusters, of unequal size), "balanced" (clusters of equal size),
            "similarity" (neighbours together), "diversity" (neighbours apart) or "random".
        weighting: "similarity", "uniform", "entropy" (at every step, surer chunks count more:
            softmax of minus the entropy over τ), or K weights of your own.
        temperature: τ. At 1, the paper's, similarity weights are nearly uniform.
        pool: "product" or "mixture".
        selection: which `shots` of the demonstrations are used: "nearest" to the query (anew for
            each, so there is no bank), "diverse" (DivPrune), "random", or None for all.
        shots: how many, with a selection.
        encoder: of features: None for the model's own vision encoder and token embeddings, "text",
            the path of a CLIP or SigLIP model, or (model, processor).
        bank: None keeps the chunks' states where that is exact and warns where it is not; True
            raises there; False reads every prompt whole. With mode="serial" None is False.
        system: a system turn before the demonstrations.
        seed: of clustering, "random" chunks and "random" selection.
        trace: record each chunk's part in each token; a number: with so many candidates.
        chat_template: a Jinja template, where the processor has none.
        mode: "fused", "serial" or "auto", see `CoupledLM`.

        Raises:
            InferKitError: an argument cannot be; names it.
        """
        self.chunks: Any = chunks.tolist() if hasattr(chunks, "tolist") else chunks
        if isinstance(self.chunks, list | tuple):  # numbers of numpy, as `labels_` has them
            self.chunks = [int(c) if is_whole(c) else c for c in self.chunks]
        self.weighting: Any = weighting.tolist() if hasattr(weighting, "tolist") else weighting
        self.chunking = chunking
        self.temperature, self.pool = temperature, pool
        self.selection, self.shots = selection, shots
        self.encoder, self.bank, self.system, self.seed = encoder, bank, system, seed
        self.trace = trace
        self._check_arguments()
        self.backend = backend_for(model, processor, chat_template, mode)
        self._bank = False if bank is None and (mode == "serial") else bank
        self._encoder = encoder_for(encoder, self.backend)
        self._fitted: FittedPool | None = None
        self._prompts: ChunkPrompts | None = None
        self._memory: Any = None
        self._keys: list[str] = []

    def _check_arguments(self) -> None:
        given = isinstance(self.chunks, Sequence) and not isinstance(self.chunks, str)
        count = isinstance(self.chunks, int) and not isinstance(self.chunks, bool)
        if not given and not (count and self.chunks >= 1):
            raise InferKitError(
                f"chunks is a number from 1 on, or chunks of your own; got {self.chunks!r}."
            )
        if self.chunking not in CHUNKINGS:
            raise unknown_name("chunking", self.chunking, CHUNKINGS)
        if isinstance(self.weighting, str):
            if self.weighting not in WEIGHTINGS:
                raise unknown_name("weighting", self.weighting, WEIGHTINGS)
        elif not (isinstance(self.weighting, Sequence) and all(map(is_number, self.weighting))):
            raise InferKitError(f"weighting must be a name or K numbers, got {self.weighting!r}.")
        elif not any(self.weighting):
            raise InferKitError("All weights are 0: no chunk would be read.")
        elif self.pool == "mixture" and (
            min(self.weighting) < 0 or abs(sum(self.weighting) - 1) > 1e-5
        ):
            raise InferKitError(
                f"The weights of a mixture are at least 0 and sum to 1, got {self.weighting!r}."
            )
        if not is_number(self.temperature) or self.temperature <= 0:
            raise InferKitError(f"temperature must be positive, got {self.temperature!r}.")
        if self.pool not in ("product", "mixture"):
            raise InferKitError(f"pool is 'product' or 'mixture', got {self.pool!r}.")
        if self.selection is not None and self.selection not in SELECTIONS:
            raise unknown_name("selection", self.selection, SELECTIONS)
        if self.system is not None and not isinstance(self.system, str):
            raise InferKitError(f"system is a text, got a {type(self.system).__name__}.")
        check_seed(self.seed)
        if (self.selection is None) != (self.shots is None):
            raise InferKitError(
                f"selection={self.selection!r} and shots={self.shots!r} go together: how to "
                "select, and how many demonstrations."
            )
        if self.shots is not None and (not is_whole(self.shots) or self.shots < 1):
            raise InferKitError(f"shots is a number from 1 on, got {self.shots!r}.")
        if self.selection is not None and given:
            raise InferKitError(
                f"selection={self.selection!r} picks demonstrations, and chunks= of your own holds "
                "all of them; give one of the two, or a number of chunks."
            )
        if self.selection == "nearest" and self.bank:
            raise InferKitError(
                "selection='nearest' picks anew for every query, so there is no bank; leave it out."
            )

    # Fitting

    def fit(self, demonstrations: Any, features: Any = None) -> "ParallelICL":
        """Read the demonstrations: features, chunks, and each chunk's state where there is a bank.

        Args:
            demonstrations: a list of mappings with "question", "answer" and perhaps "image" or
                "images", or of chats that end with the assistant's answer.
            features: `[N, D]` of your own, in place of an encoder's.

        Returns:
            itself.

        Raises:
            InferKitError: there are none, one has no answer, there are fewer than chunks, or a
                chunk is longer than the model takes (and which number of chunks would fit).
        """
        demos = [
            type(demo)(load_images(demo.chat, n, "Demonstration"))
            for n, demo in enumerate(as_demonstrations(demonstrations))
        ]
        used = len(demos) if self.shots is None else self.shots
        if used > len(demos):
            raise InferKitError(f"shots={used}, but there are {len(demos)} demonstrations.")
        if isinstance(self.chunks, int) and self.chunks > used:
            raise InferKitError(
                f"{self.chunks} chunks need at least {self.chunks} demonstrations, got {used}.",
                hint=f"Use chunks={used} or fewer.",
            )
        self._check_weights(
            self.chunks if isinstance(self.chunks, int) else len(given_chunks(self.chunks, used))
        )
        self._check_pictures(demos)
        self._memory = self.backend.new_memory()
        table, width = self._features_of(demos, features)
        self._fitted = FittedPool(demos, table, width, None)
        if self.selection != "nearest":
            self._fitted.chunks = self._chunks_of(None)
        self._read_bank()
        return self

    def save(self, folder: str | Path) -> None:
        """Write the fitted pool: features, chunks, texts and pictures. `load` reads states anew."""
        encoder = self.encoder if isinstance(self.encoder, str | Path | None) else "custom"
        settings = {
            "chunks": self.chunks if isinstance(self.chunks, int) else [*map(_plain, self.chunks)],
            "chunking": self.chunking,
            "weighting": self.weighting
            if isinstance(self.weighting, str)
            else [float(w) for w in self.weighting],
            "temperature": float(self.temperature),
            "pool": self.pool,
            "selection": self.selection,
            "shots": self.shots,
            "encoder": None if encoder is None else str(encoder),
            "system": self.system,
            "seed": self.seed,
        }
        self._pool().save(Path(folder), settings, self.backend.fingerprint())

    @classmethod
    def load(
        cls, folder: str | Path, model: Any, processor: Any, **arguments: Any
    ) -> "ParallelICL":
        """A fitted pool that `save` wrote, for the model that it was fitted with.

        Args:
            arguments: of the constructor, in place of the saved ones. Where the encoder was an
                object it must be given again.

        Raises:
            InferKitError: there is none, or it was fitted with another model.
        """
        backend = backend_for(model, processor, arguments.get("chat_template"))
        pool, settings = FittedPool.load(Path(folder), backend.is_same)
        if settings["encoder"] == "custom" and "encoder" not in arguments:
            raise InferKitError(
                f"The pool in {folder} was fitted with an encoder object; pass encoder= again."
            )
        fixed = {"chunks", "chunking", "selection", "shots", "seed"} & arguments.keys()
        if settings["encoder"] != "custom":
            fixed |= {"encoder"} & arguments.keys()
        if fixed:
            raise InferKitError(
                f"{sorted(fixed)} made the saved chunks and cannot be changed; fit() again."
            )
        picl = cls(model, processor, **(settings | arguments))
        picl._memory = picl.backend.new_memory()
        picl._fitted = pool
        count = picl.chunks if pool.chunks is None else len(pool.chunks)
        picl._check_weights(count)
        if picl.weighting == "similarity" and pool.features is None and count > 1:
            raise InferKitError(
                f"The pool in {folder} was saved without features, which similarity weights need; "
                "fit() again."
            )
        picl._read_bank()
        return picl

    def _read_bank(self) -> None:
        """The states of the chunks, and what tells a query that is itself a demonstration."""
        pool = self._pool()
        self._keys = [question_key(demo.pictures, demo.question) for demo in pool.demonstrations]
        self._prompts = ChunkPrompts(self.backend, pool.demonstrations, self.system, self._bank)
        if pool.chunks is not None:
            used = sorted(n for members in pool.chunks for n in members)
            self._prompts.read(pool.chunks, self._memory, partial(self._partition, used))

    def _features_of(self, demos: Sequence[Any], given: Any) -> tuple[Tensor | None, int | None]:
        """`[N, D]`, and how many of the D are of images; None where they are the user's."""
        if given is not None:
            return given_features(given, len(demos)), None
        clusters = isinstance(self.chunks, int) and self.chunking != "random"
        one = self.chunks == 1
        selects = self.selection in ("nearest", "diverse")
        if not (selects or self.weighting == "similarity" or clusters) or (one and not selects):
            return None, 0
        return demonstration_features(self._encoder, demos, self._memory)

    def _chunks_of(self, query: Tensor | None) -> list[list[int]]:
        """The chunks, of all demonstrations or of those selected, by number."""
        pool = self._pool()
        count = len(pool.demonstrations)
        if self.selection is None:
            chosen = list(range(count))
        elif pool.features is None:
            chosen = select(torch.zeros(count, 1), self.shots or 0, self.selection, None, self.seed)
        else:
            chosen = select(pool.features, self.shots or 0, self.selection, query, self.seed)
        if isinstance(self.chunks, int):
            parts = self._partition(chosen, self.chunks)
        else:
            parts = given_chunks(self.chunks, len(chosen))
        return parts

    def _check_weights(self, chunks: int) -> None:
        if not isinstance(self.weighting, str) and len(self.weighting) != chunks:
            raise InferKitError(f"Got {len(self.weighting)} weights for {chunks} chunks.")

    def _check_pictures(self, demos: Sequence[Any]) -> None:
        """Raise where the processor takes no pictures and there are some."""
        pictured = next((n for n, demo in enumerate(demos) if demo.pictures), None)
        if pictured is not None:
            with suppress(PromptTooLong):  # said later, with the chunk
                self.backend.render(demos[pictured].chat, pictured)

    def _partition(self, members: Sequence[int], chunks: int) -> list[list[int]]:
        """Demonstrations in so many chunks, by their features."""
        pool = self._pool()
        if pool.features is not None:
            features = pool.features[list(members)]
        elif self.chunking == "random" or chunks == 1:
            features = torch.zeros(len(members), 1)
        else:  # another number of chunks than asked for, to propose it
            some = [pool.demonstrations[n] for n in members]
            features, _ = demonstration_features(self._encoder, some, self._memory)
        parts = chunk(features, chunks, self.chunking, self.seed)
        return [[members[i] for i in part] for part in parts]

    # Answering

    def generate(
        self, messages: Any, features: Any = None, **generate_kwargs: Any
    ) -> ParallelICLOutput:
        """Answer one query, or a list of queries together.

        Args:
            messages: a chat whose last turn is the question, or a list of chats.
            features: `[D]` or `[Q, D]` of the queries, where `fit` was given features.
            **generate_kwargs: `GenerationMixin.generate`'s.

        Raises:
            InferKitError: `fit` was not called, an image is missing, a prompt is longer than the
                model takes; before any forward pass.
        """
        chats, single = as_chats(messages)
        self.backend.check(len(chats), **generate_kwargs)
        memory = self._call_memory()
        groups, chunks = self._groups(chats, memory, features)
        answers = self._decode(groups, memory, generate_kwargs)
        weights = [[stream.weight for stream in group.streams] for group in groups]
        banked = [self.backend.is_banked(group.streams[0].context) for group in groups]
        return ParallelICLOutput.of(
            answers,
            single,
            weights=None if self.weighting == "entropy" else (weights[0] if single else weights),
            chunks=chunks[0] if single else chunks,
            banked=banked[0] if single else banked,
        )

    def groups(
        self, chats: Sequence[Chat], memory: Any = None, features: Any = None
    ) -> list[Group]:
        """Stream "chunk k" reads the demonstrations of chunk k, then the query.

        Where the group is composed with a method that has a plausibility cut-off, the product of
        all chunks says what is plausible.
        """
        groups, _ = self._groups(chats, memory, features)
        return [replace(group, experts=tuple(range(len(group.streams)))) for group in groups]

    def _groups(
        self, chats: Sequence[Chat], memory: Any, features: Any
    ) -> tuple[list[Group], list[list[list[int]]]]:
        pool = self._pool()
        self._check_arguments()  # attributes may have been set since
        chats = [self._checked_query(chat, b) for b, chat in enumerate(chats)]
        fixed = pool.chunks is not None
        queries = None if fixed else self._query_features(chats, features, memory)
        contexts_of, chunks = [], []
        for b, chat in enumerate(chats):
            parts = pool.chunks or self._chunks_of(None if queries is None else queries[b])
            used = sorted(n for members in parts for n in members)
            key = question_key(pictures_of(chat), question_of(chat, b))
            twin = next((n for n in used if self._keys[n] == key), None)
            if twin is not None:
                warnings.warn(
                    f"Query {b} is demonstration {twin} itself, so its answer is in the context.",
                    stacklevel=3,
                )
            assert self._prompts is not None
            rechunk = partial(self._partition, used)
            contexts_of.append(self._prompts.contexts(parts, chat, b, rechunk))
            chunks.append(parts)
        if fixed:  # prompts that cannot be are refused before any image is encoded
            queries = self._query_features(chats, features, memory)
        groups = []
        for b, (contexts, parts) in enumerate(zip(contexts_of, chunks, strict=True)):
            weights = self._weights(parts, None if queries is None else queries[b])
            names = ["all"] if len(parts) == 1 else [f"chunk {k}" for k in range(len(parts))]
            streams = zip(contexts, weights, names, strict=True)
            groups.append(Group(tuple(Stream(c, w, n) for c, w, n in streams)))
        return groups, chunks

    def _weights(self, parts: Sequence[Sequence[int]], query: Tensor | None) -> list[float]:
        if not isinstance(self.weighting, str):
            return [float(w) for w in self.weighting]
        features = self._pool().features
        if self.weighting != "similarity" or len(parts) == 1 or features is None or query is None:
            return uniform_weights(len(parts))
        return similarity_weights(features @ query, [*map(list, parts)], self.temperature)

    def _step_weights(self) -> Any:
        return entropy_weights(self.temperature) if self.weighting == "entropy" else None

    def _checked_query(self, chat: Chat, b: int) -> Chat:
        if any(turn["role"] == "system" for turn in chat):
            raise InferKitError(
                f"Query {b} has a system turn, which must come before the demonstrations.",
                hint="Pass ParallelICL(..., system='...').",
            )
        question_of(chat, b)
        chat = load_images(chat, b, "Query")
        pictures = pictures_of(chat)
        demos = self._pool().demonstrations
        if not pictures and all(demo.pictures for demo in demos):
            raise InferKitError(
                f"Query {b} has no image, but every demonstration has one.",
                hint='Add {"type": "image", "image": ...} to its content.',
            )
        return chat

    def _query_features(self, chats: Sequence[Chat], given: Any, memory: Any) -> Tensor | None:
        pool = self._pool()
        weighed = self.weighting == "similarity" and (pool.chunks is None or len(pool.chunks) > 1)
        if given is not None:  # checked, needed or not
            if pool.image_width is not None or pool.features is None:
                raise InferKitError(
                    "features of queries need those of the demonstrations: fit(..., features=...)."
                )
            given = given_features(given, len(chats), pool.features)
        if pool.features is None or (pool.chunks is not None and not weighed):
            return None
        if given is not None:
            return given
        if pool.image_width is None:
            raise InferKitError(
                "The demonstrations were fitted with features of your own; pass those of the "
                "queries too: generate(..., features=...)."
            )
        questions = [question_of(chat, b) for b, chat in enumerate(chats)]
        pictures = [pictures_of(chat) for chat in chats]
        return query_features(
            self._encoder, pictures, questions, memory, pool.features, pool.image_width
        )

    def _call_memory(self) -> Any:
        """Encoded images of `fit` and of this call; none for full context, as in `generate`."""
        chunks = self._pool().chunks
        assert self._prompts is not None
        if self._prompts.prefixes is None and chunks is not None and len(chunks) == 1:
            return self.backend.new_memory()
        return self._memory.copy()

    def _pool(self) -> FittedPool:
        if self._fitted is None:
            raise InferKitError(
                "There are no demonstrations yet.", hint="Call fit(demonstrations) first."
            )
        return self._fitted


def _plain(value: Any) -> Any:
    return int(value) if is_whole(value) else [int(v) for v in value]
