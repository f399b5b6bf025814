"""What is logged beside plain rows, and the names of other trackers' scripts."""

import struct
import warnings
import zlib

import numpy as np
import pytest

from moonlet import tracker
from moonlet.tracker import Image, Run, SummaryWriter, entries, read
from moonlet.tracker.callbacks import trainer_callback
from moonlet.tracker.media import png
from moonlet.tracker.reader import RunData
from moonlet.tracker.system import code, readings


def opened(folder) -> RunData:
    run = RunData(folder)
    run.refresh()
    return run


def media(folder) -> dict:
    return {one[2].kind: entries.entry(*one) for one in entries.listed(opened(folder))}


def decoded(data: bytes) -> np.ndarray:
    """Pixels of a PNG whose lines are not filtered."""
    width, height, _, colour = struct.unpack(">IIBB", data[16:26])
    channels = {0: 1, 2: 3, 6: 4}[colour]
    at, body = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        assert (
            zlib.crc32(data[at + 4 : at + 8 + length])
            == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        )
        body += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    lines = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4)])
def test_png(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert (decoded(png(pixels)) == pixels.reshape(3, 5, -1)).all()
    assert (decoded(png(pixels / 255)) == pixels.reshape(3, 5, -1)).all()
    with pytest.raises(ValueError, match="an image of shape"):
        png(np.zeros((2, 2, 2)))


def test_summary_writer_is_a_drop_in(tmp_path):
    torch = pytest.importorskip("torch")
    writer = SummaryWriter(log_dir=str(tmp_path))
    writer.add_scalar("loss", torch.tensor(0.5), global_step=np.int64(3), walltime=7.5)
    writer.add_scalar("loss", np.float32(0.25), 4)
    writer.add_scalar("no step", 1)
    writer.add_scalars("both", {"a": 1, "b": 2}, 1)
    writer.add_histogram("h", torch.randn(100, requires_grad=True), 1, bins="tensorflow")
    writer.add_image("img", torch.zeros(3, 4, 5), 1)
    writer.add_images("imgs", np.zeros((2, 4, 5, 3), np.uint8), 1, dataformats="NHWC")
    writer.add_text("t", "<b>", 1)
    writer.add_hparams({"lr": 0.1}, {"acc": 0.9})
    with pytest.warns(UserWarning, match="add_graph"):
        writer.add_graph(None)
    for bad in ("x", None, 10**400, [1]):
        with pytest.raises(ValueError, match="is no point"):
            writer.add_scalar("loss", bad, 1)
    with pytest.raises(ValueError, match="bad name"):
        writer.add_scalar("a//b", 1, 1)
    writer.flush()
    writer.close()
    loss = read(tmp_path)["loss"]
    assert loss.step.tolist() == [3, 4] and loss.value.tolist() == [0.5, 0.25] and loss.time[0] == 7.5
    assert set(read(tmp_path)) == {"loss", "no step", "both/a", "both/b"}
    found = media(tmp_path)
    assert set(found) == {"histogram", "image", "text", "hparams"} and sum(found["histogram"]["data"]["counts"]) == 100
    assert found["image"]["data"] == {"height": 4, "width": 10}
    assert opened(tmp_path).fields("config") == {"lr": 0.1} and opened(tmp_path).fields("summary") == {"acc": 0.9}


def test_init_log_finish(tmp_path):
    with pytest.raises(RuntimeError, match="init"):
        tracker.log({"loss": 1})
    run = tracker.init("p", "n/../x", {"lr": 1, "deep": {"a": [1, float("inf")]}}, dir=tmp_path, tags=["t"], notes="hi")
    tracker.log({"loss": 1.0})
    tracker.log({"loss": 0.5, "img": Image(np.zeros((2, 2)))})
    run.config.wd = 0.1
    run.config["lr"] = 2
    run.summary.update(best=0.5)
    with pytest.raises(AttributeError):
        run.config.nope  # noqa: B018
    tracker.finish()
    folder = tmp_path / "p" / "n-..-x"
    assert read(folder)["loss"].step.tolist() == [0, 1] and run.config.lr == 2
    found = opened(folder)
    assert found.fields("config") == {"lr": 2, "deep": {"a": [1, "inf"]}, "wd": 0.1}
    assert found.sources["000001"].header["tags"] == ["t"] and found.fields("summary") == {"best": 0.5}


def test_watch_logs_machine_code_and_console(tmp_path, capsys):
    import time

    with Run(tmp_path) as run:
        run.watch(system=0.05, console=True)
        print("a line")
        end = time.monotonic() + 5
        while "system/cpu_percent" not in read(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
    print("after")
    found = opened(tmp_path)
    assert found.series("system/memory_gb").value[0] > 0 and found.fields("code")["python"]
    assert [entries.entry(*one)["data"]["text"] for one in entries.listed(found, "console")] == ["a line\n"]
    assert capsys.readouterr().out == "a line\nafter\n"
    assert readings((0, 0, 0), (2, 1, 1), tmp_path)["process_cpu_percent"] == 50 and "argv" in code(tmp_path)


def test_trainer_callback(tmp_path):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, control = transformers.TrainerState(), transformers.TrainerControl()
    with Run(tmp_path) as run:
        callback = trainer_callback(run)
        arguments = type("Arguments", (), {"to_dict": lambda self: {"learning_rate": 0.1}})()
        callback.on_train_begin(arguments, state, control, model=None)
        state.global_step = 7
        callback.on_log(arguments, state, control, logs={"loss": 0.5, "text": "x", "epoch": 1})
        callback.on_train_end(arguments, state, control)
        for event in ("on_init_end", "on_step_end", "on_save"):
            getattr(callback, event)(arguments, state, control)
    assert read(tmp_path)["loss"].step.tolist() == [7] and opened(tmp_path).fields("config") == {"learning_rate": 0.1}
