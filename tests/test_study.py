"""The rule by which demo/study.py decides whether an ordering holds, on files with known answers."""
import json
import random

import pytest
import study


@pytest.fixture
def runs(tmp_path):
    """make(accuracies of a, accuracies of b): a seed's folder for each pair, 200 tasks in each."""
    def make(*pairs):
        for seed, pair in enumerate(pairs):
            for arm, solved in zip("ab", pair):
                folder = tmp_path / f"seed-{seed}" / "eval" / f"{arm}-sampled"
                folder.mkdir(parents=True)
                rows = [dict(id=f"t{i}", kind="math" if i % 2 else "search", horizon=2 + i % 3, score=float(i < solved))
                        for i in random.Random(seed).sample(range(200), 200)]
                (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                (folder / "results.json").write_text("{}")
        return [study.Run(tmp_path / f"seed-{seed}") for seed in range(len(pairs))]
    return make


@pytest.mark.parametrize("pairs, said", [
    ([(120, 100), (130, 100), (125, 100), (128, 100), (121, 100)], "holds"),
    ([(120, 100), (100, 130), (125, 100), (98, 100), (121, 100)], "not resolved by this much data"),
    ([(100, 120), (100, 121), (100, 119)], "does not hold"),
    ([(100, 100), (101, 101), (102, 102)], "does not hold"),                   # less than a point of gain
    ([(140, 100)], "holds"),                                                   # one seed: over its tasks
    ([(101, 100)], "not resolved by this much data")])
def test_verdicts(runs, pairs, said):
    assert study.verdict(study.difference(runs(*pairs), "a", "b", "sampled")) == said


def test_interval_is_students_over_seeds(runs):
    mean, low, high, n = study.difference(runs((110, 100), (120, 100), (130, 100)), "a", "b", "sampled")
    assert (mean, n) == (pytest.approx(10), 3)
    assert high - mean == mean - low == pytest.approx(4.30 * 5 / 3 ** 0.5)         # differences 5, 10, 15


def test_what_was_not_run_is_no_number(runs):
    pair = runs((110, 100))
    assert study.difference(pair, "a", "c", "sampled") is None
    assert study.verdict(None) == "not run" and study.points(None) == study.spread([None]) == "–"
    (pair[0].folder / "eval" / "b-sampled" / "results.json").unlink()              # an unfinished evaluation
    assert study.Run(pair[0].folder).accuracy("b", "sampled") is None


def test_parts_of_an_evaluation(runs):
    run, = runs((100, 50))
    assert run.accuracy("a", "sampled", kind="math") == 50
    assert run.accuracy("a", "sampled", id={"t1", "t150"}) == 50
    assert run.accuracy("a", "sampled", kind="math", horizon=99) is None
