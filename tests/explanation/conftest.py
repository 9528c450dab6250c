"""A headless Chromium, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infer_kit.explanation import Explanation


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of an explanation; at the end nothing may have gone wrong or been asked for.

    `problems` of the opened page holds what did so far.
    """
    pages = []

    def go(explanation: Explanation, width: int = 1280, **options: Any) -> Any:
        file = explanation.save(tmp_path / f"page {len(pages)} é.html")
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: page.problems.append(f"dialog: {dialog.message}"))

        def requested(request: Any) -> None:
            if request.url != file.as_uri() and not request.url.startswith("data:"):
                page.problems.append(f"request: {request.url}")

        page.on("request", requested)
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.wait_for_timeout(30)
        problems = page.problems
        page.context.close()
        assert problems == []
