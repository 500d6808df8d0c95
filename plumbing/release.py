"""Reads trajectories that the authors of SCoRe released, and prints them as records of this project.

  python -m plumbing.release math_mps_trajectories.jsonl search_mps_trajectories.jsonl > release.jsonl
  python sft.py --data release.jsonl …

Nothing is lost and nothing is cleaned: texts stay as they are (their "Thought:" labels too), and what has no
field here (timestamps, the evaluation, repairs that are not anchored) is kept as it is under "release".
"""
import argparse
import json
import sys

from plumbing.cli import Help, InputError, cli
from plumbing.records import append_jsonl, read_jsonl


def turn(step, first):
    """A step {"thought", "code"} as what the policy writes."""
    if first:
        return f"<first_thought>{step['thought']}</first_thought>"
    return f"<thought>{step['thought']}</thought><code>{step['code']}</code>"


def record_of(given):
    """A released trajectory -> a record. The files of behaviour cloning have the first thought in a field of
    its own, those of mentored problem-solving as a first step without code."""
    task, steps = given["original_task_info"], given["steps"]
    if "first_thought" in given:
        steps = [{"thought": given["first_thought"], "code": "", "observation": "None"}, *steps]
    messages, finished = [{"role": "user", "content": task["question"]}], steps[-1]["is_finished"]
    for k, step in enumerate(steps):
        messages += [{"role": "assistant", "content": turn(step, k == 0)},
                     {"role": "user", "content": f"Observation: {step['observation']}"}]
    evaluation, corrections = given["evaluation_result"], []
    evaluation = json.loads(evaluation) if isinstance(evaluation, str) else evaluation
    for repair in given.get("repair_steps", []):
        k, chosen = repair["mistake_step_index"], repair["teacher_guided_step"]
        if k < len(steps) and all(steps[k][part] == chosen[part] for part in ("thought", "code")):
            corrections.append({"step": k, "analysis": repair["correction_suggestion"], **{
                name: {"content": turn(step, k == 0), "observation": step["observation"]}
                for name, step in (("chosen", chosen), ("rejected", repair["student_mistake"][0]))}})
    return {"id": task["id"], "question": task["question"], "answer": task["true_answer"],
            "messages": messages[:-1] if finished else messages,
            "prediction": steps[-1]["observation"] if finished else None,
            "correct": evaluation.get("is_correct", evaluation.get("equivalent")),
            "stop": "answer" if finished else "max_steps", "corrections": corrections,
            "release": {k: v for k, v in given.items() if k not in ("steps", "first_thought")}}


def main(args):
    for path in args.files:
        for n, given in read_jsonl(path):
            try:
                append_jsonl(sys.stdout, record_of(given))
            except (LookupError, TypeError, ValueError) as error:
                fault = f"not a released trajectory ({type(error).__name__}: {error})"
                raise InputError(f"{path}, line {n}: {fault}") from None


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    p.add_argument("files", nargs="+", help="JSON lines of the release, *_trajectories.jsonl")
    cli(main, p.parse_args())
