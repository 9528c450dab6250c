"""What engines on CPUs need, set before vLLM is imported."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

_HOOK = str(Path(__file__).parent / "without_torchvision")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # one thread: OMP_NUM_THREADS
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HOOK, os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder has the marker `vllm`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(240))  # an engine that hangs


if _HOOK not in sys.path:
    sys.path.insert(0, _HOOK)
    # another of this name may have been imported at the start
    importlib.import_module("sitecustomize")
