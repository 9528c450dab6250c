"""What a certified explanation costs, and finding its phrases in a bank of a million.

Lasso: 2,048 phrases of 512 numbers, an image at a time, as a user has them: float32 features in,
weights out. Ours is `sparse_code` with its defaults: the time includes its certificate. The
published setting of zero-shot concept bottlenecks is scikit-learn's `Lasso` in float32 with its
defaults, which stop after 1,000 sweeps. "excess" is over the objective of our optimum.

Retrieval: the 2,048 nearest of a million rows by inner product; "search MB" is memory beside the
bank. CPU time of one thread, interleaved. Features are simulated; see `zcbm_lasso.problems`.

--quick: 3 images in three rounds and 8 queries in one, after the warm-up.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks import zcbm_lasso, zcbm_retrieval
from evals.benchmarks.measuring import arguments, report


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    quick = options.quick
    print("lasso", file=sys.stderr, flush=True)
    claims, codes = zcbm_lasso.measure(*((3, 3) if quick else (12, 5)))
    print("retrieval", file=sys.stderr, flush=True)
    said, searches = zcbm_retrieval.measure(*((8, 1) if quick else (64, 5)))
    tables = {"Lasso": codes, "Retrieval, 1,000,000 phrases": searches}
    report("Z-CBM", claims + said, codes + searches, options.json, tables)


if __name__ == "__main__":
    main()
