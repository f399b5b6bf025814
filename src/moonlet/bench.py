"""`moonlet bench NAME`: runs a script of benchmarks/. They lie beside the source, not in the installed package.

Each says in its first lines what it measures and against what; some need the test requirements (transformers).
"""

import subprocess
import sys
from pathlib import Path

from moonlet.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def main(name: str, options: list[str]) -> int:
    """Run the script called `name`, or the one whose name starts so ("kda", "train-step", "llama.cpp"); its exit code.

    InputError where there are no scripts, or not just one of that name.
    """
    if not FOLDER.is_dir():
        raise InputError("bench: the installed package has no benchmarks; run it in a checkout of the source")
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    wanted = name.replace("-", "_").replace(".", "_")
    found = [wanted] if wanted in scripts else [stem for stem in scripts if stem.startswith(wanted)]
    if len(found) != 1:
        raise InputError(f"bench {name}: not one of {', '.join(scripts)}")
    return subprocess.run([sys.executable, str(scripts[found[0]]), *options], check=False).returncode
