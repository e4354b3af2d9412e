#!/usr/bin/env bash
# install.sh PYTHON [EXTRA]: make sure that PYTHON's environment holds this checkout of quire, with an extra's packages if one is named.
# Makes .venv when PYTHON is .venv's and is not there. Does nothing when the environment is already up to date with pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 extra=${2:-}

if [[ $python == .venv/bin/python && ! -x $python ]]; then
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      base=$candidate
      break
    fi
  done
  [[ -n ${base:-} ]] || { echo "quire needs Python 3.10 to 3.13; none was found. Install one, or activate an environment that has it." >&2; exit 2; }
  echo "Making a virtual environment in .venv with $base"
  "$base" -m venv .venv
fi

stamp=$("$python" -c 'import sys; print(sys.prefix)')/.quire-installed${extra:+-$extra}
sources=(pyproject.toml setup.py csrc scripts/install.sh)
if [[ -f $stamp && -z $(find "${sources[@]}" -newer "$stamp" -print -quit 2>/dev/null) && $(cat "$stamp") == "$PWD" ]]; then
  exit 0
fi
# Without an NVIDIA GPU a plain `pip install torch` would bring several GB of CUDA libraries; a release that pip also knows as a
# CPU build is named first, so that the CPU build is taken where the index has one.
if ! "$python" -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
  echo "No NVIDIA GPU found: installing PyTorch for the CPU"
  "$python" -m pip install --quiet "torch==${QUIRE_CPU_TORCH:-2.13.0}" ||
    echo "That release is not available here; the newest one will be installed" >&2
fi
echo "Installing quire${extra:+ with the $extra extra}"
"$python" -m pip install --quiet -e ".${extra:+[$extra]}"
echo "$PWD" >"$stamp"
