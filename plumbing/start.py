"""Before a run begins: are its flags right, and are they those of the results that are there already?"""
import argparse
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Hashable, Iterable
from importlib.metadata import distributions
from operator import itemgetter
from typing import Any

from plumbing.chat_api import TeacherDown, served_models
from plumbing.cli import InputError
from plumbing.ranks import rank_and_world
from plumbing.records import Record, to_json
from plumbing.spending import keep_spending

# ---- what is found to be wrong before anything is loaded ----

def check_start(args: argparse.Namespace, out_is_file: bool = False) -> None:
    """Make the folder for --out. InputError for flags that do not go together, packages that are not
    installed, and an --out that cannot be written."""
    given = vars(args)
    engine = given.get("engine")
    if engine == "url" and not given.get("student_url"):
        raise InputError("--engine url needs --student-url, the address of the endpoint")
    if given.get("student_url") and engine != "url":
        raise InputError(f"--student-url is used only with --engine url, not with --engine {engine}")
    if given.get("teacher_model") and not args.teacher_url:
        raise InputError("--teacher-model needs --teacher-url, the address of the endpoint")
    if given.get("judge_model") and not args.judge_url:
        raise InputError("--judge-model needs --judge-url, the address of the endpoint")
    if given.get("offload") and not args.zero:
        raise InputError("--offload needs --zero 1, 2 or 3")
    template = given.get("chat_template")
    if template and engine == "url":
        raise InputError("--chat-template is for --engine torch and vllm: an endpoint has its own")
    if template and not os.path.isfile(template):
        raise InputError(f"--chat-template {template}: there is no such file")
    if engine == "url":
        check_endpoint(args.student_url, given.get("student") or args.model)
    if engine == "vllm":
        need_package("vllm", "--engine vllm", "pip install -r requirements-gpu.txt")
    if given.get("attention") == "flash-attn":
        need_package("flash_attn", "--attention flash-attn", "--attention torch needs none")
    if given.get("wandb"):
        need_package("wandb", "--wandb", "pip install wandb")
    if "https:" in (given.get("search") or "") and not os.environ.get("SEARCH_API_KEY"):
        raise InputError(f"--search {args.search} needs the service's key in the environment variable "
                         "SEARCH_API_KEY (any text, if the service wants none)")
    for name in ("model", "student", "tasks", "data", "val", "eval_tasks", "chat_template", "teacher_cache",
                 "search_cache"):
        if engine == "url" and name in ("model", "student"):
            continue                                       # a name there, and no folder
        check_overwrites(str(args.out), name, given.get(name))
    check_out(str(args.out), out_is_file)
    if not out_is_file:
        claim(str(args.out))


CLAIMED: dict[str, int] = {}                               # --out -> the open file that holds its lock


def claim(out: str) -> None:
    """InputError if another run writes to --out now. The lock lasts until this process ends."""
    if rank_and_world()[0] > 0 or out in CLAIMED:
        return
    kind = os.O_RDONLY if os.path.isdir(out) else os.O_WRONLY | os.O_CREAT
    file = os.open(out, kind, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise InputError(f"--out {out} is in use by another run: wait for its end, or give "
                         "another --out") from None
    except OSError:                                        # a disk without locks
        pass
    CLAIMED[out] = file


def check_overwrites(out: str, name: str, paths: Any) -> None:
    """InputError if --out is what another flag names."""
    for path in as_paths(paths):
        if os.path.realpath(path) == os.path.realpath(out):
            flag = name.replace("_", "-")
            raise InputError(f"--out {out} is what --{flag} names: give another --out")


def as_paths(given: Any) -> list[str]:
    """What a flag was given, as a list."""
    if given is None:
        return []
    return given if isinstance(given, list) else [given]


def check_endpoint(url: str, model: str) -> None:
    """InputError if --student-url does not answer, or lists other models only."""
    try:
        names = served_models(url, {})
    except TeacherDown as error:
        raise InputError(f"--student-url {url}: {error}") from None
    if names and model not in names:
        raise InputError(f"--student-url {url} does not list the model {model}, but {', '.join(names[:5])}")


def check_out(out: str, is_file: bool) -> None:
    """Make the folder that results go to. InputError if that cannot be, or it cannot be written to."""
    if is_file and os.path.isdir(out):
        raise InputError(f"--out {out} is a folder, it must be a file, say {out.rstrip('/')}/NAME.jsonl")
    if is_file and os.path.exists(out) and not os.path.isfile(out):
        raise InputError(f"--out {out} is a device or a pipe, it must be a file")
    if not is_file and os.path.exists(out) and not os.path.isdir(out):
        raise InputError(f"--out {out} is a file, it must be a folder")
    folder = os.path.dirname(os.path.abspath(out)) if is_file else out
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror} ({error.filename})") from None
    for place in (out, folder):
        if os.path.exists(place) and not os.access(place, os.W_OK):
            raise InputError(f"--out {out} cannot be written to: no permission for {place}")


def need_package(package: str, flag: str, install: str) -> None:
    """InputError if a package is not installed; a folder of its name, as wandb leaves behind, is none."""
    if package in sys.modules:
        return
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise InputError(f"{flag} needs the package {package}, which is not installed: {install}")


# ---- the flags of a run, and a second call with the same --out ----

def args_file(args: argparse.Namespace) -> str:
    """Where the flags of a run are kept: OUT/args.json, or bc.args.json beside bc.jsonl."""
    if os.path.isdir(args.out):
        return os.path.join(args.out, "args.json")
    return os.path.splitext(args.out)[0] + ".args.json"


def costs_folder(args: argparse.Namespace) -> str:
    """Where what a run spends is kept: OUT/costs, or bc.costs beside bc.jsonl."""
    return args_file(args).removesuffix("args.json") + "costs"


def save_args(args: argparse.Namespace) -> None:
    """Write the arguments, the folder they were given in, the git commit and the versions of a run, once for
    all ranks. From now on what each of them spends is kept too."""
    keep_spending(costs_folder(args))
    if rank_and_world()[0] > 0:
        return
    here = os.path.dirname(os.path.abspath(__file__))
    git = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True)
    versions = {package.name: package.version for package in distributions()}
    run = {"args": vars(args), "folder": os.getcwd(), "commit": git.stdout.strip(), "versions": versions}
    part = args_file(args) + ".part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(to_json(run, indent=1, default=str))
    os.replace(part, args_file(args))


# What a second call may give anew: how much is wanted and how it is named, and what is made of all records in
# every call (the split of mps.py); who answers where and how patiently it is asked; how fast or in how much
# memory things are done; what is logged and how often. Every other flag changes results.
MAY_CHANGE = {
    "out", "tasks", "limit", "runs", "name", "benchmark",
    "sft_share", "sft_easy", "rl_easy", "rl_hard", "pairs",
    "student_url", "teacher_cache", "search_cache",
    "concurrency", "timeout", "retries", "reasks", "teacher_max_tokens",
    "threads", "sandbox", "preload", "chunk", "rollout_batch", "vllm_memory", "vllm_attention",
    "max_model_len",
    "pack", "row_tokens", "micro_batch", "attention", "offload", "checkpointing",
    "val", "val_every", "show", "show_every", "save_every", "wandb", "max_logp_gap", "max_failed",
    "greedy",                                              # another word for --temperature 0
}
PATHS = {"model", "student", "data", "eval_tasks", "chat_template"}        # compared however they are spelled


def check_resume(args: argparse.Namespace, records: Collection[Record], tasks: Iterable[Record], *,
                 key: Callable[[Record], Hashable] = itemgetter("id"),
                 results: str | None = None, may_change: tuple[str, ...] = ()) -> None:
    """InputError if the records of earlier calls do not go together with what this call would add to them.

    They were made with other flags, or one has the id of a task, but another question. key: what tells tasks
    apart. results: what holds the records, if not --out alone. may_change: more flags besides MAY_CHANGE.
    """
    if records:
        refuse_other_flags(args, results or str(args.out), may_change)
    questions = {key(record): record.get("question") for record in records}
    for task in tasks:
        before = questions.get(key(task))
        if before is not None and before != task["question"]:
            raise InputError(f'--out {args.out} holds another question with the id "{task["id"]}" '
                             "than --tasks: give another --out")


def finished_before(args: argparse.Namespace) -> bool:
    """Whether OUT holds the trained model already.

    InputError if that, or the state from which training goes on, was made with other flags.
    """
    finished = os.path.exists(os.path.join(args.out, "config.json"))
    if finished and not os.path.exists(args_file(args)):
        raise InputError(f"--out {args.out} holds a model, and no args.json that says how it was trained: "
                         "give another --out")
    if finished or os.path.exists(os.path.join(args.out, "state", "latest")):
        refuse_other_flags(args, args.out)
    return finished


def refuse_other_flags(args: argparse.Namespace, results: str, may_change: tuple[str, ...] = ()) -> None:
    """InputError if `results` were made with other flags than `args`, by what `save_args` wrote then.

    Only flags that both runs know are compared: an older version may not have had all.
    """
    path = args_file(args)
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
    except (ValueError, RecursionError):
        saved = None
    before = saved.get("args") if isinstance(saved, dict) else None
    if not isinstance(before, dict):
        raise InputError(f"{path} does not say how {results} was made: give another --out")
    folder = str(saved.get("folder", ""))
    made = []
    asked = []
    for name, now in vars(args).items():
        if name not in before or name in MAY_CHANGE or name in may_change:
            continue
        if not same_value(name, before[name], now, folder):
            made.append(spelled(name, before[name]))
            asked.append(spelled(name, now))
    if made:
        raise InputError(f"{results} was made with {', '.join(made)}, not with {', '.join(asked)}: "
                         f"give another --out, or delete {results}")


def same_value(name: str, before: Any, now: Any, folder: str) -> bool:
    """Whether a flag says the same as before; `folder` is where it was given then."""
    if name in ("teacher_url", "judge_url"):               # where one is may change, but not whether
        return (before is None) == (now is None)
    if name in ("teacher_model", "judge_model") and None in (before, now):     # the one that is served
        return True
    if name == "search":
        return same_search(before or "none", now or "none", folder)
    if name not in PATHS or None in (before, now):
        return before == now
    if not isinstance(before, list):
        return same_place(str(before), str(now), folder)
    left = list(before)                                    # files, in whichever order
    for path in now:
        same = [old for old in left if same_place(str(old), str(path), folder)]
        if not same:
            return False
        left.remove(same[0])
    return not left


def same_search(before: str, now: str, folder: str) -> bool:
    """Whether two values of --search find the same: a service wherever it is, or one file."""
    if before.startswith("http") and now.startswith("http"):
        return True
    if before.startswith("local:") and now.startswith("local:"):
        return same_place(before.removeprefix("local:"), now.removeprefix("local:"), folder)
    return before == now


def same_place(before: str, now: str, folder: str) -> bool:
    """Whether two paths, or names on the hub, are one; `before` was given in `folder`.

    Of a path that is no longer there, as after all was moved, only the spelling can be compared.
    """
    there = os.path.join(folder, before)
    if os.path.realpath(there) == os.path.realpath(now):
        return True
    if os.path.exists(there) and os.path.exists(now):
        return False
    return os.path.normpath(before) == os.path.normpath(now)


def spelled(name: str, value: Any) -> str:
    """A flag as on a command line: --lr 1e-05, --no-pack; "no --steps" for one that was left out."""
    flag = "--" + name.replace("_", "-")
    if value is None:
        return f"no {flag}"
    if isinstance(value, bool):
        return flag if value else "--no-" + flag[2:]
    if isinstance(value, list):
        return " ".join([flag, *map(str, value)])
    return f"{flag} {value}"
