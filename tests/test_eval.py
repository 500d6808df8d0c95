"""`eval.py run` and `table`: metrics against the published formulas, public files, resume, ranks, errors."""

import json
import math
import os
import random
import re
import string
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
sys.path.insert(0, ROOT)
import env  # noqa: E402
import eval as evaluate  # noqa: E402
import judge  # noqa: E402
from plumbing.benchmarks import BENCHMARKS, F1_BENCHMARKS  # noqa: E402
from plumbing.chat_api import BadReply  # noqa: E402
from plumbing.cli import InputError  # noqa: E402
from plumbing.records import as_list  # noqa: E402
from plumbing.results import row_name, summarize, why_zero  # noqa: E402

BENCH = os.path.join(ROOT, "..", "shared", "data", "arpo_eval")


# ---- the published formulas, restated from the scripts ----


def arpo_script(prediction, answers):
    """Question-answering branch of the evaluation script of WebThinker and ARPO."""

    def normalize(s):
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s.lower()).strip().split())

    metric = {"em": 0, "f1": 0}
    prediction = normalize(prediction)
    for answer in answers:
        answer = normalize(answer)
        em = int(prediction == answer)
        prediction_tokens, answer_tokens = prediction.split(), answer.split()
        num_same = sum((Counter(prediction_tokens) & Counter(answer_tokens)).values())
        if num_same == 0:
            continue
        precision, recall = 1.0 * num_same / len(prediction_tokens), 1.0 * num_same / len(answer_tokens)
        metric["f1"] = max((2 * precision * recall) / (precision + recall), metric["f1"])
        metric["em"] = max(em, metric["em"])
    return metric["f1"], metric["em"]


def hotpot_script(prediction, answers):
    """hotpot_evaluate_v1.py, the best over the answers as in SQuAD's evaluate-v1.1.py."""

    def normalize(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    def f1_score(prediction, answer):
        prediction, answer = normalize(prediction), normalize(answer)
        if prediction in ["yes", "no", "noanswer"] and prediction != answer:
            return 0
        if answer in ["yes", "no", "noanswer"] and prediction != answer:
            return 0
        num_same = sum((Counter(prediction.split()) & Counter(answer.split())).values())
        if num_same == 0:
            return 0
        precision, recall = 1.0 * num_same / len(prediction.split()), 1.0 * num_same / len(answer.split())
        return (2 * precision * recall) / (precision + recall)

    return max(f1_score(prediction, a) for a in answers), max(
        int(normalize(prediction) == normalize(a)) for a in answers
    )


HAND = [
    ("", [""]),
    ("the", ["a"]),
    ("Yes.", ["yes"]),
    ("yes", ["no"]),
    ("yes it is", ["yes"]),
    ("no", ["noanswer"]),
    ("The Beatles", ["beatles"]),
    ("U.S.", ["US"]),
    ("don't", ["dont"]),
    ("1,000", ["1000"]),
    ("\u00c9mile Zola", ["émile zola"]),
    ("New  York\tCity", ["new york", "NYC"]),
    ("an apple a day", ["Apple day"]),
    ("theatre", ["the atre"]),
    ("A", ["a", "the"]),
    ("Frank Lowy, Australia", ["Frank Lowy"]),
    ("20 June 1837", ["June 20, 1837"]),
    ("a-b", ["a b"]),
    ("x" * 500, ["y"]),
    ("James Madison Jr.", ["james madison"]),
    ("...", ["!!!"]),
    ("1.95 m", ["1.95m", "195 cm"]),
    ("no.", ["No"]),
]


def generated_pairs(n):
    rng = random.Random(0)
    words = (
        "the a an The AN yes no noanswer Yes No. paris Paris, France. U.S. l'an 1837 20 June, O'Neil (b) "
        "naïve Éire the-end an. a, x y z -- 3.14 $5 100% “quoted” new\u00a0york"
    ).split(" ")
    for _ in range(n):
        prediction = " ".join(rng.choices(words, k=rng.randint(0, 7)))
        answers = [" ".join(rng.choices(words, k=rng.randint(0, 5))) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.3:
            answers[0] = rng.choice([prediction, prediction.upper(), prediction + ".", "the " + prediction])
        yield prediction, answers


@pytest.mark.parametrize("variant, script", [("arpo", arpo_script), ("squad", hotpot_script)])
def test_f1_and_exact_match_equal_the_published_scripts(variant, script):
    nonzero = 0
    for prediction, answers in [*HAND, *generated_pairs(12_000)]:
        f1, em = evaluate.qa_score(prediction, answers, variant)
        expected = script(prediction, answers)
        assert abs(f1 - expected[0]) < 1e-12 and em == expected[1], (prediction, answers)
        nonzero += 0 < f1 < 1
    assert nonzero > 2000


def test_variants_differ_where_they_should():
    assert evaluate.qa_score("Paris.", ["Paris"], "arpo") == (0.0, 0.0)
    assert evaluate.qa_score("Paris.", ["Paris"], "squad") == (1.0, 1.0)
    assert evaluate.qa_score("yes it is", ["yes"], "arpo")[0] == 0.5
    assert evaluate.qa_score("yes it is", ["yes"], "squad")[0] == 0.0


# ---- benchmarks as published, with engines that need no model ----


def fake_rollout(answer):
    """`env.rollout` without interpreters: `answer(task)` is the prediction, None for none."""

    def rollout(engine, starts, **flags):
        return [
            {
                **s,
                "messages": [dict(role="user", content=s["question"]), dict(role="assistant", content="x")],
                "prediction": answer(s),
                "stop": "answer" if answer(s) is not None else "max_steps",
                "usage": {},
            }
            for s in starts
        ]

    return rollout


def run(out, *flags, engine="stub"):
    evaluate.run(evaluate.parse_args(["run", "--model", "stub", "--out", str(out), *map(str, flags)]), engine)
    return json.load(open(os.path.join(out, "results.json"), encoding="utf-8"))


def tasks_file(path, n=6, **extra):
    with open(path, "w", encoding="utf-8") as f:
        for i in range(n):
            f.write(
                json.dumps(
                    dict(
                        id=f"t{i}",
                        question=f"What is {i} + 1?",
                        answer=str(i + 1),
                        kind=["math", "search"][i % 2],
                        horizon=2 + i // 2 % 2,
                        **extra,
                    )
                )
                + "\n"
            )
    return path


@pytest.mark.parametrize(
    "name, metric, n",
    [
        ("aime24", "judge-by-rule", 30),
        ("aime25", "judge-by-rule", 30),
        ("math500", "judge-by-rule", 500),
        ("hotpotqa", "f1-arpo", 200),
        ("bamboogle", "f1-arpo", 125),
    ],
)
def test_oracle_is_100_and_silence_is_0(name, metric, n, tmp_path, monkeypatch):
    path = os.path.join(BENCH, name, "test.jsonl")
    if not os.path.exists(path):
        pytest.skip(f"{path} is not there")
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: as_list(t["answer"])[-1]))
    row = run(tmp_path / "oracle", "--tasks", path)["rows"][0]
    assert (row["metric"], row["n"], row["mean"], row["unanswered"]) == (metric, n, 100.0, 0)
    assert row["group"].lower() == name
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: None))
    row = run(tmp_path / "silence", "--tasks", path)["rows"][0]
    assert (row["n"], row["mean"], row["unanswered"]) == (n, 0.0, n)


def test_every_field_name_of_the_public_sets(tmp_path, monkeypatch):
    lines = [
        dict(problem="1 + 1?", answer=2, id=1),
        dict(Question="Who?", answer=["Ann", "Anna"], Level=2),
        dict(question="2 + 2?", answer="because\n#### 4"),
        dict(question="3?", true_answer="\\boxed{3}"),
    ]
    (tmp_path / "gaia").mkdir()
    path = tmp_path / "gaia" / "test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(
        env,
        "rollout",
        fake_rollout(lambda t: {"Who?": "Anna", "2 + 2?": "4", "1 + 1?": "2", "3?": "3"}[t["question"]]),
    )
    rows = run(tmp_path / "out", "--tasks", path)["rows"]
    assert [(row_name(r), r["mean"]) for r in rows] == [("GAIA", 100), ("GAIA-2", 100)]
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: None))
    rows = run(tmp_path / "silence", "--tasks", path)["rows"]
    assert [(r["mean"], r["unanswered"]) for r in rows] == [(0, 4), (0, 1)]


@pytest.mark.parametrize("name", ["math_seed", "search_seed"])
def test_oracle_on_the_release_s_seeds(name, tmp_path, monkeypatch):
    path = os.path.join(BENCH, "..", "score_release", f"{name}.jsonl")
    if not os.path.exists(path):
        pytest.skip(f"{path} is not there")
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: t["answer"]))
    row = run(tmp_path / "oracle", "--tasks", path)["rows"][0]
    assert (row["n"], row["mean"]) == (400, 100)
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: None))
    assert run(tmp_path / "silence", "--tasks", path)["rows"][0]["mean"] == 0


@pytest.mark.parametrize(
    "path, name",
    [
        ("x/aime24/test.jsonl", "AIME24"),
        ("2Wiki/test.jsonl", "2Wiki"),
        ("2WikiMultihopQA.jsonl", "2Wiki"),
        ("gsm-hard/test.jsonl", "GSM-Hard"),
        ("gsm_hard.jsonl", "GSM-Hard"),
        ("webwalkerqa/test.jsonl", "WebWalker"),
        ("xbench-deepsearch/test.jsonl", "xBench"),
        ("MuSiQue/dev.jsonl", "MuSiQue"),
        ("runs/demo/tasks/eval.jsonl", "eval"),
        ("tasks/hard.jsonl", "hard"),
        ("tasks/math.jsonl", "math"),  # not MATH500
        ("mine/test.jsonl", "mine"),
        ("olymmath/test.jsonl", "OlymMATH"),
        # as their authors call them
        *[(f"data/OlymMATH-{part}.jsonl", "OlymMATH") for part in ("EN-EASY", "EN-HARD", "ZH-EASY", "ZH-HARD")],
        ("musique_ans_v1.0_dev.jsonl", "MuSiQue"),
        ("musique_full_v1.0_dev.jsonl", "MuSiQue"),
        ("hotpot_dev_distractor_v1.json", "HotpotQA"),
        ("hotpot_dev_fullwiki_v1.json", "HotpotQA"),
        ("2wikimultihopqa_dev.json", "2Wiki"),
        ("Bamboogle Prerelease - Sheet1.jsonl", "Bamboogle"),
        ("hotpot_dev_v1_simplified.json", "HotpotQA"),
        ("gsmhardv2.jsonl", "GSM-Hard"),
        ("gsm_hard_500_20250507.json", "GSM-Hard"),
        ("olymath_200_20250511.json", "OlymMATH"),
        ("aime_90_20250504.json", "AIME"),
        ("gsm-hard-v2.jsonl", "GSM-Hard"),
        ("gsmhard.jsonl", "GSM-Hard"),
        ("AIME_2024.jsonl", "AIME24"),
        ("aime-2024-II.jsonl", "AIME24"),
        ("AIME2025-I.jsonl", "AIME25"),
        ("aime_2024_problems.parquet", "AIME24"),
        ("MATH-500/test.jsonl", "MATH500"),
        ("xbench-DeepSearch-2505.jsonl", "xBench"),
        ("WebWalkerQA/main.jsonl", "WebWalker"),
        ("hle/top.json", "HLE"),
        # as the authors of SCoRe call them
        *[(f"inference_data/{stem}.jsonl", name) for stem, name in {
            "2wiki": "2Wiki", "aime24": "AIME24", "aime25": "AIME25", "bamboo": "Bamboogle", "gaia-1": "GAIA",
            "gaia-2": "GAIA", "gaia-3": "GAIA", "hle_500": "HLE", "hqa": "HotpotQA", "math_500": "MATH500",
            "musiq": "MuSiQue", "olymmath": "OlymMATH", "webwalker": "WebWalker", "xbench": "xBench"}.items()],
        # parts and sizes
        ("gaia_level1.jsonl", "GAIA"),
        ("gaia_2023_validation_text_only_103.jsonl", "GAIA"),
        ("hle_bio.jsonl", "HLE"),
        ("hle500.jsonl", "HLE"),
        ("humanitys-last-exam_text.jsonl", "HLE"),
        ("hotpotqa_validation.jsonl", "HotpotQA"),
        ("hotpotqa-dev-500.jsonl", "HotpotQA"),
        ("hotpotqa/validation-00000-of-00001.jsonl", "HotpotQA"),
        ("bamboogle.test.jsonl", "Bamboogle"),
        ("aime24_x16.jsonl", "AIME24"),
        ("dev_2wiki_sample200.jsonl", "2Wiki"),
        ("aime.jsonl", "AIME"),
        # none of the paper's
        ("himath500k.jsonl", "himath500k"),
        ("math5000.jsonl", "math5000"),
        ("math500k.jsonl", "math500k"),
        ("myaime.jsonl", "myaime"),
        ("not_gaia_like.jsonl", "not_gaia_like"),
        ("gaia_like.jsonl", "gaia_like"),
        ("aime_math500.jsonl", "aime_math500"),
        ("gaia_hle.jsonl", "gaia_hle"),
        ("aime23.jsonl", "aime23"),
        ("aime24_25.jsonl", "aime24_25"),
        ("AIME_1983_2024.jsonl", "AIME_1983_2024"),
        ("xbench_scienceqa.jsonl", "xbench_scienceqa"),
        ("gsm8k/test.jsonl", "gsm8k"),
        ("hotpotqa/train.jsonl", "train"),
        ("musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_train"),
        ("gaia/constrained.jsonl", "GAIA"),
        ("triviaqa/test.jsonl", "triviaqa"),
    ],
)
def test_benchmark_of(path, name):
    assert evaluate.benchmark_of(path) == name


def test_columns_of_the_papers_tables_are_benchmarks():
    """Every column can be reached, and F1 is the metric of the four sets for which Table 1 says so."""
    text = open(os.path.join(ROOT, "assets", "paper_tables.md"), encoding="utf-8").read()
    heads = re.findall(r"(?m)^\| method +\| (.*) \|$", text)
    columns = {name.strip() for head in heads for name in head.split("|")} - {"Avg."}
    assert columns == {*BENCHMARKS, "GAIA-1", "GAIA-2", "GAIA-3"} and set(BENCHMARKS) > set(F1_BENCHMARKS)
    assert all(evaluate.benchmark_of(f"{name}.jsonl") == name for name in BENCHMARKS)


def loaded(*flags):
    return evaluate.load_tasks(evaluate.parse_args(["run", "--model", "m", "--out", "o", "--tasks", *map(str, flags)]))


def named_file(folder, name, *records):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(dict(answer="1") | record) + "\n" for record in records))
    return path


def test_files_of_one_benchmark_may_share_ids(tmp_path, capsys):
    """Three files, one column, GAIA's levels from their names; what is longer does not depend on the order."""
    files = [named_file(tmp_path, f"gaia-{k}.jsonl", dict(id=0, question=f"q{k}"), dict(id=k, question=f"p{k}")) for k in (1, 2, 3)]
    tasks = loaded(*files)
    assert {t["group"] for t in tasks} == {"GAIA"} and len({t["id"] for t in tasks}) == 6
    assert [t["Level"] for t in tasks] == ["1", "1", "2", "2", "3", "3"]
    assert {t["id"] for t in tasks if t["question"][0] == "p"} == {"1", "2", "3"}
    assert {t["id"] for t in loaded(*reversed(files))} == {t["id"] for t in tasks}
    assert f"{files[0]}: 2 tasks, benchmark GAIA, metric judge" in capsys.readouterr().out
    with pytest.raises(InputError, match="two of the --tasks files hold the same task of GAIA, id 1-"):
        loaded(*files, named_file(tmp_path / "gaia", "copy.jsonl", dict(id=1, question="p1")))


def test_one_file_twice_is_refused(tmp_path):
    path = named_file(tmp_path, "hqa.jsonl", dict(question="a"))
    with pytest.raises(InputError, match="hold the same task of HotpotQA"):
        loaded(path, path)


@pytest.mark.parametrize(
    "name, record, level",
    [
        ("gaia-2.jsonl", {}, "2"),
        ("gaia_level3.jsonl", {}, "3"),
        ("gaia/level1.jsonl", {}, "1"),
        ("gaia/1.jsonl", {}, "1"),
        ("gaia-2.jsonl", {"Level": 3}, "3"),
        ("gaia.jsonl", {"level": "1"}, "1"),
        ("gaia_2023.jsonl", {}, None),
        ("gaia_103.jsonl", {}, None),
        ("gaia_v1.0.jsonl", {}, None),
        ("math500.jsonl", {"level": 2}, None),
    ],
)
def test_gaia_s_level(name, record, level, tmp_path):
    (task,) = loaded(named_file(tmp_path, name, dict(question="a") | record))
    assert task.get("Level") == level


@pytest.mark.parametrize(
    "flag, group, metric",
    [
        ("gaia", "GAIA", "judge"),
        ("gaia-2", "GAIA", "judge"),
        ("Musique", "MuSiQue", "f1"),
        ("hotpot", "HotpotQA", "f1"),
        ("2wikimultihopqa", "2Wiki", "f1"),
        ("bamboogle", "Bamboogle", "f1"),
        ("aime-2025", "AIME25", "judge"),
    ],
)
def test_the_flag_benchmark_takes_every_name(flag, group, metric, tmp_path):
    (task,) = loaded(named_file(tmp_path, "mine.jsonl", dict(question="a")), "--benchmark", flag)
    assert (task["group"], task["metric"], task.get("Level")) == (group, metric, "2" if flag == "gaia-2" else None)


@pytest.mark.parametrize("flag", ["HotpatQA", "mine", "aime23", "not_gaia_like"])
def test_the_flag_benchmark_refuses_other_names(flag, tmp_path):
    with pytest.raises(InputError, match=f"--benchmark {flag} is none of the paper's AIME24, .*WebWalker"):
        loaded(named_file(tmp_path, "mine.jsonl", dict(question="a")), "--benchmark", flag)


# ---- numbers ----


def prediction(i, r, correct, **extra):
    return (
        dict(
            id=f"t{i}",
            run=r,
            group="g",
            metric="judge",
            score=float(correct),
            correct=correct,
            prediction="1",
            stop="answer",
            verdict="right",
            messages=[dict(role="assistant", content="")] * 2,
        )
        | extra
    )


def test_mean_errors_and_pass_at_k_by_hand():
    solved = [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]  # 3 tasks, 4 runs
    row = summarize(
        [prediction(i, r, bool(solved[i][r])) for i in range(3) for r in range(4)], "g", {}
    )
    assert row["n"] == 3 and abs(row["mean"] - 100 / 3) < 1e-9
    means = [75, 0, 25]
    assert abs(row["se"] - math.sqrt(sum((m - 100 / 3) ** 2 for m in means) / 2 / 3)) < 1e-9
    assert [round(x, 3) for x in row["runs"]] == [66.667, 33.333, 33.333, 0] and abs(
        row["sd"] - 27.217
    ) < 1e-3
    assert row["pass_at"].keys() == {"1", "2", "4"}
    assert (
        abs(row["pass_at"]["2"] - 100 * (1 + 0 + 0.5) / 3) < 1e-9
        and abs(row["pass_at"]["4"] - 200 / 3) < 1e-9
    )


def test_no_answer_is_counted_by_reason():
    rows = [
        prediction(0, 0, True),
        prediction(1, 0, False, prediction=None, stop="max_steps", verdict=None),
        prediction(2, 0, False, prediction=None, stop="max_tokens", verdict=None),
        prediction(3, 0, False, prediction=None, stop="failed", verdict=None),
        prediction(4, 0, False, verdict="failed"),
    ]
    row = summarize(rows, "g", {})
    assert (row["unanswered"], row["truncated"], row["failed"], row["mean"]) == (1, 1, 2, 20.0)


def test_the_judge_is_asked_for_metric_judge_only_and_its_failure_is_no_verdict(monkeypatch):
    asked = []

    def correct_answer(teacher, question, prediction, answers):
        asked.append(teacher)
        if teacher:
            raise BadReply("not JSON")
        return False

    monkeypatch.setattr(judge, "correct_answer", correct_answer)
    t = dict(question="?", answer="1", prediction="one", stop="answer", messages=[])
    assert evaluate.score(t | dict(metric="rule"), teacher="teacher")["verdict"] == "wrong"
    failed = evaluate.score(t | dict(metric="judge"), teacher="teacher")
    assert asked == [None, "teacher"] and failed["verdict"] == "failed"
    assert why_zero(t | failed) == "failed"


def test_rows_by_kind_and_horizon(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: t["answer"] if t["kind"] == "math" else "999"))
    rows = run(tmp_path / "out", "--tasks", tasks_file(tmp_path / "eval.jsonl", 8))["rows"]
    assert {row_name(r): r["mean"] for r in rows} == {
        "eval": 50,
        "eval, math": 100,
        "eval, search": 0,
        "eval, math, horizon 2": 100,
        "eval, math, horizon 3": 100,
        "eval, search, horizon 2": 0,
        "eval, search, horizon 3": 0,
    }
    assert "unanswered" in capsys.readouterr().out


# ---- the real rollout, resume, ranks ----


class Oracle:
    """An engine that searches nothing and answers at once, through real interpreters."""

    def play(self, episodes, progress=None, **sampling):
        for e in episodes:
            e.turn("<first_thought>Answer.</first_thought>")
            e.turn(f"<thought>So.</thought><code>final_answer_print({e.task['answer']!r})</code>")


def test_real_interpreters_and_resume(tmp_path):
    out, tasks = tmp_path / "rl-greedy", tasks_file(tmp_path / "eval.jsonl")
    flags = ["--tasks", tasks, "--runs", 2, "--chunk", 4, "--greedy"]
    results = run(out, *flags, engine=Oracle())
    assert (
        results["rows"][0]["mean"] == 100
        and results["name"] == "rl-greedy"
        and results["decoding"] == "greedy"
    )
    path = out / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    path.write_bytes(b"".join(lines[:7]) + lines[7][:30])  # killed while the eighth line was written

    class Counting(Oracle):
        played = 0

        def play(self, episodes, **flags):
            Counting.played += len(episodes)
            super().play(episodes, **flags)

    assert run(out, *flags, engine=Counting())["rows"][0]["n"] == 6 and Counting.played == 5
    keys = [(p["id"], p["run"]) for p in map(json.loads, path.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 12
    assert json.load(open(out / "args.json"))["args"]["runs"] == 2
    with pytest.raises(InputError, match="was made with --max-steps 8, not with --max-steps 4"):
        run(out, *flags, "--max-steps", 4, engine=Oracle())


@pytest.mark.parametrize("prompt", ["react", "cot"])
def test_several_runs_are_several_draws(prompt, checkpoint, tmp_path):
    """The first is what it would be alone."""
    tasks = tasks_file(tmp_path / "eval.jsonl", 4)
    said = {}
    for runs in 1, 3:
        out = tmp_path / str(runs)
        run(out, "--tasks", tasks, "--runs", runs, "--temperature", 1, "--max-tokens", 12, "--prompt", prompt, "--model", checkpoint,
            "--metric", "rule", engine=None)
        for p in map(json.loads, (out / "predictions.jsonl").read_text().splitlines()):
            said[runs, p["id"], p["run"]] = p["messages"][-1]["content"]
    for name in {name for _, name, _ in said}:
        assert said[1, name, 0] == said[3, name, 0]
        assert len({said[3, name, k] for k in range(3)}) == 3


def test_failed_tasks_are_tried_again(tmp_path, monkeypatch):
    tasks = tasks_file(tmp_path / "eval.jsonl", 4)

    def broken(engine, starts, **flags):
        return [
            t | dict(stop="failed", prediction=None) for t in fake_rollout(lambda t: None)(engine, starts)
        ]

    monkeypatch.setattr(env, "rollout", broken)
    assert run(tmp_path / "out", "--tasks", tasks)["rows"][0]["failed"] == 4
    monkeypatch.setattr(env, "rollout", fake_rollout(lambda t: t["answer"]))
    row = run(tmp_path / "out", "--tasks", tasks)["rows"][0]
    assert (row["failed"], row["mean"]) == (0, 100)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 4


def test_ranks_share_the_tasks(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{ROOT!r}, {os.path.join(ROOT, 'tests')!r}]\n"
        "import eval, test_eval; eval.run(eval.parse_args(sys.argv[1:]), test_eval.Oracle())\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(script),
        "run",
        "--model",
        "stub",
        "--tasks",
        str(tasks_file(tmp_path / "eval.jsonl", 7)),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(os.listdir(tmp_path / "out")) == ["args.json", "costs", "predictions.jsonl", "results.json"]
    lines = [json.loads(line) for line in open(tmp_path / "out" / "predictions.jsonl")]
    assert (
        sorted(p["id"] for p in lines) == [f"t{i}" for i in range(7)]
        and done.stdout.count("100.0 ± 0.0") >= 1
    )


# ---- prompts for models that were not trained here, and self-consistent steps ----

class Script:
    """An engine that says the next of a list of turns; a list in the list: one for each candidate."""

    def __init__(self, *turns):
        self.turns, self.prompts = list(turns), []

    def play(self, episodes, progress=None, **sampling):
        said = self.turns.pop(0)
        for e, content in zip(episodes, said if isinstance(said, list) else [said] * len(episodes)):
            self.prompts.append(e.messages[0]["content"])
            e.turn(content)


def predictions(out):
    return [json.loads(line) for line in open(out / "predictions.jsonl", encoding="utf-8")]


SUM = [{"id": "1", "question": "What is 2 + 3?", "answer": "5"}]


@pytest.fixture
def one_task(tmp_path):
    (tmp_path / "sums.jsonl").write_text(json.dumps(SUM[0]) + "\n")
    return tmp_path / "sums.jsonl"


def test_agent_prompt_runs_code_in_tags_or_fences_and_cuts_what_follows(tmp_path, one_task):
    engine = Script("Let me think.",
                    "<thought>Add.</thought><code>x = 2 + 3\nprint(x)</code>\nObservation: 7",
                    "```python\nfinal_answer_print(x)\n```")
    row = run(tmp_path / "out", "--tasks", one_task, "--prompt", "agent", engine=engine)["rows"][0]
    (p,) = predictions(tmp_path / "out")
    assert (row["mean"], p["stop"], p["prediction"], p["usage"]["student_calls"]) == (100, "answer", "5", 3)
    contents = [m["content"] for m in p["messages"]]
    assert "final_answer_print(answer)" in contents[0] and contents[0].endswith("Question: What is 2 + 3?")
    assert p["question"] == "What is 2 + 3?" and "neither a program" in contents[2]
    assert contents[3].endswith("</code>") and contents[4] == "Observation: 5"        # not the invented 7


def test_tir_prompt_ends_with_a_box(tmp_path, one_task):
    engine = Script("First add.\n```python\nprint(2 + 3)\n```\nwhich gives", "So it is \\boxed{5}.")
    run(tmp_path / "out", "--tasks", one_task, "--prompt", "tir", engine=engine)
    (p,) = predictions(tmp_path / "out")
    assert (p["prediction"], p["correct"], p["messages"][2]["content"]) == ("5", True, "Observation: 5")
    assert "```python" in engine.prompts[0] and p["messages"][1]["content"].endswith("```")


def test_cot_prompt_runs_nothing_and_has_one_turn(tmp_path, one_task):
    run(tmp_path / "a", "--tasks", one_task, "--prompt", "cot",
        engine=Script("```python\nprint(1)\n```\nSo \\boxed{\\frac{10}{2}}"))
    (p,) = predictions(tmp_path / "a")
    assert (p["correct"], len(p["messages"])) == (True, 2)
    out = run(tmp_path / "b", "--tasks", one_task, "--prompt", "cot", engine=Script("I do not know"))
    row = out["rows"][0]
    assert (row["mean"], row["unanswered"]) == (0, 1)


def test_steps_run_out(tmp_path, one_task):
    engine = Script(*["<thought>Again.</thought><code>print(1)</code>"] * 9)
    flags = ["--prompt", "agent", "--max-steps", 3]
    row = run(tmp_path / "out", "--tasks", one_task, *flags, engine=engine)["rows"][0]
    (p,) = predictions(tmp_path / "out")
    assert (p["stop"], p["usage"]["student_calls"], row["unanswered"]) == ("max_steps", 4, 1)


def test_the_most_frequent_output_wins_and_errors_are_dropped(tmp_path, one_task):
    code = "<thought>{}</thought><code>{}</code>".format
    engine = Script(
        "<first_thought>Add.</first_thought>",
        [code("a", "x = 6\nprint(x)"), code("b", "x = 1 / 0"), code("c", "x = 5\nprint(x)"), "no code at all",
         code("e", "y = 5\nx = y\nprint(x)"), code("f", "x = 1 / 0")],
        [code("g", "x += 1\nprint(x)"), code("h", "final_answer_print(x)"),
         code("i", "final_answer_print( x )"), code("j", "print(y)"),
         code("k", "x += 10\nprint(x)"), code("l", "print(z)")])
    run(tmp_path / "out", "--tasks", one_task, "--self-consistent", 6, engine=engine)
    (p,) = predictions(tmp_path / "out")
    said = [m["content"] for m in p["messages"] if m["role"] == "assistant"]
    assert said[1:] == [code("c", "x = 5\nprint(x)"), code("h", "final_answer_print(x)")]   # 5 twice, 6 once
    assert p["prediction"] == "5" and p["usage"]["student_calls"] == 18      # no candidate saw another's x


def test_if_every_candidate_fails_the_model_sees_an_error(tmp_path, one_task):
    bad = "<thought>t</thought><code>1 / 0</code>"
    engine = Script("<first_thought>p</first_thought>", ["hm", bad], ["hm", "hm"])
    run(tmp_path / "out", "--tasks", one_task, "--self-consistent", 2, engine=engine)
    (p,) = predictions(tmp_path / "out")
    assert "ZeroDivisionError" in p["messages"][4]["content"] and p["stop"] == "format"


def test_prompts_and_self_consistency_with_a_model(tmp_path, checkpoint, one_task):
    """An untrained model says nothing of use; the budget of tokens and the counts must hold all the same."""
    for flags in (["--prompt", "cot"], ["--prompt", "tir", "--self-consistent", 3], ["--self-consistent", 2]):
        out = tmp_path / "-".join(map(str, flags))
        row = run(out, "--tasks", one_task, "--model", checkpoint, "--max-tokens", 40, "--max-steps", 2,
                  *flags, engine=None)["rows"][0]
        (p,) = predictions(out)
        assert row["mean"] == 0 and row["unanswered"] + row["truncated"] == 1
        assert 0 < p["usage"]["student_tokens"] <= 40 * (flags[-1] if isinstance(flags[-1], int) else 1)


def test_prompts_with_an_endpoint(tmp_path, one_task):
    asked = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"])
            text = "```python\nprint(2 + 3)\n```" if len(body["messages"]) == 1 else "\\boxed{5}"
            reply = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {}}
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    row = run(tmp_path / "out", "--tasks", one_task, "--prompt", "tir", "--self-consistent", 3,
              "--engine", "url", "--student-url", url, engine=None)["rows"][0]
    server.shutdown()
    assert row["mean"] == 100 and len(asked) == 6 and asked[-1][2]["content"] == "Observation: 5"


def test_greedy_candidates_are_refused(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args("run --model m --tasks t --out o --greedy --self-consistent 4".split())
    assert "--self-consistent needs a temperature" in capsys.readouterr().err


# ---- tables ----


def results(folder, name, decoding, groups, metric="judge"):
    os.makedirs(folder, exist_ok=True)
    rows = [dict(group=g, part={}, metric=metric, n=10, mean=m, se=1.5) for g, m in groups.items()]
    with open(os.path.join(folder, "results.json"), "w") as f:
        json.dump(dict(name=name, decoding=decoding, rows=rows), f)
    return str(folder)


def test_combined_table(tmp_path, capsys):
    folders = [
        results(tmp_path / n, n, n.split("-")[1], {"eval": m})
        for n, m in {"bc-greedy": 20.0, "bc-sampled": 15.0, "sft-greedy": 50.0}.items()
    ]
    evaluate.table(evaluate.parse_args(["table", *folders, "--out", str(tmp_path / "t.md")]))
    lines = [re.sub(r" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "| model | eval, greedy | eval, sampled |"
    assert lines[2:4] == ["| bc | 20.0 ± 1.5 | 15.0 ± 1.5 |", "| sft | 50.0 ± 1.5 | – |"]
    assert "| sft" in (tmp_path / "t.md").read_text()


def test_our_row_stands_under_the_papers_rows(tmp_path, capsys):
    main = dict(
        zip("AIME24 AIME25 MATH500 OlymMATH HotpotQA 2Wiki MuSiQue Bamboogle".split(), range(10, 90, 10))
    )
    evaluate.table(evaluate.parse_args(["table", results(tmp_path / "a", "mine-sampled", "sampled", main)]))
    out = re.sub(r" +", " ", capsys.readouterr().out)
    assert (
        "Table 1 of the paper" in out
        and "Table 3 of the paper" in out
        and "Table 5" not in out
        and "Table 2" not in out
    )
    assert "| Qwen2.5-7B, SCoRe-RL | 36.7 | 26.7 | 82.0 | 26.5 | 61.4 | 76.8 | 32.2 | 72.8 | 50.8 |" in out
    assert "| ours: mine, sampled | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 | 60.0 | 70.0 | 80.0 | 45.0 |" in out
    deep = {"GAIA": 40.0, "GAIA-1": 90.0, "HLE": 10.0, "xBench": 20.0, "WebWalker": 30.0}
    evaluate.table(evaluate.parse_args(["table", results(tmp_path / "b", "b", "greedy", deep)]))
    assert "| ours: b, greedy | 90.0 | – | – | 40.0 | 10.0 | 20.0 | 30.0 | 25.0 |" in re.sub(
        r" +", " ", capsys.readouterr().out
    )
    evaluate.table(
        evaluate.parse_args(["table", results(tmp_path / "c", "c", "greedy", {"MATH500": 70.0}, "rule")])
    )
    out = re.sub(r" +", " ", capsys.readouterr().out)
    assert (
        "Table 5 of the paper" in out
        and "Table 1 " not in out
        and "| ours: c, greedy | 70.0 | – | – | – | – |" in out
    )


@pytest.mark.parametrize("levels, cells", [((1,), "10.0 | – | – | –"), ((1, 3), "10.0 | – | 30.0 | –"),
                                           ((1, 2, 3), "10.0 | 20.0 | 30.0 | 20.0")])
def test_a_part_of_gaia_is_not_its_column(levels, cells, tmp_path, capsys):
    folder = results(tmp_path / "a", "a", "greedy", {"GAIA": 20.0})
    path = tmp_path / "a" / "results.json"
    found = json.loads(path.read_text())
    for level in levels:
        found["rows"].append(found["rows"][0] | {"part": {"Level": str(level)}, "mean": 10.0 * level})
    path.write_text(json.dumps(found))
    evaluate.table(evaluate.parse_args(["table", folder]))
    out = re.sub(r" +", " ", capsys.readouterr().out)
    assert f"| ours: a, greedy | {cells} | – | – | – | – |" in out


def test_paper_numbers_add_up():
    """The averages that the paper prints follow from its columns, but for rounding and a misprint or two."""
    text = open(os.path.join(ROOT, "assets", "paper_tables.md"), encoding="utf-8").read()
    rows = [
        [float(x) for x in re.findall(r"\| +(\d+\.\d)(?= )", line)]
        for line in text.splitlines()
        if re.search(r"\d\.\d +\|", line)
    ]
    assert Counter(map(len, rows)) == {9: 23, 8: 7, 5: 14}
    for row in rows:
        columns = row[:-1] if len(row) != 8 else row[3:-1]
        assert abs(sum(columns) / len(columns) - row[-1]) < 1.6, row


# ---- errors ----


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot read"),
        ('{"question": "?", "answer": "1"}\n{"question": \n', "line 2: not valid JSON"),
        ('{"question": "?"}\n', 'line 1: the field "answer"'),
        ('{"answer": "1"}\n', 'line 1: the field "question"'),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "tasks.jsonl").write_text(text)
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(ROOT, "eval.py"),
            "run",
            "--model",
            "m",
            "--tasks",
            str(tmp_path / "tasks.jsonl"),
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_missing_results_and_models_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot read .*results.json"):
        evaluate.table(evaluate.parse_args(["table", str(tmp_path)]))
    with pytest.raises(InputError, match="cannot use the model"):
        run(
            tmp_path / "out",
            "--tasks",
            tasks_file(tmp_path / "eval.jsonl"),
            "--model",
            tmp_path / "nothing",
            engine=None,
        )
