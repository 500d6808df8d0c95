"""Controls of mentored problem-solving, mps.py --corrector: the student itself writes the new step k.

  student   sees the step that was rejected and the verdict on it (analysis, suggestion), and writes the step
  resample  sees nothing: it is drawn again from the verified prefix

How much of the gain is the teacher's step, how much only another start from a good prefix? Nothing changes
against mps.py but who writes the step: what stays of the teacher in `resample` is the number k of the step
that it names, and its word that an answer is wrong; in `student` also what it says of the step. The limit
--corrections is the same. The student's drafts count as its own calls and tokens, so `usage` compares the
arms at equal tokens.

The student is never told the answer: an analysis or a suggestion that gives it away (`gives_away` in
plumbing/leaks.py) is left out and named in the correction's `withheld`. The trajectory holds the step alone,
as if written after the plain prefix. One that talks of its correction is asked for again, up to --reasks
times as the teacher's is; if it still does, the run ends there and the correction is spent.
"""
from typing import Any

from env import Episode
from judge import PROMPT
from plumbing.leaks import gives_away
from plumbing.replies import talk_of
from plumbing.scheduler import Run
from plumbing.trajectory import Messages, Step, render_step, step_of

Mentored = Any                            # of mps.py, which imports this file


class Draft(Episode):
    """One step, which an engine writes after `messages`. It does not run here, but in the resumed episode."""

    is_question = False                   # an endpoint may refuse the verdict that its first message holds

    def __init__(self, resumed: Episode, messages: Messages) -> None:
        super().__init__({**resumed.task, "messages": messages}, resumed.interpreter,
                         max_steps=resumed.max_steps, max_tokens=resumed.max_tokens, copy=resumed.copy)
        self.content = ""

    def turn(self, content: str, complete: bool = True) -> None:
        """Keep the student's turn; it is the only one."""
        self.content = content
        self.calls += 1
        self.stop = "max_steps" if complete else "max_tokens"

    def hand_over(self, resumed: Episode) -> None:
        """Run the step in the resumed episode, which stands where it was written."""
        resumed.turn(self.content, complete=self.stop == "max_steps")
        if self.stop == "format":
            resumed.stop = "format"


def student_step(m: Mentored, resumed: Episode, rejected: Step, analysis: str | None,
                 suggestion: str | None) -> Run:
    """Let the student write the next step of the resumed episode, and run it -> what the record says of it.

    Yields the drafts that the student has to write.
    """
    resumed.copy = 1 + m.args.verify_first_error + len(m.corrections)     # other samples than any run before
    if m.args.corrector == "resample":
        draft = Draft(resumed, resumed.messages)
        yield [draft]
        m.count([draft])
        draft.hand_over(resumed)
        return {}

    parts = [("Rejected step", render_step(rejected))]
    withheld = []
    for name, text in (("analysis", analysis), ("suggestion", suggestion)):
        if text and gives_away(text, m.task["question"], m.task["answer"], resumed.messages):
            withheld.append(name)
        elif text:
            parts.append((name.capitalize(), text))
    messages = with_verdict(resumed.messages, parts)
    for _ in range(m.args.reasks + 1):
        draft = Draft(resumed, messages)
        yield [draft]
        m.count([draft])
        talk = talk_of(draft.content, m.task["question"])
        if talk is None:
            break
        fault = PROMPT["REASK"].format(fault=f'who is at this step for the first time would not say "{talk}"')
        messages = [*messages, {"role": "assistant", "content": draft.content},
                    {"role": "user", "content": fault}]
    if talk is not None:
        draft.stop = "format"
    draft.hand_over(resumed)
    return {"withheld": withheld}


def with_verdict(messages: Messages, parts: list[tuple[str, str]]) -> Messages:
    """The messages before a step; the last of them goes on with the verdict, parts of (heading, text)."""
    sections = "\n\n".join(f"# {heading}\n{text}" for heading, text in parts)
    form = "<thought>…</thought><code>…</code>"
    if step_of(messages) == 0:
        form = "<first_thought>…</first_thought>"
    told = PROMPT["CORRECT_YOURSELF"].format(sections=sections, form=form)
    return [*messages[:-1], {"role": "user", "content": f"{messages[-1]['content']}\n\n{told}"}]
