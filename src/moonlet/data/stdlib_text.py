"""Text that every Python has: the source and the docstrings of standard library modules.

The modules are a fixed list, read as files from the running interpreter's own library folder and never imported; a
file of the same name elsewhere on the path is not looked at. Their text differs between Python versions, so the
manifest records the version and a SHA-256 of what was read: losses compare only where that agrees. Source is cut
between top-level definitions (inside a class where one is too long), docstrings are documents of their own. The
library is under the PSF licence; nothing of it is copied into this package.

Left out: tests, C modules, platform-specific modules.
"""

import ast
import hashlib
import importlib.util
import platform
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import PathFinder
from itertools import zip_longest
from pathlib import Path
from typing import Any

# Readable code with good prose in it. A module that a later Python drops is skipped and listed in the manifest.
# fmt: off
MODULES = (
    "argparse", "ast", "asyncio.events", "asyncio.futures", "asyncio.locks", "asyncio.queues", "asyncio.streams",
    "asyncio.tasks", "base64", "bisect", "calendar", "cmd", "codecs", "collections", "concurrent.futures._base",
    "concurrent.futures.process", "concurrent.futures.thread", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "difflib", "dis", "doctest", "email.message", "email.policy", "email.utils", "enum", "filecmp",
    "fileinput", "fnmatch", "fractions", "functools", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq",
    "hmac", "html.parser", "http.client", "http.cookiejar", "http.cookies", "http.server", "inspect", "io",
    "ipaddress", "json.decoder", "json.encoder", "linecache", "logging", "logging.config", "logging.handlers",
    "mimetypes", "multiprocessing.pool", "numbers", "operator", "optparse", "os", "pathlib", "pdb", "pickle",
    "pickletools", "posixpath", "pprint", "profile", "pstats", "pydoc", "queue", "random", "reprlib", "runpy",
    "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "statistics",
    "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace",
    "traceback", "tracemalloc", "turtle", "types", "typing", "unittest.case", "unittest.loader", "unittest.mock",
    "unittest.runner", "unittest.suite", "urllib.error", "urllib.parse", "urllib.request", "urllib.robotparser",
    "uuid", "venv", "warnings", "weakref", "xml.dom.minidom", "xml.etree.ElementTree", "xml.sax.saxutils",
    "zipfile",
)
# fmt: on
PIECE = 2400  # characters a piece of source may have, some 800 tokens
SHORT = 400  # characters a piece of source has at least where lines allow, but for the last of a file
PROSE = 120  # characters a docstring must have to be a document


def documents(max_bytes: int | None = None) -> list[str]:
    """Documents of at most `max_bytes` of UTF-8 in total (all of them where None), in a fixed order.

    Modules take turns, prose then source, so that a small budget already sees many of them.
    """
    streams = [stream for module in MODULES for stream in _module_documents(module)]
    chosen: list[str] = []
    total = 0
    for turn in zip_longest(*streams):
        for text in turn:
            if text is None:
                continue
            total += len(text.encode())
            if max_bytes is not None and total > max_bytes:
                return chosen
            chosen.append(text)
    return chosen


def manifest() -> dict[str, Any]:
    """What the documents are made from.

    {"python": version, "files": [{"module", "bytes", "sha256"}], "missing": [module], "sha256": of all files in order}.
    """
    files, missing, whole = [], [], hashlib.sha256()
    for module in MODULES:
        data = _read(module)
        if data is None:
            missing.append(module)
            continue
        files.append({"module": module, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        whole.update(data)
    return {"python": platform.python_version(), "files": files, "missing": missing, "sha256": whole.hexdigest()}


@lru_cache(maxsize=len(MODULES))
def _read(module: str) -> bytes | None:
    """The source file of a standard library module, or None where this Python has none."""
    *parents, _ = module.split(".")
    spec = PathFinder.find_spec(module, [str(Path(sysconfig.get_path("stdlib"), *parents))])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_bytes()


@lru_cache(maxsize=len(MODULES))
def _module_documents(module: str) -> tuple[list[str], list[str]]:
    """The docstrings and the pieces of source of a module, each in the order of the file."""
    data = _read(module)
    if data is None:
        return [], []
    source = importlib.util.decode_source(data)
    tree = ast.parse(source)
    prose = [f"{name}\n\n{text}\n" for name, text in _docstrings(tree, module) if len(text) >= PROSE]
    return prose, _pieces(source, tree)


def _docstrings(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, cleaned docstring) of a module or class and of what it defines."""
    text = ast.get_docstring(node)
    if text:
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(child)):
            yield f"{name}.{child.name}", text


def _pieces(source: str, tree: ast.Module) -> list[str]:
    """The source cut into pieces of at most PIECE characters that join to it again (but for blank lines at the ends).

    A cut is made before a top-level statement where one is in reach, else before a statement of a class body, else at
    a blank line, else at any line. A single line that is longer stays whole.
    """
    lines = [f"{line}\n" for line in source.split("\n")]  # as the parser counts them: no break at a form feed
    better = [0 if line.strip() else 1 for line in lines] + [3]  # how good a cut before each line is
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                better[_first_line(child, lines)] = 2
    for node in tree.body:
        better[_first_line(node, lines)] = 3
    pieces, start = [], 0
    while start < len(lines):
        first = stop = start
        size = 0
        while stop < len(lines) and (stop == start or size + len(lines[stop]) <= PIECE):
            size += len(lines[stop])
            stop += 1
            if first == start and size >= SHORT:
                first = stop
        cut = stop
        if first > start and stop < len(lines):
            cut = max(range(first, stop + 1), key=lambda line: (better[line], line))
        text = "".join(lines[start:cut]).strip("\n")
        if text.strip():
            pieces.append(text + "\n")
        start = cut
    return pieces


def _first_line(node: ast.stmt, lines: list[str]) -> int:
    """The index of the line where a statement starts, with its decorators and the comments right above it."""
    decorators = getattr(node, "decorator_list", [])
    line = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line
