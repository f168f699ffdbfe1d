"""How many votes of people are enough, and which pairs to show them.

Raters are simulated: each candidate has a quality, each output one of its own around it, and an answer is wrong by
chance, or by Bradley and Terry's.
"""

import itertools

import jax
import numpy as np
from arguments import known, make_parser, record
from scipy.special import expit
from scipy.stats import spearmanr

from jevomerge.fitness.human.output import as_text
from jevomerge.fitness.human.rating import Strengths, fit, worth
from jevomerge.fitness.human.round import Round
from jevomerge.fitness.human.votes import Votes
from jevomerge.strategies.registry import make_strategy

CANDIDATES, PROMPTS = 16, 8
FULL = CANDIDATES * (CANDIDATES - 1) // 2 * PROMPTS
BUDGETS = (40, 80, 160, 320)
RATERS = {  # how outputs vary around their candidate's quality (of deviation 1), and how often an answer is wrong
    "every fifth answer wrong": (0.0, lambda gap, rng: rng.random() < 0.2),
    "and prompts differ": (0.5, lambda gap, rng: rng.random() < 0.2),
    "close ones are hard": (0.0, lambda gap, rng: rng.random() < expit(-1.5 * abs(gap))),
}


# --- which pairs --------------------------------------------------------------------------------------------


def information(strengths: Strengths) -> np.ndarray:
    """(N, N) nats that a vote is expected to tell of the strengths: BALD, arXiv:1112.5745."""
    points, weights = np.polynomial.hermite_e.hermegauss(15)
    weights = weights / weights.sum()
    mean, variance = strengths.gaps
    chance = np.clip(expit(mean[..., None] + np.sqrt(variance)[..., None] * points), 1e-12, 1 - 1e-12)
    entropy = lambda p: -p * np.log(p) - (1 - p) * np.log1p(-p)  # noqa: E731
    found = entropy((chance * weights).sum(-1)) - (entropy(chance) * weights).sum(-1)
    np.fill_diagonal(found, 0)
    return found


RULES = {
    "ours": lambda strengths, rng: worth(strengths),
    "ours, without the top": lambda strengths, rng: worth(strengths, top=0.0),
    "information": lambda strengths, rng: information(strengths),
    "random": lambda strengths, rng: rng.random((CANDIDATES, CANDIDATES)),
}


def order(rule: str, rater: str, seed: int) -> dict:
    """{votes: rank correlation, whether the best is found} of a round in which a rule chooses."""
    rng, (spread, wrong) = np.random.default_rng(seed), RATERS[rater]
    outputs = rng.normal(size=(CANDIDATES, 1)) + spread * rng.normal(size=(CANDIDATES, PROMPTS))
    truth = (outputs[:, None] > outputs[None]).sum((1, 2))  # comparisons won without an error
    wins, left = np.zeros((CANDIDATES,) * 2), np.ones((CANDIDATES, CANDIDATES, PROMPTS), bool)
    found = {}
    for votes in range(1, (FULL if rule == "random" else max(BUDGETS)) + 1):
        # Rounded, so that of pairs that are worth the same every machine takes the same one.
        worth = np.round(RULES[rule](fit(wins, np.zeros(CANDIDATES, int)), rng), 9)
        worth = np.where(left.any(-1), worth, -1)
        i, j = np.unravel_index(np.triu(worth, 1).argmax(), worth.shape)
        d = rng.choice(np.flatnonzero(left[i, j]))
        left[i, j, d] = left[j, i, d] = False
        gap = outputs[i, d] - outputs[j, d]
        won = (gap > 0) != wrong(gap, rng)
        wins[(i, j) if won else (j, i)] += 1
        if votes in (*BUDGETS, FULL):
            mean = fit(wins, np.zeros(CANDIDATES, int)).mean
            found[str(votes)] = [round(float(spearmanr(mean, truth)[0]), 3), bool(truth[mean.argmax()] == truth.max())]
    return found


# --- a search -----------------------------------------------------------------------------------------------

GENES, GENERATIONS = 6, 8


def search(votes: int | None, seed: int) -> float:
    """How far the best of all is from what the rater likes, in genes, when each generation has so many votes.

    None: the strategy is told the distances themselves.
    """
    rng = np.random.default_rng(seed)
    target, key = rng.uniform(0.2, 0.8, GENES), jax.random.key(seed)
    strategy = make_strategy("cma_es", GENES, CANDIDATES, 0.5, 0.2, 0)
    state, log, prompts, best = (
        strategy.init(jax.random.fold_in(key, 0)),
        Votes(),
        [as_text(str(d)) for d in range(PROMPTS)],
        {},
    )
    genomes, rival = {}, None
    for generation in range(GENERATIONS):
        keys = jax.random.split(jax.random.fold_in(key, generation + 1), 2)
        population, state = strategy.ask(keys[0], state)
        distance = np.linalg.norm(population - target, axis=1)
        if votes is None:
            scores = -distance
            best |= {f"{generation}/{m}": -d for m, d in enumerate(distance)}
        else:
            members = {f"{generation}/{m}": genome for m, genome in enumerate(population)}
            genomes |= members
            players = ({} if rival is None else {rival: genomes[rival]}) | members
            made = {
                name: [
                    as_text(f"{-np.linalg.norm(x - target) + 0.02 * np.sin(97 * (d + 1) * x.sum()):.12f}")
                    for d in range(PROMPTS)
                ]
                for name, x in players.items()
            }
            round = Round(f"generation {generation}", "taste", "search", prompts, made, log, limit=votes, enough=0.999)
            while not round.over:
                question = round.question()
                better = float(question.left.shown["text"]) > float(question.right.shown["text"])
                round.vote(question, "left" if better != (rng.random() < 0.2) else "right", "simulated")
            scores = np.array([round.standing.scores[name] for name in members])
            rival, best = round.standing.best, round.standing.scores
        state = strategy.tell(keys[1], state, population, scores, np.zeros(CANDIDATES))
    chosen = max(best, key=best.__getitem__)
    return -best[chosen] if votes is None else float(np.linalg.norm(genomes[chosen] - target))


def main() -> None:
    args = make_parser(__doc__, __file__, seeds=10, parts=("order", "search")).parse_args()
    if "order" in args.parts:
        for rater, rule in itertools.product(RATERS, RULES):
            for seed in range(args.seeds):
                if known(args.output, "order", rater, rule, str(seed)) is None:
                    record(args.output, order(rule, rater, seed), "order", rater, rule, str(seed))
    if "search" in args.parts:
        for votes, seed in itertools.product((None, 40, 320), range(args.seeds)):
            if known(args.output, "search", str(votes), str(seed)) is None:
                record(args.output, round(float(search(votes, seed)), 4), "search", str(votes), str(seed))
    print(table(known(args.output)))


def table(results: dict) -> str:
    """As in the README."""
    lines = [
        f"| {FULL} comparisons in all | rule | " + " | ".join(f"{b} votes" for b in (*BUDGETS, FULL)) + " |",
        "|---|---|" + "---:|" * (len(BUDGETS) + 1),
    ]
    for rater, rules in results.get("order", {}).items():
        for rule, seeds in rules.items():
            cells = []
            for budget in map(str, (*BUDGETS, FULL)):
                if budget not in next(iter(seeds.values())):
                    cells.append("–")  # all votes come to the same whatever the rule; measured with `random`
                    continue
                correlations, best = zip(*(row[budget] for row in seeds.values()), strict=True)
                cells.append(f"{np.median(correlations):.2f} ({min(correlations):.2f}), {sum(best)} of {len(best)}")
            lines.append(f"| {rater} | {rule} | {' | '.join(cells)} |")
    lines += ["", "| votes on a generation | seeds | distance |", "|---|---:|---:|"]
    for votes, seeds in results.get("search", {}).items():
        values = sorted(seeds.values())
        told = "the distances themselves" if votes == "None" else votes
        lines.append(f"| {told} | {len(seeds)} | {np.median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
