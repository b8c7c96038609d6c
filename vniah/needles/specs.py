"""Which needle set a spec means. One spec names one set on any machine."""

from __future__ import annotations

from vniah.files import is_hub_id, user_path
from vniah.hub import HubUnreachableError
from vniah.needles.folder import INDEX, read_folder
from vniah.needles.needle import NeedleSet
from vniah.notices import notice
from vniah.visual.settings import DEFAULT_NEEDLES

FORMS = (
    "'builtin', 'icons[:seed[:count[:heldout|train]]]', a folder with needles.json, "
    f"or a Hub dataset such as {DEFAULT_NEEDLES!r}"
)
FAMILIES = ("builtin", "icons")


def open_needles(spec: str, *, revision: str | None = None) -> NeedleSet:
    """Open a needle set.

    Args:
        spec: one of

            - ``builtin``: twelve counterfactual scenes that we draw ourselves;
            - ``icons``, ``icons:seed``, ``icons:seed:count``, ``icons:seed:count:heldout|train``: icons with a
              digit, any number of them; see ``vniah/needles/icons.py``;
            - a folder with ``needles.json``, a list of {id, file, question, answer}, or that file;
            - a Hub dataset id ``owner/name`` with columns image, question, answer in its split "test". The
              ids are the row numbers from 0. The local cache is used before the Hub.

            A folder of the very name wins over all of these.
        revision: of a Hub dataset.

    When the paper's set is neither cached nor reachable, the built-in one takes its place, with a warning;
    ``NeedleSet.name`` then is "builtin".

    Raises:
        FileNotFoundError: no such folder, or the Hub has no such dataset.
        HubUnreachableError: the Hub does not answer, for any set but the paper's.
        ValueError: the spec is none of the above, or the set is faulty; see the readers.
    """
    spec = str(spec).strip()
    family, _, rest = spec.partition(":")
    folder = user_path(spec)
    if spec and family not in FAMILIES and folder.is_file():
        if folder.name != INDEX:
            raise ValueError(f"the needles {spec!r} are a file; give a folder that holds a {INDEX}")
        folder = folder.parent
        spec = str(folder)
    # A folder without an index counts for nothing where the spec means a set of ours.
    if spec and folder.is_dir() and (family not in FAMILIES or (folder / INDEX).is_file()):
        if family in FAMILIES:
            notice(f"the needles {spec!r} are those of {folder.absolute()} and not the set of that name")
        if revision is not None:
            raise ValueError(f"revision {revision!r} was given, but {spec!r} is a folder and has none")
        return read_folder(folder, name=spec)
    if family in FAMILIES or not is_hub_id(spec):
        if revision is not None:
            raise ValueError(f"revision {revision!r} was given, but {spec!r} is not a Hub dataset and has none")
        return _open_local(spec, family, rest)

    from vniah.needles.dataset import read_hub_dataset

    try:
        return read_hub_dataset(spec, revision)
    except HubUnreachableError as error:
        if spec != DEFAULT_NEEDLES:
            raise
        notice(
            f"the needles {spec} are not in the cache and could not be fetched ({error}). Using the built-in needles "
            "instead: scores will not compare with the paper's. `vniah download needles` fetches the real ones; "
            "VNIAH_NEEDLES=builtin silences this"
        )
        return _open_local("builtin", "builtin", "")


def _open_local(spec: str, family: str, rest: str) -> NeedleSet:
    if spec == "builtin":
        from vniah.needles.builtin import builtin_needles

        return builtin_needles()
    if family == "icons":
        from vniah.needles.icons import icon_needles

        return icon_needles(spec, rest)
    if spec and ("/" in spec or user_path(spec).exists()):
        raise FileNotFoundError(f"no folder of needles at {spec!r}; expected {FORMS}")
    raise ValueError(f"no needle set {spec!r}; expected {FORMS}")
