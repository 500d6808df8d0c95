"""The paper's benchmarks, and what the files of them are called; the names of the columns of its tables."""
import re
from pathlib import Path

from plumbing.cli import InputError
from plumbing.records import Record

F1_BENCHMARKS = ("HotpotQA", "2Wiki", "MuSiQue", "Bamboogle")      # all others are for the judge
BENCHMARKS = {
    "AIME24": "aime24 aime2024",
    "AIME25": "aime25 aime2025",
    "AIME": "aime",
    "MATH500": "math500",
    "OlymMATH": "olymmath olymath olymm",
    "GSM-Hard": "gsmhard gsmhardv2",
    "HotpotQA": "hotpotqa hotpot hqa",
    "2Wiki": "2wiki 2wikiqa 2wikimqa 2wikimultihop 2wikimultihopqa wikimultihopqa",
    "MuSiQue": "musique musiq",
    "Bamboogle": "bamboogle bamboo bamb",
    "GAIA": "gaia",
    "HLE": "hle humanityslastexam",
    "xBench": "xbench xbenchds xbenchdeepsearch",
    "WebWalker": "webwalker webwalkerqa"}
BENCHMARK_NAMES = {name: benchmark for benchmark, names in BENCHMARKS.items() for name in names.split()}

# Words that may stand beside a benchmark's name: of splits, parts, sizes, versions, HLE's subjects.
PART_WORDS = frozenset("""
    test dev val valid validation eval evaluation benchmark bench public official split set data dataset
    fullwiki distractor ans full mini small subset sample samples random part of all first top main text only
    clean cleaned filtered processed converted simplified prerelease sheet metadata final
    v version level lvl lv easy hard en zh english chinese i ii n x q qa task tasks questions problems
    seed gold bio biology chem chemistry physics math cs ai medicine engineering humanities other
""".split())


def paper_benchmark(name: str) -> str | None:
    """The paper's name for what a file, a folder or a flag is called; None if it is none of its benchmarks.

    The name is taken as words and numbers. The longest run of them that is a benchmark's name decides, and
    the others must be numbers or PART_WORDS; beside AIME no year.

    OlymMATH-EN-HARD -> OlymMATH, gsm_hard_test -> GSM-Hard; not_gaia_like, himath500k, aime_1983_2024 -> None
    """
    words = re.findall(r"[^\W\d_]+|\d+", name.lower())
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            benchmark = BENCHMARK_NAMES.get("".join(words[start:start + length]))
            if benchmark is None:
                continue
            others = words[:start] + words[start + length:]
            foreign = [word for word in others if not (word.isdigit() or word in PART_WORDS)]
            if benchmark.startswith("AIME"):
                foreign += [word for word in others if re.fullmatch(r"(19|20)\d\d|2[0-9]", word)]
            return None if foreign else benchmark
    return None


def says_nothing(name: str) -> bool:
    """Whether a name is only numbers and PART_WORDS: test, 2023, validation_level1."""
    return all(word.isdigit() or word in PART_WORDS for word in re.findall(r"[^\W\d_]+|\d+", name.lower()))


def benchmark_of(path: str | Path) -> str:
    """The paper's name for a file or for its folder, else the file's own. A training split has its own.

    Above a file and folders whose names say nothing the next folder counts.
    aime24/test.jsonl -> AIME24, aime/2024.jsonl -> AIME24, gaia/2023/validation/metadata.jsonl -> GAIA,
    tasks/hard.jsonl -> hard, mine/test.jsonl -> mine
    """
    stem = Path(path).stem
    folder = Path(path).absolute().parent
    own = folder.name if stem == "test" else stem
    if "train" in re.findall("[a-z]+", stem.lower()):
        return own
    below = stem
    benchmark = paper_benchmark(stem)
    while benchmark is None and folder.name:
        benchmark = paper_benchmark(f"{folder.name} {below}") or paper_benchmark(folder.name)
        if not says_nothing(f"{folder.name} {stem}"):
            break
        below = f"{folder.name} {below}"
        folder = folder.parent
    return benchmark or own


def named_benchmark(name: str) -> str:
    """The paper's name for a --benchmark; InputError if it is not one."""
    benchmark = paper_benchmark(name)
    if benchmark is None:
        raise InputError(f"--benchmark {name} is none of the paper's {', '.join(BENCHMARKS)}; "
                         "without the flag each file has its own name")
    return benchmark


def gaia_level(task: Record, path: str | Path, flag: str | None) -> str | None:
    """"1", "2" or "3": GAIA's level, as a task or else the name of its file, folder or benchmark tells it."""
    for name in ("Level", "level"):
        if task.get(name):
            return str(task[name])
    names = f"{Path(path).absolute().parent.name}/{Path(path).stem}/{flag}".lower()
    found = re.search(r"(?:gaia|level|lvl?)[\W_]*([123])(?![\d.])", names)
    return found[1] if found else None
