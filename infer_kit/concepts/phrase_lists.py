"""Lists of phrases: normalised, unlike, sorted, and counted where one is left out."""

from collections.abc import Iterable, Sequence

from infer_kit.errors import InferKitError

LONGEST = 20
"""Characters of the longest phrase that is kept, as published."""


def normalised(phrase: str) -> str:
    """Lower case, single spaces, underscores as spaces."""
    return " ".join(phrase.lower().replace("_", " ").split())


def filled(template: str, texts: Iterable[str]) -> list[str]:
    """Texts in the place of the "{}" of a template.

    Raises:
        InferKitError: the template has not one "{}", or other braces.
    """
    before, mark, after = template.partition("{}") if isinstance(template, str) else ("", "", "")
    if not mark or "{" in before + after or "}" in before + after:
        raise InferKitError(
            f"The template {template!r} does not contain '{{}}' once, and no other braces."
        )
    return [f"{before}{text}{after}" for text in texts]


def cleaned(
    phrases: Iterable[str], classes: Sequence[str] = (), longest: int | None = LONGEST
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Phrases normalised, unlike and sorted, and how many were left out for which reason.

    Raises:
        InferKitError: they are one string, or one of them is no string.
    """
    if isinstance(phrases, str) or isinstance(classes, str):
        raise InferKitError(
            "phrases and classes are lists of strings, got one string.",
            hint="Of a file pass its lines: Path('phrases.txt').read_text().splitlines().",
        )
    names, count = set(), 0
    for count, phrase in enumerate(phrases, 1):
        if not isinstance(phrase, str):
            raise InferKitError(f"Phrase {count - 1} is a {type(phrase).__name__}, not a string.")
        names.add(normalised(phrase))
    dropped = {"equal to another": count - len(names)}
    for why, out in (
        ("empty", {""}),
        ("too long", {p for p in names if longest is not None and len(p) > longest}),
        ("class names", {normalised(name) for name in classes}),
    ):
        dropped[why] = len(names & out)
        names -= out
    return tuple(sorted(names)), {why: n for why, n in dropped.items() if n}
