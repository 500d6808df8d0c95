"""CoT distillation (paper, Table 5): the teacher writes chains of thought, and the student imitates them.

  tasks.jsonl (id, question, answer)  ->  cot.jsonl            records that sft.py trains on
                                          cot.rejected.jsonl   tasks without one, and why

A fork of bc.py, which collects, rejects by the answer and resumes. What it changes:
  - a demonstration is one turn, reasoning that ends in \\boxed{…}, in place of a plan and steps;
  - the teacher has no tools, so no program runs and nothing is observed;
  - the user's turn is what `eval.py --prompt cot` asks, instructions included: the student is trained on the
    very tokens that it is evaluated with;
  - --rag: teacher and student see what one search for the question finds (evaluate with --prompt cot-rag).

Differences from the paper: it gives no prompts for this baseline; these are ours (assets/prompts.md, COT and
ASK_COT). The teacher is drawn at the temperature of bc.py's steps.

  laptop:  python baselines/cot.py --tasks tasks.jsonl --out cot.jsonl --teacher-url http://127.0.0.1:8008
           python sft.py --model ckpt/init --data cot.jsonl --out ckpt/cot
           python eval.py run --model ckpt/cot --prompt cot --tasks eval.jsonl --out eval/cot
  real:    SEARCH_API_KEY=… python baselines/cot.py --tasks tasks.jsonl --out cot-rag.jsonl --rag \\
             --teacher-url http://teacher:8000 --teacher-cache teacher.sqlite \\
             --search http:https://google.serper.dev/search --search-cache search.sqlite

A killed run goes on where it stopped when the same command is given again.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # the folder of the scripts

import bc
from baselines import prompting
from judge import PROMPT, Teacher
from plumbing.answers import boxes
from plumbing.chat_api import Usage
from plumbing.cli import Parser, cli, search_flags, teacher_flags
from plumbing.records import Record
from plumbing.search import Search
from plumbing.thinking import without_thinking
from plumbing.values import whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = Parser(__doc__)
    g = p.add_argument_group("files")
    g.add_argument("--tasks", required=True, help="JSON lines with id, question, answer")
    g.add_argument("--out", required=True, help="JSON lines file for the chains of thought")
    g = p.add_argument_group("demonstrations")
    g.add_argument("--attempts", type=whole(1), default=2, help="tries per task until an answer is right")
    g.add_argument("--rag", action=argparse.BooleanOptionalAction, default=False,
                   help="put what one search for the question finds before it (needs --search)")
    search_flags(g)
    teacher_flags(p)
    args = p.parse_args(argv)
    searches = args.search not in (None, "none")
    if args.rag and not searches:
        p.error("--rag needs --search, where it is searched")
    if searches and not args.rag:
        p.error("--search is used only with --rag")
    return args


def parse_chain(text: str, last: bool = False) -> str:
    """The chain of thought of a reply; ValueError if it holds no answer in a box."""
    chain = without_thinking(text)
    answers = boxes(chain)
    if not answers or not answers[-1][2].strip():
        raise ValueError(r"it must end with the answer in \boxed{…}")
    return chain


def demonstrate(teacher: Teacher, task: Record, search: Search | None, args: argparse.Namespace, sample: int,
                usage: Usage) -> Record:
    """The question, as the student will be asked it, and the teacher's chain of thought."""
    prompt = "cot-rag" if args.rag else "cot"
    pages = prompting.retrieve(task, prompt, search)
    parts = [("Question", task["question"]), ("Found on the web", pages or None)]
    chain = teacher.ask("step", PROMPT["COT"], parts, parse_chain, sample, usage)
    messages = [*prompting.opening(task, prompt, pages), {"role": "assistant", "content": chain}]
    answer = prompting.boxed_answer(chain).answer          # as eval.py will read the student's
    return task | {"messages": messages, "prediction": answer, "stop": "answer"}


def main(args: argparse.Namespace) -> None:
    bc.main(args, demonstrate)


if __name__ == "__main__":
    cli(main, parse_args())
