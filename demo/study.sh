#!/usr/bin/env bash
# The paper's comparisons on the toy world: bash demo/study.sh [--seeds "0 1 2"] [--arms "rl sft-more"] [flags]
#
#   --seeds LIST     one student, one set of tasks each (default "0 1 2 3 4")
#   --arms LIST      a part of: bc-all sft-more grpo-bc grpo-sft rl-no-horizon rl-no-key rl scale
#                    controls (default: for the first two seeds): leap0 noise20 noise40
#                    settings of RL, judged on dev (default: for the last seed): rl-again rl-lr-low rl-lr-high
#                    rl-cool rl-longer rl-no-negative
#   --jobs N         arms trained side by side, one core each (default 2)
#   --quick          a smoke run: everything runs, nothing is learned
#   --out DIR        where everything is written (default runs/study)
#
# BC-init and SCoRe-SFT are made for every seed: all arms start from them. A second call goes on where the first
# stopped and adds what is missing. At the end DIR/RESULTS.md is written from the files of all seeds in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- flags ----
seeds="0 1 2 3 4" arms= jobs=2 quick= out= unit=
while [ $# -gt 0 ]; do
    case "$1" in
        --seeds) seeds=${2:?--seeds needs numbers}; shift ;;
        --arms) arms=${2:?--arms needs names}; shift ;;
        --jobs) jobs=${2:?--jobs needs a number}; shift ;;
        --out) out=${2:?--out needs a folder}; shift ;;
        --quick) quick=1 ;;
        --unit) unit="$2 $3"; shift 2 ;;                                       # for itself: one seed, one arm
        -h|--help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit ;;
        *) echo "demo/study.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
    esac
    shift
done
out=${out:-runs/study${quick:+-quick}}
controls="leap0 noise20 noise40"
settings_of_rl="rl-again rl-lr-low rl-lr-high rl-cool rl-longer rl-no-negative"
main="rl grpo-sft rl-no-horizon rl-no-key grpo-bc sft-more bc-all scale"
for seed in $seeds; do
    case "$seed" in *[!0-9]*) echo "demo/study.sh: --seeds needs numbers, not '$seed'" >&2; exit 2 ;; esac
done
for arm in $arms; do
    case " $main $controls $settings_of_rl " in *" $arm "*) ;; *) echo "demo/study.sh: no arm '$arm'" >&2; exit 2 ;; esac
done

source demo/sizes.sh
source demo/venv.sh
export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 LOCAL_WORLD_SIZE=$jobs
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1

# ---- building blocks, for one seed in the folder $dir ----
stage() {                      # stage NAME COMMAND…: once; done/NAME then holds "wall user system" seconds
    local name=$1 TIMEFORMAT='%R %U %S'; shift
    [ ! -e "$dir/done/$name" ] || return 0
    mkdir -p "$dir/done" "$dir/log"
    if ! { time "$@" > "$dir/log/$name.txt" 2>&1; } 2> "$dir/done/.$name"; then
        echo "demo/study.sh: $dir, $name failed:" >&2; tail -n 20 "$dir/log/$name.txt" >&2; exit 255
    fi
    mv "$dir/done/.$name" "$dir/done/$name"
    echo "$dir: $name, $(cut -d' ' -f1 "$dir/done/$name") s"
}
serve() {                      # serve [FLAGS]: the teacher and the search engine
    coproc TEACHER { exec "$python" demo/teacher.py --port 0 "$@"; }
    trap 'kill $TEACHER_PID 2>/dev/null || true' EXIT
    read -r url <&"${TEACHER[0]}" || { echo "the teacher did not start" >&2; exit 255; }
    world=(--search "http:$url/search" --no-preload)
    teacher=(--teacher-url "$url" "${world[@]}")
}
demonstrate() {                # NAME TASKS
    stage "demonstrate-$1" "$python" bc.py --tasks "$2" --out "$dir/$1.jsonl" "${teacher[@]}"
}
train() {                      # NAME FROM STEPS FLAGS DATA…
    local name=$1 from=$2 steps=$3 flags; flags=($4); shift 4
    stage "$name" "$python" sft.py --model "$from" --out "$dir/ckpt/$name" --steps "$steps" "${flags[@]}" \
        --seed "$seed" --data "$@"
}
mentor() {                     # NAME TASKS STUDENT [FLAGS]
    local name=$1 tasks=$2 student=$3; shift 3
    stage "$name" "$python" mps.py --tasks "$tasks" --student "$student" --out "$dir/$name" --rl-easy 0.5 \
        "${teacher[@]}" "${limits[@]}" "$@"
}
program=grpo_short.py
rl() {                         # NAME FROM [FLAGS]
    local name=$1 from=$2; shift 2
    stage "$name" "$python" $program --model "$from" --data "$dir/mps/rl.jsonl" --out "$dir/ckpt/$name" \
        "${teacher[@]}" "${limits[@]}" --steps $reinforce_steps "${reinforce[@]}" --seed "$seed" "$@"
}
evaluate() {                   # NAME [greedy] [sampled] [beyond] [dev-greedy] [dev-sampled]
    local name=$1 how tasks flags; shift
    for how in "$@"; do
        tasks=$shared/tasks/eval.jsonl flags=("${limits[@]}")
        [[ $how = *sampled ]] || flags+=(--greedy)
        [[ $how != dev* ]] || tasks=$shared/tasks/dev.jsonl
        [ "$how" != beyond ] || { tasks=$shared/tasks/beyond.jsonl; flags=("${far[@]}" --greedy); }
        stage "eval-$name-$how" "$python" eval.py run --model "$dir/ckpt/$name" --tasks "$tasks" --metric rule \
            --out "$dir/eval/$name-$how" --name "$name-$how" --sampling-seed "$seed" "${world[@]}" "${flags[@]}"
    done
}
all="greedy sampled beyond" kept="dev-greedy dev-sampled"
recipe() { rl "$1" "$dir/ckpt/sft" "${@:2}"; evaluate "$1" $kept; }           # another setting of RL

prepare() {                    # what all arms of a seed share: tasks, BC-init, the corrected trajectories, SCoRe-SFT
    serve
    stage tasks "$python" demo/world.py --out "$dir/tasks" --seed "$seed" --bc $bc --mps $mps --dev $dev --eval $eval \
        --beyond $beyond
    stage init "$python" demo/student.py --out "$dir/ckpt/init" --seed "$seed"
    train base "$dir/ckpt/init" $pretrain_steps "${pretrain[*]}" "$dir/tasks/pretrain.jsonl"
    demonstrate bc "$dir/tasks/bc.jsonl"
    train bc "$dir/ckpt/base" $clone_steps "${clone[*]}" "$dir/bc.jsonl"
    mentor mps "$dir/tasks/mps.jsonl" "$dir/ckpt/bc"
    train sft "$dir/ckpt/bc" $correct_steps "${correct[*]}" "$dir/mps/sft.jsonl"
    mkdir -p "$dir/mps-all"                                                    # the same runs, all of them for SFT
    [ -e "$dir/mps-all/mps.jsonl" ] || cp "$dir/mps/mps.jsonl" "$dir/mps-all/mps.jsonl"
    mentor mps-all "$dir/tasks/mps.jsonl" "$dir/ckpt/bc" --sft-share 1
    mentor probe "$dir/tasks/eval.jsonl" "$dir/ckpt/bc" --corrections 2        # its unsolved tasks: the hard subset
    evaluate bc $all
    evaluate sft $all
}

# ---- arms: each from the files that `prepare` left ----
build() {
    local ckpt=$shared/ckpt tasks=$shared/tasks n
    case "$1" in
        prepare) prepare ;;
        bc-all)
            serve
            demonstrate mps "$tasks/mps.jsonl"
            train bc-all "$ckpt/base" $((clone_steps + correct_steps)) "${clone[*]}" "$dir/bc.jsonl" "$dir/mps.jsonl"
            evaluate bc-all $all ;;
        sft-more)
            serve
            train sft-more "$ckpt/sft" $more_steps "${correct[*]}" "$dir/mps-all/sft.jsonl"
            evaluate sft-more $all ;;
        scale)                 # as many passes over a quarter, a half and twice the data of SCoRe-SFT
            serve
            n=$(wc -l < "$dir/mps/sft.jsonl")
            head -n $((n / 4)) "$dir/mps/sft.jsonl" > "$dir/sft-quarter.jsonl"
            head -n $((n / 2)) "$dir/mps/sft.jsonl" > "$dir/sft-half.jsonl"
            cp "$dir/mps-all/sft.jsonl" "$dir/sft-all.jsonl"
            for part in quarter half all; do
                train sft-$part "$ckpt/bc" $((correct_steps * $(wc -l < "$dir/sft-$part.jsonl") / n)) "${correct[*]}" \
                    "$dir/sft-$part.jsonl"
                evaluate sft-$part greedy sampled
            done ;;
        grpo-bc) serve; rl grpo-bc "$ckpt/bc" --no-short-horizon --no-key-step-reward; evaluate $1 $all ;;
        grpo-sft) serve; rl grpo-sft "$ckpt/sft" --no-short-horizon --no-key-step-reward; evaluate $1 $all ;;
        rl-no-horizon) serve; rl rl-no-horizon "$ckpt/sft" --no-short-horizon; evaluate $1 $all ;;
        rl-no-key) serve; rl rl-no-key "$ckpt/sft" --no-key-step-reward; evaluate $1 $all ;;
        rl) serve; rl rl "$ckpt/sft"; evaluate rl $all ;;
        rl-again)              # the same once more, another draw; and those to compare with
            serve
            evaluate sft $kept
            [ ! -e "$ckpt/rl-no-horizon/config.json" ] || evaluate rl-no-horizon $kept
            recipe $1 --seed $((seed + 100)) --sampling-seed 1 ;;
        rl-lr-low) serve; recipe $1 --lr 5e-5 ;;
        rl-lr-high) serve; recipe $1 --lr 1e-3 ;;
        rl-cool) serve; recipe $1 --temperature 0.6 ;;
        rl-longer) serve; recipe $1 --steps $((reinforce_steps * 9 / 5)) ;;               # the tokens of one from the question
        rl-no-negative) serve; program=demo/no_negative.py; recipe $1 ;;
        noise*)                # the teacher names another step than the first wrong one, that often
            serve --noise "0.${1#noise}"
            dir=$dir/$1
            mentor mps "$tasks/mps.jsonl" "$ckpt/bc"
            train sft "$ckpt/bc" $correct_steps "${correct[*]}" "$dir/mps/sft.jsonl"
            evaluate sft greedy sampled ;;
        leap0)                 # the teacher demonstrates what the student can do itself
            serve --leap 0
            dir=$dir/$1
            demonstrate bc "$tasks/bc.jsonl"
            demonstrate mps "$tasks/mps.jsonl"
            train bc "$ckpt/base" $clone_steps "${clone[*]}" "$dir/bc.jsonl"
            train bc-all "$ckpt/base" $((clone_steps + correct_steps)) "${clone[*]}" "$dir/bc.jsonl" "$dir/mps.jsonl"
            mentor mps "$tasks/mps.jsonl" "$dir/ckpt/bc"
            train sft "$dir/ckpt/bc" $correct_steps "${correct[*]}" "$dir/mps/sft.jsonl"
            for name in bc bc-all sft; do evaluate $name greedy sampled; done ;;
    esac
}
if [ -n "$unit" ]; then
    seed=${unit% *} shared=$out/seed-${unit% *} dir=$out/seed-${unit% *}
    build "${unit#* }"
    exit
fi

# ---- the study: first what a seed shares, then its arms, seed by seed ----
mkdir -p "$out"
settings="$quick $(cksum < demo/sizes.sh)"
if [ -e "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
    echo "demo/study.sh: $out was made with other sizes; give another --out" >&2; exit 2
fi
echo "$settings" > "$out/settings"
side_by_side() { xargs -r -L 1 -P "$jobs" bash demo/study.sh ${quick:+--quick} --jobs "$jobs" --out "$out" --unit; }
began=$SECONDS
for seed in $seeds; do echo "$seed prepare"; done | side_by_side
first_two=$(echo $seeds | cut -d' ' -f1-2) last=${seeds##* }
for seed in $seeds; do
    todo=$main
    [[ " $first_two " != *" $seed "* ]] || todo+=" $controls"
    [ "$seed" != "$last" ] || todo+=" $settings_of_rl"
    for arm in ${arms:-$todo}; do echo "$seed $arm"; done
done | side_by_side
"$python" demo/study.py "$out"
echo "This call took $((SECONDS - began)) s."
