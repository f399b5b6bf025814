"""The tracker: what was logged is read back bit for bit, through kills, torn tails, resumes and full disks."""

import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.tracker import Run, read
from moonlet.tracker.reader import RunData

SRC = Path(__file__).parents[2] / "src"


def child(code: str, *arguments: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, **options)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_import_is_light():
    code = """
import sys
import moonlet.tracker
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "pydantic"})
ours = sorted(name for name in sys.modules if name.startswith("moonlet.") and not name.startswith("moonlet.tracker"))
print(heavy, ours)
"""
    assert child(code, stdout=subprocess.PIPE, text=True).communicate()[0].strip() == "[] []"


def test_points_come_back_with_step_and_time(tmp_path):
    before = time.time()
    with Run(tmp_path / "run") as run:
        run.log({"pretrain/loss": 1.2}, step=3)
        run.log({"pretrain/loss": 1, 'sft/läss "q"': np.float32(0.1)}, step=np.int64(4))
    series = read(tmp_path / "run")
    assert set(series) == {"pretrain/loss", 'sft/läss "q"'}
    loss = series["pretrain/loss"]
    assert (loss.step.dtype, loss.time.dtype, loss.value.dtype) == (np.int64, np.float64, np.float64)
    assert loss.step.tolist() == [3, 4] and loss.value.tolist() == [1.2, 1.0]
    assert before - 1e-5 <= loss.time[0] <= loss.time[1] <= time.time() + 1e-5
    assert series['sft/läss "q"'].value.tolist() == [float(np.float32(0.1))]


values = st.floats(width=64) | st.integers(-(2**53), 2**53) | st.floats(width=32).map(np.float32)
rows = st.tuples(st.integers(0, 2**63 - 1), st.dictionaries(st.sampled_from("abc"), values, min_size=1))


@settings(max_examples=60, deadline=None)
@given(attempts=st.lists(st.lists(rows, max_size=8), max_size=4))
def test_read_is_the_last_write_of_each_name_and_step(tmp_path_factory, attempts):
    folder = tmp_path_factory.mktemp("run")
    expected: dict[str, dict[int, float]] = {}
    for attempt in attempts:
        with Run(folder) as run:
            for step, point in attempt:
                run.log(point, step)
                for name, value in point.items():
                    expected.setdefault(name, {})[step] = float(value)
    series = read(folder)
    assert set(series) == set(expected)
    for name, points in expected.items():
        assert series[name].step.tolist() == sorted(points)
        for step, value in zip(series[name].step.tolist(), series[name].value.tolist(), strict=True):
            assert bits(value) == bits(points[step]) or (math.isnan(value) and math.isnan(points[step]))


def test_non_finite_values_survive_bit_for_bit(tmp_path):
    with Run(tmp_path) as run:
        for step, value in enumerate([float("nan"), float("inf"), float("-inf"), np.float64("nan"), -0.0]):
            run.log({"loss": value}, step)
    value = read(tmp_path)["loss"].value
    assert np.isnan(value[[0, 3]]).all() and value[1] == np.inf and value[2] == -np.inf
    assert value[4] == 0 and np.signbit(value[4])


def test_resume_rewrites_steps_but_the_files_keep_both(tmp_path):
    with Run(tmp_path) as run:
        for step in range(10):
            run.log({"loss": 100.0 + step, "old": 1}, step)
    with Run(tmp_path) as run:
        for step in range(5, 8):
            run.log({"loss": 200.0 + step}, step)
    assert read(tmp_path)["loss"].value.tolist() == [100, 101, 102, 103, 104, 205, 206, 207, 108, 109]
    assert len(read(tmp_path)["old"].step) == 10
    assert read(tmp_path, attempt=1)["loss"].value.tolist() == [100.0 + step for step in range(10)]
    assert read(tmp_path, attempt=2)["loss"].value.tolist() == [205.0, 206.0, 207.0]


def test_torn_end_at_every_byte_of_the_last_record(tmp_path):
    run = Run(tmp_path / "whole")
    run.log({"a/loss": 0.1, "a/é": float("nan")}, 1)
    kept = run.path.stat().st_size
    run.log({"a/loss": 0.2, "a/é": 2.5}, 2)
    whole = run.path.read_bytes()
    run.close()
    for cut in range(kept, len(whole) + 1):
        folder = tmp_path / str(cut)
        (folder / "metrics").mkdir(parents=True)
        (folder / "metrics" / run.path.name).write_bytes(whole[:cut])
        steps = [1, 2] if cut == len(whole) else [1]
        assert read(folder)["a/loss"].step.tolist() == steps
        with Run(folder) as after:
            after.log({"a/loss": 0.3}, 3)
        assert read(folder)["a/loss"].step.tolist() == [*steps, 3]
        assert read(folder)["a/loss"].value.tolist() == [0.1, 0.2, 0.3][: len(steps)] + [0.3]
        assert read(folder)["a/é"].step.tolist() == steps


def test_torn_slot_at_every_byte(tmp_path):
    run = Run(tmp_path / "whole")
    for step in range(3):
        run.add_scalar("loss", step / 7, step)
    log, tail = run.path.read_bytes(), run.path.with_suffix(".tail").read_bytes()
    assert read(tmp_path / "whole")["loss"].value.tolist() == [0, 1 / 7, 2 / 7]
    run.close()
    assert not run.path.with_suffix(".tail").exists()
    assert read(tmp_path / "whole")["loss"].value.tolist() == [0, 1 / 7, 2 / 7]
    for written in range(64, 97):  # bytes of the third slot that reached memory, over what an older filling left there
        for old in (bytes(32), tail[32:60] + b"\0\0\0\0"):
            folder = tmp_path / f"{written}-{old[0]}"
            (folder / "metrics").mkdir(parents=True)
            (folder / "metrics" / "000001.log").write_bytes(log)
            torn = tail[:written] + old[written - 64 :] + tail[96:]
            (folder / "metrics" / "000001.tail").write_bytes(torn)
            whole = torn[64:96] == tail[64:96]
            assert read(folder)["loss"].step.tolist() == ([0, 1, 2] if whole else [0, 1])


def test_kill_9_loses_no_acknowledged_point(tmp_path):
    code = """
import sys
from moonlet.tracker import Run
run = Run(sys.argv[1])
step = 0
while True:
    run.log({"loss": step * 0.5, "grad_norm": 1 / (step + 1)}, step)
    print(step, flush=True)
    step += 1
"""
    acknowledged = -1
    for attempt in range(3):
        process = child(code, str(tmp_path), stdout=subprocess.PIPE, text=True)
        for _ in range(200 * (attempt + 1)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        whole = rest[: rest.rfind("\n") + 1].split()
        acknowledged = max(acknowledged, int(whole[-1]) if whole else 200 * (attempt + 1) - 1)
        for name in ("loss", "grad_norm"):
            series = read(tmp_path)[name]
            assert series.step.tolist() == list(range(len(series.step))) and len(series.step) > acknowledged
        assert (read(tmp_path)["loss"].value == read(tmp_path)["loss"].step * 0.5).all()


def test_writers_of_one_folder_do_not_mix(tmp_path):
    code = """
import sys
from moonlet.tracker import Run
with Run(sys.argv[1]) as run:
    for step in range(300):
        run.log({"rank" + sys.argv[2]: step}, step)
"""
    writers = [child(code, str(tmp_path / "run"), str(rank)) for rank in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    series = read(tmp_path / "run")
    assert sorted(series) == ["rank0", "rank1", "rank2", "rank3"]
    assert all(one.value.tolist() == list(range(300)) for one in series.values())


def test_threads_share_a_run(tmp_path):
    with Run(tmp_path) as run:
        work = [threading.Thread(target=lambda k=k: [run.log({f"t{k}": i}, i) for i in range(200)]) for k in range(4)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    assert [len(one.step) for one in read(tmp_path).values()] == [200] * 4


def test_full_disk_warns_once_keeps_the_points_and_recovers(tmp_path):
    code = """
import resource, sys, warnings
from moonlet.tracker import Run, read, writer
warnings.simplefilter("always")
run = Run(sys.argv[1])
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # the write that crosses it is a short one, then EFBIG
for step in range(100):
    run.log({"loss": step}, step)
stored = len(read(sys.argv[1])["loss"].step)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
run.flush()
print(stored, read(sys.argv[1])["loss"].value.tolist() == list(range(100)))
resource.setrlimit(resource.RLIMIT_FSIZE, (run.path.stat().st_size + 100, limit[1]))
writer.MAX_UNWRITTEN = 5000
for step in range(100, 1000):
    run.log({"loss": step}, step)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
run.flush()
steps = read(sys.argv[1])["loss"].step.tolist()
print(steps == list(range(len(steps))), len(steps))
run.log({"loss": 1000}, 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (run.path.stat().st_size, limit[1]))
run.close()
"""
    process = child(code, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    assert process.returncode == 0, err
    first, second = out.splitlines()
    stored, complete = first.split()
    assert 0 < int(stored) < 100 and complete == "True"
    prefix, kept = second.split()
    assert prefix == "True" and 150 < int(kept) < 1000
    assert err.count("UserWarning") == 1 and "wait in memory" in err
    run = RunData(tmp_path)
    run.refresh()
    (gap,) = [event.data for event in run.sources["000001"].events if event.kind == "gap"]
    assert gap["points"] == 1000 - int(kept) and gap["from"] <= gap["to"]
    assert read(tmp_path)["loss"].step[-1] == 1000


@pytest.mark.parametrize(
    ("values", "step", "words"),
    [
        ({}, 0, "at least one"),
        ({"loss": "1.2"}, 0, "'loss' is a str"),
        ({"loss": None}, 0, "'loss' is a NoneType"),
        ({"loss": True}, 0, "'loss' is a bool"),
        ({"loss": np.zeros(1)}, 0, "'loss' is a ndarray"),
        ({"loss": 1j}, 0, "'loss' is a complex"),
        ({"loss": 10**400}, 0, "64-bit"),
        ({"loss": Fraction(10**400)}, 0, "64-bit"),
        ({"": 1.0}, 0, "bad name"),
        ({"a//b": 1.0}, 0, "'a//b' is a bad name"),
        ({"/a": 1.0}, 0, "bad name"),
        ({"a/": 1.0}, 0, "bad name"),
        ({" a": 1.0}, 0, "bad name"),
        ({"a\nb": 1.0}, 0, "bad name"),
        ({"a\ud800": 1.0}, 0, "bad name"),
        ({"a" * 201: 1.0}, 0, "bad name"),
        ({3: 1.0}, 0, "bad name"),
        ({"loss": 1.0}, -1, "step is -1"),
        ({"loss": 1.0}, 2**63, "step is 9223372036854775808"),
        ({"loss": 1.0}, 1.0, "step is 1.0"),
        ({"loss": 1.0}, True, "step is True"),
    ],
)
def test_bad_input_is_refused_whole(tmp_path, values, step, words):
    with Run(tmp_path) as run:
        with pytest.raises(ValueError, match=".") as error:
            run.log({"good": 1.0, **values} if values else values, step)
        assert words in str(error.value) and "\n" not in str(error.value)
    assert read(tmp_path) == {}


def test_closed_run_and_missing_folder_and_damage_are_named(tmp_path):
    run = Run(tmp_path)
    run.log({"loss": 1}, 0)
    run.log({"loss": 2}, 1)
    run.close()
    run.close()
    with pytest.raises(ValueError, match="is closed"):
        run.log({"loss": 1}, 1)
    with pytest.raises(ValueError, match="is not a folder"):
        read(tmp_path / "absent")
    (tmp_path / "fresh").mkdir()
    assert read(tmp_path / "fresh") == {}


def test_damage_is_named_and_what_follows_is_still_shown(tmp_path):
    with Run(tmp_path) as run:
        for step in range(5):
            run.log({"loss": step}, step)
    data = run.path.read_bytes()
    row = data.index(b"R\0\0\0") + 8
    run.path.write_bytes(data[:row] + b"\xff" + data[row + 1 :])
    with pytest.raises(ValueError, match=f"damaged at byte {row - 16}"):
        read(tmp_path)
    lenient = RunData(tmp_path)
    lenient.refresh()
    assert lenient.series("loss").step.tolist() == [1, 2, 3, 4] and lenient.sources["000001"].damage == [row - 16]


def test_text_logs_are_read_too(tmp_path):
    (tmp_path / "metrics").mkdir()
    line = '{"step":3,"time":1.5,"values":{"loss":0.1,"norm":"nan"}}\n'
    (tmp_path / "metrics" / "000001.jsonl").write_text(line + line[:20])
    with Run(tmp_path) as run:
        run.log({"loss": 7}, 4)
    assert read(tmp_path)["loss"].value.tolist() == [0.1, 7.0] and math.isnan(read(tmp_path)["norm"].value[0])
    (tmp_path / "metrics" / "000001.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read(tmp_path)


def test_a_log_call_is_cheap(tmp_path):
    row = {f"pretrain/m{k}": 0.123456789 + k for k in range(5)}
    seconds = []
    with Run(tmp_path) as run:
        for step in range(3000):
            start = time.perf_counter()
            run.log(row, step)
            seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[len(seconds) // 4] < 50e-6  # the lower quartile: other processes may share the cores
