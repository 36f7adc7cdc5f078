"""The list: every theme of hostile inputs."""

from __future__ import annotations

from tests.hostile import commands, sources, stored
from tests.hostile.case import Theme

THEMES: dict[str, Theme] = {**sources.THEMES, **commands.THEMES, **stored.THEMES}
