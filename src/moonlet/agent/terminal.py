"""`moonlet chat`: the agent in a terminal, or one answer for a script.

Given a folder it starts `moonlet serve` for it on loopback and speaks HTTP to it; given a URL it speaks to that. Text
from models and tools is untrusted: control characters are made visible before anything reaches the terminal. With `-p`
or piped input the answer alone goes to stdout, and thought, calls and status go to stderr.
"""

import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from moonlet.agent import loop, tools
from moonlet.agent.client import Client, EndpointError
from moonlet.errors import InputError

DEFAULT = "runs/quickstart/model"
HELP = """/clear  forget the conversation    /tools  what the model can call    /help  this
Ctrl-C  cancel the running answer  Ctrl-D  leave"""
STYLES = {"reasoning_content": "dim italic", "content": "", "call": "cyan", "result": "green", "status": "dim"}
MARKS = {"call": "→ ", "result": "← "}


def plain(text: str) -> str:
    """`text` with every control and direction-changing character made visible; line ends and tabs stay.

    Escape sequences can retitle a window, write the clipboard or hide text. Without ESC and the C1 range none of them
    begins, however the pieces of a stream are cut.
    """
    return "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _visible(c) for c in text)


def _visible(c: str) -> str:
    if c in "\n\t\u200c\u200d":  # the last two join letters in ordinary words and emoji
        return c
    return chr(0x2400 + ord(c)) if ord(c) < 0x20 else "\N{REPLACEMENT CHARACTER}"


class Screen:
    """Prints an answer as it comes, each kind of text in its style: `answers` takes the content, `asides` the rest."""

    def __init__(self, answers: Console, asides: Console):
        self.answers, self.asides, self.last = answers, asides, ""

    def show(self, kind: str, text: str) -> None:
        """Kinds "reasoning_content" and "content" run on; "call", "result" and "status" are lines of their own."""
        if kind != self.last or kind in MARKS:
            self.end()
        console = self.answers if kind == "content" else self.asides
        console.print(Text(MARKS.get(kind, "") + plain(text), style=STYLES[kind]), end="", soft_wrap=True)
        console.file.flush()
        self.last = kind

    def end(self) -> None:
        """End the line that is being written, if there is one."""
        if self.last:
            (self.answers if self.last == "content" else self.asides).print()
        self.last = ""

    def status(self, answer: loop.Answer) -> None:
        parts = [f"{answer.seconds:.1f} s"]
        if answer.usage:
            tokens = f"{answer.usage['prompt_tokens']} + {answer.usage['completion_tokens']} tokens"
            parts = [tokens, f"{answer.tokens_per_second:.1f} tokens/s", *parts]
        if answer.finish_reason != "stop":
            parts.append(f"stopped by {answer.finish_reason}")
        self.show("status", " · ".join(parts))
        self.end()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run `moonlet serve` for `folder` on a free loopback port; yields its base URL and stops it on the way out.

    The server also watches this process, so that it ends when this one is killed. It has its own session, so that
    Ctrl-C cancels an answer and does not reach it.
    """
    command = [sys.executable, "-m", "moonlet", "serve", str(folder), "--port", "0"]
    options: dict = {"env": os.environ | {"MOONLET_PARENT_PID": str(os.getpid())}, "start_new_session": True}
    with tempfile.TemporaryFile("w+") as errors:
        options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, **options) as process:
            try:
                assert process.stdout
                lines = (line.decode() for line in process.stdout)
                url = next((line.split()[-1] for line in lines if line.startswith("listening on ")), "")
                if not url:
                    code = process.wait()
                    errors.seek(0)
                    reason = (errors.read().strip().splitlines() or [f"exit code {code}"])[-1].removeprefix("moonlet: ")
                    raise InputError(reason) if code == 2 else EndpointError(f"the server did not start: {reason}")
                yield url
            finally:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextmanager
def _connected(target: str | None) -> Iterator[tuple[Client, tools.Tools]]:
    if target and target.startswith(("http://", "https://")):
        yield Client(target), tools.for_endpoint()
        return
    folder = Path(target or DEFAULT)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model (no config.json in it): give a folder such as {DEFAULT}, or a URL")
    offered = tools.for_folder(folder)
    with serving(folder) as url:
        yield Client(url), offered


def main(
    target: str | None,
    prompt: str | None = None,
    as_json: bool = False,
    *,
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> int:
    """Chat with `target`, a model folder or a URL (None: the quickstart's model). Returns the exit code.

    With `prompt`, or piped input as the prompt: one answer. Raises InputError for a target that is not a model.
    """
    if prompt is None and (as_json or not sys.stdin.isatty()):
        prompt = sys.stdin.buffer.read().decode(errors="replace")
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt is empty: give one with -p or on stdin")
    options: dict = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        with _connected(target) as (client, offered), client.http:
            options |= {"model": model or next(iter(client.models()), "")}
            if prompt is None:
                _interact(client, options, offered)
                return 0
            screen = Screen(Console(quiet=as_json), Console(stderr=True, quiet=as_json))
            answer = loop.answer(client, options, [{"role": "user", "content": prompt}], offered, screen.show)
            screen.status(answer)
            if as_json:
                print(json.dumps(asdict(answer), indent=2))
    except EndpointError as error:
        print(f"moonlet: {plain(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interact(client: Client, options: dict, offered: tools.Tools) -> None:
    from prompt_toolkit import PromptSession

    console = Console()
    screen = Screen(console, console)
    console.print(Text(f"{plain(options['model'])}: /help for help, Ctrl-D to leave", style="dim"))
    session: PromptSession[str] = PromptSession()
    messages: list[dict] = []
    while True:
        try:
            line = session.prompt("> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line == "/clear":
            messages = []
        elif line == "/tools":
            names = ", ".join(tool["function"]["name"] for tool in offered.schemas)
            console.print(Text(plain(names) or "none"))
        elif line.startswith("/"):
            console.print(HELP, markup=False)
        elif line:
            try:
                asked = [*messages, {"role": "user", "content": line}]
                answer = loop.answer(client, options, asked, offered, screen.show)
                messages = answer.messages
                screen.status(answer)
            except KeyboardInterrupt:
                screen.end()
                console.print(Text("cancelled; this question is forgotten", style="dim"))
            except EndpointError as error:
                screen.end()
                console.print(Text(plain(str(error)), style="red"))
