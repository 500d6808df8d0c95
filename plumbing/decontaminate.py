"""No training task may be a benchmark's: `python judge.py decontaminate`."""
import argparse
import os
import re

from plumbing.cli import InputError
from plumbing.records import Record, write_jsonl
from plumbing.start import check_out
from plumbing.tasks import question_of, read_records


def word_ngrams(text: str, n: int) -> tuple[str, set[tuple[str, ...]]]:
    """The words of a text, normalised, and the set of its n-grams; one Chinese character is a word."""
    words = re.findall(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+", text.lower())
    return " ".join(words), {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}


def decontaminate(args: argparse.Namespace) -> None:
    """Drop tasks whose question is a benchmark's, word for word or nearly, and repeated ones; count both."""
    def questions(path: str, records: list[tuple[str, Record]]) -> list[tuple[str, set]]:
        texts = [question_of(path, place, record) for place, record in records]
        return [word_ngrams(text, args.ngram) for text in texts]

    def close(grams: set, others: set) -> bool:
        enough = args.overlap * min(len(grams), len(others))
        return enough > 0 and len(grams & others) >= enough

    for path in (args.tasks, *args.against):
        if os.path.realpath(path) == os.path.realpath(args.out):
            raise InputError(f"--out {args.out} is one of the files to be read: give another --out")
    check_out(args.out, is_file=True)
    records = read_records(args.tasks)
    tasks = questions(args.tasks, records)
    drop: set[str] = set()
    for path in args.against:
        benchmark = dict(questions(path, read_records(path)))
        benchmark_grams = set().union(*benchmark.values())
        exact = [text for text, _ in tasks if text in benchmark]
        near = []
        for text, grams in tasks:
            if text in benchmark or grams.isdisjoint(benchmark_grams):     # the latter only to save time
                continue
            if any(close(grams, others) for others in benchmark.values()):
                near.append(text)
        print(f"{path} ({len(benchmark)}): {len(exact)} tasks hold one word for word, {len(near)} nearly")
        for text in exact[:2] + near[:3]:
            print(f"    {text[:100]}")
        drop.update(exact, near)

    kept: set[str] = set()
    stay = []
    for (text, _), (_, record) in zip(tasks, records):
        if text not in drop and text not in kept:
            stay.append(record)
            kept.add(text)
    write_jsonl(args.out, stay)
    dropped = sum(text in drop for text, _ in tasks)
    print(f"{args.tasks}: {len(tasks)} tasks, {dropped} dropped as benchmark questions, "
          f"{len(tasks) - dropped - len(kept)} as repeated, {len(kept)} kept in {args.out}")
