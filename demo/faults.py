"""What a student of the toy world does wrong: the first wrong step of every failed run, by kind.

  python demo/faults.py runs/smollm2/eval/*-greedy

Each FOLDER is one that eval.py wrote. The demo's teacher follows the run and names the first step that leads away
from the answer; a step *leaps* if it states an amount that no program computed, or asks about or answers with a name
that stands in nothing the student has read.
"""
import argparse
import os
import re
import sys
from collections import Counter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import teacher
from plumbing.cli import InputError
from plumbing.records import read_jsonl
from plumbing.trajectory import code_of

KINDS = ["right", "leaps to an amount", "takes another operation", "leaps to a name", "takes another link",
         "ends too early", "is cut off or has no form"]
STATED = re.compile(r"\w+ ?= ?-?\d+\s*(\n|$)")             # an assignment that computes nothing
NAME = re.compile(r'web_search\("\w+ of ([^"]*)"|final_answer_print\("([^"]*)"')


def fault(prediction):
    """How a run fails, one of KINDS."""
    if prediction["score"]:
        return "right"
    messages = prediction["messages"]
    task = teacher.Task(prediction["question"])
    for at in range(3, len(messages), 2):                  # behind question and plan
        content = messages[at]["content"]
        if task.take(content) != "wrong":
            continue
        code = code_of(content) or ""
        answers = "final_answer_print" in code
        if task.kind == "math":
            if answers:
                return "ends too early"
            return "leaps to an amount" if STATED.match(code) else "takes another operation"
        if not answers and "web_search" not in code:
            break
        read = " ".join(message["content"] for message in messages[:at])
        if any((asked or answered) not in read for asked, answered in NAME.findall(code)):
            return "leaps to a name"
        return "ends too early" if answers else "takes another link"
    return "is cut off or has no form"


def main(args):
    print(f"| run | {' | '.join(KINDS)} |\n|---{'|---:' * len(KINDS)}|")
    for folder in args.folders:
        path = os.path.join(folder, "predictions.jsonl")
        counts = Counter(fault(prediction) for _, prediction in read_jsonl(path, ("question", "messages", "score")))
        print(f"| {os.path.basename(os.path.normpath(folder))} | {' | '.join(str(counts[kind]) for kind in KINDS)} |")


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="what eval.py run wrote: its predictions.jsonl is read")
    return p.parse_args(argv)


if __name__ == "__main__":
    try:
        main(parse_args())
    except InputError as error:
        sys.exit(f"error: {error}")
