# Sourced by examples/run.sh and tests/run.sh: everything needed to build, installed once and reused.
#
#   RECOUP_DEPS    where the virtual environment (LibTorch: 4.7 GB) lives; default: the user's cache
#   RECOUP_BUILD   build folder; default: build/ in the clone
#   RECOUP_SANITIZE  address or thread: build with sanitizers, in a folder of its own
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
deps=${RECOUP_DEPS:-${XDG_CACHE_HOME:-$HOME/.cache}/recoup}
sanitize=${RECOUP_SANITIZE:-}
build=${RECOUP_BUILD:-$root/build${sanitize:+-$sanitize}}
python=$deps/venv/bin/python
export RECOUP_DEPS=$deps RECOUP_BUILD=$build

say() { printf '== %s\n' "$*"; }

install_packages() {
  local wanted=(g++ cmake ninja-build python3-venv python3-dev libyaml-cpp-dev libgtest-dev libgmock-dev
                libbenchmark-dev libcli11-dev nlohmann-json3-dev libgloo-dev bible-kjv)
  local missing=() p
  for p in "${wanted[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    say "Debian packages: all there"
  elif [ "$(id -u)" -eq 0 ]; then
    say "Debian packages: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "Missing Debian packages, and only root can install them: apt-get install ${missing[*]}" >&2
    return 1
  fi
}

install_python() {
  local requirements=$root/examples/requirements.txt mark=$deps/installed.txt
  if [ -x "$python" ] && cmp -s "$requirements" "$mark"; then  # may be somebody else's folder, read-only
    say "LibTorch and Python packages: all there, in $deps"
    return
  fi
  mkdir -p "$deps"
  (
    flock 9  # two set-ups at once: the second waits and finds the work done
    if ! cmp -s "$requirements" "$mark"; then
      say "LibTorch and Python packages: installing into $deps (4.7 GB the first time)"
      [ -x "$python" ] || python3 -m venv "$deps/venv"
      "$python" -m pip install -q -r "$requirements"
      cp "$requirements" "$mark"
    fi
  ) 9>"$deps/lock"
}

build_all() {
  say "Building in $build"
  if [ ! -f "$build/build.ninja" ]; then
    cmake -G Ninja -S "$root" -B "$build" -Wno-dev -DRECOUP_SANITIZE="$sanitize" \
      -DCMAKE_PREFIX_PATH="$("$python" -c 'import torch; print(torch.utils.cmake_prefix_path)' 2>/dev/null)" \
      -DPython_EXECUTABLE="$python" >"$build.log" 2>&1 || { tail -20 "$build.log" >&2; return 1; }
    rm "$build.log"
  fi
  ninja -C "$build" --quiet
}

install_packages
install_python
build_all
