"""Controls of mentored problem-solving: the student writes the new step itself, told of its error or not."""
import json
import os

import pytest

import env
import mps
import teacher as demo_teacher
from baselines.correctors import Draft
from plumbing.cli import InputError
from plumbing.leaks import gives_away
from test_mps import options, play
from test_stages import BAD, CHAIN, lines, tasks, write

RIGHT = [f"<first_thought>{demo_teacher.PLANS['math']}</first_thought>",
         "<thought>Cy has 6.</thought><code>Cy=6\nprint(Cy)</code>",
         "<thought>Plus 3.</thought><code>Cy=Cy+3\nprint('left_behind' in globals(), Cy)</code>",
         "<thought>Times 2.</thought><code>Cy=Cy*2\nprint(Cy)</code>",
         "<thought>Done.</thought><code>final_answer_print(Cy)</code>"]
ENOUGH = "<thought>Enough.</thought><code>final_answer_print(0)</code>"
TASK = {name: CHAIN[name] for name in ("id", "question", "answer")}


def step(messages):
    return sum(m["role"] == "assistant" for m in messages)


class Student:
    """Writes RIGHT, or what `wrong(messages, drafts)` gives; after BAD it gives up. drafts: so many were asked for.

    Each of its turns counts as many tokens as it has words.
    """
    batched = True

    def __init__(self, wrong):
        self.wrong, self.asked, self.seeds, self.trials = wrong, [], [], set()
        self.tokens = self.turns = self.drafts = 0

    def play(self, episodes, progress=None, **_):
        for e in episodes:
            if len(episodes) > 1:
                self.trials.add(e.sampling_seed(0))
            else:
                self.seeds.append(e.sampling_seed(0))
            self.drafts += isinstance(e, Draft)
            while e.stop is None:
                self.asked.append(list(e.messages))
                text = self.wrong(e.messages, self.drafts)
                if text is None and any(m["content"] == BAD for m in e.messages):
                    text = ENOUGH
                k = step(e.messages) - sum("cannot be used" in m["content"] for m in e.messages)
                text = text or RIGHT[k]
                e.loss_mask += [1] * len(text.split())
                self.tokens += len(text.split())
                self.turns += 1
                e.turn(text)

    def saw(self, words):
        return any(words in m["content"] for messages in self.asked for m in messages)


def mentored(url, student, *flags):
    record, = play([TASK], student, options(url, *flags)).values()
    return record


def errs_once(messages, drafts):
    """At step 1, until the student is drawn again."""
    return BAD if step(messages) == 1 and not drafts else None


def errs_untold(messages, drafts):
    """At step 1, unless it is shown the verdict."""
    return BAD if step(messages) == 1 and "# Suggestion" not in messages[-1]["content"] else None


def errs(messages, drafts):
    return BAD if step(messages) == 1 else None


# ---- who solves what, and at which cost ----

@pytest.mark.parametrize("corrector, wrong, outcome", [
    ("resample", errs_once, "corrected"), ("student", errs_once, "corrected"), ("teacher", errs_once, "corrected"),
    ("resample", errs_untold, "hard"), ("student", errs_untold, "corrected"), ("teacher", errs_untold, "corrected"),
    ("resample", errs, "hard"), ("student", errs, "hard"), ("teacher", errs, "corrected")])
def test_who_solves_it(teacher_url, corrector, wrong, outcome):
    student = Student(wrong)
    r = mentored(teacher_url, student, "--corrector", corrector, "--corrections", 2)
    assert r["outcome"] == outcome and r["interventions"] == (1 if outcome == "corrected" else 2)
    assert student.saw("# Rejected step") == student.saw("# Suggestion") == (corrector == "student")
    assert r["usage"]["student_tokens"] == student.tokens and r["usage"]["student_calls"] == student.turns
    verdicts = r["interventions"]
    assert r["usage"]["teacher_calls"] == verdicts * (2 if corrector == "teacher" else 1)
    if outcome == "corrected":
        (c,) = r["corrections"]
        assert c["step"] == 1 and c["rejected"] == {"content": BAD, "observation": "7"}
        assert c["chosen"] == {"content": r["messages"][3]["content"], "observation": "6"}
        assert student.drafts == (corrector != "teacher")


@pytest.mark.parametrize("corrector", ["student", "resample"])
def test_the_record_is_as_if_nobody_had_said_a_word(teacher_url, corrector):
    student = Student(errs_once)
    r = mentored(teacher_url, student, "--corrector", corrector)
    assert [m["content"] for m in r["messages"]] == [
        CHAIN["question"], RIGHT[0], "Observation: None", RIGHT[1], "Observation: 6", RIGHT[2],
        "Observation: False 9", RIGHT[3], "Observation: 18", RIGHT[4]]        # False: rewound to before BAD
    env.replay(r["messages"][:-1], env.Interpreter())
    (sft,), _ = mps.split([r], options(teacher_url, "--sft-share", 1))
    _, (rl,) = mps.split([r], options(teacher_url, "--sft-share", 0))
    assert sft == r and rl["kind"] == "key_step" and rl["messages"] == r["messages"][:3]
    assert rl["chosen"] == {"content": RIGHT[1], "observation": "6"} and rl["rejected"]["content"] == BAD
    assert rl["also_rejected"] == []


def test_a_plan_is_written_anew(teacher_url):
    told = "<first_thought>I guess.</first_thought>"
    student = Student(lambda messages, drafts: [told, *[ENOUGH] * 4][step(messages)] if not drafts else None)
    r = mentored(teacher_url, student, "--corrector", "student")
    c = r["corrections"][0]
    assert r["outcome"] == "corrected" and c["step"] == 0 and c["chosen"]["content"] == RIGHT[0]
    hinted = next(m for m in student.asked if "# Rejected step" in m[0]["content"])
    assert len(hinted) == 1 and hinted[0]["content"].startswith(CHAIN["question"] + "\n\n")
    assert "exactly <first_thought>" in hinted[0]["content"] and r["messages"][0]["content"] == CHAIN["question"]


def test_a_step_that_breaks_the_form_or_is_cut_off_spends_its_correction(teacher_url):
    formless = Student(lambda messages, drafts: f"no tags {drafts}" if step(messages) == 1 and drafts < 3 else None)
    r = mentored(teacher_url, formless, "--corrector", "resample", "--corrections", 2)
    assert r["outcome"] == "hard" and r["stop"] == "format" and r["messages"][-1]["content"] == "no tags 2"
    formless.drafts = 0
    r = mentored(teacher_url, formless, "--corrector", "resample", "--corrections", 3)
    assert r["outcome"] == "corrected" and [c["rejected"]["content"] for c in r["corrections"]] == [
        "no tags 0", "no tags 1", "no tags 2"]

    class Cut(Student):
        def play(self, episodes, **_):
            for e in episodes:
                if isinstance(e, Draft):
                    e.turn("<thought>Cy is", complete=False)
                else:
                    super().play([e])
    r = mentored(teacher_url, Cut(errs), "--corrector", "resample", "--corrections", 1)
    assert r["outcome"] == "hard" and r["stop"] == "max_tokens" and r["messages"][-1]["content"] == "<thought>Cy is"
    assert r["corrections"][0]["chosen"] == {"content": "<thought>Cy is", "observation": None}


# ---- what the student may be told, and may say ----

def verdict(monkeypatch, analysis, suggestion, k=1):
    text = json.dumps(dict(correct=False, first_wrong_step=k, analysis=analysis, suggestion=suggestion))
    monkeypatch.setattr(demo_teacher, "verdict", lambda *_: text)


@pytest.mark.parametrize("analysis, suggestion, withheld", [
    ("The result must be 18, not 7.", "Take 6 {first}.", ["analysis"]), ("It is not 7.", "Print 18.0.", ["suggestion"]),
    ("It is eighteen: 18", "final_answer_print(18)", ["analysis", "suggestion"]), ("Cy has 6.", "Read it.", [])])
def test_the_answer_is_not_shown(teacher_url, monkeypatch, analysis, suggestion, withheld):
    verdict(monkeypatch, analysis, suggestion)
    student = Student(errs_once)
    r = mentored(teacher_url, student, "--corrector", "student")
    assert r["outcome"] == "corrected" and r["corrections"][0]["withheld"] == withheld
    assert student.saw(analysis) == ("analysis" not in withheld) and student.saw("# Rejected step")
    assert student.saw(suggestion) == ("suggestion" not in withheld)


SEEN = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "x"},
        {"role": "user", "content": "Observation: Paris, France or Lyon"}]


@pytest.mark.parametrize("hint, question, answers, before, told", [
    ("It should print 18.", "6 plus 3, times 2?", "18", [], True), ("It printed 17.", "6 plus 3?", "18", [], False),
    ("It is 1,800.0 km.", "How far?", "1800", [], True), ("half of it", "How much?", "1/2", [], False),
    ("It is 0.5.", "How much?", "1/2", [], True), ("It is Marie Curie.", "Who?", ["Curie", "M. C."], [], True),
    ("It searched Lyon.", "Where?", "Lyon", SEEN, False), ("The answer is Lyon.", "Where?", "Lyon", SEEN, True),
    ("The correct city is Lyon.", "Where?", "Lyon", SEEN, True), ("It searched Lyon.", "Where?", "Lyon", [], True),
    ("The correct option is B.", "A) 1 B) 2?", "B", [], True), ("It did not read option B.", "A) 1 B) 2?", "B", [], False),
    ("The answer is yes.", "Is it?", "yes", [], True), ("It has no search.", "Is it?", "no", [], False)])
def test_what_gives_the_answer_away(hint, question, answers, before, told):
    assert gives_away(hint, question, answers, before) is told


TALK = "<thought>My mistake: Cy has 6.</thought><code>Cy=6\nprint(Cy)</code>"


def test_a_step_that_talks_of_its_correction_is_asked_for_again(teacher_url):
    student = Student(lambda messages, drafts: TALK if "# Suggestion" in messages[-1]["content"]
                      else errs(messages, drafts) if not drafts else None)
    r = mentored(teacher_url, student, "--corrector", "student")
    assert r["outcome"] == "corrected" and not any("mistake" in m["content"] for m in r["messages"])
    assert student.drafts == 2 and student.saw('would not say "mistake"')
    assert r["usage"]["student_tokens"] == student.tokens and r["usage"]["student_calls"] == student.turns


def test_one_that_stays_so_ends_the_run_without_being_run(teacher_url):
    student = Student(lambda messages, drafts: TALK if drafts else errs(messages, drafts))
    r = mentored(teacher_url, student, "--corrector", "student", "--corrections", 1, "--reasks", 2)
    assert r["outcome"] == "hard" and r["stop"] == "format" and student.drafts == 3
    assert r["corrections"][0]["chosen"] == {"content": TALK, "observation": None}
    student = Student(lambda messages, drafts: TALK if step(messages) == 1 and drafts else errs(messages, drafts))
    r = mentored(teacher_url, student, "--corrector", "resample")          # told nothing, it may say so
    assert r["outcome"] == "corrected" and r["messages"][3]["content"] == TALK


# ---- pairs ----

OTHER = "<thought>Cy has 8.</thought><code>Cy=8\nprint(Cy)</code>"


@pytest.mark.parametrize("drawn, pairs", [
    ([BAD, BAD], []),                                      # the rejected step again, and then luck
    ([BAD, RIGHT[1]], [(RIGHT[1], [BAD])]), ([BAD, OTHER, RIGHT[1]], [(RIGHT[1], [BAD, OTHER])]),
    ([BAD, OTHER, BAD], [(BAD, [OTHER])]), ([BAD, OTHER, OTHER], [(OTHER, [BAD])])])
def test_no_step_is_preferred_to_itself(teacher_url, monkeypatch, drawn, pairs):
    """The student draws step 1 again and again; only the last of these runs ends with the right answer."""
    verdict(monkeypatch, "", "")

    def wrong(messages, drafts):
        if step(messages) == 1:
            return drawn[drafts]
        answer = 18 if drafts == len(drawn) - 1 else 0
        return f"<thought>So.</thought><code>final_answer_print({answer})</code>" if step(messages) == 2 else None
    r = mentored(teacher_url, Student(wrong), "--corrector", "resample")
    assert r["outcome"] == "corrected" and r["interventions"] == len(drawn) - 1
    starts = mps.key_steps(r, TASK, "all")
    assert [(s["chosen"]["content"], [s["rejected"]["content"], *(x["content"] for x in s["also_rejected"])])
            for s in starts] == pairs
    mps.split([r], options(teacher_url))


# ---- samples, the test of the first error, resuming ----

@pytest.mark.parametrize("corrector", ["student", "resample"])
def test_no_sample_is_drawn_twice(teacher_url, corrector):
    """Neither of the runs nor of the trials that test the first error; a student that always errs."""
    student = Student(errs)
    r = mentored(teacher_url, student, "--corrector", corrector, "--corrections", 3, "--verify-first-error", 2)
    assert r["outcome"] == "hard" and r["corrections"] == [] and student.drafts == 3
    assert len(student.seeds) == len(set(student.seeds)) == 1 + 3 + 3 and student.trials
    assert not student.trials & set(student.seeds)


@pytest.mark.parametrize("corrector", ["student", "resample"])
def test_a_stopped_run_goes_on_with_the_same_corrector_only(tmp_path, teacher_url, checkpoint, corrector):
    """With an engine of tokens: what was torn off is played again, to the same record."""
    write(tmp_path / "tasks.jsonl", tasks(3))
    out = tmp_path / "mps"

    def run(corrector):
        mps.main(mps.parse_args(["--tasks", str(tmp_path / "tasks.jsonl"), "--student", checkpoint, "--out", str(out),
                                 "--teacher-url", teacher_url, "--search", f"http:{teacher_url}/search",
                                 "--max-tokens", "20", "--corrections", "2", "--corrector", corrector, "--no-preload"]))
    run(corrector)
    whole = lines(out / "mps.jsonl")
    hard = [r for r in whole if r["outcome"] == "hard"]    # an untrained student's empty turn may fail its task
    assert len(hard) >= 2 and all(r["interventions"] == 2 and r["usage"]["student_calls"] >= 3 for r in hard)
    text = (out / "mps.jsonl").read_text()
    os.remove(out / "mps.jsonl")
    (out / "mps.rank0.jsonl").write_text(text[:len(text) * 2 // 3])
    run(corrector)
    assert lines(out / "mps.jsonl") == whole
    with pytest.raises(InputError, match=f"made with --corrector {corrector}, not with --corrector teacher"):
        run("teacher")
