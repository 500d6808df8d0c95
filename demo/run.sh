#!/usr/bin/env bash
# The whole of SCoRe on a laptop, from nothing: bash demo/run.sh [--quick] [--fresh] [--seed N] [--out DIR]
#
#   --quick    a smoke run in under two minutes: everything runs, nothing is learned
#   --fresh    start over; otherwise a second call goes on where the first one stopped
#   --seed N   other tasks and another student (default 0; written to runs/demo-seedN)
#   --out DIR  where everything is written (default runs/demo)
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- flags ----
seed=0 fresh= quick= out=
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) quick=1 ;;
        --fresh) fresh=1 ;;
        --seed) seed=${2:?--seed needs a number}; shift ;;
        --out) out=${2:?--out needs a folder}; shift ;;
        -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;;
        *) echo "demo/run.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
    esac
    shift
done
case "$seed" in ''|*[!0-9]*) echo "demo/run.sh: --seed needs a number, not '$seed'" >&2; exit 2 ;; esac
if [ -z "$out" ]; then
    out=runs/demo
    [ -z "$quick" ] || out=runs/quick
    [ "$seed" = 0 ] || out+=-seed$seed
fi
[ -z "$fresh" ] || rm -rf "$out"

source demo/sizes.sh                                                       # what the minutes are spent on
source demo/venv.sh
export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false            # several processes share few cores
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
mkdir -p "$out/done"
if [ -e "$out/settings" ] && [ "$(cat "$out/settings")" != "$seed $quick" ]; then
    echo "demo/run.sh: $out was made with other flags; give --fresh or another --out" >&2; exit 2
fi
echo "$seed $quick" > "$out/settings"

# ---- the teacher: one HTTP server for chat completions and for web search ----
coproc TEACHER { exec "$python" demo/teacher.py --port 0; }
trap 'kill $TEACHER_PID 2>/dev/null || true' EXIT
read -r url <&"${TEACHER[0]}" || { echo "the demo's teacher did not start" >&2; exit 1; }
world=(--search "http:$url/search" --no-preload)           # the toy tasks need neither numpy nor sympy
teacher=(--teacher-url "$url" "${world[@]}")

# ---- the pipeline, each stage the command that a real run uses ----
began=$SECONDS
stage() {                                                  # stage NAME TITLE COMMAND…: skipped if it was done before
    local name=$1 title=$2 start=$SECONDS; shift 2
    if [ -e "$out/done/$name" ]; then echo "== $title: done before"; return; fi
    echo "== $title"
    "$@"
    echo "   $((SECONDS - start)) s"
    touch "$out/done/$name"
}
ranks=(-m torch.distributed.run --standalone --nproc_per_node 2)       # torchrun

stage tasks "tasks" \
    "$python" demo/world.py --out "$out/tasks" --seed "$seed" --bc $bc --mps $mps --dev $dev --eval $eval
stage init "student: random weights" \
    "$python" demo/student.py --out "$out/ckpt/init" --seed "$seed"
stage base "student: stand-in for pretraining" \
    "$python" "${ranks[@]}" sft.py --model "$out/ckpt/init" --data "$out/tasks/pretrain.jsonl" --out "$out/ckpt/base" \
    --steps $pretrain_steps "${pretrain[@]}" --seed "$seed"
stage demonstrate "1 BC: the teacher demonstrates" \
    "$python" bc.py --tasks "$out/tasks/bc.jsonl" --out "$out/bc.jsonl" "${teacher[@]}"
stage bc "1 BC: the student clones" \
    "$python" "${ranks[@]}" sft.py --model "$out/ckpt/base" --data "$out/bc.jsonl" --out "$out/ckpt/bc" \
    --steps $clone_steps "${clone[@]}" --seed "$seed"
stage mps "2 MPS: the student acts, the teacher corrects its first wrong step" \
    "$python" "${ranks[@]}" mps.py --tasks "$out/tasks/mps.jsonl" --student "$out/ckpt/bc" --out "$out/mps" \
    --rl-easy 0.5 "${teacher[@]}" "${limits[@]}"
stage sft "3 SFT on corrected trajectories" \
    "$python" "${ranks[@]}" sft.py --model "$out/ckpt/bc" --data "$out/mps/sft.jsonl" --out "$out/ckpt/sft" \
    --steps $correct_steps "${correct[@]}" --seed "$seed"
stage rl "4 short-horizon GRPO" \
    "$python" "${ranks[@]}" grpo_short.py --model "$out/ckpt/sft" --data "$out/mps/rl.jsonl" --out "$out/ckpt/rl" \
    "${teacher[@]}" "${limits[@]}" --steps $reinforce_steps "${reinforce[@]}" --seed "$seed"
for model in bc sft rl; do
    for decoding in greedy sampled; do
        flags=(); [ $decoding = sampled ] || flags=(--greedy)
        stage "eval-$model-$decoding" "evaluation: $model, $decoding" \
            "$python" "${ranks[@]}" eval.py run --model "$out/ckpt/$model" --tasks "$out/tasks/eval.jsonl" \
            --out "$out/eval/$model-$decoding" --name "$model-$decoding" --metric rule --sampling-seed "$seed" \
            "${world[@]}" "${limits[@]}" "${flags[@]}"
    done
done
echo "== the table"
"$python" eval.py table "$out"/eval/{bc,sft,rl}-{greedy,sampled} --out "$out/table.md" --paper none
"$python" eval.py report "$out"
echo "All of it is in $out (open $out/report.html); this call took $((SECONDS - began)) s."
