"""`eval.py report` on a made-up run, opened in a real headless browser."""

import json
import os
import random
import shutil
import sys
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import eval as evaluate  # noqa: E402
from plumbing.cli import InputError  # noqa: E402
from plumbing.report import collect, pack  # noqa: E402
from plumbing.results import result_rows  # noqa: E402

ATTACK = (
    "<script>document.title='owned'; window.owned = 1</script>"
    "<img src=x onerror='window.owned = 1'><!-- </script>"
)
WORDS = "amount price total distance triangle angle river mayor author year number apples half square".split()


def write(path, records):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r) + "\n" for r in records)


def step(rng, k, last=False):
    words = " ".join(rng.choice(WORDS) for _ in range(12))
    code = (
        f'final_answer_print("{rng.randint(1, 99)}")'
        if last
        else (
            f"# {rng.choice(WORDS)}\nvalue_{k} = {rng.randint(1, 99)} * 7\nfor i in range(3):\n"
            f'    print("step {k}", value_{k} + i)\nprint(web_search("{rng.choice(WORDS)} of Ann"))'
        )
    )
    return f"<thought>First compute the {words}.</thought><code>{code}</code>"


def observation(rng):
    return " ".join(rng.choice(WORDS) for _ in range(30)) + f" {rng.random()}"


def trajectory(rng, i, corrections=0, correct=True):
    kind, steps = rng.choice(["math", "search"]), rng.randint(2, 5)
    messages = [
        dict(
            role="user", content=f"Question {i}: how large is the {rng.choice(WORDS)} of {rng.choice(WORDS)}?"
        ),
        dict(role="assistant", content="<first_thought>Find the parts, then add them.</first_thought>"),
        dict(role="user", content="Observation: None"),
    ]
    fixes = []
    for k in range(1, steps + 1):
        content, seen = step(rng, k, k == steps), observation(rng)
        if len(fixes) < corrections:
            fixes.append(
                dict(
                    step=k,
                    analysis=f"The student adds before it knows the {rng.choice(WORDS)}.",
                    chosen=dict(content=content, observation=seen),
                    rejected=dict(content=step(rng, 50 + k), observation="REJECTED " + observation(rng)),
                )
            )
        messages.append(dict(role="assistant", content=content))
        if k < steps:
            messages.append(dict(role="user", content="Observation: " + seen))
    while len(fixes) < corrections:  # replaced by an earlier correction later on
        fixes.append(dict(fixes[0], chosen=dict(content=step(rng, 90), observation="x")))
    return dict(
        id=f"t{i}",
        question=messages[0]["content"],
        answer="42",
        kind=kind,
        horizon=steps,
        messages=messages,
        prediction="42" if correct else "17",
        correct=correct,
        stop="answer" if rng.random() > 0.1 else "max_steps",
        corrections=fixes,
        interventions=corrections,
        outcome="hard" if not correct else "corrected" if corrections else "solved",
        usage=dict(student_calls=steps, student_tokens=300),
    )


def make_run(folder, n=200, seed=0):
    """A run folder like the demo's, with every file that `report` knows."""
    rng = random.Random(seed)
    write(f"{folder}/tasks/eval.jsonl", [dict(id="1", question="?", answer="1")])
    write(f"{folder}/bc.jsonl", [trajectory(rng, i) for i in range(n // 4)])
    mps = [
        trajectory(rng, i, c, correct=c < 5)
        for i, c in enumerate(rng.choices(range(6), [50, 30, 10, 5, 3, 2], k=n))
    ]
    mps[0] |= dict(
        id="attack",
        question="ATTACK " + ATTACK,
        answer=ATTACK,
        prediction=ATTACK,
        corrections=[],
        interventions=0,
        correct=True,
        messages=[
            dict(role="user", content=ATTACK),
            dict(role="assistant", content=f"<thought>{ATTACK}</thought>" f"<code>{ATTACK}</code>"),
            dict(role="user", content="Observation: " + ATTACK),
        ],
    )
    write(f"{folder}/mps.jsonl", mps)
    write(
        f"{folder}/ckpt/bc/metrics.jsonl",
        [
            dict(step=s, loss=2 / (1 + s / 9) + rng.random() / 9, lr=1e-3, grad_norm=1, tokens_per_s=9000)
            for s in range(200)
        ],
    )
    write(
        f"{folder}/ckpt/rl/metrics.jsonl",
        [
            dict(
                step=s,
                reward=0.3 + s / 200 + rng.random() / 20,
                reward_correct=0.2 + s / 200,
                reward_chosen=0.1,
                reward_rejected=0.01,
                zero_variance=0.3,
                response_tokens=200 - s,
                truncated=0.02,
                clip_fraction=0.01,
                grad_norm=0.4,
                seconds_rollout=8,
                seconds_reward=0.4,
                seconds_update=5 + rng.random(),
            )
            for s in range(60)
        ],
    )
    write(
        f"{folder}/ckpt/sft/metrics.jsonl",
        [dict(step=s, loss=[1.0, float("nan"), None][s % 3]) for s in range(9)],
    )
    rollouts = [trajectory(rng, i, correct=i % 2 == 0) for i in range(n // 10)]
    for r in rollouts:
        r |= dict(
            step=rng.randint(0, 59),
            reward=rng.choice([1.0, 0.5, 0.1, 0.0]),
            reward_correct=r.pop("correct"),
            reward_chosen=True,
            reward_rejected=False,
            key=1,
            usage=dict(student_calls=len(r["messages"]) // 2 - 1),
            chosen=dict(content=step(rng, 1), observation="x"),
            rejected=dict(content=step(rng, 2), observation="y"),
        )
    write(f"{folder}/ckpt/rl/rollouts.jsonl", rollouts)
    for stage, chance in dict(bc=0.3, sft=0.5, rl=0.6).items():
        for decoding in ("greedy", "sampled"):
            predictions = [trajectory(rng, 10_000 + i, correct=rng.random() < chance) for i in range(n)]
            for p in predictions:
                p |= dict(group="eval", run=0, score=float(p["correct"]), metric="judge", verdict="right")
            for p, t in zip(predictions[:20], [t for t in mps if not t["correct"]]):
                p["id"] = t["id"]
            out = f"{folder}/eval/{stage}-{decoding}"
            write(f"{out}/predictions.jsonl", predictions)
            with open(f"{out}/results.json", "w") as f:
                json.dump(
                    dict(
                        name=f"{stage}-{decoding}",
                        model=f"ckpt/{stage}",
                        decoding=decoding,
                        sampling=decoding,
                        runs=1,
                        rows=result_rows(predictions),
                    ),
                    f,
                )
    return mps


def report(folder, **flags):
    evaluate.report(evaluate.parse_args(["report", str(folder)]))
    return os.path.join(folder, "report.html")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    make_run(folder)
    report(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if not driver:
        pytest.skip("no chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1280,1000",
    ):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, run_dir):
    return open_page(browser, os.path.join(run_dir, "report.html"))


def open_page(browser, path):
    browser.get("file://" + os.path.abspath(path))
    end = time.time() + 20
    while browser.execute_script("return document.body.dataset.ready") != "yes":
        assert time.time() < end, browser.get_log("browser")
        time.sleep(0.05)
    return browser


def choose(page, name, value):
    """Sets a filter -> milliseconds until the list and the first trajectory are laid out."""
    return page.execute_script(
        """
        const field = document.getElementById(arguments[0]), start = performance.now();
        field.value = arguments[1];
        field.dispatchEvent(new Event(field.tagName === 'INPUT' ? 'input' : 'change'));
        document.body.offsetHeight; return performance.now() - start""",
        "filter-" + name,
        value,
    )


def count(page):
    return int(page.find_element("id", "count").text.split()[0])


def test_page_is_one_file_and_plots_are_there(run_dir):
    text = open(os.path.join(run_dir, "report.html"), encoding="utf-8").read()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "owned" not in text  # packed, or escaped
    plots = set(os.listdir(os.path.join(run_dir, "plots")))
    assert {
        "accuracy-by-stage.png",
        "accuracy-by-horizon.png",
        "teacher-interventions.png",
        "hard-tasks.png",
        "training-supervised.png",
        "training-rl.png",
    } <= plots
    assert all(os.path.getsize(os.path.join(run_dir, "plots", name)) > 5000 for name in plots)


def test_interventions_and_hard_tasks_are_counted(run_dir):
    panels, results, sources = collect(run_dir)
    found = {(p["section"], p["title"]): p["series"] for p in panels}
    bars = found["Teacher interventions", "per cent of tasks"]
    mps = sources["mps"]
    for kind in ("math", "search"):
        of_kind = [t for t in mps if t["kind"] == kind]
        assert abs(sum(y for _, y, _, _ in bars[kind]) - 100) < 1e-6
        assert dict((x, n) for x, _, _, n in bars[kind])["hard"] == sum(not t["correct"] for t in of_kind)
    assert [point[0] for point in found["Hard tasks", "hard (judge)"]["greedy"]] == ["bc", "sft", "rl"]
    assert [r["name"] for r in results][:2] == ["bc-greedy", "bc-sampled"]
    sft = found["Training, supervised", "sft, loss"]
    assert sft == {"loss": [[0, 1.0, 0, 1], [3, 1.0, 0, 1], [6, 1.0, 0, 1]]}


def test_no_console_error_and_no_injection(page):
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []
    choose(page, "text", "attack")
    assert count(page) == 1
    detail = page.find_element("id", "detail")
    assert "<script>document.title='owned'" in detail.text and "<img src=x" in detail.text  # shown…
    assert not page.execute_script("return window.owned") and "owned" not in page.title  # …not run
    assert detail.find_elements("css selector", "script, img") == []
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []


def test_filters(page, run_dir):
    sources = collect(run_dir)[2]
    total = sum(map(len, sources.values()))
    shown = count(page)
    assert shown == min(total, 1000)
    choose(page, "source", "mps")
    in_mps = count(page)
    by_outcome = []
    for outcome in ("solved", "not solved"):
        choose(page, "outcome", outcome)
        by_outcome.append(count(page))
    assert sum(by_outcome) == in_mps and all(by_outcome)
    choose(page, "outcome", "")
    choose(page, "corrections", "2")
    assert 0 < count(page) < in_mps
    choose(page, "kind", "math")
    for row in page.find_elements("css selector", "#list button"):
        row.click()
        tags = [t.text for t in page.find_elements("css selector", "#detail .tag")]
        assert "mps" in tags and "math" in tags and "2 corrections" in tags


def test_rejected_step_beside_the_correction(page):
    choose(page, "source", "mps")
    choose(page, "corrections", "1")
    rejected = page.find_element("css selector", "#detail .pair .rejected")
    chosen = page.find_element("css selector", "#detail .pair .chosen")
    assert rejected.is_displayed() and "REJECTED" in rejected.text and "REJECTED" not in chosen.text
    assert abs(rejected.rect["y"] - chosen.rect["y"]) < 2 and rejected.rect["x"] < chosen.rect["x"]
    assert "The student adds before it knows" in page.find_element("css selector", "#detail .analysis").text
    assert page.find_elements("css selector", "#detail pre.code span.k")  # highlighted
    writers = [t.text for t in page.find_elements("css selector", "#detail .step .head .tag")]
    assert "teacher's correction" in writers and "student" in writers


def test_rl_rollouts_show_reward_and_verdicts(page):
    choose(page, "source", "rollouts rl")
    tags = [t.text for t in page.find_elements("css selector", "#detail .tag")]
    assert any(t.startswith("reward ") for t in tags) and "≡ teacher's step: yes" in tags
    assert tags.count("verified prefix") == 1
    steps = page.find_elements("css selector", "#detail > .step")
    assert "Plan" in steps[0].text and "key step, as collected" in steps[1].text and "Step 1" in steps[2].text


def test_thousand_long_trajectories_stay_small(browser, tmp_path):
    """Nothing but the list's first 200 rows and one trajectory is in the page; the times are printed."""
    make_run(str(tmp_path), n=1000, seed=1)
    rng = random.Random(2)
    long = [trajectory(rng, i, i % 3) for i in range(1000)]
    for t in long:  # search results of real runs: about 6 kB a task
        for m in t["messages"][2::2]:
            m["content"] += "".join(rng.choice("abcdefghij klmno") for _ in range(1500))
    write(f"{tmp_path}/mps.jsonl", long)
    path = report(tmp_path)
    assert os.path.getsize(path) <= 5e6
    page = open_page(browser, path)
    assert len(page.find_elements("css selector", "#list button")) == 201
    paint = page.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    filters = [("source", "mps"), ("source", ""), ("outcome", "solved"), ("text", "apples"), ("text", "")]
    times = {f"{name} {value}": min(choose(page, name, value) for _ in range(3)) for name, value in filters}
    print(f"{os.path.getsize(path) / 1e6:.1f} MB, first paint after {paint:.0f} ms; filters in ms:", times)


def test_texts_are_cut_until_the_page_is_small_enough():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghijklmnop", k=20_000)) for _ in range(600)]
    long = [dict(messages=[dict(content=text)]) for text in texts]
    packed, characters = pack(long, 20_000)
    assert len(packed) <= 4.5e6 and 5_000 <= characters < 20_000
    assert pack(long[:10], 20_000)[1] == 20_000


def test_many_arms_and_growing_data(browser, tmp_path):
    """Twelve arms as the bars of one chart; arms named …-n500 as a line over the size of the data."""
    rng = random.Random(0)
    arms = ("bc bc-all sft sft-quarter sft-half sft-more dpo grpo-bc grpo-sft rl rl-no-prefix "
            "rl-no-key-step").split()
    for stage in [*arms, "sft-n100", "sft-n200", "sft-n400"]:
        predictions = [trajectory(rng, i, correct=rng.random() < 0.5) for i in range(40)]
        scored = dict(group="eval", run=0, metric="judge", verdict="right")
        predictions = [p | scored | dict(score=float(p["correct"])) for p in predictions]
        write(f"{tmp_path}/eval/{stage}-greedy/predictions.jsonl", predictions)
        rows = result_rows(predictions)
        with open(f"{tmp_path}/eval/{stage}-greedy/results.json", "w") as f:
            json.dump(dict(name=f"{stage}-greedy", model=stage, decoding="greedy", sampling="greedy", runs=1,
                           rows=rows), f)
    page = open_page(browser, report(tmp_path))
    labels = page.find_elements("css selector", "#accuracy-by-stage .card:first-child text.name")
    assert sorted(t.text for t in labels) == sorted(arms)
    ends = sorted(t.rect["x"] + t.rect["width"] for t in labels)         # the right ends of tilted labels
    assert all(b - a > 8 for a, b in zip(ends, ends[1:]))
    data = page.find_elements("css selector", "#accuracy-by-data .card:first-child circle")
    assert len(data) == 3
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []


def test_report_of_an_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no bc.jsonl"):
        report(tmp_path)


def test_report_of_a_partial_run(tmp_path):
    rng = random.Random(0)
    write(f"{tmp_path}/mps.jsonl", [trajectory(rng, 1, 1)])
    assert os.path.exists(report(tmp_path))
