# Sourced by examples/run.sh and tests/run.sh: finds or installs what is needed to build, once, and
# builds.
#   set_up trainer   LibTorch, the trainer and librecoup.so
#   set_up tests     everything
#
#   RECOUP_DEPS      where LibTorch and Python packages live; default: the user's cache
#   RECOUP_BUILD     build folder; default: build/ in the clone
#   RECOUP_FULL      1: LibTorch with all its CUDA libraries, also where no GPU is seen
#   RECOUP_CUDA      ON, OFF or AUTO (default): CUDA code in the build
#   RECOUP_WERROR    ON: the compiler's warnings are errors
#   RECOUP_SANITIZE  address or thread: build with sanitizers, in a folder of its own
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }
stop() { printf 'recoup: %s\n' "$*" >&2; exit 1; }

cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
deps=${RECOUP_DEPS:-${cache:+$cache/recoup}}
[ -n "$deps" ] || stop "HOME is not set: set RECOUP_DEPS to the folder that LibTorch shall live in"
sanitize=${RECOUP_SANITIZE:-}
build=${RECOUP_BUILD:-$root/build${sanitize:+-$sanitize}}
python=$deps/venv/bin/python
export RECOUP_DEPS=$deps RECOUP_BUILD=$build
source "$root/examples/setup_tools.sh"
source "$root/examples/setup_libtorch.sh"

# Configures where something has changed since, and builds the targets given; all without any.
build_targets() {
  # A target's sources as one, and no precompiled headers: a third of the time for all of a few targets,
  # and more where a file changes, as it does among who runs the tests.
  local what=$1 torch state mark=$build/set-up.txt tests=OFF whole=ON
  shift
  torch=$(torch_folder)
  if [ "$what" = tests ] || grep -qs '^tests' "$mark"; then tests=ON whole=OFF what=tests; fi
  # Another LibTorch, its CUDA libraries or headers: the configuration looks again.
  state="$what $torch $({ cat "$deps"/{installed,lean,headers}.txt 2>/dev/null || true; } | cksum)"
  state+=" ${RECOUP_CUDA:-AUTO} ${RECOUP_WERROR:-OFF} $sanitize"
  mkdir -p "$build"
  exec 8>"$build/set-up.lock"
  flock 8  # two at once in one folder: the second waits
  say "Building in $build"
  if [ ! -f "$build/build.ninja" ] || [ "$(cat "$mark" 2>/dev/null)" != "$state" ]; then
    # What LibTorch's CMake files keep of another LibTorch would win.
    grep -qsF " $torch " "$mark" || rm -f "$build/CMakeCache.txt"
    cmake -G Ninja -S "$root" -B "$build" -Wno-dev -DRECOUP_SANITIZE="$sanitize" \
      -DRECOUP_CUDA="${RECOUP_CUDA:-AUTO}" -DCMAKE_PREFIX_PATH="$torch" -DPython_EXECUTABLE="$python" \
      -DRECOUP_TESTS=$tests -DRECOUP_PYTHON=$tests \
      -DCMAKE_UNITY_BUILD=$whole -DCMAKE_UNITY_BUILD_BATCH_SIZE=0 -DCMAKE_DISABLE_PRECOMPILE_HEADERS=$whole \
      -DRECOUP_WERROR="${RECOUP_WERROR:-OFF}" >"$build/configure.log" 2>&1 ||
      { grep -A3 'CMake Error' "$build/configure.log" >&2; stop "cmake failed: $build/configure.log says all"; }
    sed -n 's/^-- recoup: /   /p' "$build/configure.log"
    printf '%s\n' "$state" >"$mark"
  fi
  ninja -C "$build" "$@" || stop "the build failed; what the compiler said stands above"
  flock -u 8
}

set_up() {
  case $1 in
    trainer)
      find_tools trainer
      install_libtorch trainer
      build_targets trainer gpt_trainer librecoup.so ;;
    tests)
      find_tools tests
      install_libtorch tests
      build_targets tests ;;
  esac
}
