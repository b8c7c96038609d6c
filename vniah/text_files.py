"""Folders of .txt files: which files count and how they are read, for haystacks and for documents."""

from __future__ import annotations

from pathlib import Path


def text_files(folder: Path) -> list[Path]:
    """The .txt files of a folder by name, whatever the case of their ending; hidden files are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.casefold() == ".txt" and not path.name.startswith(".") and path.is_file()
    )


def read_text(path: Path) -> str:
    """A UTF-8 file, without its byte order mark, every line end a line feed.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it, or take it out of the folder"
        ) from None
