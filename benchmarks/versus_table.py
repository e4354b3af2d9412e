"""Figures of several engines as rows, the rows as a JSON file, and the rows as a table.

python benchmarks/versus_table.py RESULTS.json      the table again, and once more in Markdown
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versus_floors import Rates, floors

PEERS = ("vllm", "sglang")
OURS = "ours"
UNITS = {
    "decode_b1": "ms", "decode_b8": "ms", "decode_b64": "ms", "decode_b256": "ms", "prefill": "tok/s", "ttft_1k": "ms",
    "chat": "req/s", "start_cold": "s", "start_warm": "s", "prefix_groups": "req/s", "prefix_turns": "req/s",
    "itl_p99_mixed": "ms", "serve_goodput": "req/s", "sampling_cost": "% over greedy",
}  # fmt: skip
RATES = ("tok/s", "req/s")  # more is better
STARTS = ("start_cold", "start_warm")
Row = dict[str, Any]


@dataclass
class Results:
    """The rows, and where they came from. Pieces add up; figures of ours stay only as long as they are of one commit."""

    path: Path
    head: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, commit: str) -> "Results":
        """What the file holds, without figures of ours that another commit gave."""
        if not path.is_file():
            return cls(path, {"machine": "", "commit": commit, "date": "", "versions": {}, "command": "", "runs": []})
        held = json.loads(path.read_text())
        head, rows = {k: v for k, v in held.items() if k != "rows"}, held["rows"]
        if head["commit"] != commit:
            for row in rows:
                row[OURS] = row["ratio"] = row["floor_share"] = None
                row.get("detail", {}).pop(OURS, None)
        return cls(path, {**head, "commit": commit}, rows)

    def describe(self, machine: str, date: str, command: str) -> None:
        """Adds a run that takes part: the last one gives machine, date and command, all are listed."""
        self.head |= {"machine": machine, "date": date, "command": command}
        self.head["runs"].append({"date": date, "commit": self.head["commit"], "machine": machine, "command": command})

    def add(self, engine: str, shape: str, figures: dict[str, Any], rates: Rates, scale: Any) -> None:
        """Figures by workload, of one process; figures that are there already are replaced. `scale` None: no floors."""
        self.head["versions"][engine] = figures.get("versions", self.head["versions"].get(engine, {}))
        best = {} if scale is None else floors(shape, rates, scale)
        column = OURS if engine == "quire" else engine
        for workload, value in figures.items():
            if workload not in UNITS:
                continue
            row = self.row(shape, workload)
            row[column] = value
            if detail := figures.get("details", {}).get(workload):
                row.setdefault("detail", {})[column] = detail
            if workload in best:
                row["floor"] = best[workload]
        for row in (r for r in self.rows if r["shape"] == shape):
            finish(row, self.best_starts(shape))

    def row(self, shape: str, workload: str) -> Row:
        """The row, made if need be; rows stay in the order of shapes, then of UNITS."""
        for row in self.rows:
            if (row["shape"], row["workload"]) == (shape, workload):
                return row
        row = {"shape": shape, "workload": workload, "unit": UNITS[workload], OURS: None, **dict.fromkeys(PEERS)}
        self.rows.append(row)
        order = list(UNITS)
        self.rows.sort(
            key=lambda r: (
                float(r["shape"].rstrip("b")) if r["shape"][0].isdigit() else 0.0,
                order.index(r["workload"]),
            )
        )
        return row

    def best_starts(self, shape: str) -> dict[str, float]:
        """Of each peer, its best start of any process of this run, whatever its caches held."""
        found: dict[str, float] = {}
        for row in (r for r in self.rows if r["shape"] == shape and r["workload"] in STARTS):
            for peer in PEERS:
                if row[peer] is not None:
                    found[peer] = min(found.get(peer, row[peer]), row[peer])
        return found

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n")


def finish(row: Row, best_starts: dict[str, float]) -> None:
    """The two shares: of the better peer (above 1 where ours is better; a start is compared with the best of a peer's starts, cold or
    warm), and of the floor."""
    ours, more_is_better = row[OURS], row["unit"] in RATES
    peers = [row[p] for p in PEERS if row[p] is not None]
    if row["workload"] in STARTS:
        peers = list(best_starts.values())
    row["ratio"] = row["floor_share"] = None
    if ours is None:
        return
    if row["workload"] == "sampling_cost":
        row["ratio"] = 1 / (1 + ours / 100)
    elif peers and ours > 0 and max(peers) > 0:
        row["ratio"] = ours / max(peers) if more_is_better else min(peers) / ours
    if row.get("floor"):
        row["floor_share"] = ours / row["floor"] if more_is_better else row["floor"] / ours


def shown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    lines = [
        f"{'':6}{'workload':15}{'unit':14}{'ours':>10}{'vLLM':>10}{'SGLang':>10}{'ratio':>8}{'of floor: ours':>16}{'vLLM':>7}{'SGLang':>8}"
    ]
    for row in rows:
        figures = "".join(f"{number(row[column]):>10}" for column in (OURS, *PEERS))
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        shares = [share(row, column) for column in (OURS, *PEERS)]
        lines.append(
            f"{row['shape']:6}{row['workload']:15}{row['unit']:14}{figures}{ratio:>8}{shares[0]:>16}{shares[1]:>7}{shares[2]:>8}"
        )
    return "\n".join(lines)


def markdown(rows: list[Row]) -> str:
    """The rows as a table for a document: a line a workload, a cell a shape."""
    names = list(dict.fromkeys(row["shape"] for row in rows))
    cells = {(row["workload"], row["shape"]): cell(row) for row in rows if row[OURS] is not None}
    lines = [
        "| ours · the better peer = ratio (of the floor) | " + " | ".join(name.upper() for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for workload in UNITS:
        found = [cells.get((workload, name), "") for name in names]
        if any(found):
            lines.append(f"| `{workload}`, {UNITS[workload]} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def cell(row: Row) -> str:
    """Ours · the peer's figure that the ratio is with = the ratio (ours of the floor)."""
    shown_ratio = better = ""
    if row["ratio"] is not None:
        shown_ratio = f" = **{row['ratio']:.2f}x**"
        if any(row[p] is not None for p in PEERS):
            better = f" · {number(row[OURS] / row['ratio'] if row['unit'] in RATES else row[OURS] * row['ratio'])}"
    floor = "" if row["floor_share"] is None else f" ({100 * row['floor_share']:.0f} %)"
    return number(row[OURS]) + better + shown_ratio + floor


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def share(row: Row, column: str) -> str:
    value, floor = row[column], row.get("floor")
    if not value or not floor:
        return "-"
    return f"{100 * (value / floor if row['unit'] in RATES else floor / value):.0f}%"


if __name__ == "__main__":
    held = json.loads(Path(sys.argv[1]).read_text())
    print(shown(held["rows"]) + "\n\n" + markdown(held["rows"]))
