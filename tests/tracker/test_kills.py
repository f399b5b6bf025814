"""Writers that are killed, that race and that fork: nothing that was acknowledged is lost, nothing is torn."""

import json
import subprocess
import sys

import pytest

from moonlet.tracker import Run, read

# Children of one light process are killed at random moments. Each counts in shared memory what `log` and `add_scalar`
# have returned from; afterwards the run must hold at least that, whole and in order, and at most one point more.
KILLS = """
import json, mmap, os, random, signal, sys, tempfile, time
from pathlib import Path
import numpy
from moonlet.tracker import Run, read
kills, seed, writers = map(int, sys.argv[1:4])
random.seed(seed)
shared = mmap.mmap(-1, 8 * writers)
counts = memoryview(shared).cast("Q")  # one store each: a kill cannot tear a count
lost = torn = acknowledged = 0
for kill in range(kills):
    folder = tempfile.mkdtemp(dir=sys.argv[4])
    shared[:] = bytes(len(shared))
    children = []
    for writer in range(writers):
        child = os.fork()
        if child:
            children.append(child)
            continue
        run = Run(folder)
        for step in range(10**9):
            if (step // 3 + writer) % 2:
                run.log({f"row{writer}": step / 7, "other": 1.0}, step)
            else:
                run.add_scalar(f"point{writer}", step / 7, step)
            counts[writer] = step + 1
            if step % 500 == 499:
                run.event("text", "t", step, {"text": "x" * 5000})
    while counts[0] == 0:
        time.sleep(0.0005)
    time.sleep(random.expovariate(1 / 0.004))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    series = read(folder)  # raises for a record that is torn anywhere but at the end
    for writer in range(writers):
        done = counts[writer]
        both = [series.get(f"{kind}{writer}") for kind in ("row", "point")]
        steps = numpy.concatenate([one.step for one in both if one] or [numpy.empty(0, int)])
        values = numpy.concatenate([one.value for one in both if one] or [numpy.empty(0)])
        acknowledged += done
        lost += done - int((steps < done).sum())
        torn += int((values != steps / 7).sum()) + max(len(steps) - done - 1, 0) + len(steps) - len(set(steps.tolist()))
print(json.dumps({"acknowledged": acknowledged, "lost": lost, "torn": torn}))
"""


def killed(tmp_path, kills: int, seed: int, writers: int) -> dict[str, int]:
    command = [sys.executable, "-c", KILLS, str(kills), str(seed), str(writers), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kills", "writers"), [(40, 1), (8, 4)])
def test_kill_9_at_any_moment(tmp_path, kills, writers):
    found = killed(tmp_path, kills, 1, writers)
    assert found["lost"] == found["torn"] == 0 and found["acknowledged"] > 100 * kills


@pytest.mark.soak
@pytest.mark.parametrize(("kills", "writers"), [(1000, 1), (250, 4)])
def test_a_thousand_kills(tmp_path, kills, writers):
    found = killed(tmp_path, kills, 2, writers)
    assert found["lost"] == found["torn"] == 0


def test_eight_processes_create_one_run_at_once(tmp_path):
    code = """
import os, sys, time
from moonlet.tracker import Run
start = time.time() + 0.15
children = []
for rank in range(8):
    child = os.fork()
    if not child:
        while time.time() < start: pass
        with Run(sys.argv[1]) as run:
            run.log({f"rank{rank}": rank}, 0)
        os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""
    for trial in range(5):
        folder = tmp_path / str(trial)
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == str([0] * 8), done.stderr
        assert {name: series.value.tolist() for name, series in read(folder).items()} == {
            f"rank{rank}": [float(rank)] for rank in range(8)
        }


def test_a_forked_child_gets_a_log_of_its_own(tmp_path):
    code = """
import os, sys
from moonlet.tracker import Run
run = Run(sys.argv[1])
for step in range(10):
    run.log({"parent": step}, step)
    run.add_scalar("parent/point", step, step)
child = os.fork()
name = "parent" if child else "child"
for step in range(10, 20):
    run.add_scalar(name + "/point", step, step)
    run.log({name: step}, step)
if child:
    os.waitpid(child, 0)
    run.close()
    assert run.attempt == 1
else:
    assert run.attempt == 2
    run.flush()
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    series = read(tmp_path)
    assert series["parent"].step.tolist() == series["parent/point"].step.tolist() == list(range(20))
    assert series["child"].step.tolist() == series["child/point"].step.tolist() == list(range(10, 20))


def test_points_of_many_threads_are_all_there(tmp_path):
    import threading

    with Run(tmp_path) as run:

        def work(number: int) -> None:
            for step in range(3000):
                run.add_scalar(f"thread{number}", step, step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(read(tmp_path)[f"thread{n}"].value.tolist() == list(range(3000)) for n in range(4))
