"""A tokenizer's chat template, taken apart and checked: is a model used as it was trained?"""
import os
import re
from typing import Any, NamedTuple

from plumbing.trajectory import Messages

# What a template's own statements raise beside jinja's errors: it is a program that somebody else wrote.
FAILS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError)

# The turn's own tags are text, also for a tokenizer that has them as special tokens, as the authors' has
TAGS = {"<first_thought>", "</first_thought>", "<thought>", "</thought>", "<code>", "</code>"}

QUESTION = {"role": "user", "content": "[[0]]"}
ANSWER = {"role": "assistant", "content": "[[1]]"}
OBSERVATION = {"role": "user", "content": "[[2]]"}


class Pieces(NamedTuple):
    """The constant strings between the contents of messages."""
    start: str       # before the question
    open: str        # from the question or an observation to the policy's turn: "<|im_end|>\n<|im_start|>…"
    close: str       # after the last turn: "<|im_end|>\n"
    between: str     # from a turn to its observation


def apply_template(tokenizer: Any, messages: Messages, generate: bool = False) -> str:
    """The text of messages by the tokenizer's own template; with generate, the start of the next turn too.

    Raises ValueError if the template fails.
    """
    import jinja2  # comes with Transformers
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except (jinja2.TemplateError, *FAILS) as error:
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"the chat template fails on messages of user and assistant ({why})") from error


def take_apart(tokenizer: Any) -> Pieces:
    """Find the pieces in three short conversations, with marks where the contents stand.

    Raises ValueError, one sentence, for a template that is missing or fails; that leaves a content out; that
    rewrites earlier messages; that writes something else before an answer than where one is to begin; or that
    does not end a turn with the end-of-sequence token.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError('the tokenizer has no chat template; an "instruct" model is needed')
    asked = apply_template(tokenizer, [QUESTION], generate=True)
    answered = apply_template(tokenizer, [QUESTION, ANSWER])
    observed = apply_template(tokenizer, [QUESTION, ANSWER, OBSERVATION], generate=True)
    if asked.count("[[0]]") != 1 or answered.count("[[1]]") != 1:
        raise ValueError("the chat template does not write each message's text once (it may want contents as "
                         "lists of parts)")
    start, _, opened = asked.partition("[[0]]")
    answer, _, close = answered.partition("[[1]]")
    for earlier, later in (start + "[[0]]", answered), (answer + "[[1]]", observed):
        if not later.startswith(earlier):
            raise ValueError("the chat template rewrites history: what is {!r} becomes {!r} when another "
                             "message follows".format(*difference(earlier, later)))
    faults = []
    if answer != start + "[[0]]" + opened:
        before = answer.partition("[[0]]")[2]
        faults.append(f"writes {before!r} between question and answer, and {opened!r} where an answer is to "
                      "begin")
    between, _, reopened = observed.partition("[[1]]")[2].partition("[[2]]")
    if reopened != opened:
        faults.append(f"opens the first answer with {opened!r}, and the next with {reopened!r}")
    faults += fault_at_end(tokenizer, close, between)
    if faults:
        raise ValueError("the chat template " + ", and ".join(faults))
    return Pieces(start, opened, close, between)


def difference(before: str, after: str) -> tuple[str, str]:
    """What stands in two texts from the last content on that they share."""
    shared = os.path.commonprefix([before, after])
    at = shared.rfind("]]") + 2 if "]]" in shared else 0
    return re.sub(r"\[\[\d\]\]", "…", before[at:])[:80], re.sub(r"\[\[\d\]\]", "…", after[at:])[:80]


def fault_at_end(tokenizer: Any, close: str, between: str) -> list[str]:
    """What is wrong if turns do not end with the end-of-sequence token: the last one, and those before it."""
    eos = tokenizer.eos_token or ""
    control = control_tokens(tokenizer)
    ends = []
    right = []
    for text in close, between:
        found = control.match(text)
        end = found[0] if found else text
        ends.append(repr(end) if end.strip() else "nothing")
        first = tokenizer(text, add_special_tokens=False).input_ids[:1]
        right.append(text.startswith(eos) and first == [tokenizer.eos_token_id])
    if all(right):
        return []
    says = ends[0]
    if ends[0] != ends[1]:
        says += f", with {ends[1]} when another message follows"
    return [f"ends the assistant's turn with {says}, while the end-of-sequence token is "
            f"{tokenizer.eos_token!r} (`eos_token` in tokenizer_config.json)"]


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the texts that the tokenizer reads as control tokens, the longest first."""
    longest_first = sorted(control_texts(tokenizer), key=len, reverse=True)
    nothing = "(?!)"                                                     # matches nowhere
    return re.compile("|".join(map(re.escape, longest_first)) or nothing)


def control_texts(tokenizer: Any) -> set[str]:
    """The texts of the tokens that are no text: ends of turns, padding …"""
    texts = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            texts.add(str(token))
    return {text for text in texts if text.strip()} - TAGS


def control_ids(tokenizer: Any) -> set[int]:
    """The ids of these tokens."""
    return set(tokenizer.convert_tokens_to_ids(sorted(control_texts(tokenizer)))) - {None}
