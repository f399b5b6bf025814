"""What is logged beside numbers: histograms, text, images, tables, rollouts, hyperparameters.

Each becomes one event of the log (`format`). Two ways in: the methods of SummaryWriter (`run.add_image(...)`, see
torch.utils.tensorboard) and objects among the values of a row (`run.log({"samples": Table(...)})`). Images are stored
as PNG, written here with zlib. Leaves out: audio, video, meshes, graphs.
"""

import base64
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Text:
    text: str

    def log_to(self, run: "Media", name: str, step: int | None) -> None:
        run.event("text", name, step, {"text": self.text})


@dataclass(frozen=True)
class Table:
    """Rows of JSON values under column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def log_to(self, run: "Media", name: str, step: int | None) -> None:
        run.event("table", name, step, {"columns": list(self.columns), "rows": [list(row) for row in self.rows]})


@dataclass(frozen=True)
class Histogram:
    """Of any array: 64 equal bins between its finite ends, non-finite values counted apart; or given bins."""

    values: Any = None
    edges: Sequence[float] | None = None
    counts: Sequence[float] | None = None

    def log_to(self, run: "Media", name: str, step: int | None, walltime: float | None = None) -> None:
        import numpy as np

        if self.values is None:
            data: dict[str, Any] = {
                "edges": list(map(float, self.edges or ())),
                "counts": list(map(float, self.counts or ())),
            }
        else:
            values = array(self.values).astype(np.float64).ravel()
            finite = values[np.isfinite(values)]
            counts, edges = np.histogram(finite, 64) if finite.size else (np.zeros(1), np.zeros(2))
            data = {"edges": edges.tolist(), "counts": counts.tolist()}
            if finite.size < values.size:
                data["nonfinite"] = int(values.size - finite.size)
        run.event("histogram", name, step, data, walltime=walltime)


@dataclass(frozen=True)
class Image:
    """An array of height × width (× 1, 3 or 4 channels), uint8 or floats in 0 .. 1; or the bytes of a PNG or JPEG."""

    values: Any
    caption: str | None = None

    def log_to(self, run: "Media", name: str, step: int | None, walltime: float | None = None) -> None:
        data: dict[str, Any] = {} if self.caption is None else {"caption": self.caption}
        if isinstance(self.values, bytes):
            blob = self.values
            kind = image_type(blob)
            if kind is None:
                raise ValueError(f"{name!r} is no PNG, JPEG, GIF or WebP: give an array or the bytes of such a file")
        else:
            pixels = array(self.values)
            blob, kind = png(pixels), "image/png"
            data |= {"height": pixels.shape[0], "width": pixels.shape[1]}
        run.event("image", name, step, data, blob, walltime, type=kind)


@dataclass(frozen=True)
class Rollout:
    """One conversation: OpenAI-style messages, and what it was worth. A message may hold `tokens` and `logprobs`."""

    messages: Sequence[Mapping[str, Any]]
    rewards: Mapping[str, float] | None = None
    reward: float | None = None
    prompt: str | None = None  # rollouts of one prompt are compared; None: the first user message
    checkpoint: str | None = None

    def log_to(self, run: "Media", name: str, step: int | None) -> None:
        asked = (str(m.get("content")) for m in self.messages if m.get("role") == "user")
        rewards = dict(self.rewards or {})
        run.event(
            "rollout",
            name,
            step,
            {
                "prompt": self.prompt if self.prompt is not None else next(asked, ""),
                "messages": [dict(message) for message in self.messages],
                "rewards": rewards,
                "reward": sum(rewards.values()) if self.reward is None else self.reward,
                "checkpoint": self.checkpoint,
            },
        )


class Media:
    """The add_* methods of a run that go through `event`."""

    def event(self, kind: str, *arguments: Any, **more: Any) -> None:
        raise NotImplementedError

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: int | None = None,
        bins: Any = None,
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """`bins` and `max_bins` are accepted and not used: see Histogram."""
        Histogram(values).log_to(self, tag, global_step, walltime)

    def add_text(
        self, tag: str, text_string: str, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        self.event("text", tag, global_step, {"text": str(text_string)}, walltime=walltime)

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """`dataformats`: the order of the axes, any of H, W and C."""
        Image(_hwc(array(img_tensor), dataformats)).log_to(self, tag, global_step, walltime)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Side by side, as one image."""
        import numpy as np

        every = np.moveaxis(array(img_tensor), dataformats.index("N"), 0)
        parts = [_hwc(one, dataformats.replace("N", "")) for one in every]
        Image(np.concatenate(parts, axis=1)).log_to(self, tag, global_step, walltime)

    def add_figure(
        self, tag: str, figure: Any, global_step: int | None = None, close: bool = True, walltime: float | None = None
    ) -> None:
        """A matplotlib figure, as PNG."""
        out = io.BytesIO()
        figure.savefig(out, format="png")
        Image(out.getvalue()).log_to(self, tag, global_step, walltime)
        if close and hasattr(figure, "clf"):
            figure.clf()

    def add_table(self, tag: str, columns: Sequence[str], rows: Any, global_step: int | None = None) -> None:
        Table(columns, rows).log_to(self, tag, global_step)

    def add_rollout(self, tag: str, messages: Any, global_step: int | None = None, **more: Any) -> None:
        """`more`: rewards, reward, prompt, checkpoint, as of Rollout."""
        Rollout(messages, **more).log_to(self, tag, global_step)

    def add_hparams(
        self,
        hparam_dict: Mapping[str, Any],
        metric_dict: Mapping[str, Any],
        hparam_domain_discrete: Any = None,
        run_name: str | None = None,
        global_step: int | None = None,
    ) -> None:
        """Into this run's config and summary, and as an event; no run of its own is made for them."""
        metrics = {name: float(value) for name, value in metric_dict.items()}
        self.event("config", data=dict(hparam_dict))
        self.event("summary", data=metrics)
        self.event("hparams", run_name, global_step, {"hparams": dict(hparam_dict), "metrics": metrics})


def array(values: Any) -> "np.ndarray":
    """A numpy array of anything array-like, a torch tensor with a gradient or on a GPU too."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


def png(pixels: "np.ndarray") -> bytes:
    """PNG of height × width (× 1, 3 or 4). Floats are clipped to 0 .. 1. Raises ValueError for any other shape."""
    import numpy as np

    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"an image of shape {pixels.shape}: it must be height × width, or that × 1, 3 or 4 channels")
    if pixels.dtype != np.uint8:
        scale = 255 if np.issubdtype(pixels.dtype, np.floating) or pixels.dtype == bool else 1
        pixels = np.clip(np.nan_to_num(pixels.astype(np.float64)) * scale + 0.5 * (scale > 1), 0, 255).astype(np.uint8)
    height, width, channels = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0 a line

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def image_type(data: bytes) -> str | None:
    """The MIME type that the first bytes show, of the four that a browser draws without running anything."""
    for magic, kind in ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif")):
        if data.startswith(magic):
            return kind
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _hwc(pixels: "np.ndarray", order: str) -> "np.ndarray":
    import numpy as np

    order = order.upper()
    if sorted(order) not in (["C", "H", "W"], ["H", "W"]) or len(order) != pixels.ndim:
        raise ValueError(f"dataformats is {order!r} for an image of shape {pixels.shape}: one letter an axis, as 'CHW'")
    pixels = pixels if "C" in order else pixels[..., None]
    order = order if "C" in order else order + "C"
    return np.transpose(pixels, [order.index(axis) for axis in "HWC"])
