#!/usr/bin/env bash
# Ten minutes on a machine with a GPU, without network or root: builds for the LibTorch of the Python
# that is there (CMake, ninja and a compiler exist) and runs stages by name, each with a time limit; a
# failure stops none of the others.
#   tests/gpu.sh --pack                 beforehand, on a Debian machine: the small dependencies, into
#                                       build-gpu-pack/ (under 40 MB, ignored by git), to be carried along
#   tests/gpu.sh [OPTION...] [STAGE...] the stages; default: all of them
#     --dry-run        on a CPU, with small models
#     --build FOLDER   a build that exists, as it is, in place of one of its own
#     -o FOLDER        where the logs and summary.json go; default: results/ in the build's folder
#   tests/gpu.sh --list                 the stages with their limits
# RECOUP_GPU_MINUTES: for the build and all stages together; default 10. RECOUP_LLMC: a checkout of llm.c.
# RECOUP_MEGATRON: a folder with Megatron-LM.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pack=$root/build-gpu-pack
limit=${RECOUP_GPU_MINUTES:-10}
say() { printf '== %s\n' "$*"; }
stop() { printf 'recoup: %s\n' "$*" >&2; exit 1; }

make_pack() {
  local package file size
  rm -rf "$pack"
  for package in libyaml-cpp-dev "$(dpkg -S '*/libyaml-cpp.so.*' 2>/dev/null | cut -d: -f1 | head -1)" \
    libcli11-dev nlohmann-json3-dev libgloo-dev libgtest-dev libgmock-dev googletest; do
    dpkg -L "$package" >/dev/null 2>&1 || { [ "$package" = googletest ] && continue; } ||
      stop "--pack: the Debian package $package is not installed: examples/setup.sh installs it"
    while read -r file; do
      case $file in */share/doc/* | */man/* | */src/* | */libgloo.so) continue ;; esac
      [ -d "$file" ] || { mkdir -p "$pack$(dirname "$file")" && cp -P "$file" "$pack$file"; }
    done < <(dpkg -L "$package")
  done
  for file in "${RECOUP_DEPS:-${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}/recoup}"/megatron/*/megatron; do
    [ ! -d "$file" ] || { mkdir -p "$pack/megatron" && rm -rf "$pack/megatron/megatron" && cp -R "$file" "$pack/megatron/"; }
  done
  if command -v bible >/dev/null; then bible -f gen1:1-rev22:21 >"$pack/text.txt"; fi
  size=$(du -sm "$pack" | cut -f1)
  [ "$size" -lt 40 ] || stop "--pack: $pack has $size MB, and 40 is the limit"
  say "$pack: $size MB"
}

table=$(python3 "$root/tests/gpu/run.py" --list) || stop "tests/gpu.sh needs a python3 on PATH"
stages=$(cut -d'|' -f1 <<<"$table" | paste -sd' ')
dry= build= output= wanted=()
while [ $# -gt 0 ]; do
  case $1 in
    --pack) [ $# -eq 1 ] && [ ${#wanted[@]} -eq 0 ] || stop "--pack takes no stages"; make_pack; exit ;;
    --list) awk -F'|' '{ printf "%-12s%4d s  %s\n", $1, $3, $4 }' <<<"$table"; exit ;;
    -h | --help) sed -n '2,/^[^#]/{s/^# \?//p}' "${BASH_SOURCE[0]}"; exit ;;
    --dry-run) dry=1 ;;
    --build | -o)
      [ $# -gt 1 ] || stop "$1 needs a folder"
      if [ "$1" = -o ]; then output=$2; else build=$2; fi
      shift ;;
    *) [[ " $stages " == *" $1 "* ]] || stop "there is no stage $1: $stages"; wanted+=("$1") ;;
  esac
  shift
done
[ ${#wanted[@]} -gt 0 ] || read -ra wanted <<<"$stages"
[[ $limit =~ ^[1-9][0-9]*$ ]] || stop "RECOUP_GPU_MINUTES=$limit: whole minutes"
[ -z "$build" ] || [ -f "$build/build.ninja" ] || stop "--build $build: no build is there"

# The LibTorch of the first Python that has one, and the CUDA that it was built with.
torch= cuda_of_torch=
for python in python3 python "${RECOUP_DEPS:-${HOME:-}/.cache/recoup}/venv/bin/python"; do
  torch=$("$python" -c 'import importlib.util as u
print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) && break
done
[ -n "$torch" ] || stop "no Python here has torch: put one that has first on PATH"
cuda_of_torch=$(sed -nE "s/^cuda\b[^=]*= *'([0-9.]+)'.*/\1/p" "$torch/version.py" 2>/dev/null || true)

# What a run on a GPU needs of the machine.
check_gpu() {
  local driver free nvcc toolkit
  nvidia-smi -L 2>/dev/null | grep -q '^GPU' ||
    stop "nvidia-smi shows no GPU here: tests/gpu.sh --dry-run runs the same on the CPU"
  [ -n "$cuda_of_torch" ] ||
    stop "the torch of $python is built without CUDA: put a Python with CUDA's first on PATH"
  driver=$(nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA Version: *([0-9.]+).*/\1/p' | head -1)
  [ -z "$driver" ] || [ "${driver%%.*}" -ge "${cuda_of_torch%%.*}" ] ||
    stop "the driver knows CUDA up to $driver, and the torch of $python is built with $cuda_of_torch:" \
      "a newer driver or a torch for CUDA ${driver%%.*} is needed"
  free=$(nvidia-smi ${CUDA_VISIBLE_DEVICES:+-i "${CUDA_VISIBLE_DEVICES%%,*}"} --query-gpu=memory.free \
    --format=csv,noheader,nounits 2>/dev/null | head -1)
  [[ ! $free =~ ^[0-9]+$ ]] || [ "$free" -ge 6000 ] ||
    stop "the GPU has $free MB free, and 6000 are needed: end what runs on it, or choose another by CUDA_VISIBLE_DEVICES"
  [ -z "$build" ] || return 0
  for nvcc in "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" nvcc /usr/local/cuda/bin/nvcc; do
    toolkit=$("$nvcc" --version 2>/dev/null | sed -nE 's/.*release ([0-9.]+).*/\1/p') || true
    [ -z "$toolkit" ] || break
  done
  [ -z "$toolkit" ] || [ "${toolkit%%.*}" = "${cuda_of_torch%%.*}" ] ||
    stop "$nvcc is of CUDA $toolkit, and the torch of $python is built with $cuda_of_torch: set CUDA_HOME to a" \
      "toolkit ${cuda_of_torch%%.*}, or hide this one"
}

# The tools, and the headers of the pack or the system.
check_tools() {
  local tool header headers= missing=
  for tool in cmake ninja "${CXX:-g++}"; do
    command -v "$tool" >/dev/null || stop "$tool is missing: the build needs cmake, ninja and a C++ compiler"
  done
  for header in yaml-cpp/yaml.h CLI/CLI.hpp nlohmann/json.hpp gloo/config.h gtest/gtest.h gmock/gmock.h; do
    headers+="#if !__has_include(<$header>)"$'\n'"absent $header"$'\n'"#endif"$'\n'
  done
  missing=$("${CXX:-g++}" -std=c++17 -x c++ -E -P -I"$pack/usr/include" - <<<"$headers" | sed -n 's/^absent //p' |
    paste -sd, | sed 's/ *//g; s/,/, /g')
  [ -z "$missing" ] || stop "not here: $missing: tests/gpu.sh --pack on a Debian machine makes $(basename "$pack")/," \
    "to be copied into this clone"
}

[ -n "$dry" ] || check_gpu
end=$((SECONDS + limit * 60))
cuda=ON
[ -z "$dry" ] || cuda=AUTO
if [ -z "$build" ]; then
  check_tools
  build=${RECOUP_BUILD:-$root/build-gpu${dry:+-dry}}
  targets=()
  for stage in "${wanted[@]}"; do
    read -ra more <<<"$(sed -n "s/^$stage|\([^|]*\)|.*/\1/p" <<<"$table")"
    targets+=("${more[@]}")
  done
  mkdir -p "$build"
  say "build: LibTorch of $python, in $build"
  cmake -G Ninja -S "$root" -B "$build" -Wno-dev -DRECOUP_CUDA=$cuda -DPython_EXECUTABLE="$(command -v "$python")" \
    -DCMAKE_PREFIX_PATH="$torch;$pack/usr" -DCMAKE_BUILD_TYPE=Release >"$build/configure.log" 2>&1 ||
    { tail -20 "$build/configure.log"; stop "cmake failed: $build/configure.log says all"; }
  sed -n 's/^-- recoup: /   /p' "$build/configure.log"
  if grep -q 'recoup: no Python extension' "$build/configure.log"; then  # its stages say so
    for i in "${!targets[@]}"; do [ "${targets[i]}" != recoup_torch.so ] || unset "targets[i]"; done
  fi
  mapfile -t targets < <(printf '%s\n' "${targets[@]}" | sort -u)
  timeout "${limit}m" ninja -C "$build" "${targets[@]}" >"$build/build.log" 2>&1 ||
    { tail -20 "$build/build.log"; stop "the build failed or took more than $limit minutes: $build/build.log"; }
  say "built in $SECONDS s: ${targets[*]}"
fi
output=${output:-$build/results}
mkdir -p "$output"
left=$((end - SECONDS))
exec "$python" "$root/tests/gpu/run.py" --build "$build" --output "$output" ${dry:+--dry-run} \
  --seconds "$((left > 0 ? left : 0))" "${wanted[@]}"
