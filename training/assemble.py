"""Joins the parts of a training run into a checkpoint folder, by default the one that ships.

python -m training.assemble --parts DIR [--tokenizer DIR] [--target DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training import export
from training.vocabulary import MODEL_DIR, NEXT_DIR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=NEXT_DIR, help="the folder that training read it from")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    args = parser.parse_args()
    export.join_parts(args.parts, args.target, args.tokenizer)
    export.write_checksums(args.target)
    print(f"{args.target}: {(args.target / 'SHA256SUMS').read_text()}")


if __name__ == "__main__":
    main()
