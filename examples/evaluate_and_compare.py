# %% Two methods on one file of samples, compared sample by sample.
# On the command line: infer-kit eval, twice, then infer-kit compare; see docs/evaluating.md.
import tempfile
from pathlib import Path

from infer_kit.demo.samples import written
from infer_kit.evaluation.comparison import compare
from infer_kit.evaluation.preparation import Evaluation, prepare
from infer_kit.evaluation.runner import run

runs = Path(tempfile.mkdtemp())
data = written("demo", runs / "data")  # or a JSONL file of your own

# %% A run is a folder: config.json, a line a sample, results.json. A run that was cut off goes on.
folders = {}
for method, options in {"direct": {}, "red": {"weight": 1.0}}.items():
    evaluation = Evaluation(
        model="demo", task="exact", data=data, method=method, options=options, limit=48
    )
    folder, results = run(prepare(evaluation), runs)
    folders[method] = folder
    for name, figure in results["metrics"].items():
        print(f"{method:7} {name:20} {figure['value']:.3f} ± {figure['stderr']:.3f}")

# %% Paired: who won where, and how sure the difference is.
found = compare(folders["direct"], folders["red"])
print(f"difference {found.difference:+.3f}, 95 % from {found.low:+.3f} to {found.high:+.3f}")
print(f"better on {found.wins}, worse on {found.losses}, equal on {found.ties}")
first = found.flips[0]
print(f"{first.id}: {first.first!r} became {first.second!r}, and {first.target!r} is right")


# %% The same command again answers nothing anew: every sample has its line.
def never():
    raise AssertionError("the model is not even loaded")


assert run(prepare(evaluation), runs, loaded=never)[1] == results
print("again: nothing was left to do")
