import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from moonlet.data import stdlib_text


def test_documents_are_the_same_twice_and_in_another_process():
    here = stdlib_text.documents(200_000)
    code = (
        "import hashlib\nfrom moonlet.data import stdlib_text\n"
        "print(hashlib.sha256('\\0'.join(stdlib_text.documents(200_000)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256("\0".join(here).encode()).hexdigest()


def test_budget_is_kept_and_a_small_one_is_a_prefix_of_a_large_one():
    small, large = stdlib_text.documents(50_000), stdlib_text.documents(150_000)
    assert sum(len(text.encode()) for text in small) <= 50_000
    assert sum(len(text.encode()) for text in large) <= 150_000
    assert len(small) > 20 and large[: len(small)] == small
    assert sum(len(text.encode()) for text in large) > 140_000
    assert stdlib_text.documents(0) == []


def test_the_list_is_pinned_and_all_of_it_is_read():
    modules = stdlib_text.MODULES
    assert len(set(modules)) == len(modules) >= 100
    manifest = stdlib_text.manifest()
    assert len(manifest["files"]) + len(manifest["missing"]) == len(modules)
    assert len(manifest["missing"]) <= 5
    assert sum(map(len, stdlib_text.documents())) > 3_000_000


def test_manifest_hashes_are_those_of_the_files():
    manifest = stdlib_text.manifest()
    entry = next(file for file in manifest["files"] if file["module"] == "textwrap")
    data = Path(importlib.util.find_spec("textwrap").origin).read_bytes()
    assert entry == {"module": "textwrap", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_missing_module_is_listed_and_a_c_module_counts_as_missing(monkeypatch):
    monkeypatch.setattr(stdlib_text, "MODULES", ("textwrap", "no_such_module", "no_such.part", "itertools"))
    manifest = stdlib_text.manifest()
    assert [file["module"] for file in manifest["files"]] == ["textwrap"]
    assert manifest["missing"] == ["no_such_module", "no_such.part", "itertools"]
    assert stdlib_text.documents() and all("no_such" not in text for text in stdlib_text.documents())


def test_a_file_of_the_same_name_on_the_path_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "sched.py").write_text("SECRET = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stdlib_text._read.cache_clear()
    assert b"SECRET" not in stdlib_text._read("sched")


def test_nothing_is_imported():
    code = (
        "import sys\nfrom moonlet.data import stdlib_text\nstdlib_text.documents()\n"
        "print([name for name in ('turtle', 'tkinter', 'smtplib', 'pydoc', 'multiprocessing') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pieces_hold_every_line_once_and_are_of_moderate_size():
    source = importlib.util.decode_source(stdlib_text._read("argparse"))
    pieces = stdlib_text._pieces(source, ast.parse(source))
    kept = [line for piece in pieces for line in piece.split("\n") if line.strip()]
    assert kept == [line for line in source.split("\n") if line.strip()]
    assert max(map(len, pieces)) <= stdlib_text.PIECE
    assert min(map(len, pieces[:-1])) >= stdlib_text.SHORT - 10
    assert sum(map(len, pieces)) / len(pieces) > stdlib_text.PIECE / 2


def test_cuts_fall_between_top_level_definitions_and_keep_decorators_and_comments():
    body = "    x = 1\n" * 60
    source = "".join(f"# about f{n}\n@decorated\ndef f{n}():\n{body}\n" for n in range(12))
    pieces = stdlib_text._pieces(source, ast.parse(source))
    assert len(pieces) > 2
    for piece in pieces:
        assert piece.startswith("# about f")
        ast.parse(piece)


def test_form_feeds_do_not_shift_the_cuts():
    source = "".join(f"\f\ndef f{n}():\n" + "    x = 1\n" * 60 for n in range(12))
    for piece in stdlib_text._pieces(source, ast.parse(source)):
        ast.parse(piece.lstrip("\f\n"))


def test_docstrings_are_documents_of_their_own():
    prose, _ = stdlib_text._module_documents("textwrap")
    named = {text.split("\n", 1)[0]: text for text in prose}
    assert "Object for wrapping/filling text" in named["textwrap.TextWrapper"]
    assert named["textwrap.wrap"].startswith("textwrap.wrap\n\nWrap a single paragraph of text")
