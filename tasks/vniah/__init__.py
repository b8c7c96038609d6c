"""V-NIAH: teacher-forced (`vniah`, `vniah_nano`) and generated (`vniah_generate`)."""
