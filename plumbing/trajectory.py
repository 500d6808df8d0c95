"""The steps of a trajectory: how its messages are counted, cut and shown.

messages = [question, plan, "Observation: None", step 1, observation 1, step 2, …]. Step 0 is the plan, the
first thought; step k >= 1 is the k-th thought–code pair. Its content is messages[1 + 2 k], its observation
the message after that.
"""
import ast
import re
import textwrap
import threading
from typing import Any

from plumbing.thinking import without_thinking

Messages = list[dict[str, str]]           # [{"role", "content"}, …]
Step = dict[str, Any]                     # {"content", "observation"}; "final": True if it gave the answer


def step_of(messages: Messages) -> int:
    """Index of the next step: 0 before the first thought, k before the k-th thought–code pair."""
    return sum(m["role"] == "assistant" for m in messages)


def fault_of_turns(messages: Any, last: str | None = None) -> str | None:
    """What is wrong with a record's messages; None for texts of user and assistant in alternation, the user
    first. last: who the last turn has to be by."""
    form = "must be turns of user and assistant in alternation, each with a text"
    if not isinstance(messages, list) or not messages:
        return form
    for i, message in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role:
            return form
        if not isinstance(message.get("content"), str):
            return form
    if last is not None and messages[-1]["role"] != last:
        return f"must end with a turn of the {last}"
    return None


def fault_of_start(record: dict[str, Any]) -> str | None:
    """What is wrong with a record that RL is to start from; None if all is well."""
    for field in ("id", "question", "answer", "messages"):
        if not record.get(field):
            return f"field `{field}` is missing or empty"
    fault = fault_of_turns(record["messages"], last="user")
    if fault:
        return f"field `messages` {fault}"
    for step in (record.get("chosen"), record.get("rejected"), *(record.get("also_rejected") or [])):
        if step is not None and not is_step(step):
            return "`chosen` and `rejected` must be steps with content and observation, or null"
    return None


def fault_of_corrections(record: dict[str, Any]) -> str | None:
    """What is wrong with a line of mps.jsonl from whose corrections is to be learned; None if all is well."""
    fault = fault_of_turns(record.get("messages"))
    if fault:
        return f"field `messages` {fault}"
    if not isinstance(record.get("correct"), bool):
        return "field `correct` must say whether the task was solved"
    corrections = record.get("corrections")
    if not isinstance(corrections, list) or not all(isinstance(each, dict) for each in corrections):
        return "field `corrections` must be a list of objects"
    for correction in corrections:
        step = correction.get("step")
        if not isinstance(step, int) or step not in range(step_of(record["messages"])):
            return f"field `corrections`: its `step` is {step!r}, which is no step of `messages`"
        for name in ("chosen", "rejected"):
            if not is_step(correction.get(name)):
                return f"field `corrections`: `{name}` must be a step with content and observation"
    return None


def is_step(value: Any) -> bool:
    """Whether a value of a record is a step: a text, and what was observed."""
    return isinstance(value, dict) and isinstance(value.get("content"), str) and "observation" in value


def prefix(messages: Messages, step: int) -> Messages:
    """What stands before a step: the question, and every earlier step with its observation."""
    return messages[:1 + 2 * step]


def step_at(messages: Messages, step: int, prediction: str | None = None) -> Step:
    """Step k as {"content", "observation"}; the last step of a finished run observes its own answer, and is
    marked "final"."""
    content = messages[1 + 2 * step]["content"]
    if 2 + 2 * step < len(messages):
        observation = messages[2 + 2 * step]["content"].removeprefix("Observation: ")
        return {"content": content, "observation": observation}
    if prediction is None:
        return {"content": content, "observation": None}
    return {"content": content, "observation": prediction, "final": True}


def observed(step: Step) -> str:
    """The observation of a step without its label; "" if there is none."""
    return (step["observation"] or "").strip().removeprefix("Observation:").strip()


def render(messages: Messages) -> str:
    """The steps of a trajectory as a prompt shows them: `## Step k`, the content, the observation."""
    lines = []
    for i, message in enumerate(messages[1:], 1):
        if message["role"] == "assistant":
            lines.append(f"## Step {step_of(messages[:i])}")
        lines.append(message["content"].strip())
    return "\n".join(lines) or "(no step yet)"


def render_step(step: Step) -> str:
    """One step as a prompt shows it."""
    return f"{step['content'].strip()}\nObservation: {observed(step)}"


# ---- the program of a step ----

# What ast.parse, ast.literal_eval and json raise on a text that they cannot read. LookupError and TypeError
# also come from a look-up in what they did read.
UNREADABLE = (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError)
PARSING = threading.Lock()

OPENING = re.compile(r"<code(?:\s[^<>]*)?>", re.IGNORECASE)
CLOSING = re.compile(r"</code>", re.IGNORECASE)
CLOSINGS = 20                              # so many are tried as the end of a program
# The thought before the code; it may name the tag.
THOUGHT = re.compile(r"(?:(?!<code\b).)*?<thought>.*?</thought>", re.DOTALL | re.IGNORECASE)
FENCES = ("`", "~~~")
# What may follow the marks of a Markdown fence: "python\n", " python3.11\n", "{.py}\n", "python print(1)".
LANGUAGE = re.compile(r"[ \t]*(?:(?:[\w.+#-]*|\{[^{}\n]*\})[ \t]*\n|(?:python|py)[\d.]*\b)", re.IGNORECASE)
# The name of the language in a line of its own, without a fence.
LABEL = re.compile(r"\s*python[\d.]*[ \t]*\n", re.IGNORECASE)
# The program inside one of several fences, or of one with words around it.
BLOCK = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n(.*?)\n?[ \t]*(?:```|~~~)[ \t]*$", re.DOTALL | re.MULTILINE)


def parse_code(text: str) -> ast.Module:
    """`ast.parse`, one thread at a time: in CPython 3.11 several can raise SystemError (gh-106905)."""
    with PARSING:
        return ast.parse(text)


def is_python(code: str) -> bool:
    """Can a program be parsed?"""
    try:
        parse_code(code)
    except UNREADABLE:
        return False
    return True


def code_of(content: str) -> str | None:
    """The program of a step as it is run, None if it has none.

    A fence around it and a common indent are removed; a </code> inside one of its strings does not end it.
    """
    try:
        content = without_thinking(content)
    except ValueError:                                         # it is all thinking
        return None
    thought = THOUGHT.match(content)
    opening = OPENING.search(content, thought.end() if thought else 0) or OPENING.search(content)
    if opening is None:
        return None
    start = opening.end()
    programs = []
    for closing in CLOSING.finditer(content, start):
        programs.append(program_in(content[start:closing.start()]))
        if len(programs) == CLOSINGS:
            break
    if not programs:
        return None
    if len(programs) == 1:
        return programs[0]
    return next((program for program in programs if is_python(program)), programs[0])


def program_in(text: str) -> str:
    """A program without the fence around it and without the indent that all its lines share."""
    text = text.replace("\r\n", "\n").rstrip()
    blocks = "\n".join(textwrap.dedent(block) for block in BLOCK.findall(text))
    if text.lstrip().startswith(FENCES):
        text = text.lstrip().lstrip("`~")
        language = LANGUAGE.match(text)
        if language:
            text = text[language.end():]
    if text.endswith(FENCES):
        text = text.rstrip("`~")
    label = LABEL.match(text)
    if label:
        text = text[label.end():]
    plain = text.strip()
    others = []                                                # what it may be if it is no program as it is
    if blocks:
        others.append(blocks.strip())
    if "\n" in plain and not re.search(r"\n\S", plain):       # every line but the first is indented
        first, _, rest = plain.partition("\n")
        others += [textwrap.dedent(text).strip(), first + "\n" + textwrap.dedent(rest)]
    if not others or is_python(plain):
        return plain
    return next((other for other in others if is_python(other)), plain)
