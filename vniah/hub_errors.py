"""What can go wrong with the Hub, in two exceptions of ours instead of the Hub library's many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

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
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, http_library().HTTPError) as error:
        lines = str(error).strip().splitlines()
        raise HubUnreachableError(
            f"{hub_endpoint()} gave no answer for {repo_type} {repo_id!r} "
            f"({lines[0] if lines else type(error).__name__}); {_AGAIN}"
        ) from None
