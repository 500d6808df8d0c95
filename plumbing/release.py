"""Reads the files that the authors of SCoRe released, and prints them as records of this project.

  python -m plumbing.release math_mps_trajectories.jsonl search_mps_trajectories.jsonl > release.jsonl
  python sft.py --data release.jsonl …

  MPS/output/**/*_trajectories.jsonl                   -> trajectories, with their corrections
  SFT/data/train/*.json, *_llamafactory.json           -> trajectories without answers, for sft.py
  RL/my_data/raw/**/*.json, MPS/output/**/*_rl.json    -> starts for grpo_short.py, as rl.jsonl of mps.py
  RL/my_data/**/*.parquet                              -> the same, once written as JSON lines

Their seed tasks and benchmark files need no conversion: all scripts read them as they are. Nothing is lost
and nothing is cleaned: texts stay as they are (their "Thought:" labels too), and what has no field here
(timestamps, the evaluation, repairs of steps that are not in the trajectory) is in "release". Steps that hold
nothing but an error of the authors' server are left out, as in their own conversion.
"""
import argparse
import hashlib
import json
import sys
from typing import Any

from plumbing.cli import InputError, Parser, cli
from plumbing.records import Record, append_jsonl
from plumbing.tasks import read_records
from plumbing.trajectory import Messages, Step, fault_of_turns

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


# ---- *_trajectories.jsonl ----

def turn(step: Record, first: bool) -> str:
    """A released step {"thought", "code"} as the policy would write it."""
    if first:
        return f"<first_thought>{step['thought']}</first_thought>"
    return f"<thought>{step['thought']}</thought><code>{step['code']}</code>"


def steps_of(given: Record) -> list[Record]:
    """All steps, the first thought as step 0.

    It is a field of its own in the files of behaviour cloning, and a first step without code in those of
    mentored problem-solving.
    """
    steps = [step for step in given["steps"] if "error" not in step]
    if "first_thought" in given:
        steps.insert(0, {"thought": given["first_thought"], "code": "", "observation": "None",
                         "is_finished": False})
    return steps


def correction_of(repair: Record) -> Record:
    """A released repair -> {"step", "analysis", "chosen", "rejected"}."""
    k = repair["mistake_step_index"]
    correction = {"step": k, "analysis": repair["correction_suggestion"]}
    for name, step in (("chosen", repair["teacher_guided_step"]), ("rejected", repair["student_mistake"][0])):
        correction[name] = {"content": turn(step, k == 0), "observation": step["observation"]}
    return correction


def is_in(steps: list[Record], repair: Record) -> bool:
    """Whether the trajectory goes through the teacher's step of this repair."""
    k = repair["mistake_step_index"]
    chosen = repair["teacher_guided_step"]
    if k >= len(steps):
        return False
    return steps[k]["thought"] == chosen["thought"] and steps[k]["code"] == chosen["code"]


def is_correct(evaluation: Any) -> bool | None:
    """The verdict of a released evaluation: an object, its text, or a remark such as "Not finished"."""
    if isinstance(evaluation, str):
        try:
            evaluation = json.loads(evaluation)
        except json.JSONDecodeError:
            return False
    if not isinstance(evaluation, dict):
        return None
    return evaluation.get("is_correct", evaluation.get("equivalent"))


def trajectory_of(given: Record) -> Record:
    """A released trajectory -> a record."""
    task = given["original_task_info"]
    steps = steps_of(given)
    finished = steps[-1]["is_finished"]
    messages = [{"role": "user", "content": task["question"]}]
    for k, step in enumerate(steps):
        messages.append({"role": "assistant", "content": turn(step, k == 0)})
        messages.append({"role": "user", "content": f"Observation: {step['observation']}"})
    if finished:
        messages.pop()                                     # the last step observes its own answer
    corrections = [correction_of(repair) for repair in given.get("repair_steps", []) if is_in(steps, repair)]
    return {"id": task["id"], "question": task["question"], "answer": task["true_answer"],
            "messages": messages,
            "prediction": steps[-1]["observation"] if finished else None,
            "correct": is_correct(given["evaluation_result"]),
            "stop": "answer" if finished else "max_steps", "corrections": corrections,
            "release": {k: v for k, v in given.items() if k not in ("steps", "first_thought")}}


# ---- SFT ----

def conversation_of(given: Record) -> Record:
    """A conversation of LLaMA-Factory -> a record. The release holds those that ended in a right answer."""
    messages = []
    for message in given.get("conversations") or given["messages"]:
        role = message.get("from") or message["role"]
        if role not in ROLES:
            raise ValueError(f"a turn is {role}'s, which is none of {', '.join(ROLES)}")
        messages.append({"role": ROLES[role], "content": message.get("value") or message["content"]})
    fault = fault_of_turns(messages)
    if fault:
        raise ValueError(f"its messages {fault}")
    answered = "final_answer_print(" in messages[-1]["content"]
    return {"id": id_of(messages), "question": messages[0]["content"], "answer": None, "messages": messages,
            "prediction": None, "correct": True, "stop": "answer" if answered else "max_steps",
            "corrections": [],
            "release": {k: v for k, v in given.items() if k not in ("conversations", "messages")}}


def id_of(messages: Messages) -> str:
    """A hash of the messages: the files of SFT and RL have no ids."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


# ---- RL ----

def key_step(content: str | None, observation: str | None) -> Step | None:
    """A step to compare a rollout's first step with; None in starts at the question, where it is empty."""
    if not content:
        return None
    return {"content": content, "observation": (observation or "").removeprefix("Observation:").strip()}


def start_of(given: Record) -> Record:
    """A start of RL -> a record; in the files for verl, `extra_info` has what counts."""
    if "extra_info" in given:
        more = given["extra_info"]
        answer = more["answer"]
        chosen = key_step(more["chosen_step"], more["chosen_step_obs"])
        rejected = key_step(more["rejected_step"], more["rejected_step_obs"])
    else:
        answer = given["gt_answer"]
        chosen = key_step(given["chosen"], given["chosen_observation"])
        rejected = key_step(given["rejected"], given["rejected_observation"])
    messages = [{"role": message["role"], "content": message["content"]} for message in given["prompt"]]
    if messages[0]["role"] != "user":
        raise ValueError("its prompt does not begin with the question")
    return {"id": id_of(messages), "question": messages[0]["content"], "answer": answer, "messages": messages,
            "chosen": chosen, "rejected": rejected, "kind": "key_step" if chosen else None,
            "release": {k: v for k, v in given.items() if k in ("correct_step", "data_source")}}


# ---- all files ----

def record_of(given: Record) -> Record | None:
    """Whatever the release holds -> a record; None for a trajectory of which every step failed.

    Raises KeyError, ValueError or the like for what it does not hold.
    """
    if "conversations" in given or ("messages" in given and "question" not in given):
        return conversation_of(given)
    if "prompt" in given:
        return start_of(given)
    if "original_task_info" in given:
        return trajectory_of(given) if steps_of(given) else None
    if "true_answer" in given:
        raise ValueError("it is a task, and all scripts read the release's tasks as they are")
    raise ValueError("it has neither original_task_info nor conversations nor prompt")


def main(args: argparse.Namespace) -> None:
    for path in args.files:
        failed = 0
        for place, given in read_records(path):
            try:
                record = record_of(given)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                fault = str(error)
                if isinstance(error, KeyError):
                    fault = f"it has no field {error}"
                raise InputError(f"{path}, {place}: not a record of the release ({fault})") from None
            if record is None:
                failed += 1
            else:
                append_jsonl(sys.stdout, record)
        if failed:
            print(f"{path}: {failed} left out, of which every step failed", file=sys.stderr)


if __name__ == "__main__":
    p = Parser(__doc__, prog="python -m plumbing.release")
    p.add_argument("files", nargs="+", help="files of the release")
    cli(main, p.parse_args())
