"""What a server is shown of a cell: the parts of one user message.

Frames are single images under ids that say what they show, so that a server which caches by item finds those of the
cells before; or one video. An encoded frame is kept, since the cells of a film show the same ones.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vniah.contract.sources import FrameSource
from vniah.haystack.base import content_hash
from vniah.visual.compose import FPS, Inserted, SplicedVideo, letterbox

Part = dict[str, Any]
FORMATS = ("png", "jpeg")
_KEPT_BYTES = 1 << 29
_BATCH = 32
_JPEG_QUALITY = 95


class Content:
    """Makes message parts; may be asked from several threads.

    Args:
        image_format: of frames: "png", which loses nothing, or "jpeg".
        timestamps: the seconds of each frame stand before it, as text.
        ids: parts carry a stable ``uuid``, for servers that take one (vLLM).
    """

    def __init__(self, *, image_format: str = "png", timestamps: bool = False, ids: bool = False) -> None:
        self.image_format, self.timestamps, self.ids = image_format, timestamps, ids
        self._lock = threading.Lock()  # a film is read by one
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0

    def message(self, visuals: Sequence[Any], text: str) -> list[Part]:
        """One user message, visuals first: paths of mp4s or pictures, PIL images, or frames, each an image."""
        parts = [part for visual in visuals for part in self._parts(visual)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def _parts(self, visual: Any) -> Iterator[Part]:
        if isinstance(visual, SplicedVideo):
            yield from self._in_time(self._spliced(visual), FPS)
        elif isinstance(visual, Image.Image):
            data = self._encoded(visual)
            yield self._image(data, hashlib.sha256(data.encode()).hexdigest())
        elif isinstance(visual, (str, Path)):
            raw = Path(visual).read_bytes()
            url = {"url": "data:video/mp4;base64," + base64.b64encode(raw).decode()}
            yield self._known({"type": "video_url", "video_url": url}, hashlib.sha256(raw).hexdigest())
        elif isinstance(visual, FrameSource):
            runs = ((visual, range(len(visual))),)
            yield from self._in_time(self._frames(runs), float(getattr(visual, "fps", FPS)))
        else:
            raise ValueError(f"a server cannot be shown a {type(visual).__name__}")

    def _in_time(self, images: Iterator[Part], fps: float) -> Iterator[Part]:
        for number, image in enumerate(images):
            if self.timestamps:
                yield {"type": "text", "text": f"<{number / fps:.1f} seconds>"}
            yield image

    def _spliced(self, video: SplicedVideo) -> Iterator[Part]:
        for run in video.runs():
            if isinstance(run, Inserted):
                name = content_hash([run.source, str(video.size), "still"])
                draw = functools.partial(letterbox, run.picture.image, video.size)
                yield self._image(self._keep(name, draw), name)
            else:
                yield from self._frames(((video.haystack, run),))

    def _frames(self, runs: Sequence[tuple[FrameSource, range]]) -> Iterator[Part]:
        for source, run in runs:
            for first in range(run.start, run.stop, _BATCH):
                span = range(first, min(first + _BATCH, run.stop))
                names = [content_hash([source.fingerprint, str(index)]) for index in span]
                with self._lock:
                    if not all(name in self._kept for name in names):
                        for name, frame_HWC in zip(names, source.frames(span.start, span.stop), strict=True):
                            self._put(name, self._encoded(Image.fromarray(frame_HWC)))
                    urls = [self._kept[name] for name in names]
                yield from map(self._image, urls, names)

    def _keep(self, name: str, draw: Callable[[], Any]) -> str:
        with self._lock:
            if name not in self._kept:
                self._put(name, self._encoded(Image.fromarray(draw())))
            return self._kept[name]

    def _put(self, name: str, data: str) -> None:
        self._kept[name] = data
        self._bytes += len(data)
        while self._bytes > _KEPT_BYTES and len(self._kept) > 2 * _BATCH:
            self._bytes -= len(self._kept.popitem(last=False)[1])

    def _encoded(self, image: Image.Image) -> str:
        file = io.BytesIO()
        how = {"compress_level": 1} if self.image_format == "png" else {"quality": _JPEG_QUALITY, "subsampling": 0}
        image.convert("RGB").save(file, self.image_format.upper(), **how)
        return f"data:image/{self.image_format};base64," + base64.b64encode(file.getvalue()).decode()

    def _image(self, url: str, name: str) -> Part:
        return self._known({"type": "image_url", "image_url": {"url": url}}, name)

    def _known(self, part: Part, name: str) -> Part:
        # How it is coded is part of what it is.
        return {**part, "uuid": f"{name[:32]}-{self.image_format}"} if self.ids else part
