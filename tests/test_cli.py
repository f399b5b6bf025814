"""The command line's exit codes and what it hands on. The stages behind it have tests of their own."""

import json
import signal
import subprocess
import sys

import pytest

from moonlet.doctor import lines

# Runs the command line with a function in the place of the pipeline, so that its arguments and its end are ours.
WITH_RUN = """
import sys, time, types
from moonlet.errors import InputError
from moonlet.cli import main
def run(*arguments):
    {body}
module = types.ModuleType("moonlet.run")
module.run = run
sys.modules["moonlet.run"] = module
main()
"""


def moonlet(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moonlet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def with_run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITH_RUN.format(body=body), "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_the_commands() -> None:
    done = moonlet("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in ("run", "chat", "serve", "eval", "export", "fit", "doctor"))


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("rum",), ("run", "x.toml", "--steps", "3"), ("serve", "x", "--port", "-1"), ("chat", "--seed", "-1")],
    ids=" ".join,
)
def test_usage_errors_exit_2(arguments: tuple[str, ...]) -> None:
    done = moonlet(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr and "Traceback" not in done.stderr


def test_run_hands_its_options_on() -> None:
    options = ["--out", "runs/x", "--from", "sft", "--until", "rl", "--set", "run.seed=1", "--set", "optim.muon_lr=0.1"]
    done = with_run("print([str(a) if i < 2 else a for i, a in enumerate(arguments)])", "r.toml", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['r.toml', 'runs/x', 'sft', 'rl', ['run.seed=1', 'optim.muon_lr=0.1']]"
    done = with_run("print(arguments[1:])", "r.toml")
    assert done.stdout.strip() == "(None, None, None, [])"


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("raise InputError('seed = -1: at least 0')", 2, "moonlet: seed = -1: at least 0\n"),
        ("return 1", 1, ""),
        ("return None", 0, ""),
    ],
)
def test_exit_codes(body: str, code: int, error: str) -> None:
    done = with_run(body, "r.toml")
    assert (done.returncode, done.stderr) == (code, error)


def test_own_faults_show_where_they_are() -> None:
    done = with_run("raise RuntimeError('own fault')", "r.toml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "own fault" in done.stderr


def test_interrupt_exits_130() -> None:
    body = "print('started', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", WITH_RUN.format(body=body), "run", "r.toml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == "moonlet: interrupted; the same command resumes\n"


def test_doctor() -> None:
    done = moonlet("doctor", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["python"] == sys.version.split()[0]
    assert facts["torch"].startswith("2.") and facts["threads"] >= 1 and facts["cores"] >= 1
    assert facts["memory_bytes"] > 2**28 and facts["disk_free_bytes"] > 0
    assert f"python         {facts['python']}" in lines(facts)
    missing = [line for line in lines({**facts, "browser": None, "torch": None}) if line.startswith("missing")]
    assert ["torch" in missing[0], "chromium" in missing[1], len(missing)] == [True, True, 2]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
try:
    import torch
except ModuleNotFoundError as error:
    assert error.name == "torch"
from moonlet.cli import main
main()
"""


@pytest.mark.parametrize("command", ["serve", "export", "fit", "convert"])
def test_a_missing_torch_is_told(command: str) -> None:
    options = {"export": ["--to", "hf", "--out", "x"], "convert": ["--to", "int4", "--out", "x"]}.get(command, [])
    call = [sys.executable, "-c", WITHOUT_TORCH, command, "x", *options]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moonlet: this needs torch: pip install 'moonlet[model]'\n"
