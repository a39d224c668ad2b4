"""Lines over points on two logarithmic axes, as SVG without scripts or fonts of its own."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 130, 40, 50
COLOURS = ["#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce"]


def draw(title, x_title, y_title, lines):
    """`lines` is {name: [(x, y), ...]}, both above zero."""
    points = [point for line in lines.values() for point in line]
    x_range = span([x for x, _ in points])
    y_range = span([y for _, y in points])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 22, title, "middle", 15),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_title, "middle"),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{text(16, HEIGHT / 2, y_title, "middle")}</g>',
        *grid(x_range, y_range),
    ]
    for colour, (name, line) in zip(COLOURS, lines.items()):
        parts += draw_line(name, sorted(line), colour, (x_range, y_range))
    return "\n".join([*parts, "</svg>", ""])


def span(values):
    """From the power of two below the least to that above the most."""
    return 2 ** math.floor(math.log2(min(values))), 2 ** math.ceil(math.log2(max(values)))


def place(value, limits, start, end):
    low, high = map(math.log2, limits)
    return start + (math.log2(value) - low) / max(high - low, 1) * (end - start)


def place_x(x, limits):
    return place(x, limits, LEFT, WIDTH - RIGHT)


def place_y(y, limits):
    return place(y, limits, HEIGHT - BOTTOM, TOP)


def powers(limits):
    low, high = (int(math.log2(limit)) for limit in limits)
    step = max(1, math.ceil((high - low) / 9))
    return [2.0**power for power in range(low, high + 1, step)]


def grid(x_range, y_range):
    for x in powers(x_range):
        at = place_x(x, x_range)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
        yield text(at, HEIGHT - BOTTOM + 16, f"{x:,g}", "middle")
    for y in powers(y_range):
        at = place_y(y, y_range)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
        yield text(LEFT - 6, at + 4, f"{y:,g}", "end")


def draw_line(name, line, colour, limits):
    placed = [(place_x(x, limits[0]), place_y(y, limits[1])) for x, y in line]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    yield f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in placed:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    yield text(placed[-1][0] + 8, placed[-1][1] + 4, name, "start", colour=colour)


def text(x, y, content, anchor, size=12, colour="#222"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(content)}</text>'
