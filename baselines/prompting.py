"""How a model that was not trained here takes part in an evaluation: `--prompt` and `--self-consistent`.

  agent  is told the tools and to answer with a thought and a program (Agent prompting of Kang et al., 2025)
  tir    reasons freely, with ```python blocks in between (tool-integrated reasoning)
  cot    reasons in one turn, without tools
The texts are in assets/prompts.md and stand before the question, in the same message. All three may end with
\\boxed{…}; a turn with neither code nor answer is told so, where react, the trained grammar, ends.

Self-consistent action generation (Agent Distillation, Kang et al., 2025): N candidates for every step, each
run in a fork of the interpreter; those of the wrong form or with an error are dropped; the step whose output
occurs most often is taken. If every program fails, the first is kept, so that the model sees its error.

One step of all tasks at a time, each from the messages before it: what a model makes up after its code, say
an observation of its own, is cut off; and every engine can do it. Sampled tokens are decoded and encoded
again, which is for measuring, not for training.
"""
import re
from collections import Counter

import env
import judge
from plumbing.answers import core
from plumbing.trajectory import step_of
from sandbox.interpreter import Interpreter, Observation

PROGRAM = re.compile(r"(?:<code>\s*)?```(?:py\w*)?[ \t]*\n(.*?)```|<code>(.*?)</code>", re.DOTALL)
NEITHER = Observation("Error: there is neither a program to run nor a final answer.", None, True)


class Candidate(env.Episode):
    """One step, to be played by an engine after `messages`."""

    def __init__(self, prompt, task, messages, interpreter, max_tokens, copy=0):
        super().__init__({**task, "messages": messages}, interpreter, max_tokens=max_tokens, copy=copy)
        self.prompt_mode, self.last_step, self.seen = prompt, step_of(messages), None

    def act(self, content, step):
        self.seen = super().act(content, step) if self.prompt_mode == "react" else self.act_freely(content)
        return self.seen

    def act_freely(self, content):
        program = self.prompt_mode != "cot" and PROGRAM.search(content)
        if program:
            self.messages[-1]["content"] = content[:program.end()]
            return self.interpreter.run((program[1] or program[2] or "").strip())
        if r"\boxed{" in content:
            return Observation("None", core(content), False)
        return None if self.prompt_mode == "cot" else NEITHER


def modal(candidates):
    """The first of the candidates with the most frequent output; those without an error go before others."""
    ran = [c for c in candidates if c.stop in ("answer", "max_steps")]
    valid = [c for c in ran if not c.seen.error] or ran or candidates
    outputs = [c.seen and (c.seen.text, c.seen.answer) for c in valid]
    return valid[outputs.index(Counter(outputs).most_common(1)[0][0])]


def rollout(engine, tasks, prompt, n, *, max_steps, max_tokens, search=None, progress=None, seed=0,
            **sampling):
    """`env.rollout` for a `prompt` of this module, or react, with n candidates a step -> trajectories."""
    text = "{question}" if prompt == "react" else judge.PROMPT["ASK_" + prompt.upper()]
    length = lambda messages: len(engine.chat.encode(messages)[0]) if hasattr(engine, "chat") else 0
    usage, now, live = [Counter() for _ in tasks], [], list(range(len(tasks)))
    for task in tasks:
        messages = [{"role": "user", "content": text.replace("{question}", task["question"])}]
        now.append(Candidate(prompt, task, messages, Interpreter(search), max_tokens))
    prompt_tokens = [length(c.messages) for c in now]

    for step in range(max_steps + 1):                                     # step 0 may be a plan
        played = {}
        for i in live:
            before, room = now[i], max_tokens - (length(now[i].messages) - prompt_tokens[i])
            if room < 1:
                before.stop = "max_tokens"
                continue
            played[i] = [Candidate(prompt, tasks[i], before.messages, before.interpreter.fork() if n > 1
                                   else before.interpreter, room, copy) for copy in range(n)]
        if played:
            engine.play([c for candidates in played.values() for c in candidates],
                        seed=seed, **sampling)
        for i, candidates in played.items():
            usage[i].update(student_calls=n, student_tokens=sum(sum(c.loss_mask) for c in candidates))
            last, now[i] = now[i], modal(candidates)
            for c in [last, *candidates]:
                if c.interpreter is not now[i].interpreter:
                    c.interpreter.close()
        done, live = len(live), [i for i in played if now[i].stop == "max_steps"]
        if progress is not None:
            progress.update(done - len(live))
        if not live:
            break
    if progress is not None:
        progress.update(len(live))                                        # their steps ran out
    for c in now:
        c.interpreter.close()
    return [c.trajectory() | {"usage": dict(used)} for c, used in zip(now, usage)]
