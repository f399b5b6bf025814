"""Settings and fixtures that every test may use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported anywhere: tests share few cores, and one thread makes sums come out the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The commands that tests start import the package from here, installed or not.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
sys.path.insert(0, str(Path(__file__).parent))  # for `helpers`: importlib mode puts no test folder on the path

import pytest
from hypothesis import settings

from moonlet.doctor import find_browser

settings.register_profile("moonlet", deadline=None, derandomize=True)
settings.load_profile("moonlet")


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium. Without one the test is skipped, but fails where MOONLET_CI says there must be one."""
    path = find_browser()
    if path is None:
        message = "needs chromium on PATH"
        pytest.fail(message) if os.environ.get("MOONLET_CI") else pytest.skip(message)
    return path


@pytest.fixture(scope="module")  # not longer: while it is there an event loop runs, and other tests start their own
def chromium(browser: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
