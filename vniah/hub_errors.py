"""What can go wrong with the Hub, in two exceptions of ours instead of the Hub library's many; and what it may send."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

# Bytes of an answer other than a file; of a compressed one, which may grow a thousandfold.
_MOST, _MOST_PACKED = 64 << 20, 1 << 20
_AGAIN = "check the network or HF_ENDPOINT and run it again: what has arrived is kept"


class HubUnreachableError(OSError):
    """The Hub did not answer, or offline mode is on, and the cache does not have what was asked for."""


class RepositoryMissingError(FileNotFoundError):
    """The Hub answered, and has no such repository or revision for this user."""


def hub_endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the public Hub."""
    from huggingface_hub import constants

    # ``constants.ENDPOINT`` is what HF_ENDPOINT was when the library was imported.
    return (os.environ.get("HF_ENDPOINT") or constants.HUGGINGFACE_CO_URL_HOME).rstrip("/")


@contextlib.contextmanager
def plain_errors(repo_id: str, repo_type: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub library's many exceptions into our two, each saying what to do."""
    from huggingface_hub import errors

    from vniah.hub_resume import http_library

    try:
        with _bounded_answers():
            yield
    except errors.GatedRepoError:
        raise RepositoryMissingError(
            f"{repo_id} is gated: accept its terms on {hub_endpoint()}/{repo_id}, then log in by `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise RepositoryMissingError(
            f"no {repo_type} {repo_id!r} on {hub_endpoint()}, or none that you may read; check the name, "
            "or log in by `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise RepositoryMissingError(f"{repo_type} {repo_id!r} has no revision {revision!r}") from None
    except errors.HfHubHTTPError as error:
        raise HubUnreachableError(
            f"{hub_endpoint()} answered {error.response.status_code} for {repo_type} {repo_id!r}; {_AGAIN}"
        ) from None
    except (RecursionError, OverflowError, UnicodeDecodeError, json.JSONDecodeError, _TooLongError) as error:
        reason = str(error) if isinstance(error, _TooLongError) else "no JSON that can be used"
        raise HubUnreachableError(
            f"{hub_endpoint()} answered with {reason} for {repo_type} {repo_id!r}; {_AGAIN}"
        ) from None
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        http_library().HTTPError,
        TimeoutError,
    ) as error:
        lines = str(error).strip().splitlines()
        raise HubUnreachableError(
            f"{hub_endpoint()} gave no answer for {repo_type} {repo_id!r} "
            f"({lines[0] if lines else type(error).__name__}); {_AGAIN}"
        ) from None


class _TooLongError(Exception):
    """An answer has more bytes than any of its kind."""


@contextlib.contextmanager
def _bounded_answers() -> Iterator[None]:
    """Refuse endless answers: the Hub library reads each whole into memory, whatever its length."""
    from huggingface_hub import get_session

    from vniah.hub_resume import http_library

    class Bounded(http_library().SyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any, most: int) -> None:
            self._stream, self._most = stream, most

        def __iter__(self) -> Iterator[bytes]:
            left = self._most
            for chunk in self._stream:
                left -= len(chunk)
                if left < 0:
                    raise _TooLongError(f"more than {self._most:,} bytes")
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def bound(response: Any) -> None:
        if "/resolve/" not in response.request.url.path:  # files are streamed, and counted where they are
            packed = response.headers.get("content-encoding", "identity") != "identity"
            response.stream = Bounded(response.stream, _MOST_PACKED if packed else _MOST)

    hooks = get_session().event_hooks
    get_session().event_hooks = {**hooks, "response": [*hooks["response"], bound]}
    try:
        yield
    finally:
        now = get_session().event_hooks
        get_session().event_hooks = {**now, "response": [hook for hook in now["response"] if hook is not bound]}
