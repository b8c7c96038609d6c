"""Text NIAH: teacher-forced (`text_niah_0`, `_3`, `_5` and variants) and generated (`text_niah_generate`)."""
