"""Run a method on a file of samples: `infer-kit eval`, as a script for torchrun.

python evals/data/scenes.py --out data/scenes
python evals/run.py --model demo --data data/scenes/test.jsonl --task exact --method red --weight 1
torchrun --nproc_per_node 2 evals/run.py --model demo --data data/scenes/test.jsonl --task exact
"""

import typer

from infer_kit.cli import EVAL_EXAMPLE, run_app
from infer_kit.cli.eval import evaluate

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    example = EVAL_EXAMPLE.replace("infer-kit eval", "python evals/run.py")
    app.command(epilog=f"Example: {example}")(evaluate)
    run_app(app)
