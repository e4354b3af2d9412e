#!/usr/bin/env bash
# install.sh PYTHON [EXTRA]: make sure that PYTHON's environment holds this checkout of quire, with an extra's packages if one is named.
# Makes .venv when PYTHON is .venv's and is not there. Does nothing when the environment is already up to date with pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 extra=${2:-}
CPU_TORCH=2.13.0+cpu

make_environment() {
  local candidate base=
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      base=$candidate
      break
    fi
  done
  if [[ -z $base ]]; then
    echo "quire needs Python 3.10 to 3.13; none was found. Install one, or activate an environment that has it." >&2
    exit 2
  fi
  echo "Making a virtual environment in .venv with $base"
  if ! "$base" -m venv .venv; then
    rm -rf .venv # a broken one would be taken for a good one next time
    echo "$base cannot make virtual environments; install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2
    exit 2
  fi
}

up_to_date() { # STAMP
  [[ -f $1 && $(cat "$1") == "$PWD" && -z $(find pyproject.toml setup.py csrc scripts/install.sh -newer "$1" -print -quit) ]]
}

# Without an NVIDIA GPU a plain `pip install torch` on Linux brings several GB of CUDA libraries. A CPU build is looked for where pip is
# set up to look, and in QUIRE_TORCH_INDEX if that is set (to the address of PyTorch's CPU wheels, say, or a mirror of them); where
# neither has one, whatever pip finds will do.
install_cpu_torch() {
  echo "No NVIDIA GPU found: installing PyTorch for the CPU"
  "$python" -m pip install --quiet ${QUIRE_TORCH_INDEX:+--extra-index-url "$QUIRE_TORCH_INDEX"} "torch==$CPU_TORCH" 2>/dev/null ||
    echo "No CPU build of PyTorch was found; pip's own choice will be installed, which may be large" >&2
}

[[ $python != .venv/bin/python || -x $python ]] || make_environment
prefix=$("$python" -c 'import sys; print(sys.prefix)')
stamp=$prefix/.quire-installed${extra:+-$extra}
for done_before in "$stamp" "$prefix/.quire-installed-dev"; do # dev holds everything else
  ! up_to_date "$done_before" || exit 0
done
if [[ $(uname -s) == Linux ]] && ! command -v nvidia-smi >/dev/null && ! "$python" -c 'import torch' 2>/dev/null; then
  install_cpu_torch
fi
echo "Installing quire${extra:+ with the packages of its $extra extra}; the first time takes a few minutes"
"$python" -m pip install --quiet -e ".${extra:+[$extra]}"
echo "$PWD" >"$stamp"
