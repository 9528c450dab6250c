"""An explanation as a table and as a figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_kit.canvas import canvas, saved

if TYPE_CHECKING:
    from infer_kit.concepts.explanation import Explanation

_CLASSES, _LIKELY = 5, 0.005  # shown are at most so many classes, two of them always
_BAR = 24  # characters of the longest bar


def table(explanation: "Explanation", n: int) -> Any:
    """Phrases with bars, by `rich`; title, classes and remarks around them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = Table("phrase", "weight", "", title=_title(explanation))
    most = max((abs(w) for _, w in explanation.top(n)), default=1.0)
    for phrase, w in explanation.top(n):
        bar = "█" * max(1, round(_BAR * abs(w) / most))
        rows.add_row(Text(phrase), f"{w:+.3f}", Text(bar, style="red" if w < 0 else "green"))
    classes = Table("class", "from the phrases", "from the image")
    for name in _likely(explanation):
        direct = explanation.zero_shot[name]
        classes.add_row(Text(name), f"{explanation.probabilities[name]:.3f}", f"{direct:.3f}")
    remarks = [Text(f"· {said}", style="dim") for said in explanation.remarks]
    return Group(rows, classes, Text(_facts(explanation), style="dim"), *remarks)


def figure(explanation: "Explanation", path: Path, picture: Any, n: int) -> Path:
    """Bars of the phrases and of the classes, beside the picture where one is given."""
    top = explanation.top(n)
    columns = 2 + (picture is not None)
    drawn, axes = canvas(
        3.6 * columns, max(2.6, 0.26 * len(top) + 1.2), columns,
        width_ratios=[1.0] * (columns - 2) + [1.2, 0.8],
    )  # fmt: skip
    if picture is not None:
        axes[0].imshow(picture)
        axes[0].set_xticks([])
        axes[0].set_yticks([])
    phrases, classes = axes[-2:]
    colours = ["tab:red" if w < 0 else "tab:blue" for _, w in top]
    phrases.barh(range(len(top)), [w for _, w in top], color=colours)
    phrases.set_yticks(range(len(top)), [phrase for phrase, _ in top], fontsize="small")
    phrases.invert_yaxis()
    phrases.axvline(0, color="black", lw=0.6)
    phrases.set_xlabel("weight")
    phrases.set_title(f"{len(top)} of {len(explanation.phrases)} phrases", fontsize="small")
    names = _likely(explanation)
    places = list(range(len(names)))
    for shift, of, label in (
        (-0.2, explanation.probabilities, "from the phrases"),
        (0.2, explanation.zero_shot, "from the image"),
    ):
        classes.barh([p + shift for p in places], [of[c] for c in names], 0.38, label=label)
    classes.set_yticks(places, names, fontsize="small")
    classes.set_xlim(0, 1)
    classes.set_ylim(max(2.5, len(names) - 0.5), -0.5)
    classes.set_xlabel("probability")
    classes.legend(fontsize="x-small", loc="lower right")
    classes.set_title(_title(explanation), fontsize="small")
    return saved(drawn, path)


def _likely(explanation: "Explanation") -> list[str]:
    scores = explanation.probabilities if explanation.phrases else explanation.zero_shot
    names = sorted(scores, key=lambda name: -scores[name])[:_CLASSES]
    either = (explanation.probabilities, explanation.zero_shot)
    return [c for n, c in enumerate(names) if n < 2 or max(p[c] for p in either) >= _LIKELY]


def _title(explanation: "Explanation") -> str:
    return "no label" if explanation.label is None else f"label: {explanation.label}"


def _facts(explanation: "Explanation") -> str:
    gap = "not refitted" if explanation.gap is None else f"gap {explanation.gap:.0e}"
    return (
        f"{len(explanation.phrases)} of {explanation.k} phrases have weight; rebuilt at cosine "
        f"{explanation.cosine:.2f}; {gap}"
    )
