"""Requests as lm-evaluation-harness makes them."""

from __future__ import annotations

from typing import Any


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def scores(lm: Any, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    found: list[tuple[float, bool]] = lm.loglikelihood(
        requests("loglikelihood", *pairs), disable_tqdm=True
    )
    return found


def texts(lm: Any, *asked: tuple[str, dict[str, Any]]) -> list[str]:
    found: list[str] = lm.generate_until(requests("generate_until", *asked), disable_tqdm=True)
    return found
