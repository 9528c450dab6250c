"""Run a method on a file of samples: `infer-kit eval`, as a script for torchrun.

python evals/data/scenes.py --out data/scenes
python evals/run.py --model demo --data data/scenes/test.jsonl --task exact --method red --weight 1
torchrun --nproc_per_node 2 evals/run.py --model demo --data data/scenes/test.jsonl --task exact
"""

import sys

from infer_kit.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "eval")
    main()
