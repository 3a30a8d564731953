#!/usr/bin/env bash
# Ten minutes on a machine with a GPU, without network or root: builds for the LibTorch of the Python
# that is there (nvcc, CMake and ninja exist) and runs stages by name, each with a time limit.
#   tests/gpu.sh --pack               beforehand, on a Debian machine: the small dependencies, into
#                                     build-gpu-pack/ (under 40 MB, ignored by git), to be carried along
#   tests/gpu.sh [STAGE...]           engine, trainer; default: all of them
#   tests/gpu.sh --dry-run [STAGE...] the same on a CPU, with a small model
# RECOUP_GPU_MINUTES: the limit of the build and of each stage; default 5.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pack=$root/build-gpu-pack
stages=(engine trainer)
limit=${RECOUP_GPU_MINUTES:-5}
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
  if command -v bible >/dev/null; then bible -f gen1:1-rev22:21 >"$pack/text.txt"; fi
  size=$(du -sm "$pack" | cut -f1)
  [ "$size" -lt 40 ] || stop "--pack: $pack has $size MB, and 40 is the limit"
  say "$pack: $size MB"
}

dry=
case ${1:-} in
  --pack) [ $# -eq 1 ] || stop "--pack takes no stages"; make_pack; exit ;;
  --dry-run) dry=1; shift ;;
  -h | --help) sed -n '2,/^[^#]/{s/^# \?//p}' "${BASH_SOURCE[0]}"; exit ;;
esac
wanted=("$@")
[ $# -gt 0 ] || wanted=("${stages[@]}")
for stage in "${wanted[@]}"; do
  [[ " ${stages[*]} " == *" $stage "* ]] || stop "there is no stage $stage: ${stages[*]}"
done
[[ $limit =~ ^[1-9][0-9]*$ ]] || stop "RECOUP_GPU_MINUTES=$limit: whole minutes"
[ -n "$dry" ] || nvidia-smi -L 2>/dev/null | grep -q '^GPU' ||
  stop "nvidia-smi shows no GPU here: tests/gpu.sh --dry-run runs the same on the CPU"

# The LibTorch of the first Python that has one.
torch=
for python in python3 python "${RECOUP_DEPS:-${HOME:-}/.cache/recoup}/venv/bin/python"; do
  torch=$("$python" -c 'import importlib.util as u
print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) && break
done
[ -n "$torch" ] || stop "no Python here has torch: put one that has first on PATH"

build=${RECOUP_BUILD:-$root/build-gpu${dry:+-dry}}
targets=()
for stage in "${wanted[@]}"; do
  case $stage in
    engine) targets+=(engine_gpu_test checkpoint_test) ;;
    trainer) targets+=(gpt_trainer librecoup.so) ;;
  esac
done
cuda=ON device=cuda
[ -z "$dry" ] || cuda=AUTO device=cpu
mkdir -p "$build"
say "build: LibTorch of $python, ${targets[*]} (limit: $limit minutes)"
cmake -G Ninja -S "$root" -B "$build" -Wno-dev -DRECOUP_CUDA=$cuda -DRECOUP_PYTHON=OFF \
  -DCMAKE_PREFIX_PATH="$torch;$pack/usr" -DCMAKE_BUILD_TYPE=Release >"$build/configure.log" 2>&1 ||
  { tail -20 "$build/configure.log"; stop "cmake failed; without $pack (tests/gpu.sh --pack) the headers are missing"; }
sed -n 's/^-- recoup: /   /p' "$build/configure.log"
timeout "${limit}m" ninja -C "$build" "${targets[@]}" >"$build/build.log" 2>&1 ||
  { tail -20 "$build/build.log"; stop "the build failed or took more than $limit minutes: $build/build.log"; }

run_stage() {
  local text=$pack/text.txt layers=12 sizes=(--hidden 1024 --ffn 4096 --heads 16 --context 512 --batch 8) steps=20
  case $1 in
    engine)
      RECOUP_TEST_DEVICE=$device "$build/engine_gpu_test" --gtest_brief=1 &&
        "$build/checkpoint_test" --gtest_brief=1 ;;
    trainer)
      if [ ! -s "$text" ]; then
        text=$build/text.txt
        cat "$root"/hooks/*/*.cc "$root"/plugin/*.cc >"$text"
      fi
      if [ -n "$dry" ]; then
        layers=4 steps=8 sizes=(--hidden 64 --ffn 256 --heads 2 --context 32 --batch 2)
      fi
      "$python" "$root/examples/gpt/sweep.py" --trainer "$build/gpt_trainer" --plugin "$build/librecoup.so" \
        --text "$text" --layers $layers --n 0 $((layers / 2)) $layers --steps $steps --rounds 2 \
        --device $device "${sizes[@]}" ;;
  esac
}
export -f run_stage
export dry device build root pack python

failed=0
for stage in "${wanted[@]}"; do
  say "$stage (limit: $limit minutes)"
  SECONDS=0 result=passed
  timeout "${limit}m" bash -euo pipefail -c "run_stage $stage" || { result="FAILED ($?)"; failed=1; }
  summary="${summary:-}$(printf '%-10s %4d s  %s' "$stage" "$SECONDS" "$result")"$'\n'
done
say "Stages on $device"
printf '%s' "$summary"
exit $failed
