"""Flags: what their values may be, what is found before a run begins, resuming with other flags, --help."""
import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import bc
import env
import eval as evaluate
import grpo_short
import judge
import mps
import sft
from conftest import ROOT, script
from plumbing import start
from plumbing.chat_api import served_models
from plumbing.checkpoints import load_state
from plumbing.cli import InputError, Parser
from plumbing.models import load_model, named_on_error
from plumbing.records import append_jsonl, resume_jsonl
from plumbing.search import make_search
from plumbing.starts import Starts
from test_stages import lines, tasks, write

URL = "--teacher-url http://127.0.0.1:9"
COMMANDS = {                                               # what each cannot do without
    "bc": f"--tasks t --out o {URL}", "mps": f"--tasks t --student s --out o {URL}",
    "sft": "--model m --data d --out o", "grpo_short": f"--model m --data d --out o {URL}",
    "eval": "run --model m --tasks t --out o", "judge": f"audit --data d {URL}"}


def parse(name, flags=""):
    return importlib.import_module(name).parse_args(f"{COMMANDS[name]} {flags}".split())


def said(capsys, name, flags):
    """What a script says of flags that it refuses."""
    with pytest.raises(SystemExit) as ended:
        parse(name, flags)
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.count("\n") == 1 and text.startswith("error: ")
    return text


# ---- values ----

AT_LEAST_1 = "is not a whole number of at least 1"
AT_LEAST_0 = "is not a whole number of at least 0"
FINITE = "is not a finite number"
REFUSED = [
    ("bc", "--attempts 0", AT_LEAST_1), ("bc", "--max-steps -3", AT_LEAST_1), ("bc", "--concurrency 0", AT_LEAST_1),
    ("bc", "--timeout 0", "is not a number above 0"), ("bc", "--timeout 1e300", "and at most 1000000"), ("bc", "--timeout nan", FINITE), ("bc", "--timeout inf", FINITE),
    ("bc", "--retries -1", AT_LEAST_0), ("bc", "--reasks 1.5", AT_LEAST_0), ("bc", "--attempts two", AT_LEAST_1),
    ("mps", "--corrections -1", AT_LEAST_0), ("mps", "--batch 0", AT_LEAST_1),
    ("mps", "--verify-first-error -2", AT_LEAST_0), ("mps", "--teacher-accuracy 1", "above 0 and below 1"),
    ("mps", "--teacher-accuracy 0", "above 0 and below 1"), ("mps", "--sft-share 1.1", "from 0 to 1"),
    ("mps", "--sft-easy -0.5", "from 0 to 1"), ("mps", "--rl-easy nan", FINITE), ("mps", "--rl-hard 50", "from 0 to 1"),
    ("mps", "--temperature -1", "is not a number of at least 0"), ("mps", "--top-p 0", "above 0 and at most 1"),
    ("mps", "--top-p 2", "above 0 and at most 1"), ("mps", "--top-k -1", AT_LEAST_0), ("mps", "--max-steps 0", AT_LEAST_1),
    ("mps", "--max-tokens 0", AT_LEAST_1), ("mps", "--sampling-seed -1", "from 0 to 4294967295"),
    ("sft", "--epochs -1", "is not a number above 0"), ("sft", "--epochs 0", "is not a number above 0"),
    ("sft", "--steps 0", AT_LEAST_1), ("sft", "--batch 0", AT_LEAST_1), ("sft", "--batch 1e3", AT_LEAST_1),
    ("sft", "--lr nan", FINITE), ("sft", "--lr inf", FINITE), ("sft", "--lr -1", "is not a number of at least 0"),
    ("sft", "--lr 1e999", FINITE), ("sft", "--warmup 2", "from 0 to 1"), ("sft", "--warmup 10%", "from 0 to 1"),
    ("sft", "--val-every 0", AT_LEAST_1), ("sft", "--show -1", AT_LEAST_0), ("sft", "--max-tokens 0", AT_LEAST_1),
    ("sft", "--weight-decay -0.1", "is not a number of at least 0"), ("sft", "--clip-grad 0", "is not a number above 0"),
    ("sft", "--row-tokens 0", AT_LEAST_1), ("sft", "--micro-batch 0", AT_LEAST_1), ("sft", "--lora-rank -8", AT_LEAST_0),
    ("sft", "--save-every 0", AT_LEAST_1), ("sft", "--seed 99999999999", "from 0 to 4294967295"),
    ("grpo_short", "--mini-batch 0", AT_LEAST_1), ("grpo_short", "--prompts 0", AT_LEAST_1),
    ("grpo_short", "--group 0", "is not a whole number of at least 2"),
    ("grpo_short", "--group 1", "is not a whole number of at least 2"),       # it has no advantages
    ("grpo_short", "--rollout-batch 0", AT_LEAST_1), ("grpo_short", "--clip 0", "is not a number above 0"),
    ("grpo_short", "--clip nan", FINITE), ("grpo_short", "--dual-clip 0.5", "is not 0 or a number above 1"),
    ("grpo_short", "--kl -1", "is not a number of at least 0"), ("grpo_short", "--max-logp-gap 0", "is not a number above 0"),
    ("grpo_short", "--vllm-memory 90", "above 0 and at most 1"), ("grpo_short", "--vllm-memory 0", "above 0 and at most 1"),
    ("grpo_short", "--show-every 0", AT_LEAST_1), ("grpo_short", "--eval-every 0", AT_LEAST_1),
    ("grpo_short", "--steps -5", AT_LEAST_1), ("grpo_short", "--epochs inf", FINITE),
    ("eval", "--limit 0", AT_LEAST_1), ("eval", "--limit -1", AT_LEAST_1), ("eval", "--runs 0", AT_LEAST_1),
    ("eval", "--chunk 0", AT_LEAST_1), ("eval", "--self-consistent 0", AT_LEAST_1), ("eval", "--top-k 2.0", AT_LEAST_0),
    ("judge", "--concurrency -1", AT_LEAST_1), ("judge", "--reasks -1", AT_LEAST_0)]


@pytest.mark.parametrize("name, flags, words", REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_value_that_makes_no_sense_is_refused(name, flags, words, capsys):
    text = said(capsys, name, flags)
    assert f"{flags} {'is not'}" in text and words in text, text


@pytest.mark.parametrize("command, words", [
    ("decontaminate --tasks t --against a --out o --ngram 0", "--ngram 0 is not"),
    ("decontaminate --tasks t --against a --out o --overlap 0", "--overlap 0 is not"),
    ("decontaminate --tasks t --against a --out o --overlap 1.5", "--overlap 1.5 is not")])
def test_values_of_judge_commands(command, words, capsys):
    with pytest.raises(SystemExit):
        judge.parse_args(command.split())
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command, words", [
    ("table OUT --paper 4", "--paper 4 is not auto, none"), ("table OUT --paper all", "--paper all is not auto"),
    ("report RUN --characters 0", "--characters 0 is not"), ("report RUN --trajectories -1", "--trajectories -1 is not")])
def test_values_of_eval_commands(command, words, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args(command.split())
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name, flags, values", [
    ("sft", "--lr 0 --weight-decay 0 --warmup 0 --lora-rank 0 --show 0 --seed 0", [0, 0, 0, 0, 0, 0]),
    ("sft", "--warmup 1 --epochs 0.5 --lr 1e-5 --zero 3", [1, 0.5, 1e-5, 3]),
    ("grpo_short", "--dual-clip 0 --kl 0 --top-k 0 --temperature 0 --group 2", [0, 0, 0, 0, 2]),
    ("mps", "--corrections 0 --verify-first-error 0 --sft-share 0 --rl-hard 1 --top-p 1", [0, 0, 0, 1, 1]),
    ("bc", "--retries 0 --reasks 0 --timeout 0.5", [0, 0, 0.5])])
def test_zeros_and_bounds_that_are_allowed(name, flags, values):
    args = vars(parse(name, flags))
    names = [flag[2:].replace("-", "_") for flag in flags.split()[::2]]
    assert [args[flag] for flag in names] == values


@pytest.mark.parametrize("name, flags, words", [
    ("sft", ["--out", ""], "what follows --out is empty"), ("sft", ["--wandb", " "], "what follows --wandb is empty"),
    ("bc", ["--teacher-cache", ""], "what follows --teacher-cache is empty")])
def test_an_empty_value_is_refused(name, flags, words, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(name).parse_args([*COMMANDS[name].split(), *flags])
    assert words in capsys.readouterr().err


def test_other_errors_of_the_command_line_are_one_sentence_too(capsys):
    assert "--engine: invalid choice: 'tgi'" in said(capsys, "eval", "--engine tgi")
    assert "unrecognized arguments: --learning-rate 1" in said(capsys, "sft", "--learning-rate 1")
    assert "--lr: expected one argument (" in said(capsys, "sft", "--lr")
    assert "sft.py --help lists all flags" in script("sft.py", "--model", "m", check=False).stderr


# ---- all flags of all scripts ----

def parsers():
    """{command: its parser}, of the seven scripts and their commands."""
    made = []

    class Kept(Exception):
        pass

    def keep(self, *_):
        made.append(self)
        raise Kept
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", keep)
        for name in COMMANDS:
            with pytest.raises(Kept):
                importlib.import_module(name).parse_args([])
    for name, parser in zip(COMMANDS, made):
        found[name] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {command}": sub for command, sub in action.choices.items()}
    return found


PARSERS = parsers()


@pytest.mark.parametrize("name", PARSERS)
def test_every_number_has_bounds_and_every_help_its_default(name):
    """A flag of any script: no bare int or float; in --help the default, also where it is nothing or off."""
    parser = PARSERS[name]
    helped = " ".join(parser.format_help().split())
    assert helped.count("(default: ") == helped.count("(default:")
    for action in parser._actions:
        assert action.type not in (int, float) or action.choices, f"{name} {action.option_strings} has no bounds"
        if action.option_strings and not action.required and action.default is not argparse.SUPPRESS:
            text = parser._get_formatter()._get_help_string(action)
            assert text.count("(default: ") == 1 and "(default: %(default)s) (default" not in text, text
    for word in ("default: None", "default: True", "default: False", "==SUPPRESS=="):
        assert word not in helped


def test_what_may_change_are_flags():
    """The list of flags that change no result has no name that no script knows."""
    known = {action.dest for parser in PARSERS.values() for action in parser._actions}
    assert start.MAY_CHANGE - known <= {"teacher_max_tokens", "attention"}


def test_the_file_that_is_no_command_says_what_it_is():
    assert "what every stage in which a model acts is built on" in script("env.py", "--help").stdout


# ---- before a run begins ----

@pytest.mark.parametrize("name, flags, words", [
    ("mps", "--engine url", "--engine url needs --student-url"),
    ("eval", "--engine url", "--engine url needs --student-url"),
    ("eval", "--engine url --student-url http://127.0.0.1:9 --chat-template t.jinja",
     "--chat-template is for --engine torch and vllm"),
    ("mps", "--chat-template missing.jinja", "--chat-template missing.jinja: there is no such file"),
    ("eval", "--student-url http://localhost:1", "--student-url is used only with --engine url, not with --engine torch"),
    ("eval", "--teacher-model judge", "--teacher-model needs --teacher-url"),
    ("eval", "--judge-model j", "--judge-model needs --judge-url"), ("bc", "--judge-model j", "--judge-model needs --judge-url"),
    ("mps", "--judge-model j", "--judge-model needs --judge-url"), ("grpo_short", "--judge-model j", "--judge-model needs --judge-url"),
    ("sft", "--offload", "--offload needs --zero 1, 2 or 3"),
    ("mps", "--engine vllm", "--engine vllm needs the package vllm, which is not installed: pip install"),
    ("sft", "--wandb p", "--wandb needs the package wandb, which is not installed: pip install wandb"),
    ("bc", "--search http:https://google.serper.dev/search", "SEARCH_API_KEY"),
    ("bc", "--out FOLDER", "FOLDER is a folder, it must be a file"), ("sft", "--out FILE", "FILE is a file, it must be a folder"),
    ("sft", "--out FILE/x", "FILE/x cannot be made: Not a directory"), ("bc", "--out FILE/x.jsonl", "cannot be made"),
    ("bc", "--out FILE --tasks FILE", "is what --tasks names"), ("eval", "--out FOLDER --model FOLDER/", "is what --model names"),
    ("mps", "--out FOLDER --student ./FOLDER", "is what --student names")])
def test_what_cannot_work_is_said_before_anything_is_loaded(name, flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEARCH_API_KEY", raising=False)
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(start.sys.modules, "vllm", raising=False)
    monkeypatch.delitem(start.sys.modules, "wandb", raising=False)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").write_text("")
    with pytest.raises(InputError, match=words):
        start.check_start(parse(name, flags), out_is_file=name == "bc")


def test_a_folder_named_like_a_package_is_none(tmp_path, monkeypatch):
    """wandb leaves a folder of its name behind, which Python would take for it."""
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="no_such_package, which is not installed"):
        start.need_package("no_such_package", "--flag", "pip install it")
    start.need_package("numpy", "--flag", "")


def test_a_key_or_a_local_service_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEARCH_API_KEY", raising=False)
    start.check_start(parse("bc", "--search http:http://127.0.0.1:8008/search"), out_is_file=True)
    monkeypatch.setenv("SEARCH_API_KEY", "k")
    start.check_start(parse("bc", "--search http:https://google.serper.dev/search --out new/folder/bc.jsonl"),
                      out_is_file=True)
    assert (tmp_path / "new" / "folder").is_dir()


@pytest.mark.parametrize("path, words", [
    ("FILE", "it is a file"), ("FOLDER", "without config.json"), ("./nothing", "no such folder"),
    ("/nothing/at/all", "no such folder"), ("ckpt/bc/step-1", "no such folder"), ("~/model", "no such folder")])
def test_what_is_no_checkpoint_is_named(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").write_text("")
    with pytest.raises(InputError, match=f"cannot use the model '{path}': .*{words}"), named_on_error(path):
        raise AssertionError("Transformers was asked")


@pytest.mark.parametrize("read", [lambda path: sft.load_examples([path], None, 9),
                                  lambda path: Starts(path, "fixed")])
@pytest.mark.parametrize("text", ["", "\n\n", "{}\n"])
def test_an_empty_file_is_named(read, text, tmp_path):
    (tmp_path / "empty.jsonl").write_text(text)
    with pytest.raises(InputError, match="empty.jsonl"):
        read(str(tmp_path / "empty.jsonl"))


def test_an_endpoint_of_the_student_has_to_answer_and_to_have_the_model(teacher_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--student-url http://127.0.0.1:9: no model answers at http://127.0.0.1:9"):
        start.check_start(parse("eval", "--engine url --student-url http://127.0.0.1:9"))
    with pytest.raises(InputError, match="does not list the model m, but toy-teacher"):
        start.check_start(parse("eval", f"--engine url --student-url {teacher_url}"))
    start.check_start(parse("eval", f"--engine url --student-url {teacher_url} --model toy-teacher"))


def test_what_an_engine_cannot_train_is_said_first():
    with pytest.raises(InputError, match="there is nothing to compare"):
        grpo_short.main(parse("grpo_short", "--temperature 0"))
    with pytest.raises(InputError, match="train with 1 and 0"):
        grpo_short.main(parse("grpo_short", "--engine vllm --top-p 0.9"))


def test_batches_are_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(grpo_short.ranks, "start_distributed", lambda: (0, 3, torch.device("cpu")))
    monkeypatch.chdir(tmp_path)
    for flags, words in (("--prompts 16 --mini-batch 5", "--prompts 16 is not a multiple of --mini-batch 5"),
                         ("--prompts 16 --mini-batch 4", "--mini-batch 4 is not a multiple of the 3 ranks")):
        with pytest.raises(InputError, match=words):
            grpo_short.main(parse("grpo_short", flags))
    monkeypatch.setattr(sft, "start_distributed", lambda: (0, 3, torch.device("cpu")))
    with pytest.raises(InputError, match="--batch 128 is not a multiple of the 3 ranks"):
        sft.main(parse("sft"))


# ---- a second call with the same --out ----

@pytest.mark.parametrize("before, now", [
    ("--lr 1e-4", "--lr 0.0001"), ("--model ckpt/bc", "--model ./ckpt//bc/"), ("--model ckpt/bc", "--model HERE/ckpt/bc"),
    ("--data a b", "--data b ./a"), ("--batch 8", "--batch 8 --row-tokens 9 --micro-batch 2 --no-pack --checkpointing"),
    ("--save-every 5", "--val v --val-every 3 --wandb p"), ("--zero 1", "--zero 1 --offload"),
    ("--model Qwen/Qwen2.5-1.5B-Instruct", "--model Qwen/Qwen2.5-1.5B-Instruct")])
def test_other_spellings_and_flags_without_a_result_are_no_difference(before, now, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(parse("sft", before))
    assert start.finished_before(parse("sft", now.replace("HERE", str(tmp_path))))


def finished(args):
    """OUT as a run of these flags leaves it."""
    os.makedirs(args.out, exist_ok=True)
    start.save_args(args)
    open(os.path.join(args.out, "config.json"), "w").close()
    return args


def test_a_path_given_in_another_folder_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    args = finished(parse("sft", "--model ckpt/bc --data bc.jsonl"))
    monkeypatch.chdir(tmp_path)
    args.model, args.data, args.out = "runs/ckpt/bc", ["runs/bc.jsonl"], "runs/o"
    assert start.finished_before(args)
    args.data = ["bc.jsonl.old"]
    with pytest.raises(InputError, match="--data bc.jsonl, not with --data bc.jsonl.old"):
        start.finished_before(args)


@pytest.mark.parametrize("name, before, now, words", [
    ("sft", "--lr 1e-5", "--lr 1e-4", "o was made with --lr 1e-05, not with --lr 0.0001: give another --out, or delete o"),
    ("sft", "", "--lr 1e-5 --batch 16", "with --batch 128, --lr 7e-06, not with --batch 16, --lr 1e-05"),
    ("sft", "", "--steps 5", "with no --steps, not with --steps 5"),
    ("sft", "--steps 5", "", "with --steps 5, not with no --steps"),
    ("sft", "", "--data d e", "with --data d, not with --data d e"),
    ("sft", "", "--model other", "with --model m, not with --model other"),
    ("sft", "", "--seed 1 --dtype bf16", "--dtype fp32, --seed 0, not with --dtype bf16, --seed 1"),
    ("sft", "", "--zero 2", "with --zero 0, not with --zero 2"), ("sft", "", "--lora-rank 8", "--lora-rank 8"),
    ("sft", "", "--max-tokens 100 --overlong cut", "--max-tokens 4096, --overlong drop"),
    ("grpo_short", "", "--group 8", "--group 16, not with --group 8"),
    ("grpo_short", "", "--start-at question", "--start-at fixed, not with --start-at question"),
    ("grpo_short", "--no-key-step-reward", "", "--no-key-step-reward, not with --key-step-reward"),
    ("grpo_short", "", "--temperature 0.6 --max-steps 4", "--max-steps 8, --temperature 1.0, not with"),
    ("grpo_short", "", "--search local:c.jsonl", "no --search, not with --search local:c.jsonl"),
    ("grpo_short", "--teacher-model a", "--teacher-model b", "--teacher-model a, not with --teacher-model b"),
    ("grpo_short", "", "--judge-url http://a", "with no --judge-url, not with --judge-url http://a:"),
    ("grpo_short", "--judge-url http://a", "", "with --judge-url http://a, not with no --judge-url:"),
    ("grpo_short", "--judge-url http://a --judge-model a", "--judge-url http://b --judge-model b",
     "o was made with --judge-model a, not with --judge-model b:"),
    ("grpo_short", "--search local:a.jsonl", "--search http:http://h/s", "--search local:a.jsonl, not with")])
@pytest.mark.parametrize("left", ["a model", "a state"])
def test_training_goes_on_only_with_the_same_flags(name, before, now, words, left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    monkeypatch.setattr(getattr(module, "ranks", module), "start_distributed", lambda: (0, 1, torch.device("cpu")))
    finished(parse(name, before + " --dtype fp32"))
    if left == "a state":
        os.remove("o/config.json")
        os.makedirs("o/state")
        open("o/state/latest", "w").close()
    kept = (tmp_path / "o" / "args.json").read_bytes()
    now = now if "--dtype" in now else now + " --dtype fp32"
    with pytest.raises(InputError) as refused:
        module.main(parse(name, now))
    assert words in str(refused.value) and (tmp_path / "o" / "args.json").read_bytes() == kept


@pytest.mark.parametrize("before, now", [
    ("--judge-url http://a --judge-model j", "--judge-url http://b --judge-model j"),
    ("--judge-url http://a --judge-model j", "--judge-url http://b"), ("--judge-url http://a", "--judge-url http://b --judge-model j")])
def test_a_judge_may_move(before, now, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(parse("grpo_short", before))
    assert start.finished_before(parse("grpo_short", now))


@pytest.mark.parametrize("name", ["sft", "grpo_short"])
def test_a_finished_run_says_so(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    monkeypatch.setattr(getattr(module, "ranks", module), "start_distributed", lambda: (0, 1, torch.device("cpu")))
    finished(parse(name))
    module.main(parse(name))                               # loads nothing: there is no model m
    assert "o is finished already" in capsys.readouterr().out
    os.remove("o/args.json")
    with pytest.raises(InputError, match="holds a model, and no args.json"):
        module.main(parse(name))


def test_a_run_that_left_nothing_behind_binds_nobody(tmp_path, monkeypatch):
    """Killed before its first state or record: the next call may have any flags."""
    monkeypatch.chdir(tmp_path)
    finished(parse("sft", "--lr 1"))
    os.remove("o/config.json")
    assert not start.finished_before(parse("sft", "--lr 2"))
    start.check_resume(parse("sft", "--lr 2"), [], [])


def test_older_and_foreign_files_of_flags(tmp_path, monkeypatch):
    """A flag that the older version did not have is no difference; a file that says nothing is an error."""
    monkeypatch.chdir(tmp_path)
    finished(parse("sft"))
    saved = json.load(open("o/args.json"))
    del saved["args"]["overlong"], saved["folder"]
    saved["args"]["gone"] = 1
    json.dump(saved, open("o/args.json", "w"))
    assert start.finished_before(parse("sft", "--overlong cut"))
    for text in "", "{", "[]", "{}":
        (tmp_path / "o" / "args.json").write_text(text)
        with pytest.raises(InputError, match="o/args.json does not say how o was made"):
            start.finished_before(parse("sft"))


def test_bc_goes_on_only_with_the_same_flags(tmp_path, teacher_url):
    given = tasks(3)
    write(tmp_path / "tasks.jsonl", given[:2])
    out = tmp_path / "bc.jsonl"

    def run(*flags, url=teacher_url):
        bc.main(bc.parse_args(["--tasks", str(tmp_path / "tasks.jsonl"), "--out", str(out), "--teacher-url", url,
                               "--search", f"http:{url}/search", *flags]))
    (tmp_path / "bc.args.json").write_text('{"args": {"attempts": 9}}')       # of a run that was killed at once
    run()
    kept = (tmp_path / "bc.args.json").read_bytes()
    assert len(lines(out)) == 2 and json.loads(kept)["args"]["teacher_model"]   # which was not named
    for flags, words in ((["--attempts", "3"], "--attempts 2, not with --attempts 3"),
                         (["--max-steps", "1"], "--max-steps 8, not with --max-steps 1"),
                         (["--search", "none"], "not with --search none")):
        with pytest.raises(InputError, match=f"bc.jsonl with .*bc.rejected.jsonl was made with .*{words}"):
            run(*flags)
    assert (tmp_path / "bc.args.json").read_bytes() == kept
    write(tmp_path / "tasks.jsonl", given)                 # more tasks, another place, more at once
    run("--concurrency", "3", "--timeout", "60", url=teacher_url.replace("127.0.0.1", "localhost"))
    assert len(lines(out)) == 3
    write(tmp_path / "tasks.jsonl", [{**given[0], "question": "What is 1+1?", "answer": "2"}])
    with pytest.raises(InputError, match=f'another question with the id "{given[0]["id"]}"'):
        run()


def test_mps_goes_on_only_with_the_same_flags(tmp_path, teacher_url, checkpoint):
    given = tasks(3)
    write(tmp_path / "tasks.jsonl", given[:2])
    out = tmp_path / "mps"

    def run(*flags):
        mps.main(mps.parse_args(["--tasks", str(tmp_path / "tasks.jsonl"), "--student", checkpoint, "--out", str(out),
                                 "--teacher-url", teacher_url, "--search", f"http:{teacher_url}/search",
                                 "--max-tokens", "30", "--corrections", "1", *flags]))
    run("--batch", "2")
    kept = (out / "args.json").read_bytes()
    for flags, words in ((["--student", "other"], f"--student {checkpoint}, not with --student other"),
                         (["--corrections", "2"], "--corrections 1, not with --corrections 2"),
                         (["--max-tokens", "31", "--top-k", "5"], "--max-tokens 30, --top-k 20, not with")):
        with pytest.raises(InputError, match=f"mps was made with .*{words}"):
            run(*flags)
    assert (out / "args.json").read_bytes() == kept
    run("--batch", "1", "--sft-share", "1", "--rl-hard", "1", "--concurrency", "2")      # the split is made anew
    assert len(lines(out / "rl.jsonl")) == sum(r["outcome"] == "hard" for r in lines(out / "mps.jsonl"))
    write(tmp_path / "tasks.jsonl", given[2:])             # what was paid for stays
    run()
    assert [r["id"] for r in lines(out / "mps.jsonl")] == [given[2]["id"], given[0]["id"], given[1]["id"]]
    write(tmp_path / "tasks.jsonl", [{**given[0], "question": "What is 1+1?"}])
    with pytest.raises(InputError, match="another question with the id"):
        run()


@pytest.mark.parametrize("flags, words", [
    ("--model other", "--model m, not with --model other"), ("--greedy", "--temperature 0.6, not with --temperature 0.0"),
    ("--max-steps 4", "--max-steps 8"), ("--sampling-seed 1", "--sampling-seed 0, not with"), ("--prompt cot", "--prompt react"),
    ("--metric rule", "--metric auto"), ("--variant squad", "--variant arpo"), ("--self-consistent 2", "--self-consistent 1"),
    ("--engine vllm", "--engine torch"), ("--search local:c.jsonl", "no --search, not with --search local:c.jsonl"),
    (URL, "no --teacher-url, not with --teacher-url http"),
    ("--judge-url http://127.0.0.1:9", "no --judge-url, not with --judge-url http")])
def test_eval_goes_on_only_with_the_same_flags(flags, words, tmp_path, monkeypatch):
    given = tasks(1)
    write(tmp_path / "t", given)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "need_package", lambda *_: None)
    monkeypatch.setattr(evaluate, "play", lambda *_: pytest.fail("it played"))
    args = parse("eval")
    start.check_start(args)
    start.save_args(args)
    kept = (tmp_path / "o" / "args.json").read_bytes()
    record = {**given[0], "messages": [], "prediction": "1", "stop": "answer", "score": 1.0, "correct": True,
              "verdict": "right", "metric": "judge-by-rule", "group": "t", "run": 0}
    write(tmp_path / "o" / "predictions.jsonl", [record])
    with pytest.raises(InputError) as refused:
        evaluate.run(parse("eval", flags))
    assert str(refused.value).startswith("o was made with") and words in str(refused.value)
    assert (tmp_path / "o" / "args.json").read_bytes() == kept
    evaluate.run(parse("eval", "--name n --chunk 7 --concurrency 3 --limit 1 --no-preload"))         # all there
    write(tmp_path / "t", [{**given[0], "question": "What is 1+1?"}])
    with pytest.raises(InputError, match="another question with the id"):
        evaluate.run(parse("eval"))


# ---- JSON ----

def test_numbers_that_json_does_not_know_become_null(tmp_path):
    with open(tmp_path / "m.jsonl", "w") as file:
        append_jsonl(file, {"step": 1, "loss": float("nan"), "more": [float("inf"), {"a": -float("inf")}], "lr": 0.5})
    text = (tmp_path / "m.jsonl").read_text()
    assert text == '{"step": 1, "loss": null, "more": [null, {"a": null}], "lr": 0.5}\n'
    args = argparse.Namespace(out=str(tmp_path), lr=float("nan"), model=tmp_path)
    start.save_args(args)
    saved = json.loads((tmp_path / "args.json").read_text(), parse_constant=pytest.fail)
    assert saved["args"] == {"out": str(tmp_path), "lr": None, "model": str(tmp_path)}
    assert saved["folder"] == os.getcwd() and not os.path.exists(tmp_path / "args.json.part")


def test_the_whole_script_ends_in_the_sentence():
    done = script("sft.py", "--model", "m", "--data", "d", "--out", "o", "--lr", "nan", check=False)
    assert (done.returncode, done.stdout) == (2, "") and not os.path.exists(os.path.join(ROOT, "o"))
    assert done.stderr == "error: --lr nan is not a finite number (sft.py --help lists all flags)\n"


# ---- what may happen to a run ----

def two_lines(path, second):
    write(path, [{"id": "a", "question": "Q?", "answer": "1"}])
    path.write_text(path.read_text() + second)
    return path


@pytest.mark.parametrize("second, words", [
    ('{"id": "b", "ques', "line 2: not valid JSON (Invalid control character, column 18): every line has to be one whole JSON object"), ("\0\0\0\0\n", "line 2: not valid JSON"),
    ('{"a":' * 100000, "line 2: nested too deeply"), ('{"a": ' + "1" * 5000 + "}", "line 2: a number in it has too many digits"),
    ('[1]', "line 2: not a JSON object"), ('{"x": 1}', 'line 2: the field "id" is missing, so no stage wrote this line')])
def test_a_wrong_line_in_the_middle_is_named(second, words, tmp_path):
    path = two_lines(tmp_path / "r.jsonl", second + '\n{"id": "c"}\n')
    with pytest.raises(InputError) as refused:
        resume_jsonl(path, ["id"])
    assert f"{path}, {words}" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("end", ['{"id": "b", "ques', "\0\0\0\0", '{"a":' * 100000])
def test_a_torn_end_is_cut_off(end, tmp_path):
    assert [record["id"] for record in resume_jsonl(two_lines(tmp_path / "r.jsonl", end))] == ["a"]


@pytest.mark.parametrize("content, words", [
    (b"PAR1\x15\x04", "is a Parquet table"), (b"\x1f\x8b\x08", "is compressed"), (b"\xff\xfe\0\0a\0\0\0", "is UTF-32 text"),
    (b"\xff\xfea\0", "is UTF-16 text"), (b"<?xml version='1.0'?>", "is XML"), (b'{"a": "\xe9"}', "is not UTF-8 text")])
def test_every_stage_knows_what_is_no_json(content, words, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"d.jsonl {words}"):
        sft.load_examples([str(path)], None, 9)
    with pytest.raises(InputError, match=f"d.jsonl {words}"):
        make_search(f"local:{path}")


GOOD = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "o"}]
STEP = {"content": "a", "observation": "b"}


@pytest.mark.parametrize("messages", [5, "hello", {"role": "user"}, [], [5, 6], [{"role": "user"}], GOOD[1:], [GOOD[0], GOOD[0]],
                                      [{"role": "system", "content": "s"}, *GOOD], [*GOOD[:2], {"role": "user", "content": None}]])
def test_messages_of_another_form_are_refused(messages, tmp_path):
    path = write(tmp_path / "d.jsonl", [{"id": "a", "question": "Q?", "answer": "1", "messages": messages}])
    for read in (lambda: sft.load_examples([path], None, 9), lambda: Starts(path, "fixed")):
        with pytest.raises(InputError, match="d.jsonl, line 1: field `messages` (must be turns of|is missing)"):
            read()


@pytest.mark.parametrize("more, words", [
    ({"messages": GOOD[:2]}, "must end with a turn of the user"), ({"chosen": "x"}, "`chosen` and `rejected` must be steps"),
    ({"chosen": STEP, "rejected": {"content": "x"}}, "must be steps"), ({"also_rejected": ["x"]}, "must be steps"),
    ({"answer": None}, "field `answer` is missing or empty; --data is the rl.jsonl of mps.py")])
def test_starts_of_another_form_are_refused(more, words, tmp_path):
    record = {"id": "a", "question": "Q?", "answer": "1", "messages": GOOD[:1], "chosen": STEP, "rejected": STEP}
    assert Starts(write(tmp_path / "rl.jsonl", [record | {"rejected": None, "also_rejected": None}]), "fixed").records
    with pytest.raises(InputError, match=words):
        Starts(write(tmp_path / "rl.jsonl", [record | more]), "fixed")


def test_a_key_step_without_a_rejected_one_has_a_reward():
    """The release has such starts."""
    played = {"stop": "max_steps", "question": "Q?", "answer": "1", "prediction": None, "key": 0, "chosen": STEP, "rejected": None,
              "also_rejected": None, "messages": [GOOD[0], {"role": "assistant", "content": "c"}, GOOD[2]]}
    args = parse("grpo_short")

    class Other:
        same_step = staticmethod(lambda *_, **__: False)
    assert grpo_short.reward(played, Other, args)[0] == 0.1


@pytest.mark.parametrize("text", ["5", "[]", '{"args": 5}', '{"args": ["model"]}', '{"args": null}', "[" * 100000, "\0"])
def test_torn_files_of_flags(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(parse("sft"))
    (tmp_path / "o" / "args.json").write_text(text)
    with pytest.raises(InputError, match="o/args.json does not say how o was made"):
        start.finished_before(parse("sft"))


@pytest.mark.parametrize("name, before, now", [
    ("sft", "--data a.jsonl HERE/b.jsonl", "--data HERE/a.jsonl b.jsonl"), ("sft", "--data x/../a b", "--data b a"),
    ("grpo_short", "--search local:c.jsonl", "--search local:./c.jsonl"), ("grpo_short", "--search local:c.jsonl", "--search local:HERE/c.jsonl"),
    ("grpo_short", "--search none", ""), ("grpo_short", "", "--search none"), ("grpo_short", "--eval-tasks e", "--eval-tasks ./e")])
def test_places_are_compared_however_they_are_spelled(name, before, now, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(parse(name, before.replace("HERE", str(tmp_path))))
    assert start.finished_before(parse(name, now.replace("HERE", str(tmp_path))))


def test_the_same_spelling_in_another_folder_is_another_model(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one")
    finished(parse("sft", f"--out {tmp_path}/o"))
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(InputError, match="--model m, not with --model m"):
        start.finished_before(parse("sft", f"--out {tmp_path}/o"))
    os.rename(tmp_path / "one", tmp_path / "gone")         # all was moved: only the spelling is left
    assert start.finished_before(parse("sft", f"--out {tmp_path}/o"))


@pytest.mark.parametrize("name, flags, words", [
    ("bc", "--out /dev/null", "is a device or a pipe"), ("bc", "--teacher-cache o", "is what --teacher-cache names"),
    ("bc", "--search-cache ./o", "is what --search-cache names"), ("sft", "--data d o", "is what --data names"),
    ("grpo_short", "--eval-tasks o/", "is what --eval-tasks names"), ("mps", "--out /dev/null", "is a file, it must be a folder|device")])
def test_an_out_that_would_overwrite_or_vanish(name, flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        start.check_start(parse(name, flags), out_is_file=name == "bc")


def test_a_name_at_an_endpoint_is_no_folder(teacher_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start.check_start(parse("eval", f"--engine url --student-url {teacher_url} --model toy-teacher --out toy-teacher"))


@pytest.mark.parametrize("is_file", [True, False])
def test_two_runs_at_once_are_refused(is_file, tmp_path, monkeypatch):
    out = tmp_path / "o"
    if not is_file:
        out.mkdir()
    start.claim(str(out))
    start.claim(str(out))                                  # of this very run
    code = f"from plumbing.start import claim; claim({str(out)!r})"
    other = [sys.executable, "-c", code]
    done = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
    assert f"--out {out} is in use by another run" in done.stderr
    os.close(start.CLAIMED.pop(str(out)))
    assert subprocess.run(other, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("raised, code, words", [
    (KeyboardInterrupt(), 130, "interrupted: what was finished is kept"), (BrokenPipeError(32, "Broken pipe"), 1, ""),
    (OSError(28, "No space left on device"), 2, "error: No space left on device while writing to --out o: make room, and give the command again"),
    (OSError(27, "File too large", "x.part"), 2, "error: File too large while writing to x.part: make room"),
    (PermissionError(13, "Permission denied", "x"), 2, "error: Permission denied: 'x'")])
def test_how_a_run_may_end(raised, code, words):
    program = f"import argparse; from plumbing.cli import cli\ndef main(args): raise {raised!r}\ncli(main, argparse.Namespace(out='o'))"
    if getattr(raised, "filename", None):
        program = program.replace(repr(raised), f"OSError({raised.errno}, {raised.strerror!r}, {raised.filename!r})")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and done.stderr.startswith(words) and done.stderr.count("\n") <= 1


@pytest.mark.parametrize("ranks, waits", [("1", True), ("2", False)])
@pytest.mark.parametrize("fault, code, words", [("InputError('a fault')", 2, "error: a fault"), ("KeyError('x')", 1, "KeyError: 'x'")])
def test_a_rank_that_fails_waits_for_no_other(ranks, waits, fault, code, words):
    program = ("import argparse, atexit; from plumbing.cli import InputError, cli\natexit.register(print, 'at its exit')\n"
               f"def main(args): raise {fault}\ncli(main, argparse.Namespace())")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "WORLD_SIZE": ranks})
    assert done.returncode == code and done.stderr.splitlines()[-1] == words and ("at its exit" in done.stdout) == waits


@pytest.mark.parametrize("file, content, words", [
    ("config.json", b"[]", "cannot use the model"), ("config.json", b"{", "not a valid JSON file"), ("model.safetensors", b"", "its weights cannot be read"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "its weights cannot be read .* Git LFS"),
    ("chat_template.jinja", b"{% for m in %}", "the chat template fails on messages"), ("tokenizer.json", b"{", "cannot use the model")])
def test_a_torn_checkpoint_is_one_sentence(file, content, words, checkpoint, tmp_path):
    broken = tmp_path / "ckpt"
    shutil.copytree(checkpoint, broken)
    (broken / file).write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        env.load_chat(str(broken))
        load_model(str(broken), torch.float32)
    assert str(broken) in str(refused.value) and "\n" not in str(refused.value)


def test_missing_parts_of_a_checkpoint_are_named(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(checkpoint, tmp_path / "ckpt")
    weights = load_file(tmp_path / "ckpt" / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "ckpt" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="no weights for 1 parameters, as model.norm.weight"):
        load_model(str(tmp_path / "ckpt"), torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.remove(tmp_path / "ckpt" / name)
    with pytest.raises(InputError, match="without a tokenizer"):
        env.load_chat(str(tmp_path / "ckpt"))


@pytest.mark.parametrize("url", ["htp://foo", "http://", "http://[::1", "http://a..b/", "http://127.0.0.1:99999", "http://b\u00f6se..host/"])
def test_what_is_no_address_is_said(url):
    with pytest.raises(InputError, match="no model answers at .*: start its server first, or give its address"):
        served_models(url, {})


def test_tables_overwrite_no_results(tmp_path):
    done = script("eval.py", "table", tmp_path, "--out", tmp_path / "results.json", check=False)
    assert done.returncode == 2 and "must be a new file for text, such as table.md" in done.stderr


@pytest.mark.parametrize("more, words", [({"steps": [1]}, '"steps" is empty or not a list of texts'), ({"label": True}, '"label" is neither -1 nor'),
                                         ({"label": 2}, "2 steps, which count from 0"), ({"label": -2}, '"label" is neither')])
def test_audit_needs_steps_and_a_label_among_them(more, words, tmp_path, teacher_url):
    record = {"id": "a", "problem": "Q?", "steps": ["x", "y"], "label": 1, **more}
    args = judge.parse_args(["audit", "--data", str(write(tmp_path / "p.jsonl", [record])), "--teacher-url", teacher_url])
    with pytest.raises(InputError, match=words):
        judge.audit(args)


@pytest.mark.parametrize("error", [RuntimeError("failed finding\ncentral directory"), AssertionError(), ValueError("embedded null byte"), EOFError()])
def test_a_torn_state_is_named(error, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "latest").write_text("step-9")

    class Torn:
        def load_checkpoint(self, folder):
            raise error
    with pytest.raises(InputError, match=r"state cannot be read \(.+\): if it is torn, delete it and begin anew") as refused:
        load_state(Torn(), str(tmp_path))
    assert "\n" not in str(refused.value)
