"""The diagrams of the pages: who reads what, and where streams are pooled.

python docs/figures/draw.py                     # writes docs/figures/*; needs matplotlib
python docs/figures/draw.py red tickets         # only these

What was measured is drawn by `measured.py` beside this.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).resolve().parent
INK, MUTED, LINE = "#1f2933", "#52606d", "#7b8794"
COLOURS = {
    "image": "#cfe8ef",
    "noise": "#e4e7eb",
    "text": "#fdf0d5",
    "question": "#e3ebd3",
    "model": "#ffffff",
    "other": "#ece2f0",
    "pool": "#f9d5c9",
}
matplotlib.rcParams |= {
    "font.family": "DejaVu Sans",
    "svg.fonttype": "path",  # looks the same whatever fonts a reader has
    "svg.hashsalt": "infer_kit",  # and the same file each time
}


@dataclass(frozen=True)
class Row:
    """A stream: the chips of its context, the model, and its weight in the pool."""

    chips: Sequence[tuple[str, str]]
    model: str
    weight: str
    kind: str = "model"


class Picture:
    """A white rounded card with boxes and arrows; a unit is an inch."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height))
        FigureCanvasSVG(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(0, height)
        self.axes.axis("off")
        self.figure.patch.set_alpha(0)
        self.box(0.04, 0.04, width - 0.08, height - 0.08, "#ffffff", edge="#d9dde2", radius=0.14)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        text: str = "",
        edge: str = LINE,
        radius: float = 0.07,
        size: float = 9,
        weight: str = "normal",
    ) -> None:
        shape = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            facecolor=colour,
            edgecolor=edge,
            linewidth=0.9,
        )
        self.axes.add_patch(shape)
        if text:
            self.text(x + width / 2, y + height / 2, text, size=size, weight=weight)

    def text(
        self, x: float, y: float, text: str, size: float = 9, colour: str = INK, **more: str
    ) -> None:
        more = {"ha": "center", "va": "center"} | more
        self.axes.text(x, y, text, fontsize=size, color=colour, linespacing=1.35, **more)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0
    ) -> None:
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=9,
                color=LINE,
                linewidth=1.1,
                shrinkA=1.5,
                shrinkB=1.5,
            )
        )

    def elbow(self, points: Sequence[tuple[float, float]]) -> None:
        """Straight lines through the points, an arrow at the end."""
        xs, ys = zip(*points[:-1], strict=True)
        self.axes.plot(xs, ys, color=LINE, linewidth=1.1, solid_joinstyle="round")
        self.arrow(points[-2], points[-1])

    def save(self, name: str) -> None:
        path = HERE / f"{name}.svg"
        self.figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        text = path.read_text(encoding="utf-8")
        path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")
        print("wrote", path)


def streams(
    name: str,
    rows: Sequence[Row],
    pool: str,
    formula: str,
    out: str,
    again: str,
    note: str = "",
    chip: float = 1.16,
    headings: Sequence[str] = ("context", "model", "weight", "pool", "the same for all"),
) -> None:
    """A row a stream, then the pool, then what all streams go on with."""
    gap, tall, left = 0.74, 0.44, 0.24
    most = max(len(row.chips) for row in rows)
    model_x = left + most * (chip + 0.08) + 0.3
    weight_x = model_x + 1.62
    pool_x = weight_x + 0.46
    out_x = pool_x + 1.85
    width = out_x + 1.42
    bottom = 0.62 + (0.26 if note else 0)
    height = bottom + gap * len(rows) + 0.34
    picture = Picture(width, height)
    top = bottom + gap * (len(rows) - 1)
    middle = (bottom + top + tall) / 2
    places = (left, model_x, weight_x - 0.24, pool_x, out_x)
    spans = (most * (chip + 0.08) - 0.08, 1.1, 0.5, 1.45, 1.2)
    for x, span, heading in zip(places, spans, headings, strict=True):
        picture.text(x + span / 2, height - 0.2, heading, size=7.5, colour=MUTED)
    for k, row in enumerate(rows):
        y = top - k * gap
        for n, (kind, label) in enumerate(row.chips):
            x = left + (most - len(row.chips) + n) * (chip + 0.08)
            picture.box(x, y, chip, tall, COLOURS[kind], label, size=8.5)
        picture.arrow((model_x - 0.3, y + tall / 2), (model_x, y + tall / 2))
        picture.box(model_x, y, 1.1, tall, COLOURS[row.kind], row.model, size=8.5)
        end = middle + (y + tall / 2 - middle) * min(1.0, 0.62 / (0.5 * gap * len(rows)))
        picture.arrow((model_x + 1.1, y + tall / 2), (pool_x, end))
        share = (weight_x - model_x - 1.1) / (pool_x - model_x - 1.1)
        at = y + tall / 2 + (end - y - tall / 2) * share
        picture.box(weight_x - 0.24, at - 0.12, 0.5, 0.24, "#ffffff", edge="#ffffff")
        picture.text(weight_x + 0.01, at, row.weight, size=9, weight="bold")
    high = max(0.86, min(1.25, 0.62 * len(rows) + 0.2))
    picture.box(pool_x, middle - high / 2, 1.45, high, COLOURS["pool"])
    picture.text(pool_x + 0.725, middle + 0.2, pool, size=8.5)
    picture.text(pool_x + 0.725, middle - 0.16, formula, size=10.5)
    picture.arrow((pool_x + 1.45, middle), (out_x, middle))
    picture.box(out_x, middle - 0.3, 1.2, 0.6, COLOURS["question"], out, size=8.5)
    low = bottom - 0.2
    picture.elbow(
        [
            (out_x + 0.6, middle - 0.3),
            (out_x + 0.6, low),
            (model_x + 0.55, low),
            (model_x + 0.55, bottom),
        ]
    )
    picture.text((model_x + out_x) / 2 + 0.5, low - 0.13, again, size=7.5, colour=MUTED)
    if note:
        picture.text(left, 0.24, note, size=8, colour=MUTED, ha="left")
    picture.save(name)


def red() -> None:
    question = ("question", "question")
    streams(
        "red",
        [
            Row((("image", "image"), question), "the model", "1"),
            Row((("text", "rationale"), question), "the model", "λ"),
        ],
        "product",
        r"$p_{x}\,p_{r}^{\,\lambda}\,/\,Z$",
        "next token",
        "every stream advances by it",
        "Before: the same model writes the rationale, from image and question (or you give one).",
    )


def parallel_icl() -> None:
    question = ("question", "query")
    streams(
        "parallel_icl",
        [
            Row((("text", "chunk 1"), question), "the model", r"$w_1$"),
            Row((("text", "chunk 2"), question), "the model", r"$w_2$"),
            Row((("text", "… chunk K"), question), "the model", r"$w_K$"),
        ],
        "product",
        r"$\prod\,p_k^{\,w_k}\,/\,Z$",
        "next token",
        "every stream advances by it",
        "fit() partitions the demonstrations and reads each chunk once (the bank); "
        "w follows from likeness to the query.",
    )


def contrastive() -> None:
    question = ("question", "question")
    streams(
        "contrastive",
        [
            Row((("image", "image or\ndocument"), question), "the model", "1+α"),
            Row((("noise", "noised,\nor none"), question), "the model", "−α"),
        ],
        "cut-off β, product",
        r"$p_0^{\,1+\alpha}\,/\,p_1^{\,\alpha}$",
        "next token",
        "both streams advance by it",
        "ContrastiveDecoding: one context, two models. ICD: a disturbing instruction. "
        "CFG: a negative prompt.",
    )


def vocabularies() -> None:
    text = ("question", "text so far")
    streams(
        "vocabularies",
        [
            Row((text, ("text", "A's tokens")), "model A\nover bytes", r"$w_A$"),
            Row((text, ("text", "B's tokens")), "model B\nover bytes", r"$w_B$", "other"),
        ],
        "mixture or product",
        r"$\sum\,w_i\,q_i(\mathrm{byte})$",
        "next byte",
        "every model advances by it, whatever its tokens",
        "q(byte) sums a model's probability over every way to cut the text into its tokens, "
        "within a certified bound.",
    )


def rewards() -> None:
    text = ("question", "prompt, text so far")
    streams(
        "rewards",
        [
            Row((text,), "base B", "1"),
            Row((text,), "reward r", "β", "other"),
        ],
        "sum of scores",
        r"$z_B + \beta\,r$",
        "next token",
        "both models advance by it",
        "r was trained once through a small base A. EFT and proxy tuning: "
        "r = tuned − untuned, two models.",
        chip=1.7,
    )


def concepts() -> None:
    picture = Picture(10.3, 2.62)
    top, bottom, tall = 1.62, 0.72, 0.44
    middle = (top + bottom + tall) / 2
    for y, kind, chip, tower, out in (
        (top, "image", "image", "image tower", "v"),
        (bottom, "text", "N phrases", "text tower", "bank"),
    ):
        picture.box(0.24, y, 1.16, tall, COLOURS[kind], chip, size=8.5)
        picture.arrow((1.4, y + tall / 2), (1.7, y + tall / 2))
        picture.box(1.7, y, 1.1, tall, COLOURS["model"], tower, size=8.5)
        picture.arrow((2.8, y + tall / 2), (3.5, middle + (y + tall / 2 - middle) * 0.4))
        picture.text(3.1, y + tall / 2 + (0.06 if y == top else -0.1), out, size=9, weight="bold")
    boxes = (
        (3.5, 1.2, "pool", "K nearest", r"$F$  [K, d]"),
        (5.0, 1.75, "pool", "lasso, certified", r"$|v-F^{\top}w|^2/2+\lambda|w|_1$"),
        (7.05, 1.35, "text", "weighted phrases", r"$z=F^{\top}w$"),
        (8.7, 1.35, "question", "class", r"softmax$(s\,T z)$"),
    )
    for x, width, kind, name, formula in boxes:
        picture.box(x, middle - 0.43, width, 0.86, COLOURS[kind])
        picture.text(x + width / 2, middle + 0.18, name, size=8.5)
        picture.text(x + width / 2, middle - 0.16, formula, size=9.5)
    for (x, width, *_), (following, *_) in pairwise(boxes):
        picture.arrow((x + width, middle), (following, middle))
    picture.box(8.795, 0.42, 1.16, 0.36, COLOURS["text"], "class names: T", size=8)
    picture.arrow((9.375, 0.78), (9.375, middle - 0.43))
    for x, heading in (
        (0.82, "read"),
        (2.25, "encoder"),
        (5.0, "for each image"),
        (7.72, "explanation"),
    ):
        picture.text(x, 2.42, heading, size=7.5, colour=MUTED)
    note = "The bank is encoded once. Nothing is trained; delete or insert phrases, read again."
    picture.text(0.24, 0.24, note, size=8, colour=MUTED, ha="left")
    picture.save("concepts")


def tickets() -> None:
    picture = Picture(9.4, 2.62)
    top, bottom, tall = 1.62, 0.72, 0.44
    middle = (top + bottom + tall) / 2
    for y, kind, kept, drawn, sign in (
        (top, "text", "a seed", "random weights", "w"),
        (bottom, "image", "a bit a weight", "mask", "m"),
    ):
        picture.box(0.24, y, 1.3, tall, COLOURS[kind], kept, size=8.5)
        picture.arrow((1.54, y + tall / 2), (2.3, y + tall / 2))
        picture.box(2.3, y, 1.5, tall, COLOURS["model"], drawn, size=8.5)
        picture.arrow((3.8, y + tall / 2), (4.75, middle + (y + tall / 2 - middle) * 0.4))
        picture.text(4.2, y + tall / 2 + (0.08 if y == top else -0.12), sign, weight="bold")
    boxes = ((4.75, 1.2, "pool", "product", r"$w \odot m$"), (6.25, 1.2, "question", "network", ""))
    for x, width, kind, name, formula in boxes:
        picture.box(x, middle - 0.36, width, 0.72, COLOURS[kind])
        up = 0.15 if formula else 0
        picture.text(x + width / 2, middle + up, name, size=8.5)
        picture.text(x + width / 2, middle - 0.15, formula, size=10.5)
    picture.arrow((5.95, middle), (6.25, middle))
    picture.arrow((7.45, middle), (7.85, middle))
    picture.box(7.85, middle - 0.22, 1.3, tall, COLOURS["noise"], "loss", size=8.5)
    picture.box(2.3, 0.3, 1.5, 0.3, COLOURS["other"], "scores: trained", size=8)
    picture.arrow((3.05, 0.6), (3.05, bottom))
    picture.elbow([(8.5, middle - 0.22), (8.5, 0.45), (3.8, 0.45)])
    picture.text(6.1, 0.34, "gradient, in the search alone", size=7.5, colour=MUTED)
    for x, heading in ((0.89, "in the file"), (3.05, "drawn, read"), (5.35, "for each layer")):
        picture.text(x, 2.42, heading, size=7.5, colour=MUTED)
    picture.save("tickets")


def symmetry() -> None:
    """Two networks, one of them put into the order of the other, and their average."""
    picture = Picture(9.6, 2.86)
    wide, tall, step, low = 0.4, 0.3, 0.5, 1.26
    across = 3 * step + wide
    kinds = ("image", "text", "other", "question")

    def network(x: float, order: Sequence[int], name: str, label: str) -> None:
        picture.text(x + across / 2, 2.58, name, size=9.5, weight="bold")
        for y, said in ((low + 0.72, "output"), (low - 0.68, "input")):
            picture.box(x, y, across, 0.26, COLOURS["noise"], said, size=7.5)
        for place, unit in enumerate(order):
            left = x + place * step
            middle = left + wide / 2
            picture.arrow((middle, low - 0.42), (middle, low))
            picture.arrow((middle, low + tall), (middle, low + 0.72))
            said = label.replace("*", str(unit + 1))
            picture.box(left, low, wide, tall, COLOURS[kinds[unit]], said, size=8.5)

    first, other, aligned, middle = (0.3, 2.6, 5.0, 7.4)
    network(first, (0, 1, 2, 3), "a", "$a_*$")
    network(other, (2, 0, 3, 1), "b", "$b_*$")
    network(aligned, (0, 1, 2, 3), "P b", "$b_*$")
    network(middle, (0, 1, 2, 3), "½ a + ½ P b", "$\\overline{ab}_*$")
    for x, said in ((other + across, "P"), (aligned + across, "average")):
        end = aligned if said == "P" else middle
        picture.arrow((x + 0.02, low + tall / 2), (end - 0.02, low + tall / 2))
        picture.text((x + end) / 2, low + tall / 2 + 0.17, said, size=7.5, colour=MUTED)
    note = (
        "P b computes what b computes, with each of its units in the place of the unit of a "
        "that is most like it."
    )
    picture.text(0.3, 0.26, note, size=8, colour=MUTED, ha="left")
    picture.save("symmetry")


def representation() -> None:
    """One network, and what each method does to its features."""
    picture = Picture(9.6, 3.0)
    row, tall = 1.5, 0.44
    picture.box(0.3, row, 1.15, tall, COLOURS["image"], "images x", size=8.5)
    picture.box(2.2, row, 1.35, tall, COLOURS["model"], "extractor g", size=8.5)
    picture.box(4.3, row, 1.35, tall, COLOURS["question"], "features g(x)", size=8.5)
    picture.box(6.4, row, 0.95, tall, COLOURS["model"], "head", size=8.5)
    picture.box(8.1, row, 1.2, tall, COLOURS["pool"], "cross-entropy", size=8.5)
    for start, end in ((1.45, 2.2), (3.55, 4.3), (5.65, 6.4), (7.35, 8.1)):
        picture.arrow((start, row + tall / 2), (end, row + tall / 2))
    picture.box(3.1, 2.36, 1.75, 0.4, COLOURS["noise"], "z ~ N(0, I)", size=8)
    picture.box(5.15, 2.36, 1.95, 0.4, COLOURS["noise"], "z ~ N(μ, σ) of the class", size=8)
    picture.arrow((4.2, 2.36), (4.8, row + tall))
    picture.arrow((5.9, 2.36), (5.2, row + tall))
    picture.text(3.0, 2.56, "CLIP-Refine: of the pair", size=7.5, colour=MUTED, ha="right")
    picture.text(7.2, 2.56, "AdaRand: μ follows and spreads", size=7.5, colour=MUTED, ha="left")
    picture.box(0.3, 0.42, 1.15, tall, COLOURS["other"], "generator G", size=8.5)
    picture.arrow((0.87, 0.42 + tall), (0.87, row))
    picture.text(1.0, 1.18, "samples", size=7.5, colour=MUTED, ha="left")
    picture.box(2.2, 0.42, 3.45, tall, COLOURS["text"], "g(T(x)) near g(x)", size=8.5)
    picture.arrow((4.97, row), (4.97, 0.42 + tall))
    picture.text(3.92, 0.25, "MGR: on samples, for the extractor alone", size=7.5, colour=MUTED)
    picture.box(6.4, 0.42, 2.9, tall, COLOURS["text"], "p(T(x)) near sharpened p(x)", size=8.5)
    picture.arrow((6.87, row), (6.87, 0.42 + tall))
    picture.text(7.85, 0.25, "P-SSL; PP trains on samples first", size=7.5, colour=MUTED)
    picture.save("representation")


DRAWINGS = {
    draw.__name__: draw
    for draw in (
        *(red, parallel_icl, contrastive, vocabularies, rewards, concepts),
        *(tickets, symmetry, representation),
    )
}


def main() -> None:
    for name in sys.argv[1:] or DRAWINGS:
        DRAWINGS[name]()


if __name__ == "__main__":
    sys.exit(main())
