"""A server under random load for minutes: its resident memory, its files and its threads stay as many as they were.

MOONLET_SOAK_SECONDS says how long [120]. The first quarter warms up: the cache fills its budget, threads start.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import fmean

import httpx
import pytest
from helpers import tiny_model_folder

SECONDS = float(os.environ.get("MOONLET_SOAK_SECONDS", "120"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": SCHEMA}}]
FIELDS: list[dict] = [
    {},
    {"temperature": 0},
    {"top_p": 0.9, "top_k": 20},
    {"presence_penalty": 1.0, "repetition_penalty": 1.2},
    {"logprobs": True, "top_logprobs": 5},
    {"tools": TOOLS, "tool_choice": "required"},
    {"structured_outputs": {"json": SCHEMA}},
    {"thinking": {"type": "enabled", "budget_tokens": 8}},
    {"stop": ["a", "the"], "thinking": {"type": "disabled"}},
    {"max_tokens": -1},
    {"service_tier": "flex"},
]


def body(rng: random.Random) -> dict:
    """Prompts share beginnings; answers are short and long."""
    text = "What is 12 + 30? " * rng.randint(1, 12) + str(rng.randint(0, 9)) * rng.randint(0, 20)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], "n": rng.choice([1, 1, 1, 3])}
    return asked | {"stream": rng.random() < 0.7, "max_tokens": rng.choice([1, 8, 40, 150])} | rng.choice(FIELDS)


def client(url: str, seed: int, end: float) -> Counter[str]:
    """How many answers had which status, and how many it did not hear to the end."""
    rng, counts = random.Random(seed), Counter[str]()
    with httpx.Client(timeout=60) as http:
        while time.monotonic() < end:
            with http.stream("POST", f"{url}/chat/completions", json=body(rng)) as response:
                pieces = response.iter_raw()
                heard = rng.choice([1, 3, 10**9])
                counts["left"] += sum(1 for _ in islice(pieces, heard)) == heard
            counts[str(response.status_code)] += 1
    return counts


def facts(pid: int) -> tuple[int, int, int]:
    """Resident bytes, open files, threads."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.soak
def test_memory_is_flat_under_random_load(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    folder = tiny_model_folder(tmp_path / "tiny")
    command = [sys.executable, "-m", "moonlet", "serve", str(folder), "--port", "0", "--cache", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, ThreadPoolExecutor(4) as pool:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            end, seen = time.monotonic() + SECONDS, []
            clients = [pool.submit(client, url, seed, end) for seed in range(4)]
            while time.monotonic() < end:
                time.sleep(SECONDS / 240)
                seen.append(facts(server.pid))
                print(f"{seen[-1][0]:,} bytes resident, {seen[-1][1]} files, {seen[-1][2]} threads", flush=True)
            counts = sum((one.result(120) for one in clients), Counter())
            assert server.poll() is None
        finally:
            server.terminate()
    quarter = len(seen) // 4
    early, late = ([fmean(n) for n in zip(*part)] for part in (seen[quarter : 2 * quarter], seen[-quarter:]))
    print(dict(counts), "resident bytes, files, threads:", early, late)
    assert counts["200"] > SECONDS and counts["400"] and not counts.keys() - {"left", "200", "400"}
    assert abs(late[0] / early[0] - 1) < 0.02
    assert late[1] < early[1] + 8 and late[2] < early[2] + 8
