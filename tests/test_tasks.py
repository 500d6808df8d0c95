"""plumbing/tasks.py and plumbing/release.py: forms of public files that are read, and sentences for the others."""
import base64
import gzip
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, ROOT)
import sft  # noqa: E402
from plumbing.benchmarks import benchmark_of, gaia_level  # noqa: E402
from plumbing.cli import InputError  # noqa: E402
from plumbing.starts import Starts  # noqa: E402
from plumbing.tasks import read_records, read_tasks  # noqa: E402


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- what is read ----

READ = {
    "ours": ({"id": "a", "question": "Q?", "answer": "1"}, "1"),
    "MuSiQue": ({"id": "2hop__1", "paragraphs": [], "question": "Q?", "answer": "Rome", "answer_aliases": ["Roma", "Rome"],
                 "answerable": True}, ["Rome", "Roma"]),
    "MuSiQue without an alias": ({"question": "Q?", "answer": "Rome", "answer_aliases": []}, "Rome"),
    "aliases as one text": ({"question": "Q?", "answer": "Rome", "answer_aliases": "Roma"}, ["Rome", "Roma"]),
    "2Wiki": ({"_id": "x1", "type": "bridge", "question": "Q?", "context": [["t", ["s"]]], "answer": "Rome"}, "Rome"),
    "HotpotQA": ({"_id": "5a7", "answer": "yes", "question": "Q?", "supporting_facts": [["t", 0]]}, "yes"),
    "TriviaQA": ({"question": "Q?", "question_id": "tc_1", "answer": {
        "aliases": ["UK", "Britain"], "normalized_aliases": ["uk"], "value": "Britain", "type": "WikipediaEntity"}},
        ["Britain", "UK"]),
    "TriviaQA, official": ({"Question": "Q?", "QuestionId": "q", "Answer": {
        "Aliases": ["UK"], "NormalizedAliases": ["uk"], "Value": "Britain"}}, ["Britain", "UK"]),
    "TriviaQA without an alias": ({"question": "Q?", "answer": {"value": "Britain"}}, "Britain"),
    "NQ": ({"question": "Q?", "answer": ["14 December 1972 UTC", "December 1972"]}, ["14 December 1972 UTC", "December 1972"]),
    "FlashRAG": ({"id": "test_0", "question": "Q?", "golden_answers": ["Rome"], "metadata": {}}, ["Rome"]),
    "SQuAD": ({"question": "Q?", "answers": {"text": ["Rome", "Roma"], "answer_start": [1, 2]}}, ["Rome", "Roma"]),
    "SQuAD, official": ({"question": "Q?", "answers": [{"text": "Rome", "answer_start": 1}]}, ["Rome"]),
    "GSM-Hard": ({"input": "Q?", "code": "def solution(): …", "target": -9867630.0}, "-9867630"),
    "GSM-Hard, a fraction": ({"input": "Q?", "target": 14053029.666666666}, "14053029.666666666"),
    "GSM-Hard, large": ({"input": "Q?", "target": 6277334000.0}, "6277334000"),
    "larger than a float is exact": ({"input": "Q?", "target": 1e+22}, "1e+22"),
    "GSM8K": ({"question": "Q?", "answer": "2+2 = <<2+2=4>>4\n#### 4 "}, "4"),
    "AIME 2024": ({"ID": "2024-I-1", "Problem": "Q?", "Solution": "…", "Answer": 204}, "204"),
    "AIME 2025": ({"problem_idx": 1, "problem": "Q?", "answer": 70}, "70"),
    "zero": ({"problem": "Q?", "answer": 0}, "0"),
    "MATH500": ({"problem": "Q?", "solution": "…", "answer": "\\frac{1}{2}", "unique_id": "test/a/1.json"}, "\\frac{1}{2}"),
    "OlymMATH": ({"problem": "Q?", "answer": "$2$", "subject": "Algebra", "unique_id": "OlymMATH-HARD-0-EN"}, "$2$"),
    "GAIA": ({"task_id": "c6", "Question": "Q?", "Level": "1", "Final answer": "17", "file_name": "", "file_path": None}, "17"),
    "HLE": ({"id": "66", "question": "Q?", "image": "", "image_preview": None, "answer": "D", "answer_type": "multipleChoice",
             "rationale": "…", "rationale_image": "data:x", "canary": "BENCHMARK DATA …", "has_image": False}, "D"),
    "WebWalkerQA": ({"question": "Q?", "answer": "May 3", "root_url": "https://x", "info": {"hop": "multi"}}, "May 3"),
    "xBench, decrypted": ({"id": "101", "prompt": "问题？", "answer": "161.27元", "reference_steps": "…", "canary": "…"}, "161.27元"),
    "StrategyQA": ({"question": "Q?", "answer": True, "facts": []}, ["yes", "true"]),
    "StrategyQA, false": ({"question": "Q?", "answer": False}, ["no", "false"]),
    "options that the question has": ({"question": "Q?", "options": ["Q", "?"], "answer": "B"}, "B"),
    "the release": ({"id": 60, "question": "Q?", "true_answer": ["Rome"]}, ["Rome"]),
    "the first name counts": ({"question": "Q?", "problem": "P?", "answer": "1", "true_answer": "2"}, "1"),
    "an empty field does not": ({"question": " ", "problem": "Q?", "answer": "", "true_answer": "2"}, "2"),
    "the dataset viewer": ({"row_idx": 0, "row": {"question": "Q?", "answer": "1"}, "truncated_cells": []}, "1"),
    "spaces around": ({"question": "Q?", "answer": "  1 \n"}, "1"),
    "null in a list": ({"question": "Q?", "answer": ["1", None, ""]}, ["1"]),
    "numbers in a list": ({"question": "Q?", "answer": [5.0, 2]}, ["5", "2"]),
}


@pytest.mark.parametrize("name", READ)
def test_public_forms_are_read(name, tmp_path):
    record, answer = READ[name]
    (task,) = read_tasks(written(tmp_path, "t.jsonl", lines(record)))
    assert task["answer"] == answer and task["question"] in ("Q?", "问题？") and task["id"]
    assert "answer_aliases" not in task and "_id" not in task


@pytest.mark.parametrize("record, name", [
    ({"id": 7, "task_id": "x"}, "7"), ({"_id": "5a"}, "5a"), ({"unique_id": "test/1"}, "test/1"), ({"task_id": "c6"}, "c6"),
    ({"ID": "2024-I-1"}, "2024-I-1"), ({"id": 0}, "0"), ({"id": "", "_id": "b"}, "b")])
def test_the_id_of_the_set_is_kept(tmp_path, record, name):
    (task,) = read_tasks(written(tmp_path, "t.jsonl", lines({"question": "Q?", "answer": "1", **record})))
    assert task["id"] == name


TWO = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
CONTAINERS = {
    "JSON lines": lines(*TWO),
    "a BOM": b"\xef\xbb\xbf" + lines(*TWO).encode(),
    "CRLF": lines(*TWO).replace("\n", "\r\n"),
    "no end of the last line": lines(*TWO).rstrip(),
    "blank lines": "\n" + lines(*TWO).replace("\n", "\n \n"),
    "a list": json.dumps(TWO),
    "an indented list": json.dumps(TWO, indent=4),
    "a list with a BOM": b"\xef\xbb\xbf" + json.dumps(TWO).encode(),
    "an object with data": json.dumps({"version": "v1", "data": TWO}),
    "TriviaQA's object": json.dumps({"Data": TWO, "Domain": "Web"}, indent=1),
    "questions": json.dumps({"questions": TWO}),
    "the dataset viewer": json.dumps({"features": [], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(TWO)]}),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_containers_are_read_whatever_the_file_is_called(name, ending, tmp_path):
    tasks = read_tasks(written(tmp_path, f"t.{ending}", CONTAINERS[name]))
    assert [(task["question"], task["answer"]) for task in tasks] == [("a", "1"), ("b", "2")]


def test_one_indented_object_and_one_with_a_list_of_its_own(tmp_path):
    task = {"question": "a", "answer": "1", "data": [1, 2]}
    for text in (json.dumps(task, indent=1), json.dumps(task), lines(task)):
        assert read_tasks(written(tmp_path, "t.json", text))[0]["data"] == [1, 2]


def test_line_separators_of_unicode_end_no_line(tmp_path):
    path = written(tmp_path, "t.jsonl", lines({"question": "a\u2028b\u0085c", "answer": "1"}, TWO[1]))
    assert [task["question"] for task in read_tasks(path)] == ["a\u2028b\u0085c", "b"]


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (task,) = read_tasks(written(tmp_path, "t.jsonl", b'{"question": "a\\ud83d?", "answer": "1"}'))
    assert task["question"] == "a??"


def test_a_pipe_is_read_once(tmp_path):
    code = "from plumbing.tasks import read_tasks; print(len(read_tasks('/dev/stdin')))"
    done = subprocess.run([sys.executable, "-c", code], input=lines(*TWO), capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "2\n", done.stderr


# ---- what is refused ----

QA = {"question": "Q?", "answer": "1"}
SECRET = base64.b64encode(b"\x01\x02 what was asked, encrypted").decode()
REFUSED = {
    "empty": ("t.jsonl", b"", "t.jsonl is empty"),
    "blank": ("t.jsonl", b"\n \n", "t.jsonl is empty"),
    "an empty list": ("t.json", b"[]", "t.json is empty"),
    "an empty list in an object": ("t.json", b'{"data": []}', "t.json is empty"),
    "Parquet": ("t.parquet", b"PAR1\x15\x04", "is a Parquet table: .*read_parquet.*to_json"),
    "Parquet by another name": ("t.jsonl", b"PAR1\x15\x04", "is a Parquet table"),
    "gzip": ("t.jsonl.gz", gzip.compress(lines(QA).encode()), "is compressed: .*gunzip"),
    "zstd": ("t.jsonl.zst", b"\x28\xb5\x2f\xfd\x00", "is compressed: .*zstd -d"),
    "Arrow": ("t.arrow", b"\xff\xff\xff\xff\x10\x02\x00", "is an Arrow table: .*to_json"),
    "Excel": ("t.xlsx", b"PK\x03\x04", "Excel"),
    "a pointer of Git LFS": ("t.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    "a web page": ("t.jsonl", b"\n<!DOCTYPE html>\n<html>", "is a web page: download the raw file"),
    "UTF-16": ("t.jsonl", lines(QA).encode("utf-16"), "is UTF-16 text: .*iconv"),
    "Latin-1": ("t.jsonl", '{"question": "é"}'.encode("latin-1"), "is not UTF-8 text .*position 14.*JSON lines in UTF-8"),
    "CSV": ("t.csv", b"problem,answer\nQ?,1\n", "is a table: .*read_csv.*to_json"),
    "TSV": ("t.TSV", b"problem\tanswer\n", "is a table"),
    "xBench's CSV": ("DeepSearch-2505.csv", f"id,prompt,answer,canary\n1,{SECRET},{SECRET},x".encode(),
                     'is encrypted, .*"canary" .*xor_decrypt of github.com/xbench-ai/xbench-evals'),
    "xBench as JSON lines": ("t.jsonl", lines({"prompt": SECRET, "answer": SECRET, "canary": "xbench"}), "is encrypted"),
    "BrowseComp": ("t.jsonl", lines({"problem": SECRET, "answer": SECRET, "canary": "b"}), "is encrypted"),
    "no JSON": ("t.txt", b"What is 1 + 1? 2\n", "t.txt, line 1: not valid JSON"),
    "UTF-32": ("t.jsonl", lines(QA).encode("utf-32"), "is UTF-32 text: .*iconv"),
    "XML": ("t.xml", b'<?xml version="1.0"?><ProblemSet/>', "is XML: write it as JSON lines first"),
    "FRAMES": ("t.tsv", b"\tPrompt\tAnswer\n0\tb\ta\n", r"is a table: .*read_csv\(FILE, sep='\\t'\)"),
    "BrowseComp's CSV": ("t.csv", b"problem,answer,problem_topic,canary\n", "is encrypted, .*simple-evals"),
    "too deep": ("t.json", b"[" * 100000, "t.json is nested too deeply to be read"),
    "too many digits": ("t.jsonl", lines(QA) + '{"question": "b", "answer": ' + "1" * 5000 + "}", "line 2: a number in it has too many digits"),
    "an id that is a list": ("t.jsonl", lines({"id": [1], **QA}), 'line 1: the field "id" is neither a text nor a number'),
    "a torn line": ("t.jsonl", lines(QA) + '{"question": ', "t.jsonl, line 2: not valid JSON"),
    "a torn list": ("t.json", '[\n{"question": "a", "answer": "1"},\n{"question"', "t.json, line 3: not valid JSON"),
    "one quote too many": ("t.json", '[{"question": "a"b"}]', "t.json, line 1: not valid JSON .*column 18"),
    "indented objects": ("t.jsonl", json.dumps(QA, indent=1) + "\n" + json.dumps(QA, indent=1),
                         "t.jsonl, line 1: an object goes over several lines: .*jq -c"),
    "a list a line": ("t.jsonl", '["Q?", "1"]\n["P?", "2"]\n', "t.jsonl, line 1: not a JSON object"),
    "a list of texts": ("t.json", '[{"question": "a", "answer": "1"}, "b"]', "t.json, item 2: not a JSON object"),
    "a number": ("t.json", "5", "t.json, line 1: not a JSON object"),
    "no question": ("t.jsonl", lines({"claim": "x", "answer": "1"}),
                    r'line 1: the field "question" is missing or empty \(looked for question, .*; there are claim, answer\)'),
    "no answer": ("t.jsonl", lines(QA, {"question": "b", "solution": "x"}), 'line 2: the field "answer" is missing or empty'),
    "no answer in a list": ("t.json", json.dumps([QA, {"question": "b"}]), 'item 2: the field "answer" is missing or empty'),
    "null": ("t.jsonl", lines({"question": "b", "answer": None}), 'the field "answer" is missing or empty'),
    "an empty answer": ("t.jsonl", lines({"question": "b", "answer": "  "}), 'the field "answer" is missing or empty'),
    "an empty list of answers": ("t.jsonl", lines({"question": "b", "answer": []}), 'the field "answer" is missing'),
    "a list of nothing": ("t.jsonl", lines({"question": "b", "answer": [None, ""]}), 'the field "answer" is missing'),
    "nothing after ####": ("t.jsonl", lines({"question": "b", "answer": "so\n####"}), 'the field "answer" is missing'),
    "NaN": ("t.jsonl", '{"question": "b", "answer": NaN}', 'line 1: the field "answer" is not a number'),
    "NaN in a list": ("t.jsonl", '{"question": "b", "answer": ["1", NaN]}', 'line 1: the field "answer" is not a number'),
    "Infinity": ("t.jsonl", '{"question": "b", "answer": -Infinity}', 'line 1: the field "answer" is not a number'),
    "DROP": ("t.jsonl", lines({"question": "b", "answer": {"number": "3", "spans": []}}),
             'line 1: the field "answer" is an object with the fields number, spans'),
    "lists of answers": ("t.jsonl", lines({"question": "b", "answers": [["a", "b"], ["c"]]}),
                         'line 1: the field "answers" holds a list in a list'),
    "Natural Questions": ("t.jsonl", lines({"question": {"text": "b"}, "answer": "1"}), '"question" .*is not a text'),
    "verl": ("t.jsonl", lines({"prompt": [{"role": "user", "content": "b"}], "answer": "1"}), 'line 1: the field "prompt" is not a text'),
    "columns": ("t.json", json.dumps({"question": ["a", "b"], "answer": ["1", "2"]}), '"question" .*is not a text'),
    "SVAMP": ("t.jsonl", lines({"Body": "There are 87 oranges.", "Question": "How many?", "Answer": 87.0}),
              'line 1: the field "body" is a part of the question, and has to stand in "Question"'),
    "MMLU": ("t.jsonl", lines({"question": "b", "choices": ["0", "1"], "answer": 1}), 'the field "choices" is a part of the question'),
    "AQuA": ("t.jsonl", lines({"question": "b", "options": ["A)1", "B)2"], "answer": "A"}), 'the field "options" is a part'),
    "an id twice": ("t.jsonl", lines({"_id": "x", **QA}, {"_id": "x", "question": "b", "answer": "1"}),
                    'line 2: the id "x" was used before, in line 1'),
    "an id twice in a list": ("t.json", json.dumps([{"id": 1, **QA}, {"id": "1", **QA}]),
                              'item 2: the id "1" was used before, in item 1'),
    "SQuAD's articles": ("t.json", json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [1]}]}),
                         'item 1: the field "question" .*there are title, paragraphs'),
    "settings": ("t.json", '{"a": 1}', 'line 1: the field "question" is missing'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(name, tmp_path):
    file, content, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as error:
        read_tasks(written(tmp_path, file, content))
    assert file in str(error.value) and "\n" not in str(error.value)


def test_a_list_where_a_stage_needs_json_lines(tmp_path):
    path = written(tmp_path, "t.json", json.dumps([{"conversations": []}], indent=1))
    with pytest.raises(InputError, match=r"t.json, line 1: the start of a JSON list: .*jq -c '\.\[\]' FILE"):
        sft.load_examples([path], None, 100)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read .*nowhere.jsonl: No such file"):
        read_tasks(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="cannot read .*: Is a directory"):
        read_tasks(tmp_path)


# ---- what is left out, and counted ----

LEFT_OUT = {
    "GAIA's test split": ({"Question": "b", "Final answer": "?"}, '1 whose answer is not public ("?")'),
    "TriviaQA's test split": ({"question": "b", "answer": {"value": "<unk>", "aliases": []}}, '1 whose answer is not public ("<unk>")'),
    "GAIA's files": ({"Question": "b", "Final answer": "5", "file_name": "c6.xlsx"}, "1 with an attached file"),
    "HLE's images": ({"question": "b", "answer": "5", "image": "data:image/png;base64,x"}, "1 with an image"),
    "OlympiadBench's images": ({"question": "b", "answer": "5", "image_1": {"bytes": "x"}, "image_2": None}, "1 with an image"),
    "an image as an object": ({"question": "b", "answer": "5", "image": {"bytes": "x", "path": None}}, "1 with an image"),
    "ARPO's copy of HLE": ({"question": "b", "answer": "5", "has_image": True}, "1 with an image"),
    "MuSiQue-Full": ({"id": "x", "question": "b", "answer": "5", "answer_aliases": [], "answerable": False},
                     "1 that the set calls not answerable"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_text_agent_cannot_be_asked_is_left_out_and_counted(name, tmp_path, capsys, monkeypatch):
    record, reason = LEFT_OUT[name]
    path = written(tmp_path, "t.jsonl", lines({**record, **QA, "answerable": True, "file_name": "", "image": "", "has_image": False, "image_1": None,
                                               "Question": "", "Final answer": "", "id": "x"}, record))
    assert [task["question"] for task in read_tasks(path)] == ["Q?"]
    assert capsys.readouterr().out == f"{path}: 1 tasks; left out: {reason}\n"
    monkeypatch.setenv("RANK", "1")
    assert len(read_tasks(path)) == 1 and capsys.readouterr().out == ""               # one rank says it
    with pytest.raises(InputError, match="holds no task that can be asked and scored: 1 "):
        read_tasks(written(tmp_path, "t.jsonl", lines(record)))


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, capsys):
    read_tasks(written(tmp_path, "t.jsonl", lines(QA)))
    assert capsys.readouterr().out == ""


def test_processbench_needs_no_answer(tmp_path):
    record = {"id": "gsm8k-0", "generator": "Qwen", "problem": "Q?", "steps": ["a", "b"], "final_answer_correct": False, "label": 1}
    (task,) = read_tasks(written(tmp_path, "t.json", json.dumps([record])), ("steps", "label"))
    assert task["answer"] is None and task["label"] == 1 and task["steps"] == ["a", "b"] and task["id"] == "gsm8k-0"
    with pytest.raises(InputError, match='the field "label" is missing'):
        read_tasks(written(tmp_path, "t.jsonl", lines(QA | {"steps": []})), ("label",))


def test_decontaminate_reads_the_same_forms(tmp_path):
    """Questions count, whether or not they could be asked; the tasks that stay are written as they were."""
    long = "Which of the nine men who signed the charter of that city in 1850 was born in Ghent?"
    bench = written(tmp_path, "b.json", json.dumps({"data": [{"question": long, "answer": "?", "image": "x"}]}))
    rows = [{"input": long, "target": 1.0}, {"input": "What is 2 + 2?", "target": 4.0}]
    tasks = written(tmp_path, "t.json", json.dumps(rows, indent=1))
    out = tmp_path / "out.jsonl"
    command = [sys.executable, os.path.join(ROOT, "judge.py"), "decontaminate", "--tasks", tasks, "--against", bench, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and out.read_text() == lines(rows[1]), done.stderr
    done = subprocess.run([*command[:-1], "/proc/x/y"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: --out /proc/x/y cannot be made: No such file or directory (/proc/x)\n"
    done = subprocess.run([*command[:-1], tasks], capture_output=True, text=True)
    assert done.returncode == 2 and f"--out {tasks} is one of the files to be read" in done.stderr


@pytest.mark.parametrize("script", ["bc.py", "mps.py"])
def test_an_empty_file_ends_a_stage_with_one_sentence(script, tmp_path):
    path = written(tmp_path, "t.jsonl", "")
    flags = ["--tasks", path, "--out", tmp_path / "out.jsonl", "--teacher-url", "http://127.0.0.1:9", "--teacher-model", "m"]
    flags += ["--student", "s"] if script == "mps.py" else []
    done = subprocess.run([sys.executable, os.path.join(ROOT, script), *flags], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {path} is empty: it holds no record\n"


# ---- the authors' release ----

def released(tmp_path, records, name="t.json"):
    path = written(tmp_path, name, json.dumps(records))
    done = subprocess.run([sys.executable, "-m", "plumbing.release", path], capture_output=True, text=True, cwd=ROOT)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


STEP = "<thought>add</thought><code>print(2 + 2)</code>"
END = "<thought>end</thought><code>final_answer_print(4)</code>"
TALK = ["What is 2 + 2?", "<first_thought>plan</first_thought>", "Observation: None", STEP, "Observation: 4", END]


@pytest.mark.parametrize("names", [("conversations", "from", "value", "human", "gpt"), ("messages", "role", "content", "user", "assistant")])
def test_released_sft_data(names, tmp_path):
    field, role, content, human, model = names
    turns = [{role: [human, model][i % 2], content: text} for i, text in enumerate(TALK)]
    done, records = released(tmp_path, [{field: turns}, {field: turns[:4]}])
    assert [r["stop"] for r in records] == ["answer", "max_steps"] and len({r["id"] for r in records}) == 2
    assert [m["content"] for m in records[0]["messages"]] == TALK and records[0]["question"] == TALK[0]
    assert records[0]["correct"] is True and all(sft.alternates(record) for record in records)


def test_released_sft_data_with_another_speaker(tmp_path):
    done, _ = released(tmp_path, [{"conversations": [{"from": "observation", "value": "x"}]}])
    assert done.returncode == 2 and "t.json, item 1: not a record of the release" in done.stderr
    assert "a turn is observation's" in done.stderr and done.stderr.count("\n") == 1


def rl_record(prompt, chosen="", rejected="", **more):
    return {"prompt": prompt, "chosen": chosen, "chosen_observation": "Observation: 4" if chosen else "", "rejected": rejected,
            "rejected_observation": "Observation: 5" if rejected else "", "correct_step": "", "gt_answer": "\\boxed{4}", **more}


def verl(record, **more):
    extra = {"answer": record["gt_answer"], "chosen_step": record["chosen"], "chosen_step_obs": record["chosen_observation"],
             "rejected_step": record["rejected"], "rejected_step_obs": record["rejected_observation"], **more}
    return record | {"data_source": "agent_distill", "extra_info": extra}


@pytest.mark.parametrize("form", [dict, verl])
def test_released_rl_data(form, tmp_path):
    prefix = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(TALK[:5])]
    done, records = released(tmp_path, [form(rl_record(prefix, END, STEP)), form(rl_record(prefix[:1]))])
    key, start = records
    assert key["chosen"] == {"content": END, "observation": "4"} and key["rejected"] == {"content": STEP, "observation": "5"}
    assert key["messages"] == prefix and key["answer"] == "\\boxed{4}" and key["kind"] == "key_step"
    assert start["chosen"] is None and start["rejected"] is None and start["messages"] == prefix[:1]
    path = written(tmp_path, "rl.jsonl", done.stdout)
    assert [Starts(path, "fixed").start(i)["key"] for i in range(2)] == [2, None]


def test_released_rl_data_without_key_steps(tmp_path):
    """The authors' modes long_horizon and sparse_reward empty `extra_info`, not the columns beside it."""
    record = verl(rl_record([{"role": "user", "content": "Q?"}], END, STEP), chosen_step="", rejected_step="")
    assert released(tmp_path, [record])[1][0]["chosen"] is None


def trajectory(**more):
    steps = [{"thought": "plan", "code": "", "observation": "None", "is_finished": False},
             {"thought": "end", "code": "final_answer_print(4)", "observation": "4", "is_finished": True}]
    return {"timestamp": "2025", "steps": steps, "original_task_info": {"id": "a", "question": "Q?", "true_answer": "4"},
            "evaluation_result": {"is_correct": True}, "repair_steps": [], **more}


FAILED_STEP = {"error": "Internal Server Error", "node": "reasoning_node", "task_id": "a", "timestamp": "2025"}


def test_released_steps_that_failed_are_left_out(tmp_path):
    one, other = trajectory(), trajectory(steps=[FAILED_STEP])
    one["steps"] = [one["steps"][0], FAILED_STEP, FAILED_STEP]
    done, records = released(tmp_path, [one, other])
    assert [m["role"] for m in records[0]["messages"]] == ["user", "assistant", "user"] and len(records) == 1
    assert records[0]["stop"] == "max_steps" and "t.json: 1 left out, of which every step failed" in done.stderr


@pytest.mark.parametrize("evaluation, correct", [
    ({"is_correct": True, "error_analysis": None}, True), ({"is_correct": False}, False), ('{"equivalent": true}', True),
    ('{"equivalent": false}', False), ("Not finished", False), (None, None)])
def test_released_evaluations(evaluation, correct, tmp_path):
    assert released(tmp_path, [trajectory(evaluation_result=evaluation)])[1][0]["correct"] is correct


@pytest.mark.parametrize("record, message", [
    ({"id": "a", "question": "Q?", "true_answer": "4"}, "it is a task, and all scripts read the release's tasks as they are"),
    ({"BC_init": {"file_name": "x"}}, "it has neither original_task_info nor conversations nor prompt"),
    (trajectory(steps=[{"thought": "x"}]), "it has no field 'is_finished'"),
    ({"prompt": [{"role": "system", "content": "x"}], "chosen": "", "rejected": "", "chosen_observation": "",
      "rejected_observation": "", "gt_answer": "4"}, "its prompt does not begin with the question"),
    ({"prompt": [{"role": "user", "content": "x"}], "extra_info": {"answer": "4"}}, "it has no field 'chosen_step'"),
    ({"conversations": []}, "not a record of the release")])
def test_what_the_release_does_not_hold_is_named(record, message, tmp_path):
    done, _ = released(tmp_path, [record])
    assert done.returncode == 2 and "t.json, item 1: not a record of the release" in done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_read_records_gives_the_place(tmp_path):
    assert read_records(written(tmp_path, "t.jsonl", "\n" + lines(QA))) == [("line 2", QA)]
    assert read_records(written(tmp_path, "t.json", json.dumps([QA]))) == [("item 1", QA)]


# ---- names ----

@pytest.mark.parametrize("path, name", [
    ("aime/2024.jsonl", "AIME24"), ("aime/2025/test.jsonl", "AIME25"), ("AIME/aime_2024_problems.jsonl", "AIME24"),
    ("aime24_25.jsonl", "aime24_25"), ("aime2026.jsonl", "aime2026"), ("gaia/2023/validation/metadata.jsonl", "GAIA"), ("gaia_lv3.jsonl", "GAIA"),
    ("GAIA/level2.jsonl", "GAIA"), ("gaia/train/metadata.jsonl", "metadata"), ("HLE-Gold.jsonl", "HLE"), ("hotpotqa_test_500_seed42.jsonl", "HotpotQA"),
    ("hle/data/mine.jsonl", "mine"), ("hle/mine.jsonl", "HLE"), ("nq_hotpotqa.jsonl", "nq_hotpotqa"), ("hotpotqa/train.jsonl", "train"),
    ("2wiki_train_1000.jsonl", "2wiki_train_1000"), ("musique/data/dev.jsonl", "MuSiQue"), ("xbench/DeepSearch.jsonl", "xBench"), ("MATH/test.jsonl", "MATH")])
def test_the_benchmark_of_a_file(path, name):
    assert benchmark_of("/somewhere/" + path) == name


def test_the_level_of_gaia_in_a_name():
    assert [gaia_level({}, f"/x/{name}.jsonl", None) for name in ("gaia_lv3", "gaia_lvl2", "level1", "gaia_2023")] == ["3", "2", "1", None]


def test_released_turns_in_another_order(tmp_path):
    turns = [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]
    done, _ = released(tmp_path, [{"conversations": turns}])
    assert done.returncode == 2 and "its messages must be turns of user and assistant in alternation" in done.stderr
