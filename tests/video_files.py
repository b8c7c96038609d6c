"""Small videos for tests: each is a few noisy frames, written by PyAV in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_video(
    path: Path, seed: int = 0, *, num_frames: int = 16, side: int = 48, fps: int = 4, faststart: bool = True
) -> Path:
    """Write a video of ``num_frames`` frames, a key frame every fourth; ``faststart`` puts the header first."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if faststart else {}
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"g": "4"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            # Noise hardly compresses: the pictures, not the header, make up most of the file.
            frame_HWC = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, fraction: float) -> Path:
    """Keep the first ``fraction`` of a file's bytes, as a download that broke off leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path
