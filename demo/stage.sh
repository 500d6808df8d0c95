# Sourced by run.sh and gsm8k.sh: a stage of theirs, done once in the folder $out.
stage() {                                                  # stage NAME TITLE COMMAND…: skipped if it was done before
    local name=$1 title=$2 start=$SECONDS; shift 2
    if [ -e "$out/done/$name" ]; then echo "== $title: done before"; return; fi
    echo "== $title"
    "$@"
    echo "   $((SECONDS - start)) s"
    touch "$out/done/$name"
}
