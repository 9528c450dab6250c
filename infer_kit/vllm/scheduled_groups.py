"""The groups that the engine core knows: which requests belong together, and how far they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

from infer_kit.vllm.description import KEY, Embedded, InvalidGroup, Member, check_weights


@dataclass(eq=False)
class ScheduledGroup:
    """The requests of one group.

    Attributes:
        id: of the group. size: its number of streams.
        embedded: whether one request brought it: the others are unknown to the client.
        members: by index; 0 leads. infos: their descriptions.
        begun: whether they have drawn a token together.
    """

    id: str
    size: int
    embedded: bool
    members: dict[int, Request] = field(default_factory=dict)
    infos: dict[int, Member] = field(default_factory=dict)
    begun: bool = False

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.size

    @property
    def is_running(self) -> bool:
        return all(r.status == RequestStatus.RUNNING for r in self.members.values())

    def requests(self) -> list[Request]:
        """In the order of their index."""
        return [self.members[index] for index in range(self.size) if index in self.members]

    def is_ready(self) -> bool:
        """Whether every member has exactly its last known token left to read."""
        return all(
            remaining(r) == 1
            and (r.status == RequestStatus.RUNNING or (r.num_tokens == 1 and is_idle(r)))
            for r in self.members.values()
        )


def remaining(request: Request) -> int:
    """Tokens of a request that are known, or being drawn, and not yet read."""
    return request.num_tokens + request.num_output_placeholders - request.num_computed_tokens


def is_idle(request: Request) -> bool:
    """Whether a waiting request could be run now."""
    if request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
        return False
    return not request.num_stale_output_tokens or request.drop_stale_output


def needs_own_draws(params: SamplingParams, stateless_noise: bool) -> bool:
    """Whether the seed must not reach the runner.

    Runner V1 rewinds a request's generator after each partial prefill, which CPU generators
    cannot do; groups always have one. Runner V2's noise depends on the seed and position alone.
    """
    return params.seed is not None and not stateless_noise


def follower_params(leader: SamplingParams, info: Member) -> SamplingParams:
    """How a member other than the leader is sampled: its token is overwritten by the leader's.

    It has the leader's temperature, so that a batch of groups takes the sampler's path for
    batches of one kind, and neither filters nor ends of its own.
    """
    return SamplingParams(
        temperature=leader.temperature,
        max_tokens=leader.max_tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args={KEY: info.to_dict()},
    )


class GroupBook:
    """All groups in the engine core, by id and by request."""

    def __init__(
        self,
        max_model_len: int,
        vocab_size: int,
        most_streams: int,
        max_step_tokens: int,
        stateless_noise: bool,
    ):
        """Args:
        max_model_len: tokens that the model takes.
        vocab_size: ids are below it.
        most_streams: requests that run together. max_step_tokens: tokens that one step reads.
        stateless_noise: see `needs_own_draws`.
        """
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.most_streams = most_streams
        self.max_step_tokens = max_step_tokens
        self.stateless_noise = stateless_noise
        self.groups: dict[str, ScheduledGroup] = {}
        self._of: dict[str, ScheduledGroup] = {}

    def __bool__(self) -> bool:
        return bool(self.groups)

    def __iter__(self) -> Iterator[ScheduledGroup]:
        return iter(self.groups.values())

    def of(self, request: Request) -> ScheduledGroup | None:
        """The group that a request belongs to."""
        return self._of.get(request.request_id)

    def embed(self, leader: Request, group: Embedded) -> list[Request]:
        """The other members of a group that `leader` brings; they are not yet scheduled.

        Raises:
            InvalidGroup: it can never run.
        """
        group = group.without_idle()
        self._check_size(leader.request_id, len(group.weights))
        params = leader.sampling_params
        assert params is not None
        if group.is_plain:
            params = leader.sampling_params = params.clone()  # n answers may share one object
            params.extra_args = {k: v for k, v in (params.extra_args or {}).items() if k != KEY}
            return []
        _check_leader(leader)
        self._check_ids("'forced'", group.rule.forced)
        for k, prompt in enumerate(group.prompts):
            self._check_prompt(f"member {k}", prompt)
        own = group.member(leader.request_id, 0)
        followers = []
        for index, prompt in enumerate(group.prompts, start=1):
            info = group.member(leader.request_id, index)
            followers.append(_follower(leader, info, list(prompt)))
        scheduled = ScheduledGroup(leader.request_id, len(group.weights), embedded=True)
        for index, request in enumerate([leader, *followers]):
            self._add(scheduled, request, group.member(leader.request_id, index))
        self.groups[scheduled.id] = scheduled
        self._lead(leader, own)
        self._complete(scheduled)
        return followers

    def join(self, request: Request, info: Member) -> None:
        """A member of a group made of several requests has arrived.

        Raises:
            InvalidGroup: it can never run, or does not fit to the others.
        """
        self._check_size(info.id, info.size)
        _check_leader(request)
        if info.rule is not None:
            self._check_ids("'forced'", info.rule.forced)
        if request.num_prompt_tokens >= self.max_model_len:
            raise self._too_long(f"index {info.index}", request.num_prompt_tokens)
        group = self.groups.get(info.id) or ScheduledGroup(info.id, info.size, embedded=False)
        if group.embedded or group.size != info.size or info.index in group.members:
            raise InvalidGroup(
                f"Group {info.id!r} has size {group.size} and indices {sorted(group.members)}; "
                f"got size {info.size}, index {info.index}."
            )
        self.groups[info.id] = group
        self._add(group, request, info)
        if info.index == 0:
            self._lead(request, info)
        if group.is_complete:
            rule = group.infos[0].rule
            assert rule is not None
            check_weights([group.infos[k].weight for k in range(group.size)], rule)
            self._complete(group)

    def forget(self, group: ScheduledGroup) -> None:
        """The group has ended."""
        self.groups.pop(group.id, None)
        for request in group.members.values():
            self._of.pop(request.request_id, None)

    def _add(self, group: ScheduledGroup, request: Request, info: Member) -> None:
        group.members[info.index] = request
        group.infos[info.index] = info
        self._of[request.request_id] = group

    def _lead(self, leader: Request, info: Member) -> None:
        """Write the checked description where the workers read it."""
        assert leader.sampling_params is not None
        params = leader.sampling_params = leader.sampling_params.clone()  # n answers may share one
        if needs_own_draws(params, self.stateless_noise):
            info = replace(info, seed=params.seed)
            params.seed = None
        params.extra_args = {**(params.extra_args or {}), KEY: info.to_dict()}

    def _complete(self, group: ScheduledGroup) -> None:
        """All members end after the same number of tokens: the least that any has room for."""
        requests = group.requests()
        rooms = [self.max_model_len - r.num_prompt_tokens for r in requests]
        cap = min(*rooms, *(r.max_tokens for r in requests))
        for request in requests:
            request.max_tokens = cap

    def _check_size(self, name: str, size: int) -> None:
        if size > min(self.most_streams, self.max_step_tokens):
            raise InvalidGroup(
                f"Group {name!r} has {size} streams; this engine runs {self.most_streams} requests "
                f"and {self.max_step_tokens} tokens a step: raise max_num_seqs or "
                "max_num_batched_tokens."
            )

    def _check_prompt(self, name: str, prompt: tuple[int, ...]) -> None:
        if len(prompt) >= self.max_model_len:
            raise self._too_long(name, len(prompt))
        self._check_ids(name, prompt)

    def _check_ids(self, name: str, ids: tuple[int, ...]) -> None:
        largest = max(ids, default=0)
        if largest >= self.vocab_size:
            raise InvalidGroup(
                f"{name} has token id {largest}; the vocabulary has {self.vocab_size} tokens."
            )

    def _too_long(self, name: str, tokens: int) -> InvalidGroup:
        return InvalidGroup(
            f"{name} has {tokens} tokens; the model takes {self.max_model_len} with the answer."
        )


def _check_leader(request: Request) -> None:
    """Raise `InvalidGroup` for a request that no group can have."""
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise InvalidGroup("The prompts of a group are token ids, not embeddings.")
    if request.use_structured_output and request.num_prompt_tokens == 1:
        raise InvalidGroup("Structured outputs need a first stream of two tokens or more.")


def _follower(leader: Request, info: Member, prompt: list[int]) -> Request:
    """A request of the engine core's own, beside the one that brought the group."""
    params = leader.sampling_params
    assert params is not None
    return Request(
        request_id=f"{leader.request_id}-coupled-{info.index}",
        client_index=leader.client_index,
        prompt_token_ids=prompt,
        sampling_params=follower_params(params, info),
        pooling_params=None,
        arrival_time=leader.arrival_time,
        lora_request=leader.lora_request,
        cache_salt=leader.cache_salt,
        priority=leader.priority,
        block_hasher=leader._block_hasher,
    )
