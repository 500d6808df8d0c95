"""The study: the rule that decides whether an ordering holds, on files with known answers; longer tasks."""
import json
import random
import shutil
import subprocess

import pytest

import study
import world
from conftest import ROOT


@pytest.fixture
def runs(tmp_path):
    """make(accuracies of a, accuracies of b): a seed's folder for each pair, 200 tasks in each."""
    def make(*pairs, arms="ab"):
        for seed, pair in enumerate(pairs):
            for arm, solved in zip(arms, pair):
                folder = tmp_path / f"seed-{seed}" / "eval" / f"{arm}-sampled"
                folder.mkdir(parents=True)
                rows = [dict(id=f"t{i}", kind="math" if i % 2 else "search", horizon=2 + i % 3,
                             score=float(i < solved)) for i in random.Random(seed).sample(range(200), 200)]
                (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                (folder / "results.json").write_text("{}")
        return [study.Run(tmp_path / f"seed-{seed}") for seed in range(len(pairs))]
    return make


@pytest.mark.parametrize("pairs, said", [
    ([(120, 100), (130, 100), (125, 100), (128, 100), (121, 100)], "holds"),
    ([(120, 100), (100, 130), (125, 100), (98, 100), (121, 100)], "not resolved by this much data"),
    ([(100, 120), (100, 121), (100, 119)], "does not hold"),
    ([(100, 100), (101, 101), (102, 102)], "does not hold"),                   # less than a point of gain
    ([(140, 100)], "holds"),                                                   # one seed: over its tasks
    ([(101, 100)], "not resolved by this much data")])
def test_verdicts(runs, pairs, said):
    assert study.verdict(study.difference(runs(*pairs), "a", "b", "sampled")) == said


def test_interval_is_students_over_seeds(runs):
    mean, low, high, n = study.difference(runs((110, 100), (120, 100), (130, 100)), "a", "b", "sampled")
    assert (mean, n) == (pytest.approx(10), 3)
    assert high - mean == mean - low == pytest.approx(4.30 * 5 / 3 ** 0.5)         # differences 5, 10, 15


def test_what_was_not_run_is_no_number(runs):
    pair = runs((110, 100))
    assert study.difference(pair, "a", "c", "sampled") is None
    assert study.verdict(None) == "not run" and study.points(None) == study.spread([None]) == "–"
    (pair[0].folder / "eval" / "b-sampled" / "results.json").unlink()              # an unfinished evaluation
    assert study.Run(pair[0].folder).accuracy("b", "sampled") is None


def test_parts_of_an_evaluation(runs):
    run, = runs((100, 50))
    assert run.accuracy("a", "sampled", kind="math") == 50
    assert run.accuracy("a", "sampled", id="t1") == 100
    assert run.accuracy("a", "sampled", kind="math", horizon=99) is None
    assert run.accuracy("a", "sampled", hard=True) is None
    (run.folder / "probe").mkdir()
    rows = [dict(id=f"t{i}", outcome=outcome) for i, outcome in ((1, "hard"), (150, "hard"), (2, "solved"))]
    (run.folder / "probe" / "mps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert study.Run(run.folder).accuracy("a", "sampled", hard=True) == 50


def test_gains_of_a_seed_are_paired_over_its_tasks(runs):
    rows = study.seeds_table(runs((20, 120, 130), arms=("bc", "sft", "rl"))).splitlines()
    assert rows[2] == "| 0, greedy | – | – | – | – | – |"                          # was not run
    # 10 of 200 tasks turned right: sd 0.218 a task, over the square root of 200
    assert rows[3] == "| 0, sampled | 10.0 | 60.0 | 65.0 | +50.0 ± 3.5 | +5.0 ± 1.5 |"


def test_what_a_further_seed_does_not_reproduce_is_not_claimed(runs, tmp_path):
    pairs = runs(*[(20, 120, 140)] * 3, (20, 120, 110), arms=("bc", "sft", "rl"))
    for run in pairs:
        shutil.copytree(run.folder / "eval" / "sft-sampled", run.folder / "eval" / "sft-greedy")
    _, verdicts = study.orderings(pairs[:3], pairs[3:])
    assert verdicts["sft", "bc"] == "holds" and verdicts["rl", "sft"] == study.REFUTED
    assert verdicts["rl", "sft-more"] == "not run"
    assert study.orderings(pairs[:3], [])[1]["rl", "sft"] == "holds"
    table = [line for line in study.again(pairs[3:], verdicts).splitlines() if " above " in line][1:]
    assert [line.split(" | ")[1] for line in table] == ["yes", "no"]


def test_settings_of_rl_show_the_course_of_their_runs(runs):
    run, = runs((100, 120), arms=("sft", "rl-again"))
    for arm in "sft", "rl-again":
        (run.folder / "eval" / f"{arm}-sampled").rename(run.folder / "eval" / f"{arm}-dev-sampled")
    (run.folder / "ckpt" / "rl-again").mkdir(parents=True)
    rows = [dict(reward_correct=0.5 if step < 8 else 0.75, zero_variance=0.25, entropy=0.2 / (1 + step // 8))
            for step in range(16)]
    (run.folder / "ckpt" / "rl-again" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = study.recipe_table([run]).splitlines()
    assert table[2] == "| SCoRe-SFT, where all start | – | – | – | – | 50.0 |"
    assert table[3].endswith("| 50 → 75 | 25 → 25 | 0.200 → 0.100 | – | 60.0 |")
    assert table[4].endswith("| – | – | – | – | – |")                              # was not run


def test_cost_is_the_steps_that_the_teacher_finds_wrong():
    def played(*codes):
        steps = ["<first_thought>I will compute the amount step by step.</first_thought>",
                 *(world.write("Next.", code) for code in codes)]
        return dict(question="Lea has 6 pears, plus 3, times 2. How many pears does Lea have?",
                    messages=[m for step in steps for m in (dict(role="assistant", content=step),
                                                            dict(role="user", content="Observation: None"))])
    right = [f"Lea={amount}\nprint(Lea)" for amount in ("6", "Lea+3", "Lea*2")] + ["final_answer_print(Lea)"]
    assert study.wrong_steps(played(*right)) == 0
    assert study.wrong_steps(played(*right[:2], "Lea=Lea*3\nprint(Lea)", right[3])) == 2
    assert study.wrong_steps(played(right[0], "Lea=Lea/3\nprint(Lea)", *right[1:])) == 1


def test_longer_tasks_leave_the_other_files_as_they_are(tmp_path):
    few = ["--seed", "3", "--bc", "20", "--mps", "20", "--dev", "20", "--eval", "20", "--pretrain", "20"]
    world.main(world.parse_args(["--out", str(tmp_path / "a"), *few]))
    world.main(world.parse_args(["--out", str(tmp_path / "b"), *few, "--beyond", "12"]))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert not (tmp_path / "a" / "beyond.jsonl").exists()
    longer = study.read_jsonl(tmp_path / "b" / "beyond.jsonl")
    lengths = {(t["kind"], t["horizon"]) for t in longer}
    assert lengths == {("math", 7), ("math", 8), ("search", 6), ("search", 7)}
    for t in longer:
        steps = (len(world.parse_math(t["question"])[2]) + 1 if t["kind"] == "math"
                 else len(world.parse_search(t["question"])))
        assert steps == t["horizon"]


@pytest.mark.parametrize("flags, said", [(["--arms", "rl nonsense"], "no arm 'nonsense'"),
                                         (["--seeds", "1 x"], "needs numbers, not 'x'"),
                                         (["--nonsense"], "unknown argument --nonsense")])
def test_wrong_flags_are_named(flags, said):
    done = subprocess.run(["bash", f"{ROOT}/demo/study.sh", *flags], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and not done.stdout
