"""The study: the rule that decides whether an ordering holds, on files with known answers; longer tasks."""
import json
import random
import re
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
    # 10 of 200 tasks turned right: sd 0.218 a task, over the square root of 200
    assert rows[2] == "| 0 | 10.0 | 60.0 | 65.0 | – | +50.0 ± 3.5 | +5.0 ± 1.5 |"  # adaptive: was not run


def test_what_a_further_seed_does_not_reproduce_is_not_claimed(runs):
    pairs = runs(*[(20, 120, 140)] * 3, (20, 120, 110), arms=("bc", "sft", "rl"))
    table, verdicts = study.orderings(pairs[:3], pairs[3:])
    assert verdicts["sft", "bc"] == "holds" and verdicts["rl", "sft"] == study.REFUTED
    assert verdicts["rl", "sft-more"] == "not run"
    assert table.count(" | 3 |") == 2                                              # seeds
    assert study.orderings(pairs[:3], [])[1]["rl", "sft"] == "holds"
    table = [line for line in study.again(pairs[3:], verdicts).splitlines() if " above " in line][1:]
    assert [line.split(" | ")[1] for line in table] == ["yes", "no"]


# ---- the arms of RL: their logs ----

def trained(run, arm, rows, **settings):
    """The files that a training leaves: its log, its flags, the seconds that it took."""
    folder = run.folder / "ckpt" / arm
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "args.json").write_text(json.dumps(dict(commit="0" * 40, args=settings)))
    (run.folder / "done").mkdir(exist_ok=True)
    (run.folder / "done" / arm).write_text("9.0 5.0 1.0\n")


def steps_of_rl(accuracies, tokens=100, every=2, **fields):
    """A log with an evaluation every so many steps."""
    rows = []
    for step in range(1, every * len(accuracies) + 1):
        row = dict(step=step, generated_tokens=step * tokens, zero_variance=0.5, reward_correct=0.5, entropy=0.1)
        if step % every == 0:
            row["eval_accuracy"] = accuracies[step // every - 1]
        rows.append(row | {name: values[step - 1] for name, values in fields.items()})
    return rows


def test_equal_rollouts_are_read_at_the_last_step_that_all_were_evaluated_at(runs):
    three = runs(*[(100,)] * 3, arms=("sft",))
    for i, run in enumerate(three):
        trained(run, "rl", steps_of_rl([0.5, 0.6 + i / 100, 0.9]), prompts=4, group=2)
        trained(run, "rl-question", steps_of_rl([0.5, 0.5]), prompts=4, group=2)
    assert study.last_common_step(three, ["rl", "rl-question", "rl-no-key"]) == 4
    mean, low, high, n = study.difference_at(three, "rl", "rl-question", 4)
    assert (mean, n) == (pytest.approx(11), 3) and high - mean == pytest.approx(4.30 / 3 ** 0.5)   # 10, 11, 12
    table = study.equal_rollouts(three)
    assert table.startswith("After 4 steps, 32 rollouts:")
    assert "| SCoRe-RL above RL from the question (plain GRPO) | **holds** | +11.0 (+8.5 to +13.5) |" in table
    assert "| SCoRe-RL above SCoRe-RL without key-step reward | **not run** | – |" in table
    (three[0].folder / "done" / "rl").unlink()                                     # not at its end: not compared
    assert study.difference_at(three, "rl", "rl-question", 4) is None
    assert study.equal_rollouts([]) == study.NOT_RUN


def test_groups_without_variance_over_the_run(runs):
    run, = runs((100,), arms=("sft",))
    shares = [0.4, 0.4, 0.3, 0.3, 0.3, 0.3, 0.2, 0.2]
    trained(run, "rl-adaptive", steps_of_rl([0.5] * 4, zero_variance=shares), prompts=4, group=2)
    table = study.variance_table([run])
    line = next(line for line in table.splitlines() if "adaptive" in line)
    assert line == "| SCoRe-RL, adaptive starts | 8 | 64 | 1 | 30.0 | 40 → 20 | 50 → 50 | 0.100 → 0.100 |"
    assert "At most 35 % without variance with adaptive starts: holds" in table
    shares = [share + 0.1 for share in shares]
    (run.folder / "ckpt" / "rl-adaptive" / "metrics.jsonl").unlink()
    (run.folder / "ckpt" / "rl-adaptive" / "args.json").unlink()
    (run.folder / "ckpt" / "rl-adaptive").rmdir()
    trained(run, "rl-adaptive", steps_of_rl([0.5] * 4, zero_variance=shares), prompts=4, group=2)
    assert "adaptive starts: does not hold** (40.0 %)" in study.variance_table([run])


def test_budgets_hold_what_the_student_generated_and_the_teacher_wrote(runs):
    run, = runs((100,), arms=("sft",))
    (run.folder / "bc.jsonl").write_text(json.dumps(dict(usage=dict(teacher_completion_tokens=7))) + "\n")
    for name in "mps", "mps-self":
        (run.folder / name).mkdir()
        usage = dict(teacher_completion_tokens=20, student_tokens=100)
        (run.folder / name / "mps.jsonl").write_text((json.dumps(dict(usage=usage)) + "\n") * 2)
    for arm in "bc", "sft", "self", "dpo":
        trained(run, arm, [dict(step=1), dict(step=2)], batch=16)
    trained(run, "rl", steps_of_rl([0.5] * 2, tokens=1000), prompts=4, group=2)
    assert study.costs(run, "rl") == dict(seconds=18, tasks=3, teacher=47, generated=4200, examples=64, rollouts=32)
    assert study.costs(run, "self")["generated"] == study.costs(run, "dpo")["generated"] == 200
    assert study.costs(run, "resample") is None


def test_settings_of_rl_show_the_course_of_their_runs(runs):
    run, = runs((120,), arms=("rl-cool",))
    (run.folder / "eval" / "rl-cool-sampled").rename(run.folder / "eval" / "rl-cool-dev-sampled")
    half = [0.5] * 4 + [0.75] * 4
    trained(run, "rl-cool", steps_of_rl([0.5] * 4, reward_correct=half), prompts=4, group=2)
    table = study.recipe_table([run]).splitlines()
    assert table[4] == "| temperature 0.6 | 50 → 75 | 50 → 50 | 0.100 → 0.100 | 60.0 |"
    assert table[5].endswith("| – | – | – | – |")                                  # was not run
    assert study.recipe_table([]) == study.NOT_RUN


def test_every_part_of_the_page_is_made_and_no_other():
    with open(f"{ROOT}/demo/study.md", encoding="utf-8") as file:
        asked = set(re.findall(r"{{(\w+)}}", file.read()))
    with open(f"{ROOT}/demo/study.py", encoding="utf-8") as file:
        made = re.search(r"parts = dict\((.*?)\n    page", file.read(), re.DOTALL)[1]
    assert asked == set(re.findall(r"(\w+)=", made)) and len(asked) > 10


def test_the_arms_of_the_script_are_those_of_the_page():
    with open(f"{ROOT}/demo/study.sh", encoding="utf-8") as file:
        script = file.read()
    named = {arm for name in ("main", "baselines") for arm in re.search(rf'(?m)^{name}="(.*)"', script)[1].split()}
    assert named - {"probe"} <= set(study.ARMS)
    assert {arm for pair in study.ORDERINGS for arm in pair[:2]} <= named | {"bc", "sft"} | study.REMOVED
    assert not named & study.REMOVED


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


def lengths(tasks):
    return {(task["kind"], task["horizon"]) for task in tasks}


def test_longer_tasks_leave_the_other_files_as_they_are(tmp_path):
    few = ["--seed", "3", "--bc", "20", "--mps", "20", "--dev", "20", "--eval", "20", "--pretrain", "20"]
    world.main(world.parse_args(["--out", str(tmp_path / "a"), *few]))
    world.main(world.parse_args(["--out", str(tmp_path / "b"), *few, "--beyond", "12"]))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert not (tmp_path / "a" / "beyond.jsonl").exists()
    longer = study.read_jsonl(tmp_path / "b" / "beyond.jsonl")
    assert lengths(longer) == {("math", 7), ("math", 8), ("search", 6), ("search", 7)}
    for t in longer:
        steps = (len(world.parse_math(t["question"])[2]) + 1 if t["kind"] == "math"
                 else len(world.parse_search(t["question"])))
        assert steps == t["horizon"]


def test_the_longest_search_and_the_share_of_searches_are_flags(tmp_path):
    few = ["--bc", "1", "--mps", "1", "--dev", "1", "--pretrain", "1"]
    world.main(world.parse_args(["--out", str(tmp_path), *few, "--eval", "120", "--beyond", "16", "--searches", "6",
                                 "--search-every", "4"]))
    tasks, longer = (study.read_jsonl(tmp_path / f"{name}.jsonl") for name in ("eval", "beyond"))
    assert [task["kind"] for task in tasks[:8]] == ["math", "math", "math", "search"] * 2
    assert lengths(tasks) == {("math", n) for n in range(2, 7)} | {("search", n) for n in range(2, 7)}
    assert lengths(longer) == {("math", 7), ("math", 8), ("search", 7), ("search", 8)}
    amounts = [task["horizon"] for task in tasks if task["kind"] == "math"]
    assert {amounts.count(n) for n in range(2, 7)} == {18}                         # evenly


@pytest.mark.parametrize("flags, said", [(["--arms", "rl nonsense"], "no arm 'nonsense'"),
                                         (["--seeds", "1 x"], "needs numbers, not 'x'"),
                                         (["--nonsense"], "unknown argument --nonsense")])
def test_wrong_flags_are_named(flags, said):
    done = subprocess.run(["bash", f"{ROOT}/demo/study.sh", *flags], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and not done.stdout
