"""A picture of a run: tokens a second and requests under way over time, and how latencies are distributed. Plain SVG."""

from collections.abc import Sequence
from html import escape

from quire.bench.load import Record
from quire.bench.report import concurrency, latencies_ms, per_second

WIDTH, HEIGHT, MARGIN, GAP = 420, 220, 56, 30
LINE = "#2563eb"
Points = list[tuple[float, float]]


def svg(records: Sequence[Record], title: str) -> str:
    """Four panels in one picture."""
    good = [record for record in records if record.error is None]
    origin = min((record.began_s for record in records), default=0.0)
    panels = [
        _panel("output tokens a second", "s", _steps(sorted(per_second(good).items()))),
        _panel("requests under way", "s", _steps([(at_s - origin, float(n)) for at_s, n in concurrency(records)])),
        _panel("time to first token: share of requests", "ms", _distribution(latencies_ms(good, "ttft"))),
        _panel("inter-token latency: share of gaps", "ms", _distribution(latencies_ms(good, "itl"))),
    ]
    width, height = 2 * WIDTH + 3 * GAP, 2 * HEIGHT + 3 * GAP + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{GAP}" y="{GAP}" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        x, y = GAP + (number % 2) * (WIDTH + GAP), 20 + GAP + (number // 2) * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({x} {y})">{panel}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(title: str, unit: str, points: Points) -> str:
    left, right, top, bottom = MARGIN, WIDTH - 8, 24, HEIGHT - 30
    max_x, max_y = (max((p[axis] for p in points), default=0.0) or 1.0 for axis in (0, 1))
    line = " ".join(
        f"{left + (right - left) * x / max_x:.1f},{bottom - (bottom - top) * y / max_y:.1f}" for x, y in points
    )
    parts = [f'<text x="{left}" y="14" font-size="12">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{max_y * share:.3g}</text>')
        x = left + (right - left) * share
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{max_x * share:.3g} {unit}</text>')
    parts.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
    return "".join(parts)


def _steps(points: Sequence[tuple[float, float]]) -> Points:
    """A staircase: each value holds until the next one."""
    found: Points = []
    for x, y in points:
        if found:
            found.append((x, found[-1][1]))
        found.append((x, y))
    return found


def _distribution(values: list[float]) -> Points:
    """(value, share of values up to it); at most a few hundred points."""
    ordered = sorted(values)
    stride = max(1, len(ordered) // 400)
    return [
        (ordered[i], (i + 1) / len(ordered))
        for i in [*range(0, len(ordered), stride), *([len(ordered) - 1] if ordered else [])]
    ]
