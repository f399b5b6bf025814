"""The terminal: neutralised text, `-p`, `--json` and piped input through the real command, the interactive loop."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from scripted import ScriptedEngine, call, end, say, served

from moonlet.agent import terminal
from moonlet.agent.terminal import Screen, main, plain
from moonlet.errors import InputError

EVIL = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9b31m\u202etxt.exe\r\x00\x7f[bold]:smile:"
ASK = [*say("I compute", "reasoning_content"), call(1, "calculator", '{"expression":"17*23"}'), end("tool_calls")]
ANSWER = [*say("it is 391"), {"content": EVIL}, end()]
BAD = {"Cc", "Cf", "Cs"}


def command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    arguments = (sys.executable, "-m", "moonlet", "chat", *arguments)
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=200, **options)


def is_plain(text: str) -> bool:
    return not any(unicodedata.category(c) in BAD and c not in "\n\t\u200c\u200d" for c in text)


@given(st.text(st.characters(exclude_categories=())))
def test_plain_leaves_no_control_character(text: str) -> None:
    shown = plain(text)
    assert is_plain(shown)
    assert len(shown) == len(text)
    assert is_plain(text) <= (shown == text)


def test_evil_text_is_visible() -> None:
    assert plain(EVIL).startswith("␛]52;c;cm0gLXJm␇␛[2J\N{REPLACEMENT CHARACTER}31m")
    assert plain(EVIL).endswith("[bold]:smile:")


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_screen_prints_the_pieces_as_they_are(pieces: list[str]) -> None:
    out = io.StringIO()
    console = Console(file=out, width=20, highlight=False, tab_size=1)
    screen = Screen(console, console)
    for piece in pieces:
        screen.show("content", piece)
    assert out.getvalue() == plain("".join(pieces)).replace("\t", " ")


def test_json_is_one_document() -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    with served(engine) as url:
        done = command(url, "-p", "17*23?", "--json", "--temperature", "0", "--seed", "3", "--max-tokens", "40")
    assert done.returncode == 0, done.stderr
    assert is_plain(done.stdout)
    answer = json.loads(done.stdout)
    keys = "content reasoning messages usage seconds tokens_per_second finish_reason"
    assert set(answer) == set(keys.split())
    assert answer["content"] == "it is 391" + EVIL
    assert [message["role"] for message in answer["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert answer["messages"][2]["content"] == "391"
    asked = {key: engine.requests[1][key] for key in ("temperature", "seed", "max_tokens")}
    assert asked == {"temperature": 0, "seed": 3, "max_tokens": 40}
    assert engine.requests[0]["tools"][0]["function"]["name"] == "calculator"


@pytest.mark.parametrize("piped", [False, True])
def test_one_answer(piped: bool) -> None:
    with served(ScriptedEngine(ASK, ANSWER)) as url:
        done = command(url, input="17*23?\n") if piped else command(url, "-p", "17*23?")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"it is 391{plain(EVIL)}\n"
    assert is_plain(done.stderr)
    lines = done.stderr.splitlines()
    assert lines[:3] == ["I compute", '→ calculator {"expression":"17*23"}', "← 391"]
    assert lines[3].startswith("14 + 10 tokens · ")
    assert "tokens/s" in lines[3]


def test_failures() -> None:
    done = command("http://127.0.0.1:9/v1", "-p", "x", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("moonlet: cannot connect to http://127.0.0.1:9/v1")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("target", ["empty", "missing", None])
def test_target_that_is_not_a_model(target: str | None, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was started"))
    with pytest.raises(InputError, match="is not a model"):
        main(target, "x")


def test_empty_prompt() -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        main("http://127.0.0.1:9/v1", " \n")


def test_interactive(monkeypatch) -> None:
    """Two questions with /clear between them, typed; then Ctrl-D."""
    engine, out = ScriptedEngine(ASK, ANSWER, [*say("second"), end()]), io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda: Console(file=out, width=200))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with served(engine) as url, create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("17*23?\r/tools\r/nonsense\r\r/clear\rand now?\ragain?\r\x03\x04")
        assert main(url) == 0
    shown = out.getvalue()
    for words in ("I compute", "→ calculator {", "← 391", f"it is 391{plain(EVIL)}", "/clear  forget", "second"):
        assert words in shown
    assert is_plain(shown)
    roles = [[message["role"] for message in request["messages"]] for request in engine.requests]
    assert roles == [["user"], ["user", "assistant", "tool"], ["user"], ["user", "assistant", "user"]]


def test_ctrl_c_cancels_the_answer_and_ctrl_d_leaves() -> None:
    engine = ScriptedEngine([*say("word " * 1000), end()], pause=0.01)
    with served(engine) as url:
        master, slave = pty.openpty()
        arguments = [sys.executable, "-m", "moonlet", "chat", url]
        process = subprocess.Popen(arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        try:
            read_until(master, b"leave")
            os.write(master, b"hello\r")
            read_until(master, b"word word word")
            process.send_signal(signal.SIGINT)
            read_until(master, b"cancelled")
            assert engine.becomes_idle()
            assert engine.steps < 1000
            os.write(master, b"\x04")
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)


def read_until(fd: int, words: bytes, seconds: float = 60.0) -> None:
    seen, end = b"", time.monotonic() + seconds
    os.set_blocking(fd, False)
    while words not in seen:
        assert time.monotonic() < end, seen
        try:
            seen += os.read(fd, 4096)
        except BlockingIOError:
            time.sleep(0.02)
