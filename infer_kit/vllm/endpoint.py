"""What `infer-kit serve` adds to vLLM's OpenAI server; an entry point of `vllm.endpoint_plugins`.

Chat completions whose `vllm_xargs` name a `method` are answered by it, those with a `group` by a
group of chats, and `POST /v1/coupled/chat/completions` takes the group as JSON of its own.
"""

import json
from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.multimodal.media import MediaConnector

from infer_kit.errors import InferKitError
from infer_kit.processors import load_processor
from infer_kit.vllm.backend import VllmBackend
from infer_kit.vllm.engines import ThreadedEngine
from infer_kit.vllm.names import PLUGIN
from infer_kit.vllm.served_methods import ServedMethods
from infer_kit.vllm.serving import GroupClient, MethodChat
from infer_kit.vllm.settings import check_active

_MOST_THREADS = 64


class CoupledChatRequest(ChatCompletionRequest):
    """A chat with `coupled`: `{"mode", "weight", "members": [{"messages", "weight"}]}`."""

    coupled: dict[str, Any]


class MethodsEndpoint:
    """See `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = PLUGIN
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the route for groups."""

        async def create(request: CoupledChatRequest, raw_request: Request) -> Any:
            body = request.model_dump(exclude={"coupled"}, exclude_unset=True)
            xargs = {**(body.get("vllm_xargs") or {}), "group": json.dumps(request.coupled)}
            plain = ChatCompletionRequest(**{**body, "vllm_xargs": xargs})
            return await api_router.create_chat_completion(plain, raw_request)

        app.post("/v1/coupled/chat/completions")(create)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Put methods between vLLM's chat completions and its engine."""
        config = engine_client.vllm_config
        check_active(config)
        backend = _backend(engine_client, state, args)
        media = MediaConnector(
            allowed_local_media_path=config.model_config.allowed_local_media_path,
            allowed_media_domains=config.model_config.allowed_media_domains,
        )

        def fetch(url: str) -> Any:
            try:
                picture = media.fetch_image(url)
                return getattr(picture, "media", picture)  # it may come with its bytes
            except Exception as error:  # of the network, of a path, of the picture itself
                shown = url if len(url) <= 60 else url[:57] + "..."
                raise InferKitError(f"Image {shown!r} cannot be read: {error}") from error

        threads = min(max(config.scheduler_config.max_num_seqs, 8), _MOST_THREADS)
        methods = ServedMethods(backend, fetch, threads)
        for serving in (state.openai_serving_chat, state.openai_serving_completion):
            serving.engine_client = GroupClient(engine_client, methods)
        state.openai_serving_chat = MethodChat(state.openai_serving_chat, methods, engine_client)


def _backend(engine: Any, state: Any, args: Namespace) -> VllmBackend:
    """The backend of the served engine; each request gets its own handle of the engine."""
    import asyncio

    model = engine.vllm_config.model_config
    processor = load_processor(model.tokenizer or model.model)
    handle = ThreadedEngine(engine, asyncio.get_running_loop())
    return VllmBackend(engine, handle, processor, state.openai_serving_chat.chat_template)
