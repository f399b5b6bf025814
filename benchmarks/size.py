"""Lines of code: each folder of src/moonlet, the total, the tests beside it and the longest file.

Counts every line of every Python and page source (.py .html .js .css), comments and blanks included. Prints a table,
or one JSON document with --json.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".html", ".js", ".css"}


def measure(root: Path = ROOT) -> dict[str, Any]:
    """{"folders": {name: lines}, "total": lines, "tests": lines, "longest": {"file": path, "lines": lines}}."""
    package = root / "src" / "moonlet"
    sizes = {path.relative_to(package): _lines(path) for path in _sources(package)}
    folders: Counter[str] = Counter()
    for path, lines in sizes.items():
        folders[path.parts[0] + "/" if len(path.parts) > 1 else "(modules)"] += lines
    longest = max(sizes, key=lambda path: sizes[path])
    return {
        "folders": dict(sorted(folders.items())),
        "total": sum(sizes.values()),
        "tests": sum(_lines(path) for path in _sources(root / "tests")),
        "longest": {"file": str(longest), "lines": sizes[longest]},
    }


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description="Lines of code by folder.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    size = measure()
    if parser.parse_args().json:
        print(json.dumps(size, indent=2))
        return
    for name, lines in [*size["folders"].items(), ("total", size["total"]), ("tests", size["tests"])]:
        print(f"{name:12} {lines:6}")
    print(f"longest file: {size['longest']['file']}, {size['longest']['lines']} lines")


if __name__ == "__main__":
    main()
