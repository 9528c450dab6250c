"""The prompts of Parallel-ICL: the demonstrations of a chunk, then the query."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from infer_kit.backends import Backend
from infer_kit.chats import Chat
from infer_kit.errors import CannotContinue, InferKitError, PromptTooLong
from infer_kit.methods.demonstrations import Demonstration, pictures_of

_QUERY_ROOM = 32  # tokens left for a query where a number of chunks is proposed

Chunks = list[list[int]]
Rechunk = Callable[[int], Chunks]
"""The chunks that another number of them would give."""


class ChunkPrompts:
    """Renders the prompts of chunks, from the bank of their states where that is exact.

    Attributes:
        prefixes: the beginning of each chunk's prompts, or None where they are rendered whole.
        banked: whether the prefixes were read.
    """

    def __init__(
        self,
        backend: Backend,
        demonstrations: Sequence[Demonstration],
        system: str | None,
        bank: bool | None,
    ) -> None:
        """Args:
        bank: True raises where states cannot be kept, None warns, False never keeps them.
        """
        self.backend, self.demonstrations, self.system = backend, demonstrations, system
        self.bank = bank
        self.prefixes: list[Any] | None = None
        self.banked = False
        self._beginnings: list[Chat] = []

    def read(self, chunks: Chunks, memory: Any, rechunk: Rechunk) -> None:
        """Read every chunk once; where states cannot be kept, prepare texts and images alone.

        One chunk without the bank is left to be rendered with its query, as `generate` would.

        Args:
            memory: for encoded images.
            rechunk: to propose a number of chunks where one is too long.
        """
        earlier = max(self._pictures_in(members) for members in chunks)
        pictured = any(demo.pictures for demo in self.demonstrations)
        reason = self.backend.why_whole(earlier, int(pictured))
        if reason is not None and self.bank is not False:
            self._no_bank(reason)
        read = reason is None and self.bank is not False
        beginnings = [self.beginning(members) for members in chunks]
        try:
            # All of them before any is read.
            contexts = [self.backend.render(chat, 0, answer=False) for chat in beginnings]
        except PromptTooLong as error:
            raise self._too_long(chunks, rechunk) from error
        if not read and len(chunks) == 1:
            return
        prefixes = [self.backend.prefix(context, memory, read) for context in contexts]
        self.banked = read
        self.prefixes = None if None in prefixes else prefixes
        self._beginnings = beginnings

    def contexts(self, chunks: Chunks, chat: Chat, request: int, rechunk: Rechunk) -> list[Any]:
        """The context of each chunk for one query."""
        beginnings = [self.beginning(members) for members in chunks]
        if self.prefixes is not None:
            beginnings = self._beginnings  # the same objects for every query: rendered once
            later = len(pictures_of(chat))
            reasons = [self.backend.why_whole(self._pictures_in(m), later) for m in chunks]
            reason = next((why for why in reasons if why is not None and self.banked), None)
            try:
                if reason is None:
                    return self.backend.follow(self.prefixes, beginnings, chat, request)
            except CannotContinue as error:
                reason = str(error)
            except PromptTooLong as error:
                raise self._too_long(chunks, rechunk, chat) from error
            if self.banked:
                self._no_bank(reason)
        contexts = []
        for beginning in beginnings:
            try:
                contexts.append(self.backend.render([*beginning, *chat], request))
            except PromptTooLong as error:
                raise self._too_long(chunks, rechunk, chat) from error
        return contexts

    def beginning(self, members: Sequence[int]) -> Chat:
        """The turns before the query: the system's, and those of the demonstrations."""
        turns: Chat = []
        if self.system is not None:
            text = [{"type": "text", "text": self.system}]
            turns.append({"role": "system", "content": text})
        for n in members:
            turns += self.demonstrations[n].chat
        return turns

    def _pictures_in(self, members: Sequence[int]) -> int:
        return sum(len(self.demonstrations[n].pictures) for n in members)

    def _no_bank(self, reason: str) -> None:
        message = f"Every query reads the demonstrations anew, not from the bank: {reason}."
        if self.bank:
            raise CannotContinue(message, hint="Leave out bank=True.")
        warnings.warn(f"{message} Pass bank=False to say that this is expected.", stacklevel=5)

    def _too_long(
        self, chunks: Chunks, rechunk: Rechunk, chat: Chat | None = None
    ) -> InferKitError:
        """Which chunk is too long, and how many chunks would fit.

        Args:
            chat: the query that follows, where there is one yet.
        """
        limit = self.backend.limit() or 0
        every = sorted(n for members in chunks for n in members)
        lengths = {n: self._tokens_of(self.demonstrations[n].chat) for n in every}
        query = _QUERY_ROOM if chat is None else self._tokens_of(chat)
        if query >= limit:
            return PromptTooLong(f"The query alone is {query:,} tokens, the model takes {limit:,}.")
        room = limit - query
        if self.system is not None:
            room -= self._tokens_of(self.beginning([]))
        totals = [sum(lengths[n] for n in members) for members in chunks]
        beside = "" if chat is None else f" and {query:,} of the query"
        message = (
            f"Chunk {totals.index(max(totals))} of {len(chunks)} is longer than the model takes: "
            f"about {max(totals):,} tokens of demonstrations{beside}, at most {limit:,}."
        )
        for more in range(len(chunks) + 1, len(lengths) + 1):
            longest = max(sum(lengths[n] for n in members) for members in rechunk(more))
            if longest <= room:
                hint = (
                    f"Use chunks={more} (the longest would be about {longest:,} tokens), or more "
                    "for longer queries; chunking='balanced' makes chunks of equal size."
                )
                return PromptTooLong(message, hint=hint)
        return PromptTooLong(message, hint="Even one demonstration a chunk does not fit.")

    def _tokens_of(self, chat: Chat) -> int:
        """Tokens of a chat alone, however long."""
        return self.backend.count(chat)
