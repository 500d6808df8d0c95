"""The toy world: two kinds of task that need several steps of Python, generated from a seed, without limit.

  python demo/world.py --out runs/demo/tasks --seed 0       # writes {bc,mps,dev,eval,pretrain}.jsonl
  python demo/world.py --out runs/far --beyond 120   # and beyond.jsonl, tasks that are longer than all others

Mathematics: "Lea has 6 pears, plus 3, times 2. How many pears does Lea have?"  One assignment a step.
Search:      "What is Helix Nor's seat's ally?"  One `web_search("base of Helix Nor")` a step; questions use
             paraphrases ("seat" for "base"), so the student has to know the knowledge base's word.

The knowledge base is a function: fact(relation, entity) hashes the pair to another entity. It has about
40,000 facts, far more than the student can memorise, and every fact needed is one search away. No question
occurs in two splits.
"""
import argparse
import hashlib
import json
import os
import random
import re

PEOPLE = ("Al Ann Ben Bo Cy Dan Dee Eli Eva Finn Gus Hal Ian Ida Ivy Jan Jo Kay Kim Lea Leo Lou Max May Mia "
          "Ned Nia Noa Ola Pam Pia Ray Rob Roy Sam Sue Tim Tom Una Val").split()
THINGS = "apples books coins cups eggs figs keys nuts pears pens".split()
OPS = {"plus": "+", "minus": "-", "times": "*"}
FIRST = ("Adra Belo Brix Cael Cora Dorn Ebro Elsin Fara Galen Helix Ivo Jura Kelda Lorn Mira Nadir Orla Pell "
         "Quill Rhea Sable Tarn Ulric Vela Wren Xan Yara Zeno Aster Briar Cedar Delph Ember Fjord Gale Haven "
         "Iris Jade Kestrel Lark Moss Nova Onyx Pike Reed Sorrel Thorn Umber Vesper").split()
LAST = ("Abel Barr Crane Drew Ekko Ford Gant Holt Innes Joss Kerr Lund Marsh Nor Oake Pryce Quade Rook Stoke "
        "Thane Upton Varro West Yates Zell Ames Birch Cole Dale Eames Frost Grey Hume Ives Jarl Knox Lyle "
        "Munn Nash Orme Penn Rand Shaw Tate Urban Voss Wick York Zane Alder").split()
RELATIONS = dict(                                                              # word of the KB: paraphrase
    base="seat", partner="ally", mayor="chief", owner="holder", founder="creator", rival="opponent",
    patron="sponsor", heir="successor", guide="mentor", harbor="port", emblem="symbol", agent="delegate",
    keeper="warden", author="writer", envoy="messenger", tutor="teacher")
WORD = {paraphrase: relation for relation, paraphrase in RELATIONS.items()}


def pick(n, *key):
    """A number below n that depends on the key only."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") % n


def fact(relation, entity):
    """The entity that `relation of entity` is, e.g. fact("base", "Helix Nor")."""
    return f"{FIRST[pick(len(FIRST), 1, relation, entity)]} {LAST[pick(len(LAST), 2, relation, entity)]}"


def search(query):
    """What the search engine knows about "RELATION of ENTITY": one sentence, or nothing."""
    m = re.fullmatch(r"(\w+) of (\w+ \w+)", query.strip())
    first, last = m[2].split() if m else ("", "")
    if not m or m[1] not in RELATIONS or first not in FIRST or last not in LAST:
        return None
    return f"The {m[1]} of {m[2]} is {fact(m[1], m[2])}."


# ---- questions: made from a random state, read back from their text ----

def make_math(rng, steps):
    """An amount and the operations on it, all different; every amount on the way is between 1 and 99."""
    while True:
        name, thing, values = rng.choice(PEOPLE), rng.choice(THINGS), [rng.randint(2, 9)]
        changes = rng.sample([(op, n) for op in OPS for n in range(2, 10)], steps - 1)
        for op, n in changes:
            values.append(apply(values[-1], OPS[op], n))
        if all(1 <= v <= 99 for v in values):
            told = ", ".join([f"{name} has {values[0]} {thing}", *(f"{op} {n}" for op, n in changes)])
            return f"{told}. How many {thing} does {name} have?", str(values[-1])


def apply(value, sign, n):
    return {"+": value + n, "-": value - n, "*": value * n}[sign]


def make_search(rng, hops):
    entity = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    relations = rng.sample(list(RELATIONS), hops)
    question = f"What is {entity}'s {' '.join(f'{RELATIONS[r]}{chr(39)}s' for r in relations)[:-2]}?"
    for r in relations:
        entity = fact(r, entity)
    return question, entity


def parse_math(question):
    """-> name, first amount, [(sign, number)]."""
    m = re.match(r"(\w+) has (\d+) \w+", question)
    return m[1], int(m[2]), [(OPS[op], int(n)) for op, n in re.findall(r", (\w+) (\d+)", question)]


def parse_search(question):
    """-> the chain of (relation, entity, value) that leads to the answer."""
    m = re.fullmatch(r"What is (\w+ \w+)'s (.*)\?", question)
    entity, hops = m[1], []
    for paraphrase in m[2].split("'s "):
        relation = WORD[paraphrase]
        hops.append((relation, entity, fact(relation, entity)))
        entity = hops[-1][2]
    return hops


# ---- files ----

def make_tasks(rng, split, count, seen, math=(2, 6), hops=(2, 5), search_every=2):
    """`count` tasks, horizons cycled evenly within each kind, no question from `seen` (which grows)."""
    tasks = []
    while len(tasks) < count:
        searches, place = divmod(len(tasks), search_every)
        kind, turn = ("search", searches) if place == search_every - 1 else ("math", len(tasks) - searches)
        low, high = math if kind == "math" else hops
        horizon = low + turn % (high - low + 1)
        question, answer = (make_math if kind == "math" else make_search)(rng, horizon)
        if question not in seen:
            seen.add(question)
            tasks.append(dict(id=f"{split}-{len(tasks):05d}", question=question, answer=answer, kind=kind,
                              horizon=horizon))
    return tasks


def make_pretraining(rng, count):
    """Single-turn exercises in reading a list and writing code: the stand-in for pretraining.

    They teach the words, the paraphrases, to find what comes after an element of a list, and to write a list
    of operations as one program. They hold no plan, observation or second turn: nothing of the agent loop.
    """
    kinds = [listed_math, listed_search, searching, answering, program, program, links]
    for i in range(count):
        ask, reply = kinds[i % len(kinds)](rng)
        yield dict(id=f"pretrain-{i:05d}",
                   messages=[dict(role="user", content=ask), dict(role="assistant", content=reply)])


def program(rng):
    name, first = rng.choice(PEOPLE), rng.randint(2, 9)
    changes = rng.sample([(op, n) for op in OPS for n in range(2, 10)], rng.randint(1, 7))
    told = ", ".join([f"{name} has {first} {rng.choice(THINGS)}", *(f"{op} {n}" for op, n in changes)])
    lines = [f"{name}={first}", *(f"{name}={name}{OPS[op]}{n}" for op, n in changes)]
    return f"{told}.", "<code>" + "\n".join(lines) + f"\nprint({name})</code>"


def links(rng):
    relations = rng.sample(list(RELATIONS), rng.randint(2, 7))
    told = f"{rng.choice(FIRST)} {rng.choice(LAST)}'s " + "'s ".join(RELATIONS[r] for r in relations)
    return f"{told}.", " ".join(f"Find the {r}." for r in relations)


def listed_math(rng):
    name, first = rng.choice(PEOPLE), rng.randint(2, 9)
    changes = rng.sample([(op, n) for op in OPS for n in range(2, 10)], rng.randint(1, 6))
    told = ", ".join([f"{name} has {first} {rng.choice(THINGS)}", *(f"{op} {n}" for op, n in changes)])
    at = rng.randrange(len(changes))
    last = f"{name} has {first}" if at == 0 else "{} {}".format(*changes[at - 1])
    op, n = changes[at]
    return f"{told}. After {last}.", write(f"{op} {n}.", f"{name}={name}{OPS[op]}{n}\nprint({name})")


def listed_search(rng):
    entity, value = (f"{rng.choice(FIRST)} {rng.choice(LAST)}" for _ in range(2))
    relations = rng.sample(list(RELATIONS), rng.randint(2, 6))
    at = rng.randrange(len(relations) - 1)
    told = f"{entity}'s " + "'s ".join(RELATIONS[r] for r in relations)
    return (f"{told}. The {relations[at]} is {value}. Next.",
            write(f"Find the {relations[at + 1]}.", f'print(web_search("{relations[at + 1]} of {value}"))'))


def searching(rng):
    entity, relation = f"{rng.choice(FIRST)} {rng.choice(LAST)}", rng.choice(list(RELATIONS))
    return (f"Find {entity}'s {RELATIONS[relation]}.",
            write(f"Find the {relation}.", f'print(web_search("{relation} of {entity}"))'))


def answering(rng):
    value = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    return (f"The {rng.choice(list(RELATIONS))} is {value}. Answer.",
            write("The answer is found.", f'final_answer_print("{value}")'))


def write(thought, code):
    return f"<thought>{thought}</thought><code>{code}</code>"


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", required=True, help="folder for the task files")
    p.add_argument("--seed", type=int, default=0, help="another seed, another world of tasks")
    p.add_argument("--search-every", type=int, default=2, help="one task in so many is a search, the others mathematics")
    p.add_argument("--searches", type=int, default=5, help="searches in the longest tasks of the other files")
    p.add_argument("--beyond", type=int, default=0,
                   help="number of tasks that are longer than all others (7 or 8 amounts, one or two more searches)")
    for split, n in dict(bc=1000, mps=2000, dev=400, eval=500, pretrain=20000).items():
        p.add_argument(f"--{split}", type=int, default=n, help=f"number of {split} records")
    return p.parse_args(argv)


def main(args):
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: --out {args.out} cannot be made: {error.strerror}") from None
    rng, seen = random.Random(args.seed), set()
    records = {split: make_tasks(rng, split, getattr(args, split), seen, hops=(2, args.searches),
                                 search_every=args.search_every)
               for split in ("eval", "dev", "bc", "mps")}
    records["pretrain"] = list(make_pretraining(rng, args.pretrain))
    if args.beyond:                                            # last: the other files are the same without it
        records["beyond"] = make_tasks(rng, "beyond", args.beyond, seen, math=(7, 8),
                                       hops=(args.searches + 1, args.searches + 2),
                                       search_every=args.search_every)
    for split, rows in records.items():
        path = os.path.join(args.out, f"{split}.jsonl")
        with open(path + ".part", "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(path + ".part", path)
        print(f"{path}: {len(rows)} records")


if __name__ == "__main__":
    main(parse_args())
