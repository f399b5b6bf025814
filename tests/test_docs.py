"""The pages are held to what is there: links, named files and tests, shell commands, snippets, the recipe's keys."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import recipe_page
from helpers import tiny_model_folder

from moonlet import recipe as recipes
from moonlet.agent.terminal import serving
from moonlet.model.config import for_depth

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "moonlet"
README, DOCS, PARITY = ROOT / "README.md", ROOT / "docs", PACKAGE / "model" / "README.md"
PAGES = [README, PARITY, *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def rows(page: Path) -> list[list[str]]:
    """The cells of every table row of a page, headings and rules left out."""
    lines = page.read_text().splitlines()
    bodies = [line for above, line in pairwise(lines) if line.startswith("|") and above.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in bodies if set(line) - set("|-: ")]


def named(text: str) -> list[str]:
    """Files in backticks: `file.py`, `folder/file.md` or `tests/folder/test_file.py::test_name`."""
    name = re.compile(r"(?:[\w./-]+/[\w-]+\.(?:toml|md|jinja)|[\w./-]+\.py(?:::\w+)?)")
    return [code for code in CODE.findall(text) if name.fullmatch(code)]


def python(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@each_page
def test_links_resolve(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in targets if not (page.parent / link.split("#")[0]).exists()] == []


@each_page
def test_named_files_and_tests_exist(page: Path) -> None:
    for name in named(page.read_text()):
        path, _, function = name.partition("::")
        found = [base / path for base in (ROOT, PACKAGE) if (base / path).is_file()]
        assert found, f"{page.name} names {path}, which is not there"
        assert not function or f"\ndef {function}(" in found[0].read_text(), f"{page.name} names {name}"


def test_index_leads_to_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in LINK.findall((DOCS / "index.md").read_text())}
    assert [page.name for page in PAGES if page.name != "index.md" and page not in linked] == []


def test_reading_path() -> None:
    text = (DOCS / "reading-path.md").read_text()
    entry = r"^(\d+)\. \[`([\w/.]+)`\]\(\.\./src/moonlet/([\w/.]+)\), about (\d+) lines\."
    entries = re.findall(entry, text, re.MULTILINE)
    assert [int(number) for number, *_ in entries] == list(range(1, 9))
    for _, shown, path, stated in entries:
        lines = len((PACKAGE / path).read_text().splitlines())
        assert shown == path
        assert abs(lines - int(stated)) <= 20, f"docs/reading-path.md: {path} has {lines} lines now"


def test_faithful_names_files_and_tests() -> None:
    table = rows(DOCS / "faithful.md")
    assert len(table) > 30
    for part, status, _, files, tests in table:
        assert status in ("faithful", "scaled", "left out"), part
        code, checks = named(files), [name for name in named(tests) if name.startswith("tests/")]
        assert bool(code) == bool(checks) == (status != "left out"), part


def test_parity_bounds_are_those_of_the_tests() -> None:
    table = rows(PARITY)
    assert len(table) > 8
    for what, _, bound, test in table:
        figures = re.findall(r"\d(?:\.\d+)?e-\d+", bound)
        path = next(name.split("::")[0] for name in named(test))
        assert figures and all(figure in (ROOT / path).read_text() for figure in figures), what


def test_recipe_page_is_generated() -> None:
    again = "python tests/recipe_page.py > docs/recipe.md"
    assert (DOCS / "recipe.md").read_text() == recipe_page.page(), f"the recipe changed: {again}"


def test_size_of_the_quickstart() -> None:
    from moonlet.model.model import Model

    recipe = recipes.load(ROOT / "recipes" / "quickstart.toml")
    model = Model(for_depth(recipe.model.depth, recipe.tokenizer.vocab_size, recipe.model.published))
    said = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters"
    for page, words in (
        (README, said),
        (DOCS / "faithful.md", said),
        (DOCS / "faithful.md", f"{recipe.model.depth} layers"),
    ):
        assert words in page.read_text(), f"{page.name} should say: {words}"


def test_measured_block_is_there_once() -> None:
    parts = re.split("<!-- measured:(?:begin|end) -->", README.read_text())
    assert len(parts) == 3 and parts[0].rstrip().endswith("## Measured") and parts[1].strip()


def commands() -> list[list[str]]:
    """Every `make` and `moonlet` command of the pages, in shell blocks and in running text."""
    fenced = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    inline = [code for page in PAGES for code in CODE.findall(page.read_text())]
    return [shlex.split(line) for line in fenced + [c for c in inline if c.startswith(("make ", "moonlet "))]]


def test_shell_blocks_hold_commands_that_are_checked() -> None:
    assert ["make", "quickstart"] in commands() and ["make", "test"] in commands()
    unknown = [line for line in commands() if line[0] not in ("make", "moonlet")]
    assert unknown == [[".", ".venv/bin/activate"]]


@pytest.mark.parametrize("target", sorted({line[1] for line in commands() if line[0] == "make"}))
def test_make_commands(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted({line[1] for line in commands() if line[0] == "moonlet"}))
def test_moonlet_commands(command: str) -> None:
    done = python("-m", "moonlet", command, "--help")
    assert done.returncode == 0, done.stderr
    options = {word for line in commands() if line[:2] == ["moonlet", command] for word in line if word[0] == "-"}
    assert [option for option in options if not re.search(rf"(^|[ ,]){option}\b", done.stdout, re.MULTILINE)] == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which runs/quickstart/model is a model."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model_folder(folder / "runs" / "quickstart")
    return folder


def test_readme_snippet(home: Path) -> None:
    (snippet,) = blocks(README, "python")
    done = python("-c", snippet, folder=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("[3] [") and done.stdout.endswith("[1.2]\n")


def test_sdk_snippet(home: Path) -> None:
    (snippet,) = blocks(DOCS / "tools-and-chat.md", "python")
    assert snippet.count("http://127.0.0.1:8000/v1") == 1
    with serving(home / "runs" / "quickstart" / "model") as url:
        done = python("-c", snippet.replace("http://127.0.0.1:8000/v1", url), folder=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout
