"""Tables of docs/small_models.md from the kept results of small.py and training.py."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

import positional_heads as ph
from positional_heads.results.verdicts import ALPHA
from positional_heads.zoo.train import CURRICULUM

KEPT = Path(__file__).parent / "small"
LONGER = Path(__file__).parent / "longer"
STEPS = 2929
"""Steps of each run."""
COST = 0.1
"""Nats per token: what a head must cost, with its whole interval, to be needed."""


def read(name: str) -> pd.DataFrame:
    """A table that is kept."""
    return pd.read_csv(KEPT / f"{name}.csv", keep_default_na=False, na_values=[""])


def mean(values: pd.Series) -> tuple[float, float, float]:
    """A mean over units, and its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return values.mean(), values.mean() - half, values.mean() + half


def told(values: tuple[float, float, float], digits: int = 2) -> str:
    """A number with its interval."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*values, d=digits)


def emergence_rows() -> Iterator[list[Any]]:
    """Each run over its steps."""
    for folder in sorted(KEPT.glob("emergence-*")):
        study = ph.EmergenceStudy.load(folder)
        steps, births = study.step_frame(), study.births().set_index("name")
        skill = births.loc["passkey, half-way"]
        most, last = steps.loc[steps["beat_null"].idxmax()], steps.iloc[-1]
        high = steps.loc[steps["highest_rho"].idxmax()]
        yield [
            folder.name.removeprefix("emergence-"),
            f"{skill['step']:.0f} ({skill['low']:.0f} to {skill['high']:.0f})",
            f"{most['beat_null']:.0f} at step {most['step']:.0f}" if most["beat_null"] else "0",
            f"{last['beat_null']:.0f}",
            f"{high['highest_rho']:.2f} at step {high['step']:.0f}",
            f"{last['highest_rho']:.2f}",
        ]


def costs(run: pd.DataFrame) -> pd.DataFrame:
    """Mean cost of hiding the far keys of each head, with its interval, in nats per token."""
    answers = run.pivot_table(index="unit", columns="head", values="log_prob")
    harm = answers.drop(columns="none").rsub(answers["none"], axis=0)
    return pd.DataFrame({head: mean(harm[head]) for head in harm}, index=["cost", "low", "high"]).T


def encoding_rows() -> Iterator[list[Any]]:
    """Each encoding and seed: what it has learned, how far its heads look, and which of them it needs for that."""
    answers, distances, needed = (read(name) for name in ("answers", "distances", "needed"))
    plain = answers[answers["base"].isna()]
    for run in needed["run"].unique():
        own, heads = plain[plain["run"] == run], distances[distances["run"] == run]
        passkeys = own[(own["measure"] == "passkey") & (own["reach"] == "long")]
        harm = costs(needed[needed["run"] == run])
        furthest = heads.loc[heads["reach"].idxmax()]
        yield [
            run,
            told(mean(own.loc[own["measure"] == "loss", "loss"])),
            told(mean(passkeys["log_prob"])),
            f"{passkeys['exact'].mean():.2f}",
            int(heads["far"].sum()),
            f"{furthest['reach']:.0f} ({furthest['reach_low']:.0f} to {furthest['reach_high']:.0f})",
            f"{heads['eta2_repeated'].median():.2f}",
            int((harm["low"] > COST).sum()),
            told(tuple(harm.loc[harm["cost"].idxmax()])),
        ]


def base_rows() -> Iterator[list[Any]]:
    """Each base at run time on each base in training: both seeds."""
    answers, scores, beyond = (read(name) for name in ("answers", "scores", "bases"))
    for trained in ("1e3", "1e4", "1e6"):
        for base in ("1e3", "1e4", "1e6"):
            cells = []
            for seed in (0, 1):
                run = f"rotary-{trained}-{seed}"
                mine = answers[(answers["run"] == run) & (answers["base"] == float(base))]
                heads = scores[(scores["run"] == run) & (scores["base"] == float(base))]
                long = beyond[(beyond["run"] == run) & beyond["method"].str.endswith(f"base {float(base):g})")]
                passkeys = mine[(mine["measure"] == "passkey") & (mine["reach"] == "long")]
                cells.append(
                    [
                        f"{mine['loss'].mean():.2f}",
                        f"{passkeys['log_prob'].mean():.2f}",
                        f"{heads['rho'].median():.2f}",
                        f"{heads['rho'].max():.2f}",
                        f"{float(long['loss'].iloc[0]):.2f}",
                        f"{float(long['log_prob'].iloc[0]):.2f}",
                    ]
                )
            yield [trained, base, *(" / ".join(pair) for pair in zip(*cells, strict=True))]


def text_rows() -> Iterator[list[Any]]:
    """Each text that is scored, on models trained on each text and not trained: heads above their null."""
    scores = read("texts")
    for (run, step, text), heads in scores.groupby(["run", "step", "text"], sort=False):
        above = heads[(heads["excess"] > 0) & (heads["q_value"] < ALPHA)]
        best = heads.loc[heads["excess"].idxmax()]
        yield [run, step, text, len(above), int((above["rho"] > 0).sum()), f"{best['name']}: {best['excess']:+.3f}"]


def jump_rows() -> Iterator[list[Any]]:
    """Each base: the share of the variance of the steps of D that rotation explains, over the heads of both seeds."""
    jumps = read("jumps")
    jumps["base"] = jumps["run"].str.rsplit("-", n=1).str[0]
    for base, heads in jumps.groupby("base", sort=False):
        total = ((heads["step"] - heads["step"].mean()) ** 2).sum()
        shares = (1 - ((heads["step"] - heads[name]) ** 2).sum() / total for name in ("predicted", "held", "before"))
        correlation = stats.spearmanr(heads["step"], heads["predicted"]).statistic
        yield [
            base,
            len(heads),
            int(heads["unseen_pairs"].iloc[0]),
            *(f"{share:.2f}" for share in shares),
            f"{correlation:.2f}",
        ]


def length_rows() -> Iterator[list[Any]]:
    """Scores at each length of the curriculum, over the heads of three bases and both seeds."""
    for (step, length), heads in read("lengths").groupby(["step", "length"], sort=False):
        above = ((heads["excess"] > 0) & (heads["rho"] > 0) & (heads["q_value"] < ALPHA)).sum()
        stays = int((heads["stays"] == True).sum())  # noqa: E712  the column has empty cells
        seen = next(seen for until, seen in CURRICULUM if step <= until * STEPS)
        yield [
            step,
            seen,
            length,
            f"{heads['rho'].median():.2f}",
            f"{heads['rho'].max():.2f}",
            f"{above} of {len(heads)}",
            stays,
        ]


def longer_rows() -> Iterator[list[Any]]:
    """Further training on longer texts and on as long ones: what changed, and what is recalled; both seeds."""
    recall = json.loads((LONGER / "recall.json").read_text())
    before = recall["before"]
    yield ["before", "", "", "", "", f"{before['512']:.2f}", f"{before['2048']:.2f}"]
    for way, name in {"raised": "2048, base 1e5", "longer": "2048", "control": "512"}.items():
        cells = []
        for seed in (0, 1):
            found = [ph.Comparison.load(LONGER / f"{way}-{seed}-{length}.safetensors") for length in (512, 2048)]
            moved = [f"{float(one.curve_distance.quantile(0.5)):.2f}" for one in found]
            shares = [f"{one.pair_shares['slow'].share:.2f}" for one in found]
            recalled = [f"{recall[f'{way}-{seed}'][length]:.2f}" for length in ("512", "2048")]
            cells.append([*moved, *shares, *recalled])
        yield [name, *(" / ".join(pair) for pair in zip(*cells, strict=True))]


HEADERS: dict[str, tuple[list[str], Callable[[], Iterator[list[Any]]]]] = {
    "emergence": (
        ["run", "skill from step (95 %)", "most heads that beat their null", "last", "highest rho", "last rho"],
        emergence_rows,
    ),
    "lengths": (
        ["step", "trained on, tokens", "scored at", "median rho", "highest", "beat their null", "stay"],
        length_rows,
    ),
    "texts": (
        ["trained on", "step", "scored on", "excess significant", "and rho above 0", "largest excess"],
        text_rows,
    ),
    "encodings": (
        [
            "run",
            "loss",
            "passkeys",
            "exact",
            "look beyond even",
            "furthest reach, tokens",
            "scores by distance",
            "heads needed",
            "the most needed costs",
        ],
        encoding_rows,
    ),
    "longer": (
        [
            "trained on",
            "curves moved, at 512",
            "at 2048",
            "share in the slow half, at 512",
            "at 2048",
            "recall at 512",
            "at 2048",
        ],
        longer_rows,
    ),
    "bases": (
        ["trained on", "run with", "loss", "passkeys", "median rho", "highest rho", "loss beyond", "passkeys beyond"],
        base_rows,
    ),
    "small jumps": (["base", "heads", "unseen pairs", "predicted", "held", "control", "rank correlation"], jump_rows),
}
"""Header and rows of each table by its name on the page."""
