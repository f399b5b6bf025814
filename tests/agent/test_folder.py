"""`moonlet chat FOLDER`: the server that it starts for a real (tiny, random) model, and that it never outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from helpers import tiny_model_folder

from moonlet.agent import terminal
from moonlet.agent.client import Client
from moonlet.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from moonlet.agent.terminal import serving
with serving(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("chat"))


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models", trust_env=False, timeout=60).status_code == 200
    except httpx.ConnectError:
        return False


def goes_down(url: str, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while is_up(url) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_up(url)


def seconds_an_answer(url: str) -> float:
    """The least of the later ones on one connection: the first are acknowledged at once, whatever the server does."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        times = [client.get(f"{url}/models").elapsed.total_seconds() for _ in range(30)]
    return min(times[15:])


def test_one_answer_from_a_folder(folder: Path, monkeypatch, capsys) -> None:
    urls = []
    monkeypatch.setattr(terminal, "Client", lambda url: urls.append(url) or Client(url))
    assert terminal.main(str(folder), "What is 12 + 30?", True, seed=3, max_tokens=20) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["completion_tokens"] in range(1, 21)
    assert answer["messages"][0] == {"role": "user", "content": "What is 12 + 30?"}
    assert answer["tokens_per_second"] > 0
    assert goes_down(urls[0])


def test_the_server_ends_when_its_parent_is_killed(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        url = holder.stdout.readline().strip()
        assert is_up(url)
        assert seconds_an_answer(url) < 0.03  # a body that waits for the acknowledgement of its head takes 0.04 s
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(15)
    assert goes_down(url)


def test_a_model_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json"), terminal.serving(tmp_path):
        pass
