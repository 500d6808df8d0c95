"""CoT distillation, baselines/cot.py: what it keeps, and that training and evaluation see the same tokens.

And baselines/README.md: every row of the paper's tables has a command, and every command can be parsed.
"""
import argparse
import importlib
import json
import os
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import env
import eval as evaluate
import grpo_short
import judge
import sft
import world
from baselines import cot, prompting
from conftest import ROOT, script, send_json
from plumbing.cli import InputError
from plumbing.results import NAMES, place_of
from plumbing.search import SearchFailed
from test_stages import lines, tasks, write

KINDS = ["cot", "cot-rag"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """What the search finds: all that is known of the entities in which the questions begin."""
    pages = []
    for task in tasks(24):
        if task["kind"] == "search":
            entity = world.parse_search(task["question"])[0][1]
            pages += [{"title": entity, "text": world.search(f"{relation} of {entity}")} for relation in world.RELATIONS]
    return write(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", pages)


def search_flags(kind, corpus):
    return ["--search", f"local:{corpus}"] if kind == "cot-rag" else []


def cot_flags(kind, corpus, folder, url):
    rag = ["--rag"] if kind == "cot-rag" else []
    return list(map(str, ["--tasks", folder / "tasks.jsonl", "--out", folder / "cot.jsonl", "--teacher-url", url,
                          *rag, *search_flags(kind, corpus)]))


@pytest.fixture(scope="module")
def collected(tmp_path_factory, corpus, teacher_url):
    """{kind: folder with tasks.jsonl and cot.jsonl}"""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp(kind)
        write(folders[kind] / "tasks.jsonl", tasks(24))
        cot.main(cot.parse_args(cot_flags(kind, corpus, folders[kind], teacher_url)))
    return folders


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_question_and_chain_of_thought(kind, collected):
    records = lines(collected[kind] / "cot.jsonl")
    asked = {task["id"]: task for task in tasks(24)}
    assert {record["id"] for record in records} == set(asked)              # the demo's teacher makes no mistakes
    for record in records:
        task = asked[record["id"]]
        question, chain = [message["content"] for message in record["messages"]]
        assert question.endswith(f"\n\nQuestion: {task['question']}") and "\\boxed{the answer}" in question
        assert chain.endswith(f"\\boxed{{{task['answer']}}}") and record["prediction"] == task["answer"]
        assert record["question"] == task["question"] and record["correct"] and record["usage"]["teacher_calls"] == 1
        if kind == "cot-rag" and task["kind"] == "search":
            assert f"Title: {world.parse_search(task['question'])[0][1]}" in question
        assert ("Snippet: " in question or "No results found." in question) == (kind == "cot-rag")
    saved = json.loads((collected[kind] / "cot.args.json").read_text())["args"]
    assert saved["rag"] == (kind == "cot-rag")


class Reciting:
    """An engine that samples the tokens of the chains of thought it was given, and keeps the episodes."""

    def __init__(self, chat, chains):
        self.chat, self.chains, self.played = chat, chains, {}

    def play(self, episodes, **_):
        for e in episodes:
            e.begin(self.chat)
            ids = [*self.chat.ids(self.chains[e.task["id"]]), self.chat.end]
            e.token_turn(self.chat, ids, [0.0] * len(ids))
            self.played[e.task["id"]] = e


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_see_the_same_tokens(kind, collected, corpus, tokenizer, tmp_path):
    chat = env.Chat(tokenizer)
    records = lines(collected[kind] / "cot.jsonl")
    engine = Reciting(chat, {record["id"]: record["messages"][1]["content"] for record in records})
    evaluate.run(evaluate.parse_args(["run", "--model", "none", "--prompt", kind, "--metric", "rule", "--no-preload",
                                      "--tasks", str(collected[kind] / "tasks.jsonl"), "--out", str(tmp_path / "out"),
                                      *search_flags(kind, corpus)]), engine)
    trained = sft.load_examples([str(collected[kind] / "cot.jsonl")], chat, 4096, log=lambda text: None)
    played = [(e.ids, e.loss_mask) for e in engine.played.values()]
    assert sorted(trained) == sorted(played) and len(played) == 24
    assert all(p["correct"] and p["stop"] == "answer" for p in lines(tmp_path / "out" / "predictions.jsonl"))


def test_a_student_is_trained_and_evaluated(collected, corpus, checkpoint, tmp_path):
    script("sft.py", "--model", checkpoint, "--data", collected["cot-rag"] / "cot.jsonl", "--out", tmp_path / "student",
           "--steps", 2, "--batch", 8, "--lr", "1e-3")
    script("eval.py", "run", "--model", tmp_path / "student", "--prompt", "cot-rag", "--limit", 4, "--metric", "rule",
           "--tasks", collected["cot-rag"] / "tasks.jsonl", "--out", tmp_path / "cot-rag", "--max-tokens", 30,
           "--no-preload", *search_flags("cot-rag", corpus))
    results, = lines(tmp_path / "cot-rag" / "results.json")
    assert results["rows"][0]["n"] == 4 and results["sampling"].endswith("prompt cot-rag")


def test_a_second_call_asks_only_for_what_is_missing(collected, corpus, teacher_url, tmp_path, capsys):
    write(tmp_path / "tasks.jsonl", tasks(24))
    whole = (collected["cot"] / "cot.jsonl").read_text()
    (tmp_path / "cot.jsonl").write_text(whole[:-40])                       # killed while it wrote the last line
    (tmp_path / "cot.args.json").write_text((collected["cot"] / "cot.args.json").read_text())
    done = script("baselines/cot.py", *cot_flags("cot", corpus, tmp_path, teacher_url))
    assert "24 tasks, 23 finished before" in done.stdout and "teacher: 1 calls" in done.stdout
    assert "sandbox" not in done.stdout + done.stderr                      # no code runs
    assert sorted(map(json.dumps, lines(tmp_path / "cot.jsonl"))) == sorted(whole.splitlines())
    with pytest.raises(InputError, match="was made with --no-rag, .*not with --rag"):
        cot.main(cot.parse_args(cot_flags("cot-rag", corpus, tmp_path, teacher_url)))


class Doubtful(BaseHTTPRequestHandler):
    """A teacher that is wrong, says nothing of use, or puts a right answer in other words."""
    SAYS = {"wrong": r"I guess \boxed{7}.", "no box": "It is 42.", "thinks": r"<think>\boxed{1}</think>So \boxed{42}.",
            "words": r"It lies in \boxed{the city of Lima, Peru}."}

    def do_GET(self):
        send_json(self, {"data": [{"id": "doubtful"}]})

    def do_POST(self):
        system, user, *_ = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        text = self.SAYS[re.search(r"# Question\n(.*)", user["content"])[1]]
        if system["content"] == judge.SAME_ANSWER_SYSTEM:
            text = '{"analysis": "", "equivalent": true}'
        send_json(self, {"choices": [{"message": {"content": text}}], "usage": {}})

    def log_message(self, *_):
        pass


def test_what_is_wrong_or_has_no_box_is_rejected(tmp_path, corpus):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Doubtful)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answers = {"wrong": "42", "no box": "42", "thinks": "42", "words": "Lima"}
    write(tmp_path / "tasks.jsonl", [{"id": name, "question": name, "answer": answer} for name, answer in answers.items()])
    cot.main(cot.parse_args(cot_flags("cot", corpus, tmp_path, f"http://127.0.0.1:{server.server_port}")))
    server.shutdown()
    kept = {record["id"]: record for record in lines(tmp_path / "cot.jsonl")}
    faults = {record["id"]: record["faults"] for record in lines(tmp_path / "cot.rejected.jsonl")}
    assert set(kept) == {"thinks", "words"} and set(faults) == {"wrong", "no box"}
    assert kept["thinks"]["messages"][1]["content"] == r"So \boxed{42}."
    assert len(faults["wrong"]) == 2 and "'7'" in faults["wrong"][0] and "end with the answer in" in faults["no box"][0]


def test_a_search_that_fails_ends_the_run(teacher_url):
    def search(query):
        raise SearchFailed("no quota")

    args = argparse.Namespace(rag=True)
    with pytest.raises(SearchFailed, match="no quota"):
        cot.demonstrate(judge.Teacher(teacher_url), tasks(1)[0], search, args, 0, {})
    with pytest.raises(SearchFailed, match="no quota"):
        prompting.opened(tasks(2), "cot-rag", search)


def test_names_in_braces_are_text():
    message, = prompting.opening({"question": "What is {pages}?"}, "cot-rag", "A page of {question}.")
    assert message["content"].endswith("\n\nA page of {question}.\n\nQuestion: What is {pages}?")


@pytest.mark.parametrize("flags, says", [("--rag", "--rag needs --search"), ("--rag --search none", "--rag needs --search"),
                                         ("--search local:f", "--search is used only with --rag")])
def test_flags_that_do_not_go_together(flags, says, capsys):
    with pytest.raises(SystemExit):
        cot.parse_args(f"--tasks t --out o --teacher-url u {flags}".split())
    assert says in capsys.readouterr().err


def test_evaluation_with_pages_needs_a_search(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args("run --model m --tasks t --out o --prompt cot-rag".split())
    assert "--prompt cot-rag needs --search" in capsys.readouterr().err


# ---- the table of rows and commands ----

def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows_here():
    """[[row, where, commands, name]] of the table."""
    table = re.search(r"(?m)^\| row \| where .*\n(?:\|.*\n)+", read("baselines/README.md"))[0]
    return [cells(line) for line in table.splitlines()[2:]]


def variables():
    """The shell variables of a real run, and those of this table."""
    found = {}
    for name in ("README.md", "baselines/README.md"):
        for variable, value in re.findall(r'(?m)^([A-Z]\d?)=("[^"]*"|\S+)', read(name)):
            found[variable] = re.sub(r"\$(\w+)", lambda used: found[used[1]], value.strip('"'))
    return found


def commands():
    spans = [span for row in rows_here() for span in re.findall(r"`([^`]+)`", row[2])]
    return [span for span in spans if " " in span]         # others are names of files


def test_every_row_of_the_papers_tables_has_a_command():
    paper = set()
    for number, table in re.findall(r"## Table (\d):.*\n\n((?:\|.*\n?)+)", read("assets/paper_tables.md")):
        paper |= {(number, cells(line)[0]) for line in table.splitlines()[2:]}
    here = []
    for method, where, made_by, name in rows_here():
        assert "`" in made_by
        for number, models in re.findall(r"(\d): ([^;]+)", where):
            here += [(number, f"{model}, {method}") for model in models.split(", ")]
            assert name == f"`{NAMES[method]}`"
    assert len(here) == len(set(here)) and set(here) == paper and len(paper) == 44
    figures = " ".join(where for _, where, _, _ in rows_here())
    assert all(f"Figure {figure}" in figures for figure in ("3a", "3b", "4", "5"))


def test_runs_are_called_by_the_name_in_the_table():
    for row, _, made_by, names in rows_here():
        called = re.findall(r"--out eval(?:5|-hard)?/(\S+?)`", made_by)
        assert set(called) <= set(re.findall(r"`([^`]+)`", names)) and bool(called) == bool(names), row


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_table_parse(command):
    words = shlex.split(re.sub(r"\$(\w+)", lambda used: variables()[used[1]], command))
    assert "$" not in " ".join(words)
    if words[0] in ("head", "cp", "grep"):
        return
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert words[:at] in (["python"], ["torchrun", "--nproc_per_node", "8"])
    path = words[at]
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    if path == "baselines/arpo.py":                        # it adds flags to those of the script that it forks
        grpo_short.parse_args(words[at + 1:], module.more_flags)
    else:
        module.parse_args(words[at + 1:])


@pytest.mark.parametrize("stage, at", [("arpo", 1), ("3b-arpo", 3), ("qwen2.5-3b-arpo", 3), ("cot", 4), ("cot-rag", 5),
                                       ("3b-cot-rag", 6), ("dpo", 7), ("my-arpo", 7), ("arpo-2", 7), ("bc-all", 0)])
def test_a_run_stands_below_the_row_of_its_name(stage, at):
    titles = ["Qwen2.5-7B, BC", "Qwen2.5-7B, ARPO", "Qwen2.5-3B, BC", "Qwen2.5-3B, ARPO", "Qwen2.5-7B, CoT distillation",
              "Qwen2.5-7B, CoT distillation + RAG", "Qwen2.5-3B, CoT distillation + RAG"]
    assert place_of(stage, titles) == at


def test_the_table_shows_runs_in_place(tmp_path, capsys):
    for name in ("3b-agent-distillation", "cot-rag", "dpo"):
        (tmp_path / name).mkdir()
        row = {"group": "MATH500", "part": {}, "metric": "rule", "n": 10, "mean": 50.0, "se": 1.0}
        write(tmp_path / name / "results.json", [{"name": name, "decoding": "greedy", "rows": [row]}])
    evaluate.table(evaluate.parse_args(["table", *map(str, sorted(tmp_path.iterdir()))]))
    said = [cells(line)[0] for line in capsys.readouterr().out.splitlines()]
    for ours, above in [("3b-agent-distillation", "Qwen2.5-3B, Agent distillation"),
                        ("cot-rag", "Qwen2.5-7B, CoT distillation + RAG"), ("dpo", "Qwen2.5-3B, SCoRe-RL")]:
        assert said[said.index(f"ours: {ours}, greedy") - 1] == above
