"""The engine's lock: one at a time, in the order of asking."""

import threading
import time
from itertools import pairwise

from moonlet.engine.engine import Turns


def test_served_in_the_order_of_asking() -> None:
    turns, served = Turns(), []

    def take(name: int) -> None:
        with turns:
            served.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in range(8)]
    with turns:
        for n, thread in enumerate(threads, 1):
            thread.start()
            while len(turns.waiting) <= n:
                time.sleep(0.001)
        assert served == []
    for thread in threads:
        thread.join()
    assert served == list(range(8)) and not turns.waiting


def test_two_threads_alternate() -> None:
    turns, steps, inside = Turns(), [], []

    def work(name: str) -> None:
        for _ in range(50):
            with turns:
                inside.append(name)
                assert len(inside) == 1
                steps.append(name)
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = sum(x != y for x, y in pairwise(steps[10:70]))
    assert len(steps) == 100 and changes > 40  # of 59; a plain lock is taken again by its last holder
