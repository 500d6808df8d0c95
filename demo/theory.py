"""The paper's three theorems on a chain small enough to be computed exactly.

  python demo/theory.py --out demo/theory.png

Growth of errors (Theorems 3.1, 3.2). An agent goes H steps. In state T it works the teacher's way. It
deviates there with probability eps: half of these steps are wrong (cost 1, nothing is gained), half are
right but its own way (cost 0), and from then on it is in state S, where one of `choices` steps is right and
a wrong one costs 1. The teacher never enters S: its demonstrations say nothing about it, and a student that
was never taught in a state guesses. A student that was taught in a state deviates there with probability
eps.

  cloning      is taught where the teacher goes: {T}
  correction   is taught where the student goes (mentored problem-solving, `correct_first_errors`): {T, S}

Assumptions: the deviation rate is exactly eps under the teacher's states (3.1), at most eps under the
student's own (3.2: this is the theorem's premise, and what `correct_first_errors` is there to bring about);
a cost is 0 or 1; the teacher's own cost is 0, so all cost is excess cost. The paper's text at hand lacks
its formulas; they are read from the proofs: J <= eps H^2 and J <= eps H.

Variance (Theorem 3.3). A run of H steps, each right with probability p = sigmoid(theta_t), is started
behind a right prefix of k steps. The estimator is g_k = sum over t >= k of grad log pi(a_t) G_t, G_t the
return from t discounted by gamma. With |reward| <= R and |grad log pi| <= B the proof gives, with m = H - k
steps left,

  Var g_k <= (B R / (1 - gamma))^2 (m - gamma (1 - gamma^m) / (1 - gamma))^2,    which falls with k.

That is a statement about the bound. The variance itself falls too where every right step is rewarded, and
where only the end is rewarded if a run from the question often ends well (p^H above about 1/e); a student
that nearly always fails has next to no gradient and so next to no variance at k = 0, and its variance
*rises* with k.
"""
import argparse
import itertools
import math
import random

# ---- growth of errors with the horizon ----

def student(taught, eps, choices=10):
    """Probabilities of a policy that was taught in some states -> {state: (right, own way, wrong)}."""
    table = {}
    for state in "TS":
        if state not in taught:
            table[state] = (1 / choices, 0.0, 1 - 1 / choices)
        elif state == "T":
            table[state] = (1 - eps, eps / 2, eps / 2)
        else:
            table[state] = (1 - eps, 0.0, eps)
    return table


def expected_costs(table, horizon):
    """Expected total cost of runs of 1, 2, …, `horizon` steps, by dynamic programming."""
    at, total, costs = {"T": 1.0, "S": 0.0}, 0.0, []
    for _ in range(horizon):
        total += sum(at[s] * table[s][2] for s in "TS")
        slipped = at["T"] * table["T"][1]
        at = {"T": at["T"] - slipped, "S": at["S"] + slipped}
        costs.append(total)
    return costs


TEACHER = dict.fromkeys("TS", (1.0, 0.0, 0.0))


def correct_first_errors(table, runs, horizon, rng):
    """Mentored problem-solving -> (states of the corrected runs, corrections made).

    The student acts; its first wrong step is replaced by the right one, from where it goes on. Played by the
    teacher itself these are demonstrations.
    """
    states, corrections = set(), 0
    for _ in range(runs):
        state = "T"
        for _ in range(horizon):
            states.add(state)
            kind = rng.choices(("right", "own", "wrong"), table[state])[0]
            corrections += kind == "wrong"
            state = "S" if kind == "own" else state
    return states, corrections


def exponent(xs, ys):
    """Slope of the least-squares line through (log x, log y)."""
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


# ---- variance of the policy gradient behind a prefix ----

def variance(k, horizon, p, gamma=1.0, sparse=False, truncate=True):
    """Total variance of g_k, exactly: over all runs, weighed by their probability.

    Reward 1 for every right step; `sparse`: 1 at the end of a run without a wrong step. Not `truncate`: the
    student starts at the question all the same.
    """
    steps = horizon - (k if truncate else 0)
    mean, second = [0.0] * steps, 0.0
    for run in itertools.product((0, 1), repeat=steps):              # 1: a right step
        weight = math.prod(p if a else 1 - p for a in run)
        rewards = [0] * (steps - 1) + [int(all(run))] if sparse else run
        back, gradient = 0.0, [0.0] * steps
        for t in reversed(range(steps)):
            back = rewards[t] + gamma * back
            gradient[t] = (run[t] - p) * back                        # d log pi / d theta_t = a - p
        mean = [m + weight * g for m, g in zip(mean, gradient)]
        second += weight * sum(g * g for g in gradient)
    return second - sum(m * m for m in mean)


def variance_bound(k, horizon, p, gamma):
    """Theorem 3.3 with B = max(p, 1 - p) and R = 1."""
    m, b = horizon - k, max(p, 1 - p)
    return (b / (1 - gamma) * (m - gamma * (1 - gamma ** m) / (1 - gamma))) ** 2


# ---- plot ----

def draw(path, eps=1e-3, horizon=100, steps=12, gamma=0.95):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    hs = range(1, horizon + 1)
    shown, _ = correct_first_errors(TEACHER, 1000, horizon, random.Random(0))
    taught, _ = correct_first_errors(student(shown, eps), 1000, horizon, random.Random(0))
    for name, states, bound, color in (("cloning", shown, [eps * h * h for h in hs], "C3"),
                                       ("correction", taught, [eps * h for h in hs], "C0")):
        costs = expected_costs(student(states, eps), horizon)
        slope = exponent(hs[9:], costs[9:])
        left.loglog(hs, costs, color=color, label=f"{name}: H^{slope:.2f}")
        left.loglog(hs, bound, "--", color=color, label="bound " + ("ε H²" if name == "cloning" else "ε H"))
    left.set(title=f"Expected wrong steps, ε = {eps:g}", xlabel="horizon H")
    ks = range(steps)
    right.semilogy(ks, [variance_bound(k, steps, 0.9, gamma) for k in ks], "k--", label="bound, p 0.9")
    for name, p, sparse in (("every step rewarded, p 0.9", 0.9, False), ("end rewarded, p 0.95", 0.95, True),
                            ("end rewarded, p 0.5", 0.5, True)):
        right.semilogy(ks, [variance(k, steps, p, gamma, sparse) for k in ks], "o-", markersize=3, label=name)
    right.semilogy(ks, [variance(k, steps, 0.9, gamma, truncate=False) for k in ks], ":", color="C0",
                   label="p 0.9, not truncated")
    right.set(title=f"Variance of the policy gradient, H = {steps}", xlabel="steps of verified prefix k")
    for ax in (left, right):
        ax.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", default="demo/theory.png", help="file for the plot (default: demo/theory.png)")
    draw(p.parse_args().out)
