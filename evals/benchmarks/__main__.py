"""`python -m evals.benchmarks`: every benchmark in turn, with the options given."""

import pkgutil
import subprocess
import sys
from pathlib import Path

HELPERS = {
    *("__main__", "measuring", "lvr_models", "lvr_peers", "prt_digits", "prt_language"),
    *("representation_adarand", "representation_clip", "representation_data"),
    *("representation_mgr", "representation_pseudo"),
    *("real_models", "real_texts", "symmetry_digits", "symmetry_language", "symmetry_models"),
    *("symmetry_peers", "tickets_attention", "tickets_digits"),
    *("zcbm_lasso", "zcbm_retrieval"),
}

if __name__ == "__main__":
    folder = Path(__file__).parent
    for module in sorted(m.name for m in pkgutil.iter_modules([str(folder)])):
        if module not in HELPERS:
            print(f"== {module}", flush=True)
            script = folder / f"{module}.py"
            subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=True)
