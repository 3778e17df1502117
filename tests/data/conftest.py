from __future__ import annotations

from hypothesis import settings

settings.register_profile("any pace", deadline=None)  # two cores may be busy with something else
settings.load_profile("any pace")
