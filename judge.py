"""The teacher and the judge: answers, plans, steps, first errors, corrections, equivalence, rewards.

Every stage imports from here: `Teacher`, a client of any OpenAI-compatible chat endpoint (its key in
TEACHER_API_KEY or OPENAI_API_KEY), the key-step reward, and the JSON-lines files in which the stages meet.
The prompts are in assets/prompts.md; what needs no model (is an answer right, can a reply be used, does a
correction give the answer away) is in assets/rules.py.

Differences from the paper: the model judges only answers that rules leave open; a reply of the wrong form
is asked for once more, naming the fault, and then fails aloud (`BadReply`).

  python judge.py audit --teacher-url http://localhost:8000 --data processbench.jsonl
  python judge.py decontaminate --tasks all.jsonl --against hotpotqa.jsonl --out tasks.jsonl
"""
import argparse
import hashlib
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from assets.rules import (UNREADABLE, InputError, Verdict, as_list, check_by_rule, exact_match,  # noqa: F401
                          f1, leaked, math_equal, parse_code, parse_correction, parse_equivalent, parse_plan,
                          parse_step, parse_verdict, render, render_step, same_step_cheap, step_count,
                          word_ngrams)
from assets.search import SearchFailed

ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")
with open(os.path.join(ASSETS, "prompts.md"), encoding="utf-8") as prompts:
    PROMPT = dict(re.findall(r"(?ms)^## (\w+)\n+(.*?)\n*(?=^## |\Z)", prompts.read()))
PLAN_SYSTEM, STEP_SYSTEM, VERDICT_SYSTEM, CORRECT_SYSTEM, SAME_STEP_SYSTEM, SAME_ANSWER_SYSTEM = (
    PROMPT[name].replace("{AGENT}", PROMPT["AGENT"])
    for name in ("PLAN", "STEP", "VERDICT", "CORRECT", "SAME_STEP", "SAME_ANSWER"))


class TeacherDown(InputError):
    """The endpoint gave no usable reply after all retries."""


class BadReply(Exception):
    """The reply stayed unusable after the re-ask, or the request was refused; `raw` is the last reply."""
    def __init__(self, message, raw=""):
        super().__init__(message)
        self.raw = raw


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """--help of every script: the docstring as it is, and the default of every flag that has one."""
    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def add_teacher_flags(parser, required=True):
    g = parser.add_argument_group("teacher")
    g.add_argument("--teacher-url", required=required, help="chat endpoint, as http://localhost:8000")
    g.add_argument("--teacher-model", help="its name there (default: the first that is listed)")
    g.add_argument("--concurrency", type=int, default=64, help="requests in flight at once")
    g.add_argument("--timeout", type=float, default=600, help="seconds to wait for one reply")
    g.add_argument("--retries", type=int, default=12, help="further tries when network or server fails")
    g.add_argument("--reasks", type=int, default=1, help="further tries when a reply has a wrong form")
    g.add_argument("--teacher-cache", help="SQLite file of replies; a restart then pays nothing twice")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Measure a teacher before a run, or clean a file of tasks.",
                                     formatter_class=Help)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("audit", formatter_class=Help,
                            help="first-error accuracy and F1 of a teacher (ProcessBench)")
    p.add_argument("--data", nargs="+", required=True, help="JSONL: problem, steps, label (first error, -1)")
    add_teacher_flags(p)
    p = commands.add_parser("decontaminate", formatter_class=Help, help="drop tasks that a benchmark has too")
    p.add_argument("--tasks", required=True, help="JSONL file of training tasks")
    p.add_argument("--against", nargs="+", required=True, help="JSONL files of benchmark tasks")
    p.add_argument("--out", required=True, help="JSONL file for the tasks that stay")
    p.add_argument("--ngram", type=int, default=8, help="words in a row by which questions are compared")
    p.add_argument("--overlap", type=float, default=0.5, help="share of them that makes two questions one")
    return parser.parse_args(argv)


# ---- the teacher ----

SESSION = requests.Session()
for scheme in ("http://", "https://"):
    SESSION.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=256))


def endpoint(url):
    """localhost:8000 or http://localhost:8000 -> http://localhost:8000/v1"""
    url = url if "://" in url else "http://" + url
    return url.rstrip("/") + ("" if re.search(r"/v\d+/?$", url) else "/v1")


def chat_completion(url, body, *, headers=None, timeout=600, retries=12, backoff=0.5, refused=None):
    """choices[0] of one completion, its "usage" and the number of "retries". What may pass is tried again,
    with exponential back-off, jitter and Retry-After; then TeacherDown, or BadReply if the server refuses
    just this request. `refused` collects optional fields that the server does not know."""
    url, refused, fault = endpoint(url) + "/chat/completions", set() if refused is None else refused, ""
    for attempt in range(retries + 1):
        wait = min(60.0, backoff * 2 ** attempt) * random.uniform(0.5, 1.5)
        sent = {name: value for name, value in body.items() if name not in refused}
        try:
            reply = SESSION.post(url, json=sent, headers=headers, timeout=(10, timeout))
            fault = f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:200]}"
            if reply.ok:
                found = reply.json()
                found["choices"][0]["message"]["content"] += ""           # a text, not null
                return found["choices"][0] | {"usage": found.get("usage") or {}, "retries": attempt}
            unknown = {name for name in ("response_format", "seed") if name in sent and name in reply.text}
            if reply.status_code in (400, 422) and unknown:
                refused |= unknown
            elif reply.status_code in (401, 403, 404):
                raise TeacherDown(f"{url} refuses {body['model']!r} ({fault})")
            elif reply.status_code < 500 and reply.status_code not in (408, 409, 425, 429):
                raise BadReply(f"the server refused this request ({fault})", reply.text)
            if asked := re.fullmatch(r"\d+(\.\d+)?", reply.headers.get("Retry-After", "")):
                wait = max(wait, min(300.0, float(asked[0])))
        except (requests.RequestException, *UNREADABLE) as error:
            fault = f"no usable reply ({type(error).__name__})"
        time.sleep(wait if attempt < retries else 0)
    raise TeacherDown(f"{url} gave no completion of {body['model']!r} in {retries + 1} tries: {fault}")


class Teacher:
    """A chat model behind an OpenAI-compatible endpoint, safe to call from many threads. Every request takes
    `sample`, the number of a draw from the same prompt, and `usage`, a dict to which calls and tokens are
    added, those of cached replies too, so that a record does not depend on restarts."""

    def __init__(self, url, model=None, *, plan_temperature=0.5, step_temperature=0.7, judge_temperature=0.3,
                 correct_temperature=0.9, concurrency=64, timeout=600, retries=12, reasks=1, backoff=0.5,
                 cache=None):
        self.url, self.model, self.reasks = url, model, reasks
        self.temperature = {"plan": plan_temperature, "step": step_temperature, "judge": judge_temperature,
                            "correct": correct_temperature}
        key = os.environ.get("TEACHER_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = dict(headers=self.headers, timeout=timeout, retries=retries, backoff=backoff,
                         refused=set())
        self.counts, self.lock, self.slots = Counter(), threading.Lock(), threading.Semaphore(concurrency)
        self.asking = weakref.WeakValueDictionary()        # request: the lock of those who ask it
        try:
            self.cache = sqlite3.connect(cache or "", timeout=60, check_same_thread=False,
                                         isolation_level=None)
            self.cache.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
        except sqlite3.Error as error:
            raise InputError(f"--teacher-cache {cache} cannot be used: {error}") from None

    @classmethod
    def from_args(cls, args, **temperatures):
        """The teacher of `add_teacher_flags`, checked to be there."""
        if args.concurrency < 1:
            raise InputError(f"--concurrency {args.concurrency}: at least one request has to be in flight")
        return cls(args.teacher_url, args.teacher_model, cache=args.teacher_cache, timeout=args.timeout,
                   concurrency=args.concurrency, retries=args.retries, reasks=args.reasks,
                   **temperatures).check()

    def check(self):
        """Itself; TeacherDown, in one clear sentence, if the model is not served (default: the first)."""
        url = endpoint(self.url) + "/models"
        try:
            reply = SESSION.get(url, timeout=10, headers=self.headers)
            names = [model["id"] for model in reply.json()["data"]] if reply.ok else [self.model]
            self.model = self.model or names[0]
        except (requests.RequestException, LookupError, TypeError) as error:
            raise TeacherDown(f"no teacher answers at {url} ({type(error).__name__})") from None
        if self.model is None or self.model not in names:
            raise TeacherDown(f"{url} does not list the model {self.model or '(unnamed)'}, but {names[:5]}")
        return self

    def count(self, *names, **more):
        with self.lock:
            self.counts.update(names, **more)

    def summary(self):
        return "teacher: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.counts.items())

    def chat(self, kind, messages, attempt, sample=0, usage=None):
        """The text of one reply, from the cache if this very request was answered before."""
        body = {"model": self.model, "messages": messages, "temperature": self.temperature[kind],
                "max_tokens": 2048, "seed": 100 * sample + attempt}
        body |= {"response_format": {"type": "json_object"}} if kind == "judge" else {}
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self.lock:
            asking = self.asking.setdefault(key, threading.Lock())
        with asking:                                       # who asks the same meanwhile waits for this reply
            with self.lock:
                cached = self.cache.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
            if not cached:
                with self.slots:
                    reply = chat_completion(self.url, body, **self.http)
                with self.lock:
                    self.cache.execute("REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))
        reply = json.loads(cached[0]) if cached else reply
        spent = {name: int(reply["usage"].get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        self.count(**{"cached": 1} if cached else {"calls": 1, "retries": reply["retries"], **spent})
        for name, n in {"calls": 1, **spent}.items() if usage is not None else ():
            usage[name] = usage.get(name, 0) + n
        return re.sub(r"(?s)^.*</think>", "", reply["message"]["content"]).strip()

    def ask(self, kind, system, parse, how, **parts):
        """parse(reply, last). While it raises ValueError, asked again `reasks` times, naming the fault."""
        user = "\n\n".join(f"# {heading.replace('_', ' ')}\n" + "\n".join(as_list(part))
                           for heading, part in parts.items() if part is not None)
        prompt = messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        for attempt in range(self.reasks + 1):
            raw = self.chat(kind, messages, attempt, **how)
            try:
                return parse(raw, attempt == self.reasks)
            except ValueError as problem:
                fault = str(problem)
            self.count("reasks" if attempt < self.reasks else "bad_replies")
            messages = prompt + [{"role": "assistant", "content": raw},
                                 {"role": "user", "content": PROMPT["REASK"].format(fault=fault)}]
        raise BadReply(f"the teacher's reply stayed unusable: {fault}", raw)

    def plan(self, question, **how):
        """The first thought, as plain text without tags."""
        return self.ask("plan", PLAN_SYSTEM, lambda raw, last: parse_plan(raw), how, Question=question)

    def step(self, question, messages, **how):
        """The next step after `messages`, `<thought>…</thought><code>…</code>`."""
        return self.ask("step", STEP_SYSTEM, lambda raw, last: parse_step(raw), how, Question=question,
                        Trajectory=render(messages))

    def verdict(self, question, answers, messages, prediction=None, stop=None, **how):
        """A `Verdict` on a finished run: the first wrong step, why, and what to do instead."""
        if stop not in (None, "answer"):
            prediction = f"(none: the run ended without an answer, {stop})"
        steps = step_count(messages)
        return self.ask("judge", VERDICT_SYSTEM, lambda raw, last: parse_verdict(raw, steps), how,
                        Question=question, Reference_answer=answers, Trajectory=render(messages),
                        Prediction=prediction)

    def correct(self, question, answers, before, content, observation, analysis, suggestion, **how):
        """The one step (a first thought for step 0) to stand after `before` in place of the rejected one."""
        rejected = {"content": f"## Step {step_count(before)}\n{content}", "observation": observation}
        return self.ask("correct", CORRECT_SYSTEM,
                        lambda raw, last: parse_correction(raw, question, answers, before, last), how,
                        Question=question, Reference_answer=answers, Trajectory=render(before),
                        Rejected_step=render_step(rejected), Analysis=analysis, Suggestion=suggestion)

    def same_step(self, question, before, a, b, **how):
        """Whether steps a and b, {"content", "observation"}, do the same after `before`."""
        return self.ask("judge", SAME_STEP_SYSTEM, parse_equivalent, how, Question=question,
                        Trajectory=render(before), Step_A=render_step(a), Step_B=render_step(b))

    def same_answer(self, question, prediction, answers, **how):
        """Whether the prediction says the same as one of the answers."""
        return self.ask("judge", SAME_ANSWER_SYSTEM, parse_equivalent, how, Question=question,
                        Reference_answer=answers, Prediction=prediction)


def correct_answer(teacher, question, prediction, answers, **how):
    """Whether the prediction is right, by rule or, where rules cannot decide, by the teacher (if any)."""
    decided = check_by_rule(prediction, answers)
    if not teacher:
        return bool(decided)
    teacher.count("answers_by_model" if decided is None else "answers_by_rule")
    return teacher.same_answer(question, prediction, answers, **how) if decided is None else decided


def key_step_reward(correct, same_as_chosen, same_as_rejected):
    """1 for a right answer; else 0.5 for the teacher's step, 0 for the rejected one, 0.1 for any other."""
    return 1.0 if correct else 0.5 if same_as_chosen else 0.0 if same_as_rejected else 0.1


# ---- files ----

FIELDS = {"question": ("question", "problem", "Question"),
          "answer": ("answer", "true_answer", "answers", "golden_answers", "final_answer", "Final answer")}


def read_jsonl(path):
    """Yields (line number, object); InputError names the file and the line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for n, line in enumerate(file, 1):
                record = json.loads(line) if line.strip() else {}
                if not isinstance(record, dict):
                    raise InputError(f"{path}, line {n}: not a JSON object")
                if record:
                    yield n, record
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {n}: not valid JSON ({error.msg}, column {error.colno})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def read_tasks(path, required=("answer",)):
    """The tasks of a file as {"id", "question", "answer", …}, whichever public set's field names it has."""
    tasks, lines = [], {}
    for n, record in read_jsonl(path):
        for field, names in FIELDS.items():
            given = [name for name in names if record.get(name) not in (None, "", [])]
            record[field] = record.pop(given[0]) if given else None
        for field in ("question", *required):
            if record.get(field) is None:
                names = ", ".join(FIELDS.get(field, (field,)))
                raise InputError(f'{path}, line {n}: the field "{field}" is missing (looked for {names})')
        question, given = str(record["question"]), record.pop("id", None)
        record.pop("messages", None)                       # a trajectory as a task starts at its question
        name = str(given) if given is not None else hashlib.sha256(question.encode()).hexdigest()[:16]
        if name in lines and given is not None:
            raise InputError(f'{path}, line {n}: the id "{name}" was used before, in line {lines[name]}')
        name += f"-{n}" * (name in lines)
        lines[name] = n
        if (answer := record["answer"]) is not None:
            texts = [re.sub(r"(?s)^.*####", "", text).strip() for text in as_list(answer)]
            answer = texts if isinstance(answer, list) else texts[0]
        tasks.append({"id": name, **record, "question": question, "answer": answer})
    return tasks


def append_jsonl(file, record):
    """Writes one whole line and flushes: a killed run loses at most the line being written."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    file.write(line.encode("utf-8", "replace").decode())           # a program may print lone surrogates
    file.flush()


def resume_jsonl(path):
    """The records a killed run left behind; a torn last line is cut off the file."""
    if not os.path.exists(path):
        return []
    with open(path, "rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        try:
            json.loads(data[end:])
            file.write(b"\n")                                             # only the line's end was lost
        except ValueError:
            file.truncate(end)
    return [record for _, record in read_jsonl(path)]


def save_args(args, path):
    """Writes the arguments, the git commit and the versions that a run was made with."""
    from importlib.metadata import distributions
    git = subprocess.run(["git", "-C", ASSETS, "rev-parse", "HEAD"], capture_output=True, text=True)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        record = {"args": vars(args), "commit": git.stdout.strip(),
                  "versions": {package.name: package.version for package in distributions()}}
        json.dump(record, file, indent=1, default=str)


# ---- commands ----

def audit(args):
    """ProcessBench: accuracy on solutions with an error and on those without, and their harmonic mean."""
    from tqdm import tqdm
    teacher, scores = Teacher.from_args(args), []

    def first_error(task):
        messages = [{"role": "user", "content": task["question"]}]
        messages += [{"role": "assistant", "content": step} for step in task["steps"]]
        try:
            verdict = teacher.verdict(task["question"], task["answer"], messages)
            return -1 if verdict.correct else verdict.first_wrong_step
        except BadReply:
            return None

    print(f"{'file':30} {'n':>6} {'error':>7} {'correct':>8} {'F1':>6} {'unusable':>9}")
    for path in args.data:
        tasks = read_tasks(path, ("steps", "label"))
        for task in tasks:
            if not isinstance(task["steps"], list) or not isinstance(task["label"], int):
                raise InputError(f'{path}, task {task["id"]}: "steps" is not a list or "label" not a number')
        with ThreadPoolExecutor(args.concurrency) as pool:
            found = list(tqdm(pool.map(first_error, tasks), path, len(tasks)))
        hits = [[k == t["label"] for k, t in zip(found, tasks) if (t["label"] < 0) == sound]
                for sound in (False, True)]
        rates = [100 * sum(group) / max(1, len(group)) for group in hits]
        scores.append(2 * rates[0] * rates[1] / max(1e-9, sum(rates)))
        print(f"{os.path.basename(path):30} {len(tasks):6} {rates[0]:7.1f} {rates[1]:8.1f} {scores[-1]:6.1f} "
              f"{found.count(None):9}")
    print(f"average F1 of {teacher.model}: {sum(scores) / len(scores):.1f}\nfor comparison, on ProcessBench: "
          f"Qwen2.5-72B-Instruct 61.2, GPT-4o 61.9, QwQ-32B-Preview 71.5\n{teacher.summary()}")


def decontaminate(args):
    """Drops tasks whose question stands in a benchmark, word for word or nearly, and repeats; counts both."""
    def questions(path):
        return [word_ngrams(task["question"], args.ngram) for task in read_tasks(path, required=())]

    def close(grams, others):
        return len(grams & others) >= args.overlap * min(len(grams), len(others)) > 0

    tasks, records, drop, kept = questions(args.tasks), list(read_jsonl(args.tasks)), set(), set()
    for path in args.against:
        benchmark = dict(questions(path))
        every = set().union(*benchmark.values())
        exact = [text for text, _ in tasks if text in benchmark]
        near = [text for text, grams in tasks if text not in benchmark and not grams.isdisjoint(every)
                and any(close(grams, others) for others in benchmark.values())]
        print(f"{path} ({len(benchmark)}): {len(exact)} tasks hold one word for word, {len(near)} nearly")
        print(*(f"    {text[:100]}" for text in exact[:2] + near[:3]), sep="\n")
        drop |= {*exact, *near}
    with open(args.out, "w", encoding="utf-8") as file:
        for (text, _), (_, record) in zip(tasks, records):
            if text not in drop and text not in kept:
                append_jsonl(file, record)
                kept.add(text)
    dropped = sum(text in drop for text, _ in tasks)
    print(f"{args.tasks}: {len(tasks)} tasks, {dropped} dropped as benchmark questions, "
          f"{len(tasks) - dropped - len(kept)} as repeated, {len(kept)} kept in {args.out}")


def cli(main, args):
    """Runs main(args); what the user can mend ends in one sentence and exit code 2."""
    try:
        main(args)
    except (InputError, SearchFailed, OSError) as error:
        if isinstance(error, OSError) and not error.filename:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    arguments = parse_args()
    cli({"audit": audit, "decontaminate": decontaminate}[arguments.command], arguments)
