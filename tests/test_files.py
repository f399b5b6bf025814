"""Whole or absent: interruptions, full disks and places that cannot be written."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from moonlet.errors import InputError, nearest
from moonlet.files import check_writable, new_folder, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, "mañana")
    assert path.read_bytes() == "mañana".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["file"]


def test_write_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": [1, 2.5], "a": "é"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"b": [1, 2.5], "a": "é"}
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", float("nan"))
    assert json.loads((tmp_path / "x.json").read_text())["a"] == "é"


def test_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    """A real refusal by the system: the process may not write files above 1000 bytes."""
    path = tmp_path / "file"
    write_atomic(path, "old")
    code = (
        "import resource, sys; from moonlet.files import write_atomic;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_atomic(sys.argv[1], b'x' * 100_000)"
    )
    done = python(code, path)
    assert done.stderr.splitlines()[-1].startswith(f"moonlet.errors.InputError: no space left to write {path}: free")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_full_disk_in_new_folder(tmp_path: Path) -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error (os error 28)")):
        with pytest.raises(InputError, match="no space left"), new_folder(tmp_path / "step-1") as part:
            (part / "weights").write_text("w")
            raise error
    assert names(tmp_path) == []


def test_not_writable_places(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("f")
    with pytest.raises(InputError, match="cannot write .*file/x"):
        write_atomic(file / "x", "")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path, "")
    with pytest.raises(InputError, match="is a file where a folder"), new_folder(file):
        pass
    with pytest.raises(InputError, match="cannot write .*file/y"), new_folder(file / "y"):
        pass
    with pytest.raises(InputError, match="is not a folder"):
        check_writable(file / "z")
    assert names(tmp_path) == ["file"]


def test_read_only_folder() -> None:
    """Root may write everywhere, so the process becomes somebody else first."""
    code = (
        "import os, sys; from moonlet import files; from moonlet.errors import InputError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "write, build = lambda p: files.write_atomic(p, ''), lambda p: files.new_folder(p).__enter__()\n"
        "for call in (write, files.check_writable, build):\n"
        "    for path in ('x', 'closed/x'):\n"
        "        try: call(os.path.join(sys.argv[1], path))\n"
        "        except InputError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder, "closed")
        closed.mkdir(mode=0)
        os.chmod(folder, 0o555)
        done = python(code, folder)
        os.chmod(folder, 0o755)
        closed.chmod(0o755)
        assert names(Path(folder)) == ["closed"]
    told = done.stdout.splitlines()
    assert len(told) == 6, done.stderr
    assert all(folder in line and ("cannot write" in line or "is not writable" in line) for line in told)


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet", 1000)
    assert names(tmp_path) == []
    with pytest.raises(InputError, match=r"needs 1000000000000 MB and its disk has \d+ MB free"):
        check_writable(tmp_path / "x", 10**18)


def test_new_folder_appears_whole_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "model"
    with new_folder(path) as part:
        (part / "inner").mkdir()
        (part / "inner" / "a").write_text("1")
        (part / "inner" / "a").chmod(0o600)  # as safetensors does
        assert not path.exists()
    assert (path / "inner" / "a").read_text() == "1"
    assert (path / "inner" / "a").stat().st_mode & 0o777 == path.stat().st_mode & 0o666
    with new_folder(path) as part:
        assert names(part) == []
        (part / "b").write_text("2")
        assert names(path) == ["inner"]
    assert names(path) == ["b"]
    assert names(path.parent) == ["model"]


def test_exception_in_the_body_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "x") as part:
        (part / "a").write_text("1")
        raise KeyError("own")
    assert names(tmp_path) == []


def test_killed_while_building(tmp_path: Path) -> None:
    path = tmp_path / "step-7"
    code = (
        "import os, signal, sys; from moonlet.files import new_folder\n"
        "with new_folder(sys.argv[1]) as part:\n"
        "    (part / 'stale').write_text('s'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert python(code, path).returncode == -signal.SIGKILL
    assert not path.exists() and len(names(tmp_path)) == 1
    with new_folder(path) as part:
        (part / "fresh").write_text("f")
    assert names(path) == ["fresh"] and names(tmp_path) == ["step-7"]


def test_killed_between_the_renames(tmp_path: Path) -> None:
    """The second rename never happens: the old folder is put back before anything else."""
    path = tmp_path / "model"
    with new_folder(path) as part:
        (part / "old").write_text("o")
    code = (
        "import os, signal, sys; from moonlet import files\n"
        "replace = os.replace\n"
        "def once(a, b): replace(a, b); os.kill(os.getpid(), signal.SIGKILL)\n"
        "with files.new_folder(sys.argv[1]) as part: os.replace = once"
    )
    assert python(code, path).returncode == -signal.SIGKILL
    assert not path.exists()
    with pytest.raises(KeyError), new_folder(path):
        raise KeyError
    assert names(path) == ["old"] and names(tmp_path) == ["model"]


def test_nearest() -> None:
    assert nearest("muonlr", ["muon_lr", "adamw_lr"]) == "did you mean 'muon_lr'?"
    assert nearest("OPTIM", ["optim", "model"]) == "did you mean 'optim'?"
    assert nearest("zzz", ["optim", "model"]) == "valid: model, optim"
    assert "\n" not in str(InputError("a\nb"))
