"""The steps of a trajectory: how its messages are counted, cut and shown.

messages = [question, plan, "Observation: None", step 1, observation 1, step 2, …]. Step 0 is the plan, the
first thought; step k >= 1 is the k-th thought–code pair. Its content is messages[1 + 2 k], its observation
the message after that.
"""
import re

Messages = list[dict[str, str]]           # [{"role", "content"}, …]
Step = dict[str, str | None]              # {"content", "observation"}

CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)


def step_of(messages: Messages) -> int:
    """Index of the next step: 0 before the first thought, k before the k-th thought–code pair."""
    return sum(m["role"] == "assistant" for m in messages)


def prefix(messages: Messages, step: int) -> Messages:
    """What stands before a step: the question, and every earlier step with its observation."""
    return messages[:1 + 2 * step]


def step_at(messages: Messages, step: int, prediction: str | None = None) -> Step:
    """Step k as {"content", "observation"}; the last step of a finished run observes its own answer."""
    observation = prediction
    if 2 + 2 * step < len(messages):
        observation = messages[2 + 2 * step]["content"].removeprefix("Observation: ")
    return {"content": messages[1 + 2 * step]["content"], "observation": observation}


def code_of(content: str) -> str | None:
    """The program of a step, None if it has none."""
    found = CODE.search(content)
    if found is None:
        return None
    return found[1].strip()


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
