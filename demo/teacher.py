"""The demo's teacher: rules that know the toy world, behind the HTTP interface of a large language model.

  python demo/teacher.py --port 8008         # /v1/chat/completions, /v1/models and a search engine at /search

It reads the very prompts that judge.py sends to a 72B model (the first line of the system message names the
request) and answers in the same form. It judges what a step *does* (values assigned, queries made), not its
words, so another order of steps or a harmless detour passes.

The ability gap is built in: when it *demonstrates* (not when it corrects), with probability `--leap` where
possible, it skips a step by doing it in its head: it states an amount it never computed, or a fact it never
searched. That is right, and out of the student's reach: the paper's premise. `--leap 0` is the control.
"""
import argparse
import ast
import json
import os
import random
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import judge
import world
from plumbing.replies import parse_code
from plumbing.values import not_negative, port, share

PLANS = {"math": "I will compute the amount step by step.", "search": "I will look up the links one by one."}
HEADING = re.compile(r"(?m)^# (Question|Reference answer|Trajectory|Rejected step|Analysis|Suggestion"
                     r"|Prediction|Step A|Step B|Found on the web)$")


def read_prompt(text):
    """The user message of judge.py -> {heading: text}."""
    parts = HEADING.split(text)
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2])}


def read_steps(text):
    """A rendered trajectory -> [(content, observation)]."""
    steps = []
    for part in re.split(r"(?m)^## Step \d+(?:\n|$)", text)[1:]:         # the last one may be empty
        content, _, observation = part.partition("\nObservation: ")
        steps.append((content.strip(), observation.strip()))
    return steps


def value_of(node, variables):
    """Value of a simple arithmetic expression; KeyError or TypeError where it is not one."""
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return variables[name]
        case ast.BinOp(left, op, right):
            a, b = value_of(left, variables), value_of(right, variables)
            return {ast.Add: a.__add__, ast.Sub: a.__sub__, ast.Mult: a.__mul__}[type(op)](b)
    raise TypeError(ast.dump(node))


def effects(content, variables):
    """What a step does -> (assigned {name: value}, queries, answer or None); None for unusual code."""
    code = re.search(r"<code>(.*?)</code>", content, re.DOTALL)
    if not code:
        return None
    assigned, queries, answer = {}, [], None
    try:
        for node in parse_code(code[1].strip()).body:
            match node:
                case ast.Assign([ast.Name(name)], expression):
                    assigned[name] = variables[name] = value_of(expression, variables)
                case ast.Expr(ast.Call(ast.Name("final_answer_print"), [x])):
                    answer = str(value_of(x, variables))
                case ast.Expr(ast.Call(ast.Name("print"),
                                       [ast.Call(ast.Name("web_search"), [ast.Constant(query)])])):
                    queries.append(query)
                case ast.Expr(ast.Call(ast.Name("print"), [x])):
                    value_of(x, variables)
                case _:
                    return None
    except (SyntaxError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return assigned, queries, answer


class Task:
    """A question, its solution, and how far a trajectory has come."""

    def __init__(self, question):
        self.kind = "math" if "How many" in question else "search"
        self.variables = {}
        if self.kind == "math":
            self.name, self.first, self.left = world.parse_math(question)  # left: (sign, number) to apply
            self.value, self.last = None, None                             # amount so far, its variable
            self.answer = str(self.outcome(self.first))
        else:
            self.hops = world.parse_search(question)
            self.answer = self.hops[-1][2]
            self.known = set()                                             # hops searched

    def outcome(self, value):
        for sign, n in self.left:
            value = world.apply(value, sign, n)
        return value

    def take(self, content, first=False):
        """Follow one step -> "right" | "idle" (no progress) | "wrong"."""
        if first:
            return "right" if PLANS[self.kind] in content and "</first_thought>" in content else "wrong"
        did = effects(content, self.variables)
        if did is None:
            return "wrong"
        assigned, queries, answer = did
        if answer is not None:
            return "right" if answer == self.answer else "wrong"
        if self.kind == "math":
            results = ["wrong" if queries else self.assign(name, value, content)
                       for name, value in assigned.items()]
            return "wrong" if "wrong" in results or queries else "right" if "right" in results else "idle"
        asked = {f"{relation} of {entity}": i for i, (relation, entity, _) in enumerate(self.hops)}
        if not set(queries) <= asked.keys():
            return "wrong"
        before = len(self.known)
        self.known |= {asked[q] for q in queries}
        return "right" if len(self.known) > before else "idle"

    def assign(self, name, value, content):
        """An amount is right if what is left to do leads from it to the answer.

        In any order, one step or several at once.
        """
        if self.value is None:
            self.value, before = self.first, None
        else:
            before = self.value
        if value == before:
            return "idle"
        left = self.left
        if value != self.first or before is not None:
            one = [(sign, n) for sign, n in left
                   if before is not None and world.apply(before, sign, n) == value]
            for sign, n in one:                                # one of the operations, perhaps out of turn
                self.left = [x for x in left if x != (sign, n)]
                if str(self.outcome(value)) == self.answer:
                    break
            else:
                for done in range(len(left), 0, -1):           # several at once: the next ones, in the head
                    self.left = left[:done]
                    if self.outcome(self.value) == value:
                        self.left = left[done:]
                        break
                else:
                    self.left, self.value = left, before
                    return "wrong"
        self.value, self.last = value, name
        return "right"

    def next(self, leap):
        """The step to take now; with `leap` one that skips a step, if two or more are left."""
        if self.kind == "math":
            if self.value is None:
                return world.write(f"{self.name} has {self.first}.",
                                   f"{self.name}={self.first}\nprint({self.name})")
            name = self.last
            if not self.left:
                return world.write(f"{name} is the answer.", f"final_answer_print({name})")
            (sign, n), *rest = self.left
            op = next(op for op, s in world.OPS.items() if s == sign)
            value = world.apply(world.apply(self.value, sign, n), *rest[0]) if rest else self.value
            if leap and value != self.value:
                return world.write(f"{name} is {value}.", f"{name}={value}\nprint({name})")
            return world.write(f"{op} {n}.", f"{name}={name}{sign}{n}\nprint({name})")
        at = max(self.known, default=-1) + 1
        if at == len(self.hops):
            return world.write("The answer is found.", f'final_answer_print("{self.answer}")')
        if leap and at + 1 < len(self.hops):
            relation, entity, value = self.hops[at]
            thought, (relation, entity, _) = f"The {relation} is {value}.", self.hops[at + 1]
        else:
            relation, entity, _ = self.hops[at]
            thought = f"Find the {relation}."
        return world.write(thought, f'print(web_search("{relation} of {entity}"))')


def verdict(question, steps, prediction, noise, rng):
    """First wrong step of a run; if none is wrong, the first without progress."""
    task, idle = Task(question), None
    correct = prediction == task.answer
    wrong = None
    for k, (content, _) in enumerate([] if correct else steps):
        result = task.take(content, first=k == 0)
        if result == "wrong":
            wrong = k
            break
        idle = k if idle is None and result == "idle" else idle
    if not correct and wrong is None:
        wrong = idle if idle is not None else len(steps) - 1
    if noise and wrong is not None and len(steps) > 1 and rng.random() < noise:
        wrong = rng.choice([k for k in range(len(steps)) if k != wrong])
    return json.dumps(dict(analysis="" if correct else f"Step {wrong} does not follow from the question.",
                           suggestion="" if correct else "Take the next link of the chain.",
                           correct=correct, first_wrong_step=wrong))


def chain_of_thought(task):
    """The whole solution in one turn. Without tools, of a search only what the teacher knows by heart."""
    if task.kind == "math":
        value, told = task.first, [f"{task.name} has {task.first}."]
        for sign, n in task.left:
            op = next(op for op, s in world.OPS.items() if s == sign)
            value = world.apply(value, sign, n)
            told.append(f"{op} {n} is {value}.")
    else:
        told = [f"The {relation} of {entity} is {value}." for relation, entity, value in task.hops]
    return " ".join([*told, f"\\boxed{{{task.answer}}}"])


def reply(system, user, args, rng):
    parts, kind = read_prompt(user), system.split("\n")[0]
    question = parts["Question"]
    task = Task(question)
    if kind == judge.PLAN_SYSTEM.split("\n")[0]:
        return PLANS[task.kind]
    if kind == judge.PROMPT["COT"].split("\n")[0]:
        return chain_of_thought(task)
    if kind == judge.SAME_ANSWER_SYSTEM.split("\n")[0]:
        same = parts["Prediction"].strip().lower() == parts["Reference answer"].strip().lower()
        return json.dumps(dict(analysis="", equivalent=same))
    if kind == judge.SAME_STEP_SYSTEM.split("\n")[0]:
        a, b = (effects(parts[s].split("\nObservation: ")[0], {}) for s in ("Step A", "Step B"))
        return json.dumps(dict(analysis="", equivalent=a is not None and a == b))
    steps = read_steps(parts["Trajectory"])
    if kind == judge.VERDICT_SYSTEM.split("\n")[0]:
        return verdict(question, steps, parts.get("Prediction", "").strip(), args.noise, rng)
    for k, (content, _) in enumerate(steps):
        task.take(content, first=k == 0)
    if not steps and kind == judge.CORRECT_SYSTEM.split("\n")[0]:
        return f"<first_thought>{PLANS[task.kind]}</first_thought>"
    leaps = (kind == judge.STEP_SYSTEM.split("\n")[0]
             and world.pick(1000, "leap", question, len(steps)) < 1000 * args.leap)
    return task.next(leaps)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = "toy-teacher"

    def reply(self, system, user):
        """The text that answers a prompt, or None if the request was answered otherwise. Another teacher has its
        own (demo/gsm8k_teacher.py)."""
        return reply(system, user, self.server.args, random.Random(user))      # the same question, the same noise

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/search":
            found = world.search(request["q"])
            return self.answer({"organic": [{"title": request["q"].split(" of ")[-1], "snippet": found}]
                                if found else []})
        messages, args = request["messages"], self.server.args
        time.sleep(args.latency)
        text = self.reply(messages[0]["content"], messages[1]["content"])
        if text is None:
            return
        fault = int(random.random() / args.faults) if args.faults else len(FAULTS)
        text = FAULTS[fault](self, text) if fault < len(FAULTS) else text
        if text is None:
            return
        words = sum(len(m["content"].split()) for m in messages), len(text.split())
        self.answer({"object": "chat.completion", "model": self.model,
                     "choices": [{"index": 0, "finish_reason": "stop",
                                  "message": {"role": "assistant", "content": text}}],
                     "usage": {"prompt_tokens": words[0], "completion_tokens": words[1],
                               "total_tokens": sum(words)}})

    def answer(self, payload, status=200, **headers):
        body = json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


    def cut(self):
        """A reply whose second half never comes."""
        self.send_response(200)
        self.send_header("Content-Length", "500")
        self.end_headers()
        self.wfile.write(b'{"object": "chat.completion", "choices": [{"index": 0, "mess')
        self.close_connection = True


# Each spoils a reply: it returns a worse text, or has answered (or been silent for too long) itself.
FAULTS = [lambda handler, text: handler.answer({"error": "overloaded"}, 500),
          lambda handler, text: handler.answer({"error": "too many requests"}, 429, Retry_After="0.1"),
          lambda handler, text: time.sleep(handler.server.args.hang) or text,
          lambda handler, text: handler.cut(),
          lambda handler, text: text[:len(text) // 2],
          lambda handler, text: re.sub('"first_wrong_step": [0-9]+', '"first_wrong_step": 99', text)]


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256

    def handle_error(self, request, address):
        if not isinstance(sys.exception(), ConnectionError):        # the client gave up waiting or was killed
            super().handle_error(request, address)


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--leap", type=share, default=0.5,
                   help="probability that a demonstrated step skips one, where it can")
    p.add_argument("--noise", type=share, default=0.0,
                   help="probability that a verdict names another step than the first wrong one")
    server_flags(p)
    return p.parse_args(argv)


def server_flags(p):
    """The flags of a server of this kind, whatever it knows."""
    p.add_argument("--port", type=port, default=8008,
                   help="port on 127.0.0.1; 0 picks a free one, which is printed")
    p.add_argument("--latency", type=not_negative, default=0.0, help="seconds before a completion")
    p.add_argument("--faults", type=share, default=0.0,
                   help="probability of each of: HTTP 500, HTTP 429, silence, a cut reply, half a text, "
                        "a step that does not exist")
    p.add_argument("--hang", type=not_negative, default=2.0, help="seconds of silence")


def serve(args, handler=Handler):
    """Start the server in a thread -> (server, its URL)."""
    server = Server(("127.0.0.1", args.port), handler)
    server.args = args
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def main(args, handler=Handler):
    """Print the URL and serve until killed."""
    try:
        server = Server(("127.0.0.1", args.port), handler)
    except OSError as error:
        sys.exit(f"error: --port {args.port} cannot be used: {error.strerror}")
    server.args = args
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(parse_args())
