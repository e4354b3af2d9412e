"""Prints where the code stands against the sizes that ARCHITECTURE.md asks for. Nothing is refused for it."""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "quire"


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in path.read_text().splitlines())


def function_lengths(path: Path) -> list[tuple[int, str]]:
    """(lines, name) of each function in the file."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (n.end_lineno - n.lineno + 1, f"{path.relative_to(ROOT)}:{n.name}")
        for n in ast.walk(tree)
        if isinstance(n, kinds) and n.end_lineno
    ]


def main() -> None:
    files = sorted(p for p in SRC.rglob("*.py") if p.stat().st_size)
    lengths = {p: code_lines(p) for p in files}
    functions = sorted(f for p in files for f in function_lengths(p))
    tests = sum(code_lines(p) for p in (ROOT / "tests").rglob("*.py"))
    total = sum(lengths.values())
    folders: dict[str, int] = {}
    for path, lines in lengths.items():
        part = path.relative_to(SRC).parts
        folders[part[0] if len(part) > 1 else "(top)"] = folders.get(part[0] if len(part) > 1 else "(top)", 0) + lines
    print(f"src: {len(files)} files, {total} code lines; tests: {tests} ({tests / total:.2f} a code line)")
    print(f"file: median {statistics.median(lengths.values()):.0f} (target 150), longest:")
    for path in sorted(files, key=lambda p: -lengths[p])[:5]:
        print(f"  {lengths[path]:5} {path.relative_to(ROOT)}")
    print(f"function: median {statistics.median(n for n, _ in functions):.0f} (target 8), longest:")
    for lines, name in functions[:-6:-1]:
        print(f"  {lines:5} {name}")
    print("folders: " + ", ".join(f"{name} {lines}" for name, lines in sorted(folders.items(), key=lambda f: -f[1])))


if __name__ == "__main__":
    main()
