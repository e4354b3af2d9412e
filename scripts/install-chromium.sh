#!/usr/bin/env bash
# Installs Chromium from the distribution (Debian, Ubuntu), for the tests of the web pages.
set -euo pipefail
if ! command -v apt-get >/dev/null; then
  echo "The tests of the web pages need Chromium or Chrome on the PATH; install it" >&2
  exit 2
fi
as_root=()
[[ $(id -u) == 0 ]] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null
