# Sourced by setup.sh: the compiler, tools and headers. They are looked for themselves, whoever
# installed them; Debian's package names serve where they are missing.

# Rows: what, its kind, Debian's package, and who needs it. `bible` is the text that the example trains on.
tools() {
  cat <<'ROWS'
g++                  command  g++               trainer
cmake                command  cmake             trainer
ninja                command  ninja-build       trainer
flock                command  util-linux        trainer
venv                 python   python3-venv      trainer
yaml-cpp/yaml.h      header   libyaml-cpp-dev   trainer
CLI/CLI.hpp          header   libcli11-dev      trainer
nlohmann/json.hpp    header   nlohmann-json3-dev trainer
gloo/config.h        header   libgloo-dev       trainer
gtest/gtest.h        header   libgtest-dev      tests
gmock/gmock.h        header   libgmock-dev      tests
benchmark/benchmark.h header  libbenchmark-dev  tests
Python.h             python   python3-dev       tests
bible                optional bible-kjv         trainer
ROWS
}

# The Python that the virtual environment is made with: PATH's python3, or another that LibTorch has a
# wheel for. Sets base_python.
find_python() {
  local name version found=
  for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    command -v "$name" >/dev/null || continue
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    found=${found:-$version}
    case $version in 3.1[0-4]) base_python=$name; return ;; esac
  done
  [ -n "$found" ] || stop "Python is missing: install Python 3.10 to 3.14 (Debian: apt-get install python3-venv)"
  stop "LibTorch has no wheel for Python $found: put a python3 of 3.10 to 3.14 on PATH"
}

check_machine() {
  local machine libc
  [ "$(uname -s)" = Linux ] || stop "recoup runs on Linux, not on $(uname -s)"
  machine=$(uname -m)
  case $machine in x86_64 | aarch64) ;; *) stop "LibTorch has no wheel for $machine: x86_64 and aarch64 only" ;; esac
  libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || libc=
  case $libc in
    2.2[89] | 2.[3-9]*) ;;
    *) stop "LibTorch's wheels need glibc 2.28 or later; this machine has ${libc:-another C library}" ;;
  esac
}

# Prints the rows whose thing is missing.
missing_tools() {
  local compiler=${CXX:-g++} what kind package who headers= absent=
  while read -r what kind package who; do
    [ "$kind" != header ] || headers+="#if !__has_include(<$what>)"$'\n'"absent $what"$'\n'"#endif"$'\n'
  done < <(tools)
  if command -v "$compiler" >/dev/null; then
    absent=$("$compiler" -std=c++17 -x c++ -E -P - <<<"$headers")
  else
    absent=$(tools | sed -n 's/^\([^ ]*\) *header .*/absent \1/p')  # installed with the compiler
  fi
  while read -r what kind package who; do
    [ "$1" = tests ] || [ "$who" = trainer ] || continue
    case $kind in
      header) ! grep -qxF "absent $what" <<<"$absent" ;;
      python)
        case $what in
          venv) "$base_python" -c 'import venv, ensurepip' 2>/dev/null ;;
          *) [ -f "$("${python_headers[@]}" 2>/dev/null)/$what" ] ;;
        esac ;;
      *) [ "$what" = g++ ] && what=$compiler
        command -v "$what" >/dev/null ;;
    esac || printf '%s %s %s\n' "$what" "$kind" "$package"
  done < <(tools)
}

find_tools() {
  local rows names packages
  check_machine
  base_python=$python
  [ -x "$python" ] || find_python
  python_headers=("$base_python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  rows=$(missing_tools "$1")
  if [ -n "$rows" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    packages=$(cut -d' ' -f3 <<<"$rows" | sort -u | tr '\n' ' ')
    say "Debian packages: installing $packages"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
      stop "apt-get could not install $packages: what it said stands above; run again once it is mended"
    rows=$(missing_tools "$1")
  fi
  rows=$(grep -v ' optional ' <<<"$rows" || true)
  if [ -z "$rows" ]; then
    say "Compiler, tools and headers: all there"
    return
  fi
  names=$(cut -d' ' -f1 <<<"$rows" | paste -sd, | sed 's/,/, /g')
  packages=$(cut -d' ' -f3 <<<"$rows" | sort -u | tr '\n' ' ')
  if command -v apt-get >/dev/null; then
    stop "missing: $names; only root can install them: sudo apt-get install ${packages% }"
  fi
  stop "missing: $names; install them with this system's packages (Debian calls them ${packages% })"
}
