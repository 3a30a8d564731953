#!/usr/bin/env bash
# Sets everything up, then trains a small GPT on the King James Bible (public domain, from Debian's
# bible-kjv) with the recoup plugin, and prints what N layers save and cost.
#   examples/run.sh [OPTIONS OF gpt_trainer]     see gpt_trainer --help; RECOUP_* in examples/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

text=$build/bible.txt
[ -s "$text" ] || bible -f gen1:1-rev22:21 >"$text"

say "Training with configs/mlp_first_12.yaml"
"$build/gpt_trainer" --text "$text" --plugin "$build/librecoup.so" \
  --config "$root/configs/mlp_first_12.yaml" --steps 50 "$@"

say "What N saves and costs: 8 layers of 256, runs in turn, warm-up left out"
"$python" "$root/examples/gpt/sweep.py" --trainer "$build/gpt_trainer" --plugin "$build/librecoup.so" \
  --text "$text" --layers 8 --hidden 256 --ffn 1024 --context 128

cat <<TEXT

Next:
  examples/run.sh --config configs/mlp_activation_only.yaml    another configuration (configs/ has more)
  examples/gpt/sweep.py --help                                 levels and layer expressions beside N; pictures
  README.md                                                    the door for your own trainer
TEXT
