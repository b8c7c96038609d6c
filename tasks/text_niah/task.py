"""The teacher-forced text NIAH tasks (paper, Figure 7)."""

from __future__ import annotations

from vniah.tasks.forced import ForcedTask


class TextNiahTask(ForcedTask):
    """Text NIAH scored by teacher forcing. Grid and inputs come from ``TEXT_NIAH_*`` or the YAML's metadata."""

    family = "text_niah"
