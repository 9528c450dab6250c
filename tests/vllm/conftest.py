"""What engines on CPUs need, set before vLLM is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

_HOOK = str(Path(__file__).parent / "without_torchvision")
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # one thread: OMP_NUM_THREADS
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}

if importlib.util.find_spec("vllm") is not None:
    for _name, _value in _SETTINGS.items():
        os.environ.setdefault(_name, _value)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HOOK, os.environ.get("PYTHONPATH")]))
    if _HOOK not in sys.path:
        sys.path.insert(0, _HOOK)
        # another of this name may have been imported at the start
        importlib.import_module("sitecustomize")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder has the marker `vllm`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(240))  # an engine that hangs
