"""`quire doctor [serve] [MODEL] [flags of quire serve]`: why a server would not start, and the command that mends it."""

import json
import shlex
import sys
from collections.abc import Sequence

from quire.cli.doctor.examine import Report, examine
from quire.cli.doctor.machine import Machine

HELP = "check the machine, the install and a `quire serve` command line, and print what mends each fault"
USAGE = """usage: quire doctor [serve] [MODEL] [flags of quire serve]

Examines `quire serve MODEL ...` without starting it: flags, environment, limits, port, model, options, tokenizer, weights and
memory. For each fault it prints what mends it; a changed command line has been tried. Exit code 0: nothing is wrong; 1: a fault.
  --json   the report as JSON"""


def main(argv: Sequence[str]) -> int:
    """Prints the report."""
    words = list(argv)
    if words[:1] == ["serve"]:
        words = words[1:]
    if words in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    report = examine(words, Machine())
    print(_json(report) if as_json else _text(words, report), file=sys.stdout)
    return 1 if report.findings else 0


def _text(words: list[str], report: Report) -> str:
    lines = [f"examined: {shlex.join(['quire', 'serve', *words])}"]
    for finding in report.findings:
        first, *rest = finding.text.splitlines() or [""]
        lines += [f"fault: {first}", *(f"       {line}" for line in rest)]
        if finding.edit is None:
            lines.append("  no command mends this; docs/guide/troubleshooting.md has more")
        else:
            lines += [f"  mend: {line}" for line in finding.edit.lines()]
    lines += [f"note: {note}" for note in report.notes]
    if not report.findings:
        lines.append("no fault found")
    elif report.whole:
        lines.append("with these changes no fault is left")
    else:
        lines.append("mend the last fault, then run quire doctor again: checks after it have not been made")
    return "\n".join(lines)


def _json(report: Report) -> str:
    findings = [
        {"check": f.check, "fault": f.text, "mend": f.edit.lines() if f.edit else [], "tried": f.tried}
        for f in report.findings
    ]
    command = shlex.join(["quire", "serve", *report.words])
    return json.dumps(
        {"findings": findings, "command": command, "notes": report.notes, "whole": report.whole}, indent=2
    )
