"""A run's folder: whole lines, torn lines, full disks, other configurations."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.run_folder import RunFolder, config_hash, folders_of

CONFIG: dict[str, Any] = {"method": "red", "options": {"weight": 0.5}}
VERSIONS = {"torch": "2.13.0"}


def opened(tmp_path: Path, config: dict[str, Any] = CONFIG) -> RunFolder:
    return RunFolder.open(tmp_path, "scenes-red", config, {"model": "demo"})


def line(n: int) -> dict[str, Any]:
    return {"id": str(n), "prediction": "é" * n}


def test_lines_are_read_back_from_all_shards(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for rank in (0, 1):
        with folder.writer(rank) as writer:
            writer.write([line(n) for n in range(rank, 6, 2)])
    assert folder.lines() == {str(n): line(n) for n in range(6)}
    assert [path.name for path in folder.shards()] == ["samples-0.jsonl", "samples-1.jsonl"]


def test_the_name_tells_configurations_apart(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path, CONFIG | {"options": {"weight": 1.0}})
    assert one.path != other.path
    assert one.path.name == f"scenes-red-{config_hash(CONFIG)}"
    assert config_hash(CONFIG) == config_hash(dict(reversed(CONFIG.items())))
    assert [f.path for f in folders_of([tmp_path])] == sorted([one.path, other.path])


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_line_is_ignored_and_then_taken_away(cut: int, tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with folder.writer(0) as writer:
        writer.write([line(1), line(20)])
    shard = folder.shards()[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-cut])
    assert set(folder.lines()) == {"1"}
    with folder.writer(0) as writer:
        writer.write([line(2)])
    first = content.splitlines(keepends=True)[0]
    assert shard.read_bytes() == first + json.dumps(line(2), ensure_ascii=False).encode() + b"\n"


def test_one_process_writes_a_shard_and_what_it_left_torn_is_taken_away(tmp_path: Path) -> None:
    """The second process had looked before the first one died."""
    folder, other = opened(tmp_path), opened(tmp_path)
    with folder.writer(0) as writer:
        writer.write([line(1)])
        with pytest.raises(InferKitError, match=r"Another process is writing .*samples-0.jsonl"):
            with other.writer(0):
                pass
        with folder.shards()[0].open("ab") as file:
            file.write(b'{"id": "to')
    with other.writer(0) as writer:
        writer.write([line(2)])
    assert set(other.lines()) == {"1", "2"}


def test_a_spoilt_line_within_a_file_is_named(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with folder.writer(0) as writer:
        writer.write([line(1)])
    with folder.shards()[0].open("ab") as file:
        file.write(b"\x00\x00\n")
    with pytest.raises(InferKitError, match="samples-0.jsonl, line 2 is no sample"):
        folder.lines()


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    found = json.loads((folder.path / "config.json").read_text())
    found["config"]["options"]["weight"] = 9
    (folder.path / "config.json").write_text(json.dumps(found))
    with pytest.raises(InferKitError, match="another configuration: options was .*9.*, is .*0.5"):
        opened(tmp_path)


def test_samples_without_a_configuration_are_refused(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with folder.writer(0) as writer:
        writer.write([line(1)])
    (folder.path / "config.json").unlink()
    with pytest.raises(InferKitError, match=r"has samples, but no config.json"):
        opened(tmp_path)


def test_other_versions_do_not_go_on_with_a_run(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.begin({"torch": "2.14.0"}, "abc")
    folder.begin(VERSIONS, "abc")  # no sample is there yet
    with folder.writer(0) as writer:
        writer.write([line(1)])
    folder.begin(VERSIONS, "def+")
    assert folder.config["commits"] == ["abc", "def+"]
    with pytest.raises(InferKitError, match=r"torch was '2.13.0', is '2.15.0'. Figures would mix"):
        folder.begin({"torch": "2.15.0"}, None)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InferKitError, match="cannot be written: Not a directory"):
        opened(tmp_path / "file")


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match=r"is no run: it has no config.json"):
        _ = RunFolder(tmp_path).config
    with pytest.raises(InferKitError, match="No runs in"):
        folders_of([tmp_path])
    folder = opened(tmp_path)
    with pytest.raises(InferKitError, match="is not finished: 0 samples are there"):
        _ = folder.results


FILL = """
import resource, sys
from infer_kit.errors import InferKitError
from infer_kit.evaluation.run_folder import RunFolder
folder = RunFolder.open(sys.argv[1], "scenes-red", {"a": 1}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with folder.writer(0) as writer:
    try:
        writer.write([{"id": str(n), "prediction": "x" * 90} for n in range(20)])
    except InferKitError as error:
        print(error)
"""


def test_a_full_disk_keeps_the_whole_samples(tmp_path: Path) -> None:
    """The kernel takes part of a line and then no more, as a full disk does."""
    run = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "The disk is full: sample '8' could not be written" in run.stdout
    (folder,) = folders_of([tmp_path])
    assert list(folder.lines()) == [str(n) for n in range(8)]
    assert folder.shards()[0].read_bytes().endswith(b"}\n")


def test_failures_are_no_answers(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with folder.writer(0) as writer:
        writer.write([{"id": "1", "error": "x"}, {"id": "2", "error": "y"}, line(2)])
    assert set(folder.lines()) == {"2"}
    assert folder.failures() == [{"id": "1", "error": "x"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "[]"), ("config.json", "{}"), ("results.json", "{}"), ("results.json", "no")],
)
def test_files_of_others_are_named(name: str, content: str, tmp_path: Path) -> None:
    folder = opened(tmp_path)
    (folder.path / name).write_text(content)
    with pytest.raises(InferKitError, match=f"{name} (was not written by|cannot be read)"):
        _ = folder.config if name == "config.json" else folder.results


def test_a_line_without_an_answer_is_no_sample(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with folder.writer(0) as writer:
        writer.write([{"id": "1"}])
    with pytest.raises(InferKitError, match="line 1 is no sample"):
        folder.lines()
