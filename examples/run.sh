#!/usr/bin/env bash
# Sets everything up, then trains a small GPT on the King James Bible (public domain, from Debian's
# bible-kjv) with the recoup plugin, and prints what N = 0, 6, 12 and 24 save.
#   examples/run.sh [OPTIONS OF gpt_trainer]     see gpt_trainer --help; RECOUP_* in examples/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

text=$build/bible.txt
[ -s "$text" ] || bible -f gen1:1-rev22:21 >"$text"

say "Training with configs/mlp_first_12.yaml"
"$build/gpt_trainer" --text "$text" --plugin "$build/librecoup.so" \
  --config "$root/configs/mlp_first_12.yaml" --steps 50 "$@"

say "The same for several N"
"$python" "$root/examples/gpt/sweep.py" --trainer "$build/gpt_trainer" \
  --plugin "$build/librecoup.so" --text "$text"
