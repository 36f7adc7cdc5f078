"""The colours of tokens and charts: on the report page, in notebooks and on a terminal.

Tints are pale, and neighbours differ for colour-blind people too. Text on each of them has a contrast of at least 4.5.
"""

from __future__ import annotations

LIGHT = {
    "back": "#ffffff",
    "panel": "#f5f6f8",
    "text": "#1b1f24",
    "quiet": "#57606a",
    "edge": "#d0d7de",
    "bar": "#2f6fb5",
    "mark": "#b3400a",
    "good": "#1d7a46",
    "lost": "#b3400a",
    "idle": "#7a828c",
    "t0": "#dbeafe",
    "t1": "#fde9c8",
    "t2": "#d9f2dd",
    "t3": "#f6dcf0",
    "t4": "#dff1f5",
    "t5": "#ece6fb",
}
DARK = {
    "back": "#14171b",
    "panel": "#1d2127",
    "text": "#e6e9ed",
    "quiet": "#a3adb8",
    "edge": "#3a424c",
    "bar": "#6aa9ec",
    "mark": "#f0945a",
    "good": "#5cc48a",
    "lost": "#f0945a",
    "idle": "#8d96a0",
    "t0": "#1f3a5c",
    "t1": "#4d3a17",
    "t2": "#1e4229",
    "t3": "#4b2644",
    "t4": "#17424c",
    "t5": "#3a2f5e",
}
#: Number of tints; the token at position `i` has class `c{i % TINTS}`.
TINTS = sum(name[0] == "t" and name[1:].isdigit() for name in LIGHT)

#: Codes of the 256 colours that terminals know, for black text on the tints; and for text that was searched.
TERMINAL_TINTS = (153, 223, 157, 225, 189)
TERMINAL_TEXT = 16
TERMINAL_MATCH = 214


def page_colours() -> str:
    """Return the style that sets the colours of a page: dark if the system is, unless the page's button says."""
    return (
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {_variables(DARK)} }} }}\n'
        f':root[data-theme="dark"] {{ color-scheme: dark; {_variables(DARK)} }}\n'
        ':root[data-theme="light"] { color-scheme: light; }\n'
    )


def notebook_colours(scope: str) -> str:
    """Return the style that sets the colours below a class: those of the notebook's theme, or the system's."""
    themes = ('body[data-jp-theme-light="false"]', "body.vscode-dark")
    light = ':not([data-jp-theme-light="true"]):not(.vscode-light)'
    return (
        f".{scope} {{ {_variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ body{light} .{scope} {{ {_variables(DARK)} }} }}\n"
        f"{', '.join(f'{theme} .{scope}' for theme in themes)} {{ {_variables(DARK)} }}\n"
    )


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
