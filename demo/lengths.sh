#!/usr/bin/env bash
# A control: does what a student clones carry over to longer tasks? bash demo/lengths.sh [flags]
#
#   --student S    tiny (default), smollm2, or the Hugging Face folder or hub name of another chat model
#   --quick        a smoke run: everything runs, nothing is learned
#   --fresh        start over; otherwise a second call goes on where the first one stopped
#   --seed N       other tasks (default 0)
#   --size cpu|gpu what a pretrained student is given (default cpu), or one GPU (and vLLM, if installed)
#   --out DIR      where everything is written (default runs/lengths-NAME of the student)
#
# A teacher that never leaps demonstrates tasks of 2 to 4 steps. The student clones them and is then tested on tasks
# of 2 to 8 steps: the report shows each length.
set -euo pipefail
cd "$(dirname "$0")/.."
source demo/stage.sh

# ---- flags ----
seed=0 fresh= quick= out= student=tiny size=cpu
read_flags 12 "$@"
if [ -z "$out" ]; then
    out=runs/lengths-${quick:+quick-}$(basename "$student")
    [ $size = cpu ] || out+=-gpu
    [ "$seed" = 0 ] || out+=-seed$seed
fi

source demo/sizes.sh
source demo/venv.sh
open_out "$seed $quick $student $size" bc eval beyond pretrain_steps pretrain clone_steps clone far dtype
run_on $size "$student"

# ---- the pipeline ----
# 3 of the 5 lengths of bc.jsonl are kept
stage tasks "tasks of 2 to 8 steps" \
    "$python" demo/world.py --out "$out/tasks" --seed "$seed" --searches 6 --bc $((bc * 5 / 3)) --eval $eval \
    --beyond $beyond
grep -E '"horizon": [234]\b' "$out/tasks/bc.jsonl" > "$out/tasks/short.jsonl"
cat "$out/tasks/eval.jsonl" "$out/tasks/beyond.jsonl" > "$out/tasks/all.jsonl"
start_teacher demo/teacher.py --leap 0
world=(--search "http:$url/search" --no-preload)
make_student
stage demonstrate "the teacher demonstrates tasks of 2 to 4 steps, without leaps" \
    "$python" bc.py --tasks "$out/tasks/short.jsonl" --out "$out/bc.jsonl" --teacher-url "$url" "${world[@]}"
stage bc "the student clones" \
    "$python" "${ranks[@]}" sft.py --model "$base" --data "$out/bc.jsonl" --out "$out/ckpt/bc" \
    --steps $clone_steps "${clone[@]}" --seed "$seed"
stage eval "evaluation on 2 to 8 steps" \
    "$python" "${ranks[@]}" eval.py run --model "$out/ckpt/bc" --tasks "$out/tasks/all.jsonl" --out "$out/eval/bc" \
    --name "BC on 2 to 4 steps" --metric rule --greedy "${world[@]}" "${engine[@]}" "${far[@]}"
"$python" eval.py table "$out/eval/bc" --out "$out/table.md" --paper none
"$python" eval.py report "$out"
echo "Each length is in $out/report.html."
