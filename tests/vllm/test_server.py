"""`infer-kit serve`, started by its command and called by the stock `openai` client."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm")

import httpx
import openai

import infer_kit as ik
from infer_kit.errors import InferKitError
from infer_kit.vllm import group_body, method_body
from tests.vllm.folders import llava_folder, load_llava

MODEL = "tiny"
NEW = 10


class Server:
    """A running server, its client and the same model on transformers."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        self.model, self.processor = load_llava(folder)

    def ask(self, chat: int = 0, body: dict[str, Any] | None = None, **options: Any) -> Any:
        options = {"max_tokens": NEW, "temperature": 0, **options}
        return self.client.chat.completions.create(
            model=MODEL, messages=messages(chat), extra_body=body, **options
        )

    def says(self, chat: int = 0, **options: Any) -> str:
        return self.ask(chat, **options).choices[0].message.content

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith(f"vllm:{name}{{")]
        return float(line.rsplit(" ", 1)[1])


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def messages(number: int) -> list[Any]:
    """A chat as the OpenAI API has it."""
    parts = [
        {"type": "image_url", "image_url": {"url": url(picture(number))}},
        {"type": "text", "text": f"what is in it {number}? the thing"},
    ]
    return [{"role": "user", "content": parts}]


def chat(number: int) -> list[dict[str, Any]]:
    """The same as methods take it."""
    parts = [
        {"type": "image", "image": picture(number)},
        {"type": "text", "text": f"what is in it {number}? the thing"},
    ]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = llava_folder(tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "infer_kit", "serve", str(folder), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"),
        *("--max-model-len", "512", "--max-num-seqs", "8"),
    ]
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        found = Server(folder, port)
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                if httpx.get(f"{found.url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield found
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.terminate()
        process.wait(60)


def test_a_plain_request_is_plain(server: Server) -> None:
    expected = ik.RED(server.model, server.processor, weight=0.0, trace=False)
    assert server.says() == expected.generate(chat(0), rationale="x", max_new_tokens=NEW).text


CASES: list[tuple[str, Callable[[Server], str], dict[str, Any]]] = [
    (
        "red",
        lambda s: (
            ik.RED(s.model, s.processor, weight=0.7)
            .generate(chat(0), rationale="there is a cat", max_new_tokens=NEW)
            .text
        ),
        {"weight": 0.7, "rationale": "there is a cat"},
    ),
    (
        "vcd",
        lambda s: ik.VCD(s.model, s.processor).generate(chat(0), max_new_tokens=NEW).text,
        {},
    ),
    (
        "cfg",
        lambda s: (
            ik.CFG(s.model, s.processor, scale=1.3)
            .generate(chat(0), negative=chat(1), max_new_tokens=NEW)
            .text
        ),
        {"scale": 1.3, "negative": messages(1)},
    ),
    (
        "icd",
        lambda s: (
            ik.ICD(s.model, s.processor, noise_step=300).generate(chat(0), max_new_tokens=NEW).text
        ),
        {"noise_step": 300},
    ),
    (
        "context_aware",
        lambda s: (
            ik.ContextAware(s.model, s.processor)
            .generate(chat(0), context="the cat is red", max_new_tokens=NEW)
            .text
        ),
        {"context": "the cat is red"},
    ),
    (
        "parallel_icl",
        lambda s: (
            ik.ParallelICL(s.model, s.processor, chunks=2)
            .fit([{"image": picture(i), "question": f"q {i}", "answer": f"a{i}"} for i in range(4)])
            .generate(chat(0), max_new_tokens=NEW)
            .text
        ),
        {
            "chunks": 2,
            "demonstrations": [
                {"image": url(picture(i)), "question": f"q {i}", "answer": f"a{i}"}
                for i in range(4)
            ],
        },
    ),
]


@pytest.mark.parametrize("method, on_transformers, settings", CASES, ids=[c[0] for c in CASES])
def test_methods_answer_as_on_transformers(
    server: Server, method: str, on_transformers: Any, settings: dict[str, Any]
) -> None:
    expected = on_transformers(server)
    body = method_body(method, **settings)
    assert server.says(body=body) == expected
    parts = [c.choices[0].delta.content for c in server.ask(body=body, stream=True) if c.choices]
    assert "".join(part or "" for part in parts) == expected


@pytest.mark.filterwarnings("ignore:The rationale of prompt 0 was cut")
def test_the_rationale_comes_back_as_reasoning(server: Server) -> None:
    body = method_body("red", weight=0.7, rationale_tokens=12)
    message = server.ask(body=body).choices[0].message
    red = ik.RED(
        server.model, server.processor, weight=0.7, rationale_generation={"max_new_tokens": 12}
    )
    expected = red.generate(chat(0), max_new_tokens=NEW)
    assert message.content == expected.text and message.reasoning == expected.rationale
    deltas = [c.choices[0].delta for c in server.ask(body=body, stream=True) if c.choices]
    assert [d.reasoning for d in deltas if getattr(d, "reasoning", None)] == [expected.rationale]


def test_a_group_of_chats_by_both_ways(server: Server) -> None:
    members = [{"messages": messages(1), "weight": 0.5}, {"messages": messages(2), "weight": -0.3}]
    said = server.says(body=group_body(members))
    body = {
        "model": MODEL,
        "messages": messages(0),
        "max_tokens": NEW,
        "temperature": 0,
        "coupled": {"members": members},
    }
    answer = httpx.post(f"{server.url}/v1/coupled/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == said != server.says()


def test_log_probabilities_are_the_pools(server: Server) -> None:
    body = method_body("red", weight=0.7, rationale="there is a cat")
    content = server.ask(body=body, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    red = ik.RED(server.model, server.processor, weight=0.7)
    trace = red.generate(chat(0), rationale="there is a cat", max_new_tokens=NEW).trace
    np.testing.assert_allclose([t.logprob for t in content], trace.pooled, atol=1e-4)


def test_several_answers_and_sampling(server: Server) -> None:
    body = method_body("red", weight=0.7, rationale="there is a cat")
    options: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 5, "body": body}
    first, second = ([c.message.content for c in server.ask(**options).choices] for _ in range(2))
    assert first == second and len(set(first)) == 3


def test_a_group_in_a_completion(server: Server) -> None:
    def ask(value: Any) -> str:
        return (
            server.client.completions.create(
                model=MODEL,
                prompt=[5, 60, 70],
                max_tokens=NEW,
                temperature=0,
                extra_body={"vllm_xargs": {"coupled": json.dumps(value)}},
            )
            .choices[0]
            .text
        )

    two = ask({"weight": 1.0, "members": [{"prompt_token_ids": [80, 90], "weight": 0.5}]})
    none = ask({"weight": 1.0, "members": [{"prompt_token_ids": [80, 90], "weight": 0.0}]})
    plain = server.client.completions.create(
        model=MODEL, prompt=[5, 60, 70], max_tokens=NEW, temperature=0
    )
    assert none == plain.choices[0].text != two


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("method", {"method": "nope"}, "Unknown method 'nope'"),
    ("setting", {"method": "red", "wieght": 1}, "red has no .'wieght'."),
    ("weight", {"method": "red", "weight": "much"}, "neither a number nor a budget"),
    ("beta", {"method": "vcd", "beta": 7}, "beta is the plausibility cut-off"),
    ("json", {"method": "parallel_icl", "demonstrations": "[{"}, "demonstrations is not JSON"),
    ("context", {"method": "context_aware"}, "the document is a text"),
    ("group", {"group": "{}"}, "a list of members"),
    ("members", {"group": json.dumps({"members": [{"weight": 1}]})}, "messages is a list"),
    (
        "mode",
        {
            "group": json.dumps(
                {"mode": "sum", "members": [{"messages": [{"role": "user", "content": "x"}]}]}
            )
        },
        "mode is one of",
    ),
    ("none", {"group": json.dumps({"members": []})}, "not empty"),
    ("deep", {"coupled": "[" * 100_000}, "is not JSON"),
    ("name", {"method": ["red"]}, "method is a text"),
    (
        "files",
        {
            "method": "parallel_icl",
            "demonstrations": json.dumps(
                [{"question": "q", "answer": "a", "images": {"/etc/hostname": 1}}]
            ),
        },
        "a list of URLs",
    ),
    (
        "url",
        {
            "method": "parallel_icl",
            "demonstrations": json.dumps(
                [{"question": "q", "answer": "a", "image": "/etc/hostname"}]
            ),
        },
        "cannot be read",
    ),
    (
        "experts",
        {
            "coupled": json.dumps(
                {
                    "members": [{"prompt_token_ids": [5]}],
                    "kl_budget": 0.1,
                    "direction": [0, 1],
                    "experts": [7],
                }
            )
        },
        "of 2 streams",
    ),
    (
        "budget",
        {
            "coupled": json.dumps(
                {"members": [{"prompt_token_ids": [5]}], "kl_budget": 0.1, "direction": [0, 0]}
            )
        },
        "all 0",
    ),
    (
        "forced",
        {
            "coupled": json.dumps(
                {
                    "members": [{"prompt_token_ids": [5]}],
                    "forced": [5],
                    "tables": [[1, 1]],
                    "trace": "x",
                }
            )
        },
        "not for clients",
    ),
    (
        "huge",
        {"coupled": json.dumps({"members": [{"prompt_token_ids": [5], "weight": 1e39}]})},
        "at most",
    ),
    ("coupled", {"coupled": "{"}, "'coupled' is not JSON"),
    ("long", {"coupled": json.dumps({"members": [{"prompt_token_ids": [5] * 600}]})}, "600 tokens"),
    ("many", {"coupled": json.dumps({"members": [{"prompt_token_ids": [5]}] * 9})}, "10 streams"),
    ("ids", {"coupled": json.dumps({"members": [{"prompt_token_ids": [9999]}]})}, "9999"),
    ("finite", {"coupled": '{"members": [{"prompt_token_ids": [5], "weight": NaN}]}'}, "finite"),
]


def test_a_picture_that_a_method_showed_is_plain_afterwards(server: Server) -> None:
    server.says(3, body=method_body("red", weight=0.7, rationale="there is a cat"))
    with pytest.raises(openai.BadRequestError):
        server.says(4, body=group_body([{"messages": messages(1)}]), n=2, temperature=1.0)
    expected = ik.RED(server.model, server.processor, weight=0.0, trace=False)
    for number in (3, 4):
        plain = expected.generate(chat(number), rationale="x", max_new_tokens=NEW).text
        assert server.says(number) == plain


def test_methods_are_for_chats(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="for chat completions"):
        server.client.completions.create(
            model=MODEL, prompt=[5, 6], max_tokens=2, extra_body=method_body("red", rationale="x")
        )


def test_idle_members_and_their_experts_are_left_out(server: Server) -> None:
    value = {"members": [{"prompt_token_ids": [5], "weight": 0}], "experts": [1]}
    body = {"vllm_xargs": {"coupled": json.dumps(value)}}
    options: dict[str, Any] = {"model": MODEL, "prompt": [5, 60, 70], "max_tokens": 4}
    one = server.client.completions.create(**options, temperature=0, extra_body=body)
    two = server.client.completions.create(**options, temperature=0)
    assert one.choices[0].text == two.choices[0].text


@pytest.mark.parametrize("name, xargs, message", REFUSED, ids=[case[0] for case in REFUSED])
def test_bad_requests_are_refused_with_400(
    server: Server, name: str, xargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        server.ask(body={"vllm_xargs": xargs})
    assert server.says()  # alive


def test_files_of_the_server_are_not_read(server: Server) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}},
        {"type": "text", "text": "what"},
    ]
    with pytest.raises(openai.BadRequestError, match="Cannot load local files"):
        server.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": parts}],  # type: ignore[list-item]
            extra_body=method_body("red", rationale="x"),
        )


def test_a_client_that_leaves_frees_its_group(server: Server) -> None:
    body = {**group_body([{"messages": messages(1), "weight": 0.5}]), "ignore_eos": True}
    answer = server.ask(body=body, stream=True, max_tokens=400)
    next(iter(answer))
    answer.close()
    for _ in range(40):
        left = server.metric("num_requests_running") + server.metric("num_requests_waiting")
        if left == 0 and server.metric("kv_cache_usage_perc") == 0:
            break
        time.sleep(0.25)
    assert left == 0 and server.metric("kv_cache_usage_perc") == 0


def test_the_client_helper_names_what_is_wrong() -> None:
    with pytest.raises(InferKitError, match="Unknown method 'nope'"):
        method_body("nope")
    with pytest.raises(InferKitError, match="cfg has no"):
        method_body("cfg", weight=1)


def test_options_that_the_command_sets_are_refused() -> None:
    command = [sys.executable, "-m", "infer_kit", "serve", "x", "--scheduler-cls", "a.B"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "--scheduler-cls is set by infer-kit serve" in run.stderr
