# Sourced by run.sh, lengths.sh, gsm8k.sh and study.sh: what they share. $out is the folder that they write to.

from_there() {                                             # from_there PATH: as seen from where the script was called
    case "$1" in /*) ;; *) [ "$OLDPWD" = "$PWD" ] || { echo "$OLDPWD/$1"; return; } ;; esac
    echo "$1"
}

read_flags() {                                             # read_flags N FLAGS…: into variables; lines 2 to N are the help
    local script=demo/$(basename "$0") lines=2,$1; shift
    while [ $# -gt 0 ]; do
        case "$1" in
            --quick) quick=1 ;;
            --fresh) fresh=1 ;;
            --seed) seed=${2:?--seed needs a number}; shift ;;
            --out) out=$(from_there "${2:?--out needs a folder}"); shift ;;
            --student) student=${2:?--student needs a name}; shift ;;
            --size) size=${2:?--size needs cpu or gpu}; shift ;;
            -h|--help) sed -n "${lines}s/^# \\{0,1\\}//p" "$script"; exit ;;
            *) echo "$script: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
        esac
        shift
    done
    case "$student" in
        ''|tiny|untrained|smollm2) ;;
        *) [ ! -d "$(from_there "$student")" ] || student=$(from_there "$student") ;;      # else a name on the hub
    esac
    case "$seed" in ''|*[!0-9]*) echo "$script: --seed needs a number, not '$seed'" >&2; exit 2 ;; esac
    case "$size" in cpu|gpu) ;; *) echo "$script: --size is cpu or gpu, not '$size'" >&2; exit 2 ;; esac
    if [ "$student$size" = tinygpu ]; then
        echo "$script: --size gpu is for a pretrained student: give --student too" >&2; exit 2
    fi
}

open_out() {                                               # open_out TEXT NAME…: makes $out, anew with $fresh
    if [ -d "$student" ] && [[ "$(realpath "$student")/" = "$(realpath -m "$out")"/* ]]; then
        echo "$0: the student $student lies in $out, where the run would be written: give another --out" >&2; exit 2
    fi
    if [ -n "$fresh" ] && [ -e "$out" ]; then
        if [ ! -e "$out/settings" ] && [ -n "$(ls -A "$out")" ]; then
            echo "$0: --fresh would delete $out, which is no run of this script: give another --out" >&2; exit 2
        fi
        rm -rf "$out"
    fi
    local settings="$1 $(declare -p "${@:2}" 2> /dev/null | cksum)"        # the variables NAME… are the sizes
    if [ -e "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
        echo "$0: $out was made with other flags, sizes or data; give --fresh or another --out" >&2; exit 2
    fi
    mkdir -p "$out/done"
    echo "$settings" > "$out/settings"
}

run_on() {                                                 # run_on cpu|gpu STUDENT: sets $ranks, torchrun's flags, and $engine
    export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1       # processes share few cores
    ranks=() engine=()                                     # a GPU is one rank
    if [ "$1" = cpu ]; then
        export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} CUDA_VISIBLE_DEVICES=
        ranks=(-m torch.distributed.run --standalone --nproc_per_node 2)
    else
        "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
            { echo "$0: --size gpu, but PyTorch finds no GPU here" >&2; exit 2; }
        if "$python" -c 'import importlib.util as i, sys; sys.exit(i.find_spec("vllm") is None)'; then
            engine=(--engine vllm)
        fi
    fi
    case "$2" in
        tiny|untrained|smollm2) export HF_HUB_OFFLINE=1 ;;
        *) [ ! -d "$2" ] || export HF_HUB_OFFLINE=1 ;;
    esac
}

fast_dtype() {                                             # fast_dtype cpu|gpu -> bf16 where it is faster than fp32
    if [ "$1" = gpu ] || grep -qwE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null; then echo bf16; else echo fp32; fi
}

start_teacher() {                                          # start_teacher SCRIPT FLAGS…: sets $url, of its HTTP server
    coproc TEACHER { exec "$python" "$@" --port 0; }
    teacher_pid=${TEACHER_PID:-} said=${TEACHER[0]:-}      # bash unsets both when it ends
    trap 'kill $teacher_pid 2> /dev/null || true' EXIT
    { [ -n "$said" ] && read -r url <&"$said"; } || { echo "$0: the teacher, $1, did not start" >&2; return 1; }
}

stage() {                                                  # stage NAME TITLE COMMAND…: skipped if it was done before
    local name=$1 title=$2 start=$SECONDS; shift 2
    if [ -e "$out/done/$name" ]; then echo "== $title: done before"; return; fi
    echo "== $title"
    "$@"
    echo "   $((SECONDS - start)) s"
    touch "$out/done/$name"
}

make_student() {                                           # sets $base, the student before it has seen a demonstration
    base=$out/ckpt/base
    case "$student" in
        tiny)                                              # it needs the world's exercises, tasks/pretrain.jsonl
            stage init "student: random weights" \
                "$python" demo/student.py --out "$out/ckpt/init" --seed "$seed"
            stage base "student: stand-in for pretraining" \
                "$python" "${ranks[@]}" sft.py --model "$out/ckpt/init" --data "$out/tasks/pretrain.jsonl" \
                --out "$base" --steps $pretrain_steps "${pretrain[@]}" --seed "$seed" ;;
        untrained)
            stage base "student: random weights" "$python" demo/student.py --out "$base" --seed "$seed" ;;
        smollm2)
            stage base "student: SmolLM2-135M-Instruct, from its package" \
                "$python" demo/smollm2.py --out "$base" --dtype $dtype ;;
        *) base=$student ;;
    esac
}
