"""Reads trajectories that the authors of SCoRe released, and prints them as records of this project.

  python -m plumbing.release math_mps_trajectories.jsonl search_mps_trajectories.jsonl > release.jsonl
  python sft.py --data release.jsonl …

Nothing is lost and nothing is cleaned: texts stay as they are (their "Thought:" labels too), and what has no
field here (timestamps, the evaluation, repairs of steps that are not in the trajectory) is in "release".
"""
import argparse
import json
import sys

from plumbing.cli import Help, InputError, cli
from plumbing.records import Record, append_jsonl, read_jsonl


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
    if "first_thought" not in given:
        return given["steps"]
    return [{"thought": given["first_thought"], "code": "", "observation": "None"}, *given["steps"]]


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


def record_of(given: Record) -> Record:
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
    evaluation = given["evaluation_result"]
    if isinstance(evaluation, str):
        evaluation = json.loads(evaluation)
    corrections = [correction_of(repair) for repair in given.get("repair_steps", []) if is_in(steps, repair)]
    return {"id": task["id"], "question": task["question"], "answer": task["true_answer"],
            "messages": messages,
            "prediction": steps[-1]["observation"] if finished else None,
            "correct": evaluation.get("is_correct", evaluation.get("equivalent")),
            "stop": "answer" if finished else "max_steps", "corrections": corrections,
            "release": {k: v for k, v in given.items() if k not in ("steps", "first_thought")}}


def main(args: argparse.Namespace) -> None:
    for path in args.files:
        for n, given in read_jsonl(path):
            try:
                record = record_of(given)
            except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
                fault = f"not a released trajectory ({type(error).__name__}: {error})"
                raise InputError(f"{path}, line {n}: {fault}") from None
            append_jsonl(sys.stdout, record)


if __name__ == "__main__":
    p = argparse.ArgumentParser(prog="python -m plumbing.release", description=__doc__, formatter_class=Help)
    p.add_argument("files", nargs="+", help="JSON lines of the release, *_trajectories.jsonl")
    cli(main, p.parse_args())
