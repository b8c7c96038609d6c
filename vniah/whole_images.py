"""Images are read whole or not at all, whatever another library has told PIL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def whole_images() -> Iterator[None]:
    """Within it, PIL raises on a file that ends early.

    lmms-eval tells PIL, for the whole process, to fill what a truncated file lacks with grey: a needle could
    be half missing and nobody would know.
    """
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
