"""Does a language model answer the teacher's prompts so that its replies can be used? And where it errs: how?

    python bench/teacher.py ask --teacher-url http://localhost:8000 --teacher-model NAME
    python bench/teacher.py ask … --data mps/mps.jsonl --out replies.jsonl
    python bench/teacher.py errors --gsm8k train.jsonl --out errors.jsonl
    python judge.py audit --data errors.jsonl --teacher-url …           # are the steps that it names right?

`ask` sends -n requests of each kind (plan, step, verdict, correct, same_step) through judge.Teacher, as
bc.py, mps.py and grpo_short.py do, and prints how many replies could be used at first, after the re-ask, and
never; then each fault in the parser's words, with the start of the reply. --out keeps all replies. The runs
that it asks about are those of --data (bc.jsonl, mps.jsonl, predictions.jsonl, what `errors` writes; tasks
give plans only) or, without it, of the toy world.

`errors` writes runs whose first wrong step is known (`first_wrong_step`, -1 in every third run, which is
right): of the toy world, or of GSM8K's training problems (--gsm8k), whose annotated expressions
(<<48/2=24>>) become steps. One operation, or one link of a search, is another one; what follows goes on with
its result and is itself as it should be.
"""
import ast
import builtins
import copy
import json
import pathlib
import random
import re
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]   # before this folder, whose env.py and mps.py are benches
import gsm8k  # noqa: E402
import world  # noqa: E402
from judge import Teacher  # noqa: E402
from plumbing.chat_api import BadReply  # noqa: E402
from plumbing.cli import InputError, Parser, cli, teacher_flags  # noqa: E402
from plumbing.records import append_jsonl, read_jsonl, write_jsonl  # noqa: E402
from plumbing.search import pages  # noqa: E402
from plumbing.tasks import read_tasks  # noqa: E402
from plumbing.trajectory import fault_of_corrections, fault_of_turns, prefix, step_at, step_of  # noqa: E402
from plumbing.values import whole  # noqa: E402

KINDS = ("plan", "step", "verdict", "correct", "same_step")
START_OF_REPLY = 300                                       # characters that are printed of a reply
VARIABLE = re.compile(r'"[^"]*"|\d+')                      # what differs between faults of one kind


# ---- runs whose first wrong step is known ----

OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult}     # what an operation becomes
KNOWN = {name: getattr(builtins, name) for name in ("sum", "max", "min", "int", "float", "abs", "round")}


def operations(tree):
    """The operations of an expression that can be another one."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and type(node.op) in OTHER]


def change(tree, operation):
    """The expression with another one in place of its operation of this number."""
    tree = copy.deepcopy(tree)
    node = operations(tree)[operation]
    node.op = OTHER[type(node.op)]()
    return tree


def play_chain(problem, wrong=None, operation=None):
    """-> [(content, observation)] of the steps of a gsm8k.Problem, in step `wrong` with another operation in place
    of that one. None if it cannot be computed."""
    results = {}
    steps = []
    for k, step in enumerate(problem.steps, 1):
        tree = change(step.tree, operation) if k == wrong else step.tree
        code = ast.unparse(gsm8k.with_results(tree, lambda at: ast.Name(f"r_{at + 1}")))
        shown = ast.unparse(gsm8k.with_results(tree, lambda at: ast.Constant(results[f"r_{at + 1}"])))
        try:
            value = eval(code, {"__builtins__": KNOWN}, dict(results))
        except ArithmeticError:
            return None
        results[f"r_{k}"] = value
        steps.append((world.write(f"Find {step.label or 'the next number'}: {shown}.",
                                  f"r_{k} = {code}\nprint(r_{k})"), str(value)))
    steps.append((world.write("That is the answer.", f"final_answer_print(r_{len(problem.steps)})"), str(value)))
    return steps


def play_toy(task, wrong=None):
    """-> [(content, observation)] of a toy task; step `wrong` adds, or follows, something else."""
    steps = []
    if task["kind"] == "math":
        name, value, operations = world.parse_math(task["question"])
        steps.append((world.write(f"{name} has {value}.", f"{name}={value}\nprint({name})"), str(value)))
        words = {sign: word for word, sign in world.OPS.items()}
        for k, (sign, n) in enumerate(operations, 2):
            if k == wrong:
                n += 1
            value = world.apply(value, sign, n)
            content = world.write(f"{words[sign]} {n}.", f"{name}={name}{sign}{n}\nprint({name})")
            steps.append((content, str(value)))
        steps.append((world.write(f"{name} is the answer.", f"final_answer_print({name})"), str(value)))
        return steps
    hops = world.parse_search(task["question"])
    value = hops[0][1]
    for k, (relation, _, _) in enumerate(hops, 1):
        if k == wrong:
            relation = next(other for other in world.RELATIONS if other not in [hop[0] for hop in hops])
        query = f"{relation} of {value}"
        value_before, value = value, world.fact(relation, value)
        seen = pages([(value_before, world.search(query))])               # as the demo's search engine has it
        steps.append((world.write(f"Find the {relation}.", f'print(web_search("{query}"))'), seen))
    steps.append((world.write("The answer is found.", f'final_answer_print("{value}")'), value))
    return steps


PLANS = {"gsm8k": "Work out one amount after another, each from the numbers given or from those before it.",
         "math": "I will compute the amount step by step.", "search": "I will look up the links one by one."}


def as_run(task, plan, steps, wrong, right):
    """The record of a run; right: the steps that would have been right."""
    messages = [{"role": "user", "content": task["question"]}]
    for content, seen in [(f"<first_thought>{plan}</first_thought>", "None"), *steps]:
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": f"Observation: {seen}"}]
    run = {"id": task["id"], "question": task["question"], "answer": task["answer"], "messages": messages[:-1],
           "prediction": steps[-1][1], "stop": "answer", "correct": wrong is None,
           "first_wrong_step": -1 if wrong is None else wrong}
    if wrong is not None:
        run["right_step"] = dict(zip(("content", "observation"), right[wrong - 1]))
    return run


def toy_runs(n, seed):
    """n runs of the toy world; every third is right."""
    dice = random.Random(seed)
    runs = []
    for task in world.make_tasks(dice, "t", n, set()):
        right = play_toy(task)
        first = 2 if task["kind"] == "math" else 1
        wrong = dice.randrange(first, len(right)) if len(runs) % 3 else None
        steps = play_toy(task, wrong)
        if steps[-1][1] == task["answer"]:                 # times 0, or the error was made good by chance
            wrong, steps = None, right
        runs.append(as_run(task, PLANS[task["kind"]], steps, wrong, right))
    return runs


def gsm8k_runs(path, n, seed):
    """n runs of GSM8K's problems with annotated solutions; every third is right."""
    dice = random.Random(seed)
    rows = list(gsm8k.read_rows(path))
    runs = []
    for at in dice.sample(range(len(rows)), len(rows)):
        problem = gsm8k.read_solution(rows[at]["question"], rows[at]["answer"])
        if isinstance(problem, str):                       # why it has no chain of steps
            continue
        places = [(k, i) for k, step in enumerate(problem.steps, 1) for i in range(len(operations(step.tree)))]
        right = play_chain(problem)
        if len(problem.steps) < 2 or not places or right is None:
            continue
        task = {"id": f"gsm8k-{at:05d}", "question": problem.question, "answer": problem.answer}
        if len(runs) % 3 == 0:
            runs.append(as_run(task, PLANS["gsm8k"], right, None, right))
        else:
            k, operation = dice.choice(places)
            steps = play_chain(problem, k, operation)
            if steps is None or float(steps[-1][1]) == float(right[-1][1]):       # it makes no difference
                continue
            runs.append(as_run(task, PLANS["gsm8k"], steps, k, right))
        if len(runs) == n:
            return runs
    raise InputError(f"{path} holds {len(runs)} problems with an annotated chain of steps, -n {n} are wanted")


def errors(args):
    """Write runs whose first wrong step is known."""
    runs = gsm8k_runs(args.gsm8k, args.n, args.seed) if args.gsm8k else toy_runs(args.n, args.seed)
    write_jsonl(args.out, runs)
    right = sum(run["correct"] for run in runs)
    print(f"{args.out}: {len(runs)} runs, {len(runs) - right} of them with one wrong step")


# ---- requests ----

class Watched(Teacher):
    """A teacher that keeps each reply to a request, with what was wrong with it; one request a thread."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.of_thread = threading.local()

    def chat(self, request, usage=None):
        raw, fault = super().chat(request, usage)
        self.of_thread.tries.append({"reply": raw, "fault": fault})
        return raw, fault

    def ask(self, kind, system, parts, parse, sample, usage):
        def watched(raw, last):
            this = self.of_thread.tries[-1]
            try:
                used = parse(raw, last)
            except ValueError as problem:
                this["fault"] = this["fault"] or str(problem)
                raise
            this["fault"] = None                           # a step that was cut off behind its code is used
            return used
        return super().ask(kind, system, parts, watched, sample, usage)


def correction_of(run):
    """(step, the rejected one, the chosen one, analysis) of a run that has one; else None."""
    if run.get("right_step"):
        k = run["first_wrong_step"]
        return k, step_at(run["messages"], k, run["prediction"]), run["right_step"], "This step is wrong."
    for correction in run.get("corrections") or []:
        return correction["step"], correction["rejected"], correction["chosen"], correction.get("analysis")
    return None


def requests_of(run, dice):
    """The requests that a record allows -> {kind: function of a teacher}; a task without messages: a plan."""
    question, answer = run["question"], run["answer"]
    found = {"plan": lambda teacher: teacher.plan(question, answers=answer)}
    messages = run.get("messages")
    if fault_of_turns(messages) or step_of(messages) < 2:
        return found
    cut = dice.randrange(1, step_of(messages))
    found["step"] = lambda teacher: teacher.step(question, prefix(messages, cut))
    if not run.get("correct"):
        found["verdict"] = lambda teacher: teacher.verdict(question, answer, messages, run.get("prediction"),
                                                           run.get("stop"))
    correction = correction_of(run)
    if correction is not None:
        k, rejected, chosen, analysis = correction
        before = prefix(messages, k)
        found["correct"] = lambda teacher: teacher.correct(
            question, answer, before, rejected["content"], rejected["observation"], analysis, None)
        found["same_step"] = lambda teacher: teacher.same_step(question, before, rejected, chosen)
    return found


def read_runs(paths):
    """The records of files of tasks or trajectories."""
    runs = []
    for path in paths:
        trajectories = []
        for n, record in read_jsonl(path):
            if record.get("messages") and "answer" in record:
                check_run(f"{path}, line {n}", record)
                trajectories.append(record)
            else:                                          # a file of tasks, whatever their fields are called
                trajectories = read_tasks(path)
                break
        runs += trajectories
    return runs


def check_run(where, record):
    """InputError for a trajectory that lacks what the requests are made of."""
    for field in ("id", "question"):
        if not isinstance(record.get(field), str):
            raise InputError(f'{where}: the field "{field}" is missing or no text')
    fault = fault_of_corrections(record) if record.get("corrections") else None
    if fault:
        raise InputError(f"{where}: {fault}")


def choose(runs, n, seed):
    """[(kind, id, function of a teacher)], n of each kind where the runs have so many."""
    dice = random.Random(seed)
    left = Counter({kind: n for kind in KINDS})
    chosen = []
    for run in dice.sample(runs, len(runs)):
        for kind, request in requests_of(run, dice).items():
            if left[kind]:
                left[kind] -= 1
                chosen.append((kind, run["id"], request))
    return sorted(chosen, key=lambda asked: KINDS.index(asked[0]))


def ask_one(teacher, kind, name, request):
    """-> {"kind", "id", "tries": [{"reply", "fault"}], "used"}"""
    teacher.of_thread.tries = []
    try:
        request(teacher)
        used = True
    except BadReply as error:
        used = False
        if not teacher.of_thread.tries:                    # the server refused the request itself
            teacher.of_thread.tries.append({"reply": error.raw, "fault": str(error)})
    return {"kind": kind, "id": name, "used": used, "tries": teacher.of_thread.tries}


def summary(asked):
    """The table of what could be used when, and the faults."""
    lines = [f"{'request':10} {'n':>4} {'at first':>9} {'re-asked':>9} {'never':>6}"]
    for kind in KINDS:
        of_kind = [one for one in asked if one["kind"] == kind]
        if of_kind:
            first = sum(one["used"] and len(one["tries"]) == 1 for one in of_kind)
            used = sum(one["used"] for one in of_kind)
            lines.append(f"{kind:10} {len(of_kind):4} {first:9} {used - first:9} {len(of_kind) - used:6}")
    for kind in KINDS:
        faults = {}                                        # alike but for numbers and quoted texts
        for one in asked:
            for attempt in one["tries"]:
                if one["kind"] == kind and attempt["fault"]:
                    faults.setdefault(VARIABLE.sub("…", attempt["fault"]), []).append(attempt)
        for alike in sorted(faults.values(), key=len, reverse=True):
            start = json.dumps(alike[0]["reply"][:START_OF_REPLY], ensure_ascii=False)
            lines += ["", f"{kind}, {len(alike)} x: {alike[0]['fault']}", f"    {start}"]
    return "\n".join(lines)


def ask(args):
    """Send the requests, and print what came of them."""
    from tqdm import tqdm
    runs = read_runs(args.data) if args.data else toy_runs(4 * args.n, args.seed)
    chosen = choose(runs, args.n, args.seed)
    teacher = Watched.from_args(args)
    with ThreadPoolExecutor(args.concurrency) as pool:
        jobs = pool.map(lambda request: ask_one(teacher, *request), chosen)
        asked = list(tqdm(jobs, "requests", len(chosen), disable=None))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            for one in asked:
                append_jsonl(file, one)
    print(f"{summary(asked)}\n\n{teacher.summary()}")


def parse_args(argv=None):
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="ask | errors")
    p = commands.add_parser("ask", help="send the teacher's requests to a model and list what cannot be used")
    p.add_argument("--data", nargs="+", help="JSON lines of trajectories or tasks (default: of the toy world)")
    p.add_argument("-n", type=whole(1), default=6, help="requests of each kind")
    p.add_argument("--seed", type=int, default=0, help="of the choice of runs and steps")
    p.add_argument("--out", help="JSON lines for all replies")
    teacher_flags(p, judge=False)
    p.set_defaults(run=ask)
    p = commands.add_parser("errors", help="write runs whose first wrong step is known, for judge.py audit")
    p.add_argument("--gsm8k", help="GSM8K's train.jsonl (default: the toy world)")
    p.add_argument("--out", required=True, help="JSON lines file for the runs")
    p.add_argument("-n", type=whole(1), default=300, help="runs")
    p.add_argument("--seed", type=int, default=0, help="of the choice of problems and errors")
    p.set_defaults(run=errors)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse_args()
    cli(arguments.run, arguments)
