"""The teacher-forced V-NIAH task (paper section 4): `vniah`, `vniah_nano`."""

from __future__ import annotations

from vniah.tasks.forced import ForcedTask


class VniahTask(ForcedTask):
    """V-NIAH scored by teacher forcing. Grid and inputs come from ``VNIAH_*`` or the YAML's metadata."""

    family = "vniah"
