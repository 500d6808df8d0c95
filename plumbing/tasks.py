"""Tasks, from the files in which the public sets are published: their containers, field names and answers.

What cannot be read is refused in one sentence that names file, line and field. What a text agent cannot be
asked, or has no public answer, is left out, and a printed line says how many such tasks there were.
"""
import hashlib
import io
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from plumbing.cli import InputError
from plumbing.foreign import ENCRYPTED, reading, refuse_foreign
from plumbing.ranks import rank_and_world
from plumbing.records import Record, fault_of_json, objects_of

# Names of fields, the first one ours. Capitals, spaces and hyphens make no difference: see plain_field.
FIELDS = {"id": ("id", "_id", "unique_id", "task_id"),
          "question": ("question", "problem", "prompt", "input"),
          "answer": ("answer", "true_answer", "answers", "golden_answers", "final_answer", "target")}
ALIASES = "answer_aliases"                                 # MuSiQue: further accepted answers
LISTS = ("data", "rows", "questions", "examples", "instances")     # of one object: its records


# ---- files ----

def read_text(path: str | Path) -> str:
    """The text of a file; InputError for what is no JSON, with what to do about it."""
    with reading(path):
        data = Path(path).read_bytes()                     # once: it may be a pipe
        refuse_foreign(path, data[:4096])
        return data.decode("utf-8-sig")


def read_records(path: str | Path) -> list[tuple[str, Record]]:
    """[("line 3" or "item 3", object)] of a file with JSON lines, a JSON list, or an object with such a list.

    Raises InputError for anything else, and for a file without an object.
    """
    text = read_text(path)
    items = list_of(path, text)
    if items is not None:
        records = [(f"item {n}", record) for n, record in enumerate(items, 1)]
    else:
        lines = io.StringIO(text, newline=None)            # not splitlines, which also ends lines at U+2028
        records = [(f"line {n}", record) for n, record in objects_of(path, lines)]
    if not records:
        raise InputError(f"{path} is empty: it holds no record")
    unwrapped = []
    for place, record in records:
        if not isinstance(record, dict):
            raise InputError(f"{path}, {place}: not a JSON object")
        if isinstance(record.get("row"), dict):            # the dataset viewer of Hugging Face
            record = record["row"]
        unwrapped.append((place, record))
    return unwrapped


def list_of(path: str | Path, text: str) -> list | None:
    """The records of a text that is one JSON value; None for JSON lines."""
    try:
        whole = json.loads(text)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        extra = error.msg == "Extra data"                  # one value was whole, and there is more
        if text.lstrip().startswith("[") and not extra:
            raise InputError(f"{path}, line {error.lineno}: {fault_of_json(error)}") from None
        if text.lstrip().startswith("{") and extra and "\n" in text[:error.pos].strip():
            raise InputError(f"{path}, line 1: an object goes over several lines: write one object a line, "
                             "with jq -c . FILE") from None
        return None
    except ValueError as error:                            # a number of thousands of digits
        raise InputError(f"{path} cannot be read: {fault_of_json(error)}") from None
    if isinstance(whole, list):
        return whole
    if isinstance(whole, dict) and name_in(whole, "question") is None:
        for name, value in whole.items():
            if plain_field(name) in LISTS and isinstance(value, list):
                return value
    if "\n" in text.strip():                               # one value over several lines
        return [whole]
    return None


# ---- fields ----

def plain_field(name: str) -> str:
    """Final answer, final-answer -> final_answer."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def is_empty(value: Any) -> bool:
    """Whether a field says nothing; 0 and false say something."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {}


def given(record: Record, name: str) -> Any:
    """The value of a field, however its name is written; None if it is missing or says nothing."""
    for key, value in record.items():
        if plain_field(key) == name and not is_empty(value):
            return value
    return None


def name_in(record: Record, field: str) -> str | None:
    """What a record calls one of FIELDS, the first name of several; None if it does not have it."""
    for name in FIELDS[field]:
        for key, value in record.items():
            if plain_field(key) == name and not is_empty(value):
                return key
    return None


def rename_fields(record: Record) -> Record:
    """The record with id, question and answer under our names; one that it does not have is None."""
    names = {field: name_in(record, field) for field in FIELDS}
    renamed = {field: record.get(name) for field, name in names.items()}
    others = {key: value for key, value in record.items() if key not in names and key not in names.values()}
    return renamed | others


def question_of(path: str | Path, place: str, record: Record) -> str:
    """The question of a record; InputError if it has none."""
    name = name_in(record, "question")
    if name is None:
        raise missing(path, place, record, "question")
    question = record[name]
    if not isinstance(question, str):
        raise InputError(f'{path}, {place}: the field "{name}" is not a text, and the question has to be one')
    if given(record, "canary") and re.fullmatch(r"[A-Za-z0-9+/]{16,}=*", question):
        raise InputError(f"{path} is {ENCRYPTED}")
    return question.encode("utf-8", "replace").decode()    # no tokenizer takes half of a surrogate pair


def refuse_split(path: str | Path, place: str, record: Record, question: str) -> None:
    """InputError if a part of the question stands in a field of its own: it would be asked without it."""
    for name in ("body", "options", "choices"):            # SVAMP, AQuA, MMLU
        parts = given(record, name) or []
        if not isinstance(parts, list):
            parts = [parts]
        if any(str(part) not in question for part in parts):
            raise InputError(f'{path}, {place}: the field "{name}" is a part of the question, '
                             f'and has to stand in "{name_in(record, "question")}"')


def missing(path: str | Path, place: str, record: Record, field: str) -> InputError:
    """The error for a field that a record does not have."""
    names = ", ".join(FIELDS.get(field, (field,)))
    present = [key for key, value in record.items() if not is_empty(value)]
    return InputError(f'{path}, {place}: the field "{field}" is missing or empty '
                      f"(looked for {names}; there are {', '.join(present[:12]) or 'no others'})")


# ---- answers ----

def answer_texts(answer: Any) -> list[str]:
    """An answer as the texts that are accepted, the first one first; [] for none.

    Raises ValueError, saying what is wrong, for what is no answer.
    """
    match answer:
        case None:
            return []
        case bool():                                       # StrategyQA
            return ["yes", "true"] if answer else ["no", "false"]
        case float() if not math.isfinite(answer):
            raise ValueError("is not a number (NaN or Infinity)")
        case float() if answer.is_integer() and abs(answer) < 1e16:        # GSM-Hard
            return [str(int(answer))]
        case int() | float():
            return [str(answer)]
        case str():                                        # of GSM8K's solutions what stands after ####
            text = re.sub(r"(?s)^.*####", "", answer).strip()
            return [text] if text else []
        case dict():
            fields = {plain_field(name): value for name, value in answer.items()}
            if "value" in fields:                          # TriviaQA
                return [*answer_texts(fields["value"]), *answer_texts(fields.get("aliases"))]
            if "text" in fields:                           # SQuAD
                return answer_texts(fields["text"])
            raise ValueError(f"is an object with the fields {', '.join(answer)}; read are value and text")
        case list():
            texts = []
            for one in answer:
                if isinstance(one, list):
                    raise ValueError("holds a list in a list: is one of them asked for, or all?")
                texts += answer_texts(one)
            return texts
    raise ValueError("is no text, number or list")


def why_left_out(record: Record, answers: list[str]) -> str | None:
    """Why a text agent cannot be asked this task, or its answer not be scored; None if all is well."""
    for key in record:                                     # HLE; OlympiadBench's image_1, image_2 …
        if re.fullmatch(r"image(s|_\d+)?|has_image", plain_field(key)) and given(record, plain_field(key)):
            return "with an image"
    if given(record, "file_name"):
        return "with an attached file"                     # GAIA
    if answers in (["?"], ["<unk>"]):
        return f'whose answer is not public ("{answers[0]}")'       # the test splits of GAIA and TriviaQA
    if given(record, "answerable") is False:
        return "that the set calls not answerable"         # MuSiQue-Full
    return None


# ---- tasks ----

def read_tasks(path: str | Path, required: tuple[str, ...] = ("answer",)) -> list[Record]:
    """The tasks of a file as {"id", "question", "answer", …}, whichever public set's form it has.

    required: what each has to have. Only if that names `messages` are they kept.
    """
    tasks: list[Record] = []
    places: dict[str, str] = {}                            # id -> the line that has it
    left_out: Counter[str] = Counter()
    for place, published in read_records(path):
        question = question_of(path, place, published)
        refuse_split(path, place, published, question)
        record = rename_fields(published)
        try:
            answers = answer_texts(record["answer"])
            accepted = list(dict.fromkeys([*answers, *answer_texts(record.pop(ALIASES, None))]))
        except ValueError as error:
            name = name_in(published, "answer") or ALIASES
            raise InputError(f'{path}, {place}: the field "{name}" {error}') from None
        reason = why_left_out(record, answers)
        if reason is not None:
            left_out[reason] += 1
            continue
        one_text = len(accepted) == 1 and not isinstance(record["answer"], list)
        record["answer"] = accepted[0] if one_text else accepted or None
        for field in required:
            if record.get(field) is None:
                raise missing(path, place, published, field)
        name = task_id(record["id"], question, places, path, place)
        places[name] = place
        if "messages" not in required:                     # a trajectory as a task starts at its question
            record.pop("messages", None)
        tasks.append(record | {"id": name, "question": question})
    reasons = [f"{n} {reason}" for reason, n in left_out.items()]
    if not tasks:
        raise InputError(f"{path} holds no task that can be asked and scored: {', '.join(reasons)}")
    if reasons and rank_and_world()[0] == 0:
        print(f"{path}: {len(tasks)} tasks; left out: {', '.join(reasons)}", flush=True)
    return tasks


def task_id(given_id: Any, question: str, places: dict[str, str], path: str | Path, place: str) -> str:
    """The given id as text, or a hash of the question; InputError for an id that was used before."""
    if given_id is None:
        name = hashlib.sha256(question.encode()).hexdigest()[:16]
        if name in places:                                 # the same question twice
            name += "-" + place.split()[1]
        return name
    if isinstance(given_id, (list, dict)):
        raise InputError(f'{path}, {place}: the field "id" is neither a text nor a number')
    name = str(given_id)
    if name in places:
        raise InputError(f'{path}, {place}: the id "{name}" was used before, in {places[name]}')
    return name
