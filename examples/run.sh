#!/usr/bin/env bash
# Sets up what is missing, then trains a small GPT on the King James Bible (public domain, from
# Debian's bible-kjv) with the recoup plugin, and prints what N layers save and cost.
#   examples/run.sh [OPTIONS OF gpt_trainer]     RECOUP_* variables: see examples/setup.sh
#   examples/run.sh --help                       this, and the trainer's options once it is built
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

for argument; do
  if [ "$argument" = --help ] || [ "$argument" = -h ]; then
    sed -n '2,/^[^#]/{s/^# \?//p}' "$root/examples/run.sh"
    sed -n '/^#   RECOUP_/,/^[^#]/{s/^# \?//p}' "$root/examples/setup.sh"
    [ ! -x "$build/gpt_trainer" ] || exec "$build/gpt_trainer" --help
    exit
  fi
done

set_up trainer
text=$build/bible.txt
if [ ! -s "$text" ] && command -v bible >/dev/null; then
  bible -f gen1:1-rev22:21 >"$text"
elif [ ! -s "$text" ]; then
  say "bible-kjv is not installed: training on this repository's own text (other losses, the same bytes)"
  find "$root"/{hooks,plugin,examples,tests} -type f \( -name '*.h' -o -name '*.cc' -o -name '*.md' \) \
    -print0 | sort -z | xargs -0 cat >"$text"
fi

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
