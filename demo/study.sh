#!/usr/bin/env bash
# The paper's comparisons on the toy world: bash demo/study.sh [--seeds "0 1 2"] [--arms "rl sft-more"] [flags]
#
#   --seeds LIST     one student, one set of tasks each (default "0 1 2 3 4 5 6 7")
#   --arms LIST      by default for every seed: rl rl-question rl-no-key sft-more
#                    by default for the first five: bc-all dpo dpo-rl arpo resample self probe
#                    only by name: grpo-bc scale leap0 noise20 noise40
#                    and settings of RL, judged on dev: rl-lr-low rl-lr-high rl-cool rl-no-negative
#   --jobs N         arms trained side by side, one core each (default 2)
#   --quick          a smoke run: everything runs, nothing is learned
#   --out DIR        where everything is written (default runs/study)
#
# BC-init and SCoRe-SFT are made for every seed: all arms start from them. A second call goes on where the first
# stopped and adds what is missing. At the end DIR/RESULTS.md is written from the files of all seeds in DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
source demo/stage.sh

# ---- flags ----
seeds="0 1 2 3 4 5 6 7" arms= jobs=2 quick= out= unit=
while [ $# -gt 0 ]; do
    case "$1" in
        --seeds) seeds=${2:?--seeds needs numbers}; shift ;;
        --arms) arms=${2:?--arms needs names}; shift ;;
        --jobs) jobs=${2:?--jobs needs a number}; shift ;;
        --out) out=$(from_there "${2:?--out needs a folder}"); shift ;;
        --quick) quick=1 ;;
        --unit) unit="$2 $3"; shift 2 ;;                                       # for itself: one seed, one arm
        -h|--help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit ;;
        *) echo "demo/study.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
    esac
    shift
done
out=${out:-runs/study${quick:+-quick}}
main="rl-question rl rl-no-key sft-more"
baselines="bc-all dpo dpo-rl arpo resample self probe"
by_name="grpo-bc scale leap0 noise20 noise40 rl-lr-low rl-lr-high rl-cool rl-no-negative"
for seed in $seeds; do
    case "$seed" in *[!0-9]*) echo "demo/study.sh: --seeds needs numbers, not '$seed'" >&2; exit 2 ;; esac
done
for arm in $arms; do
    case " $main $baselines $by_name " in *" $arm "*) ;; *) echo "demo/study.sh: no arm '$arm'" >&2; exit 2 ;; esac
done

study=1                                                                        # its own sizes
student=tiny
source demo/sizes.sh
source demo/venv.sh
export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 LOCAL_WORLD_SIZE=$jobs
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1

# ---- building blocks, for one seed in the folder $dir; what all arms share is in $shared ----
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
    start_teacher demo/teacher.py "$@" || exit 255
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
    stage "$name" "$python" mps.py --tasks "$tasks" --student "$student" --out "$dir/$name" \
        "${mentored[@]}" "${teacher[@]}" "${limits[@]}" "$@"
}
program=grpo_short.py
rl() {                         # NAME FROM [FLAGS]: until as many tokens are generated as in every other arm of RL
    local name=$1 from=$2; shift 2
    stage "$name" "$python" $program --model "$from" --data "$dir/mps/rl.jsonl" --out "$dir/ckpt/$name" \
        "${teacher[@]}" "${limits[@]}" --max-generated-tokens $tokens --steps $most_steps "${reinforce[@]}" \
        --eval-tasks "$shared/tasks/dev.jsonl" --eval-every $look_every --seed "$seed" "$@"
}
prefer() {                     # NAME FROM MPS.jsonl: direct preference optimisation on the pairs of the corrections
    stage "$1" "$python" baselines/dpo.py --model "$2" --out "$dir/ckpt/$1" --steps $prefer_steps "${prefer[@]}" \
        --seed "$seed" --data "$3"
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
recipe() { rl "$1" "$dir/ckpt/sft" "${@:2}"; evaluate "$1" dev-sampled; }      # another setting of RL

prepare() {                    # what all arms of a seed share: tasks, BC-init, the corrected trajectories, SCoRe-SFT
    stage tasks "$python" demo/world.py --out "$dir/tasks" --seed "$seed" --bc $bc --mps $mps --dev $dev --eval $eval \
        --beyond $beyond --searches $searches --search-every $search_every
    stage init "$python" demo/student.py --out "$dir/ckpt/init" --seed "$seed"
    train base "$dir/ckpt/init" $pretrain_steps "${pretrain[*]}" "$dir/tasks/pretrain.jsonl"
    demonstrate bc "$dir/tasks/bc.jsonl"
    train bc "$dir/ckpt/base" $clone_steps "${clone[*]}" "$dir/bc.jsonl"
    mentor mps "$dir/tasks/mps.jsonl" "$dir/ckpt/bc"
    train sft "$dir/ckpt/bc" $correct_steps "${correct[*]}" "$dir/mps/sft.jsonl"
    evaluate bc sampled
    evaluate sft sampled beyond
}
again() {                      # NAME FLAGS…: the tasks of one mps.jsonl split otherwise; nothing is played again
    mkdir -p "$dir/$1"
    [ -e "$dir/$1/mps.jsonl" ] || cp "$shared/mps/mps.jsonl" "$dir/$1/mps.jsonl"
    mentor "$1" "$shared/tasks/mps.jsonl" "$shared/ckpt/bc" "${@:2}"
}

# ---- arms: each from the files that `prepare` left ----
build() {
    local ckpt=$shared/ckpt tasks=$shared/tasks name=$1 part data n
    case "$name" in
        leap0) serve --leap 0 ;;                           # it demonstrates what the student can do itself
        noise*) serve --noise "0.${name#noise}" ;;         # it names another step than the first wrong one, that often
        *) serve ;;
    esac
    case "$name" in
        prepare) prepare ;;

        # reinforcement from SCoRe-SFT, all until equally many tokens are generated
        rl) rl $name "$ckpt/sft" ;;
        rl-question) rl $name "$ckpt/sft" --start-at question ;;                  # plain GRPO: outcomes alone count
        rl-no-key) rl $name "$ckpt/sft" --no-key-step-reward ;;
        grpo-bc) rl $name "$ckpt/bc" --start-at question ;;
        arpo) program=baselines/arpo.py; rl $name "$ckpt/sft" ;;
        sft-more)                                          # the corrected trajectories of RL's tasks too
            again mps-all --sft-share 1
            train $name "$ckpt/sft" $more_steps "${correct[*]}" "$dir/mps-all/sft.jsonl" ;;

        # in place of correction: cloning, preferences, a corrector that is no teacher
        bc-all)
            demonstrate mps "$tasks/mps.jsonl"
            train $name "$ckpt/base" $((clone_steps + correct_steps)) "${clone[*]}" "$dir/bc.jsonl" "$dir/mps.jsonl" ;;
        resample|self)
            mentor mps-$name "$tasks/mps.jsonl" "$ckpt/bc" --corrector ${name/self/student}
            data=$dir/mps-$name/sft.jsonl
            [ -z "$quick" ] || data=$dir/mps/sft.jsonl     # a student that has learned nothing corrects nothing
            train $name "$ckpt/bc" $correct_steps "${correct[*]}" "$data" ;;
        dpo) prefer $name "$ckpt/bc" "$dir/mps/mps.jsonl" ;;
        dpo-rl) prefer $name "$ckpt/sft" "$dir/mps/rl.jsonl" ;;                # the pairs that RL has

        probe) mentor probe "$tasks/eval.jsonl" "$ckpt/bc" --corrections 2 ;;  # its unsolved tasks: the hard subset

        # as many passes over a quarter, a half and twice the data of SCoRe-SFT
        scale)
            again mps-scale --sft-share 1
            n=$(wc -l < "$dir/mps/sft.jsonl")
            head -n $((n / 4)) "$dir/mps/sft.jsonl" > "$dir/sft-quarter.jsonl"
            head -n $((n / 2)) "$dir/mps/sft.jsonl" > "$dir/sft-half.jsonl"
            cp "$dir/mps-scale/sft.jsonl" "$dir/sft-all.jsonl"
            for part in quarter half all; do
                train sft-$part "$ckpt/bc" $((correct_steps * $(wc -l < "$dir/sft-$part.jsonl") / n)) "${correct[*]}" \
                    "$dir/sft-$part.jsonl"
                evaluate sft-$part sampled
            done ;;
        rl-lr-low) recipe $name --lr 5e-5 ;;
        rl-lr-high) recipe $name --lr 1e-3 ;;
        rl-cool) recipe $name --temperature 0.6 ;;
        rl-no-negative) program=demo/no_negative.py; recipe $name ;;
        leap0|noise*) control $name; return ;;
    esac
    if [ -e "$dir/ckpt/$name/config.json" ] && [[ " $main $baselines grpo-bc " = *" $name "* ]]; then
        evaluate $name sampled
    fi
    [ $name != rl ] || evaluate rl beyond
}
control() {                    # what `prepare` made, once more with another teacher
    local ckpt=$shared/ckpt tasks=$shared/tasks from=$shared/ckpt/bc
    dir=$dir/$1
    if [ "$1" = leap0 ]; then
        from=$dir/ckpt/bc
        demonstrate bc "$tasks/bc.jsonl"
        demonstrate mps "$tasks/mps.jsonl"
        train bc "$ckpt/base" $clone_steps "${clone[*]}" "$dir/bc.jsonl"
        train bc-all "$ckpt/base" $((clone_steps + correct_steps)) "${clone[*]}" "$dir/bc.jsonl" "$dir/mps.jsonl"
        evaluate bc sampled
        evaluate bc-all sampled
    fi
    mentor mps "$tasks/mps.jsonl" "$from"
    train sft "$from" $correct_steps "${correct[*]}" "$dir/mps/sft.jsonl"
    evaluate sft sampled
}
if [ -n "$unit" ]; then
    seed=${unit% *} shared=$out/seed-${unit% *} dir=$out/seed-${unit% *}
    build "${unit#* }"
    exit
fi

# ---- the study: first what a seed shares, then its arms, seed by seed ----
mkdir -p "$out"
sizes=$(declare -p bc mps dev eval beyond searches search_every pretrain_steps pretrain clone_steps clone correct_steps \
    correct reinforce mentored tokens most_steps look_every more_steps prefer_steps prefer limits far)
settings="$quick $(cksum <<< "$sizes")"
if [ -e "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
    echo "demo/study.sh: $out was made with other sizes; give another --out" >&2; exit 2
fi
echo "$settings" > "$out/settings"
side_by_side() { xargs -r -L 1 -P "$jobs" bash demo/study.sh ${quick:+--quick} --jobs "$jobs" --out "$out" --unit; }
began=$SECONDS
for seed in $seeds; do echo "$seed prepare"; done | side_by_side
first_five=$(echo $seeds | cut -d' ' -f1-5)
for seed in $seeds; do
    todo=$main
    [[ " $first_five " != *" $seed "* ]] || todo+=" $baselines"
    for arm in ${arms:-$todo}; do echo "$seed $arm"; done
done | side_by_side
"$python" demo/study.py "$out"
echo "This call took $((SECONDS - began)) s."
