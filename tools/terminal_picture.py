#!/usr/bin/python3
"""Runs shell commands and draws the session as an SVG: the picture in README.md.

  tools/terminal_picture.py 'COMMAND' ['COMMAND' ...] > docs/terminal.svg
"""
import html
import subprocess
import sys
import textwrap

COLUMNS, LINE, CHAR, PAD = 96, 19, 8.0, 16


def wrap(text):
    return textwrap.wrap(text, COLUMNS, break_on_hyphens=False, drop_whitespace=False) or [""]


def session(commands):
    for i, command in enumerate(commands):
        if i:
            yield "output", ""
        first = True
        for line in wrap(command):
            yield "command", ("$ " if first else "  ") + line
            first = False
        out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        for line in out.stdout.rstrip("\n").split("\n"):
            for part in wrap(line):
                yield "output", part


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    lines = list(session(sys.argv[1:]))
    width, height = round(COLUMNS * CHAR + 2 * PAD), len(lines) * LINE + 2 * PAD + 24
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
          f'viewBox="0 0 {width} {height}">')
    print('<style>text{font:13px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;'
          'white-space:pre}.command{fill:#e6edf3;font-weight:600}.output{fill:#9fb4c7}</style>')
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>')
    for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        print(f'<circle cx="{PAD + 4 + 18 * i}" cy="16" r="5" fill="{colour}"/>')
    for i, (kind, text) in enumerate(lines):
        y = 24 + PAD + LINE * i + 12
        print(f'<text class="{kind}" x="{PAD}" y="{y}" xml:space="preserve">{html.escape(text)}</text>')
    print("</svg>")


main()
