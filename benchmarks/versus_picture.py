"""Draws benchmarks/results/versus-peers.json as docs/pictures/versus-peers.svg: for each workload, how many times the better peer.

python benchmarks/versus_picture.py [RESULTS.json] [PICTURE.svg]
"""

import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "versus-peers.json"
PICTURE = ROOT / "docs" / "pictures" / "versus-peers.svg"
LABELS = {
    "decode_b1": "decode, batch 1", "decode_b64": "decode, batch 64", "decode_b256": "decode, batch 256",
    "prefill": "prefill, 16 x 8,192", "ttft_1k": "first token, 1,024-token prompt", "chat": "chat, 1,000 requests",
    "start_cold": "process start, nothing cached", "start_warm": "process start, warm caches",
    "prefix_groups": "64 shared system prompts", "prefix_turns": "conversations of 8 turns",
    "itl_p99_mixed": "p99 between tokens, long prompts arriving", "serve_goodput": "HTTP serving, goodput",
}  # fmt: skip
COLOURS = ("#4c78a8", "#72b7b2", "#f58518")  # shapes, small to large
LEFT, TOP, WIDTH, BAR, GAP = 285, 78, 470, 11, 12
FONT = 'font-family="system-ui, sans-serif"'


def picture(held: dict[str, Any]) -> str:
    """The SVG."""
    rows = [r for r in held["rows"] if r["workload"] in LABELS and r["ratio"] is not None]
    shapes = list(dict.fromkeys(r["shape"] for r in rows))
    ratios = {(r["workload"], r["shape"]): r["ratio"] for r in rows}
    workloads = [w for w in LABELS if any((w, s) in ratios for s in shapes)]
    longest = max([*ratios.values(), 1.0])
    scale = WIDTH / (min(longest, 4.0) * 1.05)  # longer bars are cut, and say so
    block = len(shapes) * BAR + GAP
    bottom = TOP + len(workloads) * block
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{bottom + 40}" role="img" {FONT}>',
        f"<title>{escape(title(held))}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        text(16, 24, f"quire against {opponents(held)}", size=15, bold=True),
        text(16, 44, title(held), size=11, colour="#555555"),
    ]
    for index, shape in enumerate(shapes):
        x = LEFT + 155 * index
        out.append(f'<rect x="{x}" y="56" width="10" height="10" fill="{COLOURS[index % 3]}"/>')
        out.append(text(x + 15, 65, f"Qwen2.5-{shape.upper()} shape", size=11))
    for place, workload in enumerate(workloads):
        y = TOP + place * block
        out.append(text(LEFT - 10, y + block / 2, LABELS[workload], size=12, anchor="end"))
        for index, shape in enumerate(shapes):
            if (workload, shape) in ratios:
                out += bar(y + index * BAR, ratios[workload, shape], scale, COLOURS[index % 3])
    x = LEFT + scale
    out.append(
        f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#222222" stroke-dasharray="3 3"/>'
    )
    out.append(text(x, bottom + 16, f"{opponents(held)} = 1; longer is better", size=11, anchor="middle"))
    return "\n".join([*out, "</svg>", ""])


def bar(y: float, ratio: float, scale: float, colour: str) -> list[str]:
    width = min(ratio * scale, WIDTH)
    label = text(LEFT + width + 5, y + BAR - 2, f"{ratio:.2f}x", size=10)
    return [f'<rect x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>', label]


def text(
    x: float, y: float, words: str, size: int, anchor: str = "start", colour: str = "#222222", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>'


def title(held: dict[str, Any]) -> str:
    """Where the figures come from, and of which versions."""
    peers = ", ".join(f"{name} {v[name]}" for name, v in sorted(held["versions"].items()) if name in v)
    return f"{held['machine']}; quire {held['commit']}, {peers}; {held['date'][:10]}"


def opponents(held: dict[str, Any]) -> str:
    """The peers that were measured."""
    names = [
        name for key, name in (("vllm", "vLLM"), ("sglang", "SGLang")) if any(r[key] is not None for r in held["rows"])
    ]
    return "the better of " + " and ".join(names) if len(names) > 1 else "".join(names)


def main() -> None:
    results, target = [Path(p) for p in (*sys.argv[1:], *(RESULTS, PICTURE)[len(sys.argv) - 1 :])]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(picture(json.loads(results.read_text())), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
