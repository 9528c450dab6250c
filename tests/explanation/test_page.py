"""The page as a file: what is escaped, what it may ask for, and where it is written."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infer_kit.errors import InferKitError
from infer_kit.explanation import Explanation
from infer_kit.explanation.contexts import readable
from infer_kit.explanation.page import MARK, check_target, embedded, write_page
from infer_kit.explanation.pictures import LONGEST, shown
from tests.explanation.cases import case
from tests.explanation.pages import ATTACKS, explanation, free, trace_with


class Parsed(HTMLParser):
    """Elements with their attributes, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)


@pytest.fixture
def attacked() -> Explanation:
    trace = trace_with(ATTACKS, seed=2, streams=2, weights=(1.0, 0.5), tokens=8)
    trace = replace(trace, streams=(ATTACKS[0], ATTACKS[3]), idle=(ATTACKS[1],))
    return explanation(trace, replace(free(trace), note=ATTACKS[1]), ATTACKS, picture=True)


def test_texts_bring_no_elements_and_no_attributes(attacked: Explanation) -> None:
    page = Parsed(attacked.html())
    clean = replace(attacked, question="q", text="a", facts=(("model", "m"),))
    tame = trace_with(("x",), seed=2, streams=2, weights=(1.0, 0.5), tokens=8)
    plain = Parsed(replace(clean, trace=tame, contexts=attacked.contexts).html())
    count = {tag for tag, _ in page.elements}
    assert count == {tag for tag, _ in plain.elements} | {"dt", "dd"}
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert sum(tag == "img" for tag, _ in page.elements) == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_data_are_what_was_put_in(attacked: Explanation) -> None:
    page = Parsed(attacked.html())
    data = json.loads(page.scripts[0])
    assert data["streams"] == [ATTACKS[0], ATTACKS[3]]
    assert [tuple(t["texts"]) for t in data["tokens"]] == list(attacked.trace.candidates)
    assert "<" not in page.scripts[0]


def test_json_in_a_script_element() -> None:
    text = embedded({"a": "</script><!--&", "b": [None, 0.1]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!--&", "b": [None, 0.1]}


def test_minus_infinity_is_null() -> None:
    made = case(1, 2, (1.0, 0.5), holes=0.6, depth=30)
    data = json.loads(Parsed(explanation(made.trace, free(made.trace)).html()).scripts[0])
    for t, token in enumerate(data["tokens"]):
        ours = [[-np.inf if v is None else v for v in row] for row in token["logprobs"]]
        assert np.array_equal(ours, made.trace.candidate_logprobs[t])
    assert any(v is None for token in data["tokens"] for row in token["logprobs"] for v in row)


def test_the_page_may_ask_for_nothing(attacked: Explanation) -> None:
    text = attacked.html()
    (policy,) = (
        attributes["content"]
        for tag, attributes in Parsed(text).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    for _, attributes in Parsed(text).elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    code = text.split("</head>")[0] + "".join(Parsed(text).scripts[1:])
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp|innerHTML|eval\(", code)


def test_pictures_are_scaled_for_display_and_it_is_said() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1500, 3000, 3), dtype=np.uint8)
    large = shown(Image.fromarray(noise))
    assert (large.width, large.height, large.scaled) == (3000, 1500, True)
    assert large.uri.startswith("data:image/jpeg;base64,")
    small = shown(Image.new("RGBA", (30, 20), (255, 0, 0, 120)))
    assert not small.scaled and small.uri.startswith("data:image/png;base64,")
    for mode in ("1", "L", "LA", "P", "CMYK", "I;16"):
        assert shown(Image.new(mode, (9, 9))).uri.startswith("data:image/png")
    trace = case(1, 2, (1.0, 0.5)).trace
    page = replace(explanation(trace, free(trace)), pictures=(large, small)).html()
    assert f"3000 × 1500 pixels, shown smaller; the model was given all of it" in page  # noqa: F541
    assert "Picture 2: 30 × 20 pixels</figcaption>" in page
    assert max(Image.open(_decoded(large.uri)).size) == LONGEST


def _decoded(uri: str) -> object:
    import base64
    import io

    return io.BytesIO(base64.b64decode(uri.split(",")[1]))


def test_placeholders_of_a_picture_are_counted() -> None:
    assert readable([1, 2, *[7] * 64, 3], lambda ids: "+".join(map(str, ids))) == "1+2 7 (× 64) 3"
    assert readable([1, 1, 1], lambda ids: str(list(ids))) == "[1, 1, 1]"
    assert readable([], str) == ""


def test_a_page_is_written_over_and_another_file_is_not(tmp_path: Path) -> None:
    trace = case(1, 2, (1.0, 0.5)).trace
    made = explanation(trace, free(trace), ("é \ud800 🦉",))
    path = made.save(tmp_path / "page.html")
    assert MARK in path.read_text(encoding="utf-8")
    made.save(path)
    other = tmp_path / "notes.html"
    other.write_text("mine")
    with pytest.raises(InferKitError, match="exists and is not a page of infer-kit explain"):
        made.save(other)
    assert other.read_text() == "mine"
    made.save(other, force=True)
    assert MARK in other.read_text(encoding="utf-8")


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(InferKitError, match="There is no folder"):
        check_target(tmp_path / "none" / "page.html")
    assert check_target(tmp_path / "new.html") == tmp_path / "new.html"
    assert not (tmp_path / "new.html").exists()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on files here")
    trace = case(1, 2, (1.0, 0.5)).trace
    made = explanation(trace, free(trace))
    path = made.save(tmp_path / "page.html")
    path.chmod(0o640)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as on a disk that gets full
    try:
        for name in ("page.html", "new.html"):
            with pytest.raises(InferKitError, match=rf"{name}' cannot be written: File too large"):
                made.save(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_bytes() == before
    again = replace(made, question="another")
    link = tmp_path / "link.html"
    link.symlink_to(path)
    again.save(link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert "another" in path.read_text(encoding="utf-8")
    assert {p.name for p in tmp_path.iterdir()} == {"page.html", "link.html"}


def test_no_file_takes_the_place_of_a_device(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with names here")
    trace = case(1, 2, (1.0, 0.5)).trace
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text, encoding="utf-8")
        write_page(pipe, explanation(trace, free(trace)).html())
        assert MARK in read.result(timeout=30)
    assert pipe.is_fifo()


def test_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "page.html").write_text(MARK)
    monkeypatch.setattr(Path, "touch", refused)
    monkeypatch.setattr(Path, "open", refused)
    for name in ("new.html", "page.html"):
        with pytest.raises(InferKitError, match=r"\.html' cannot be written: Permission denied"):
            check_target(tmp_path / name)
