"""Faults in the recomputed choices and in the page, and the tests that must notice each."""

from __future__ import annotations

from tests.faults import Mutant

RECOMPUTED, PAGE = "explanation/recomputed.py", "explanation/page.py"
SCRIPT, VIEW = "explanation/recompute.js", "explanation/view.js"
STATISTICS = "token_statistics.py"
CHOICES = ("tests/explanation/test_recomputed.py",)
BROWSER = ("tests/explanation/test_browser.py",)
FILE = ("tests/explanation/test_page.py",)
KEPT = ("tests/engine/test_candidates.py",)

EXPLANATION_MUTANTS = (
    Mutant(
        "explain: tokens that are not stored are forgotten",
        RECOMPUTED,
        "    elif bound >= best - slack:\n",
        "    elif bound >= best + 1e9:\n",
        CHOICES,
    ),
    Mutant(
        "explain: the cut-off is left out",
        RECOMPUTED,
        "scores = np.where(cut.kept, raw, -np.inf)",
        "scores = raw",
        CHOICES,
    ),
    Mutant(
        "explain: a floor bounds a negative stream",
        RECOMPUTED,
        "if t < 0 or low > high * (1 + 1e-9) or (rest < -1e-9 * np.abs(w)).any():",
        "if t < 0:",
        CHOICES,
    ),
    Mutant(
        "explain: a negative stream excludes nothing",
        RECOMPUTED,
        "return np.where(excluded.any(1), -np.inf, sums)",
        "return np.where((excluded & (w > 0)).any(1), -np.inf, sums)",
        CHOICES,
    ),
    Mutant(
        "explain: the pool's floor holds without a stream that had excluded",
        RECOMPUTED,
        "known = len(token.experts) < 2 and bool((w[before != 0] != 0).all())",
        "known = len(token.experts) < 2",
        CHOICES,
    ),
    Mutant(
        "explain: the pool's floor holds under a cut-off that moves",
        RECOMPUTED,
        "known = len(token.experts) < 2 and bool((w[before != 0] != 0).all())",
        "known = bool((w[before != 0] != 0).all())",
        CHOICES,
    ),
    Mutant(
        "explain: the pool's floor is taken as a score",
        RECOMPUTED,
        "floor = score - token.anchor[1] + token.pooled_floor",
        "floor = token.pooled_floor",
        CHOICES,
    ),
    Mutant(
        "explain: a tie is certain",
        RECOMPUTED,
        'doubt = TIE if len(near) > 1 else ""',
        'doubt = ""',
        CHOICES,
    ),
    Mutant(
        "explain: of equal tokens the first",
        RECOMPUTED,
        "place = token.chosen if token.chosen in near else int(scores.argmax())",
        "place = int(scores.argmax())",
        CHOICES,
    ),
    Mutant(
        "explain: the threshold of several experts is known",
        RECOMPUTED,
        "known = others <= peak\n",
        "known = True\n",
        CHOICES,
    ),
    Mutant(
        "explain: shares of experts as they are",
        RECOMPUTED,
        "shares[experts] = w[experts] / total if total else 1 / len(experts)",
        "shares[experts] = w[experts]",
        CHOICES,
    ),
    Mutant(
        "explain: upper bounds are called exact",
        RECOMPUTED,
        'exact = token.pool == "mixture" and not token.experts',
        "exact = True",
        CHOICES,
    ),
    Mutant(
        "explain: shares under an unknown edge are called bounds",
        RECOMPUTED,
        "elif not cut.known or cut.open.any():",
        "elif False:",
        CHOICES,
    ),
    Mutant(
        "explain: tokens at the edge are called exact",
        RECOMPUTED,
        "np.where(unsure, np.nan, scores - shift)",
        "scores - shift",
        CHOICES,
    ),
    Mutant(
        "explain: floors over the candidates too",
        STATISTICS,
        '"floors": logprobs.scatter(-1, by_stream, -torch.inf).amax(-1)',
        '"floors": logprobs.amax(-1)',
        KEPT,
    ),
    Mutant(
        "explain: the pool's best are not kept",
        STATISTICS,
        "log_pi.topk(n, dim=-1).indices]",
        "log_pi.topk(1, dim=-1).indices]",
        KEPT,
    ),
    Mutant(
        "explain: a stream that is not there brings candidates",
        STATISTICS,
        "own = torch.where(present[..., None], own, chosen[:, None, :, None])",
        "own = torch.where(present[..., None] | True, own, chosen[:, None, :, None])",
        KEPT,
    ),
    Mutant(
        "explain: any value of trace",
        "methods/recipe.py",
        "        checked_depth(value)\n        self._trace = value\n",
        "        self._trace = value\n",
        ("tests/test_trace.py",),
    ),
    Mutant(
        "explain: streams of a trace in the batch's order",
        "trace.py",
        'array_of("candidate_logprobs")[..., list(slots)]',
        'array_of("candidate_logprobs")[..., sorted(slots)]',
        ("tests/test_trace.py",),
    ),
    Mutant(
        "explain: the caller's method is changed",
        "explanation/explained.py",
        "observed = copy.copy(recipe)",
        "observed = recipe",
        ("tests/explanation/test_explained.py",),
    ),
    Mutant(
        "explain: weights are not normalised",
        "explanation/controls.py",
        "            w = w / w.sum()\n",
        "            w = w / 1.0\n",
        ("tests/explanation/test_controls.py",),
    ),
    Mutant(
        "explain: a model is loaded before the page is checked",
        "cli/explain.py",
        "    check_target(out, force)\n",
        "",
        ("tests/cli/test_explain.py",),
    ),
    Mutant(
        "explain: other files are written over",
        PAGE,
        "if not ours and not force:",
        "if not ours and force is None:",
        FILE,
    ),
    Mutant(
        "explain: half a page stays",
        PAGE,
        "part = target if there and not target.is_file() else _beside(target)",
        "part = target",
        FILE,
    ),
    Mutant(
        "explain: what was begun stays beside the page",
        PAGE,
        "                part.unlink(missing_ok=True)\n",
        "                pass\n",
        FILE,
    ),
    Mutant(
        "explain: a page takes a pipe's place",
        PAGE,
        "part = target if there and not target.is_file() else _beside(target)",
        "part = _beside(target)",
        FILE,
    ),
    Mutant(
        "explain: data may end their script",
        PAGE,
        'for sign in "<>&":',
        'for sign in "&":',
        FILE,
    ),
    Mutant(
        "explain: the question is markup",
        PAGE,
        '"question": e(explanation.question),',
        '"question": explanation.question,',
        FILE,
    ),
    Mutant(
        "explain: what is put in is filled again",
        PAGE,
        'return re.sub(r"\\{\\{(\\w+)\\}\\}", lambda found: values[found[1]], template)',
        'for _ in "12":\n'
        '        template = re.sub(r"\\{\\{(\\w+)\\}\\}", lambda f: values[f[1]], template)\n'
        "    return template",
        BROWSER,
    ),
    Mutant(
        "explain: the page may ask for anything",
        "explanation/page.html",
        "default-src 'none'; img-src data:;",
        "default-src *; img-src * data:;",
        BROWSER,
    ),
    Mutant(
        "explain: tokens are markup",
        VIEW,
        "  element.append(...children);\n",
        "  for (const child of children) {\n"
        '    if (typeof child === "string") element.insertAdjacentHTML("beforeend", child);\n'
        "    else element.append(child);\n  }\n",
        BROWSER,
    ),
    Mutant(
        "explain: blanks are left as they are",
        VIEW,
        '    .replace(/^ +| +$/g, (run) => "␣".repeat(run.length))\n',
        "",
        BROWSER,
    ),
    Mutant(
        "explain: the script lets an excluded token pass",
        SCRIPT,
        "    if (row[k] === -Infinity) return -Infinity;\n",
        "    if (row[k] === -Infinity) continue;\n",
        BROWSER,
    ),
    Mutant(
        "explain: the script's bound at another t",
        SCRIPT,
        "const rest = w.map((v, k) => v - t * before[k]);",
        "const rest = w.map((v, k) => v - 0.9 * t * before[k]);",
        BROWSER,
    ),
    Mutant(
        "explain: the script knows every threshold",
        SCRIPT,
        "const known = others <= peak;",
        "const known = true;",
        BROWSER,
    ),
    Mutant(
        "explain: the script takes shares under an unknown edge for bounds",
        SCRIPT,
        "} else if (!cut.known || cut.open.includes(true)) {",
        "} else if (false) {",
        BROWSER,
    ),
    Mutant(
        "explain: an unknown share is shown as a number",
        VIEW,
        'Number.isNaN(choice.logPi[c]) ? "–" : percent',
        'Number.isNaN(choice.logPi[c]) ? "0 %" : percent',
        BROWSER,
    ),
    Mutant(
        "explain: the script divides by no sum",
        SCRIPT,
        "for (let k = 0; k < w.length; k++) w[k] /= total;",
        "for (let k = 0; k < w.length; k++) w[k] /= 1;",
        BROWSER,
    ),
    Mutant(
        "explain: arrow keys do nothing",
        VIEW,
        "  strip.children[Math.min(Math.max(next, 0), last)].focus();\n",
        "",
        BROWSER,
    ),
)
