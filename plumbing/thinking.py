"""What a model thinks before it replies, which is no part of its reply."""
import re

# DeepSeek and Qwen write <think>, Magistral [THINK], gpt-oss channels. Where the prompt ends with the opening
# mark, a reply has only the closing one.
THINKING = re.compile(r"<(?:think(?:ing)?|reasoning)>|(?-i:\[THINK\])|◁think▷"
                      r"|<\|channel\|>analysis<\|message\|>", re.IGNORECASE)
THOUGHT_OUT = re.compile(r"</(?:think(?:ing)?|reasoning)>|(?-i:\[/THINK\])|◁/think▷"
                         r"|<\|channel\|>final<\|message\|>", re.IGNORECASE)
STEP = re.compile(r"\s*<(?:first_thought|thought|code)\b", re.IGNORECASE)
# The beginning of a program that has not ended.
OPEN_CODE = re.compile(r"<code\b(?:(?!</code>).)*\Z", re.DOTALL | re.IGNORECASE)


def end_of_thinking(text: str, start: int) -> int:
    """Where the next </think> ends; ValueError if there is none."""
    closing = THOUGHT_OUT.search(text, start)
    if closing is None:
        raise ValueError("it ends inside its thinking")
    return closing.end()


def without_thinking(text: str) -> str:
    """What a plan or a step says after its thinking; </think> inside a step's code ends nothing.

    ValueError if the thinking does not end.
    """
    start = 0
    while not STEP.match(text, start):
        mark = THOUGHT_OUT.search(text, start) or THINKING.search(text, start)
        if mark is None:
            break
        if OPEN_CODE.search(text[start:mark.start()]) and not STEP.search(text, mark.end()):
            break
        start = end_of_thinking(text, start)
    return text[start:].strip()


def after_thinking(text: str) -> str:
    """The same of a text that may have been cut off; "" if it ends inside its thinking."""
    try:
        return without_thinking(text)
    except ValueError:
        return ""
