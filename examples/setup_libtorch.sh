# Sourced by setup.sh: LibTorch from PyPI's wheel of torch, in a virtual environment.

# Where the environment's torch is (whether or not Python can import it).
torch_folder() {
  "$python" -c 'import sysconfig; print(sysconfig.get_paths()["platlib"] + "/torch")'
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

has_toolkit() {
  local folder
  for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "$(readlink -f "$(command -v nvcc)" 2>/dev/null)/../.." \
    /usr/local/cuda; do
    [ ! -f "$folder/bin/nvcc" ] || [ ! -f "$folder/include/cuda_runtime_api.h" ] || return 0
  done
  return 1
}

# needs_space MEGABYTES WHAT: stops where less is free.
needs_space() {
  local folder=$deps free
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df -Pm "$folder" | awk 'END { print $4 }')
  [ "$free" -ge "$1" ] || stop "$2 needs $1 MB in $deps, and $free MB are free: set RECOUP_DEPS to a folder" \
    "on a larger disk"
}

make_environment() {
  [ -x "$python" ] || "$base_python" -m venv "$deps/venv" ||
    stop "$base_python could not make a virtual environment in $deps/venv"
}

# pip_install ARGUMENTS: pip with its progress, and one sentence where it fails.
pip_install() {
  local log=$deps/pip.log wanted
  # pip's progress goes where ours goes; its errors are kept too, to be read here.
  {
    "$python" -m pip --disable-pip-version-check install --no-cache-dir "$@" 2>&1 >&3 3>&- | tee "$log" >&2
  } 3>&1 && return
  wanted=$(grep -hm1 '^torch==' "$root/examples/requirements.txt")
  if grep -qE 'No space left' "$log"; then
    stop "the disk is full: set RECOUP_DEPS to a folder on a larger one"
  elif grep -qiE 'connection|timed? ?out|name resolution|unreachable|proxy|SSLError|Could not fetch URL|from versions: none' "$log"; then
    stop "the package index of pip does not answer: mend the network or set PIP_INDEX_URL to a mirror, and" \
      "run again: what is installed stays"
  elif grep -qE 'No matching distribution' "$log"; then
    stop "the package index of pip has no $wanted for $("$python" --version) on $(uname -m): another" \
      "python3 (3.10 to 3.14) first on PATH, or PIP_INDEX_URL, helps; remove $deps/venv before"
  fi
  stop "pip failed; what it said stands above"
}

# install_part FILE MARK SENTENCE MEGABYTES ARGUMENTS: once, by whoever comes first.
install_part() {
  local file=$root/examples/$1 mark=$deps/$2 sentence=$3 megabytes=$4
  shift 4
  cmp -s "$file" "$mark" && return
  mkdir -p "$deps" 2>/dev/null && [ -w "$deps" ] ||
    stop "$deps cannot be written to: set RECOUP_DEPS to a folder of yours"
  (
    flock 9  # two set-ups at once: the second waits and finds the work done
    ! cmp -s "$file" "$mark" || exit 0
    needs_space "$megabytes" "LibTorch"
    say "$sentence"
    make_environment
    pip_install "$@" -r "$file"
    cp "$file" "$mark"
  ) 9>"$deps/lock"
}

install_libtorch() {
  if [ "$1" = tests ] || [ "${RECOUP_FULL:-0}" = 1 ] || [ -f "$deps/installed.txt" ] || has_gpu; then
    install_part requirements.txt installed.txt \
      "LibTorch with its CUDA libraries, and what the tests need: 4.7 GB into $deps" 9000
    if ! has_toolkit && [ "${RECOUP_CUDA:-AUTO}" != OFF ]; then
      (install_part requirements-headers.txt headers.txt \
        "CUDA headers (no toolkit is found): 4 MB to download" 100 --no-deps) ||
        say "CUDA headers: not installed (see above); the build goes on and says what it does without"
    fi
  else
    install_part requirements-lean.txt lean.txt \
      "LibTorch for CPUs (no GPU is seen; RECOUP_FULL=1 for all): 0.6 GB to download, 1.4 GB in $deps" \
      2500 --no-deps
  fi
  say "LibTorch: $(torch_folder)"
}
