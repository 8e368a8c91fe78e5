"""Write the tables of docs/findings.md, and of README.md, from the kept results: `python experiments/tables.py`."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats
from small_tables import HEADERS

import positional_heads as ph
from positional_heads.core.statistics import benjamini_hochberg, mean_interval
from positional_heads.results.verdicts import ALPHA

HERE = Path(__file__).parent
PAGES = [HERE.parent / page for page in ("docs/findings.md", "docs/small_models.md", "README.md")]
KINDS = ("prose", "code", "dialogue", "technical")
LENGTHS = (512, 2048, 8192)
PARTS = ("passkey", "kv", "copy", "text")
RECALL = ("passkey", "copy")
"""Parts of the exam whose answers stand far back in the text, and at which the model beats a guess at 1024 tokens."""
BLOCK = r"(<!-- {name} -->\n).*?(<!-- end -->)"


@cache
def scores(name: str) -> ph.HeadScores:
    """Scores that are kept."""
    return ph.HeadScores.load(HERE / "scores" / name)


@cache
def study(name: str) -> ph.AblationStudy:
    """An ablation study that is kept."""
    return ph.AblationStudy.load(HERE / "ablation" / name)


def kept(kind: str, *names: str) -> list[str]:
    """Those of the results of one kind that are kept."""
    return [name for name in names if (HERE / kind / name).is_dir()]


def table(header: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def number(value: float) -> str:
    """A number with its sign and two digits."""
    return "" if value != value else f"{value:+.2f}"  # noqa: PLR0124  NaN


def named(mask: torch.Tensor) -> str:
    """Names of the heads of a mask."""
    return ", ".join(str(ph.Head(*head)) for head in mask.nonzero().tolist()) or "none"


def scores_table() -> str:
    """How many heads beat their null on each text and at each length and temperature."""

    def rows() -> Iterator[Sequence[Any]]:
        names = [f"{kind}-{length}" for length in LENGTHS for kind in KINDS] + [
            f"{kind}-512-attention" for kind in KINDS
        ]
        for name in kept("scores", *names):
            one = scores(name)
            kind, length, *temperature = name.split("-")
            beat = one.positional_heads(alpha=0.05)
            rising = one.excess.masked_fill(~(one.rho > 0), -torch.inf)
            best = ph.Head(*divmod(int(rising.argmax()), rising.shape[1]))
            low, high, null = (*map(float, one.interval()[best]), float(one.rho[best] - one.excess[best]))
            yield [
                f"{kind}, {length} tokens" + (", temperature `attention`" if temperature else ""),
                *(len(beat), int(one.stays().sum())),
                f"{best}: {float(one.rho[best]):.2f} ({low:.2f} to {high:.2f}), null {null:.2f}",
                f"{float(one.saturation.median()):.3f}",
            ]

    return table(["text", "beat their null", "stay", "largest excess: rho (95 %), null", "saturation, median"], rows())


def stability_table() -> str:
    """Rank correlations between texts, lengths and temperatures, and the heads that two results share."""

    def rows() -> Iterator[Sequence[Any]]:
        pairs = [(f"{a}-{n}", f"{b}-{n}") for n in LENGTHS for a, b in combinations(KINDS, 2)]
        by_length = [(f"{kind}-{a}", f"{kind}-{b}") for a, b in combinations(LENGTHS, 2) for kind in KINDS]
        groups = [(f"two texts, {n} tokens", [p for p in pairs if p[0].endswith(f"-{n}")]) for n in LENGTHS]
        groups += [
            (
                f"one text, {a} and {b} tokens",
                [p for p in by_length if p[0].endswith(f"-{a}") and p[1].endswith(f"-{b}")],
            )
            for a, b in combinations(LENGTHS, 2)
        ]
        groups += [("one text, temperatures 1 and `attention`", [(f"{k}-512", f"{k}-512-attention") for k in KINDS])]
        for label, chosen in groups:
            found = [
                ph.compare_all({a: scores(a), b: scores(b)}).pairs().iloc[0]
                for a, b in chosen
                if len(kept("scores", a, b)) == 2  # noqa: PLR2004  both
            ]
            if found:
                spans = [[float(one[name]) for one in found] for name in ("correlation_rho", "correlation_excess")]
                shared = [int(one["shared"]) for one in found]
                spanned = [f"{min(span):.2f} to {max(span):.2f}" for span in spans]
                yield [label, *spanned, f"{min(shared)} to {max(shared)} of 27"]

    header = ["", "rank correlation of rho", "of the excess", "heads shared by both top 27 by rho (2.7 by chance)"]
    return table(header, rows())


def stable_heads() -> str:
    """The heads that beat their null, and stay, on every text at every length."""
    lines = []
    for length in LENGTHS:
        results = [scores(name) for name in kept("scores", *(f"{kind}-{length}" for kind in KINDS))]
        if len(results) == len(KINDS):
            stay = torch.stack([one.stays() for one in results]).all(0)
            lines.append(f"- {length} tokens: {int(stay.sum())} heads stay on all four texts: {named(stay)}.\n")
    names = kept("scores", *(f"{kind}-{length}" for kind in KINDS for length in LENGTHS))
    stay = torch.stack([scores(name).stays() for name in names]).all(0)
    return "".join(lines) + f"- In all {len(names)} results at temperature 1: {named(stay)}.\n"


def ablation_table() -> str:
    """The effect of the top heads of each ranking beside their controls, far answers."""

    def rows() -> Iterator[Sequence[Any]]:
        for mode in ("zero", "mean", "far"):
            for ranking in ("rho", "excess", "rho_curve", "retrieval"):
                for name in kept("ablation", f"{ranking}-{mode}"):
                    for part in PARTS:
                        one = study(name).where(part=part)
                        yield [f"{ranking}, {mode}, {part}", *effects(one)]

    header = [
        "ranking, mode, task",
        "top 27 heads",
        "difference to random heads",
        "random sets that cost less",
        "p",
        "difference to heads of any layer",
        "sets of any layer that cost less",
    ]
    return table([*header, "short range: top 27"], rows())


def effects(one: ph.AblationStudy) -> list[str]:
    """Effect of the top heads, its difference to random heads of their layers with interval and p, and to any heads."""
    matched = one.contrasts().set_index("reach")
    matched = matched[matched["k"] == max(one.sizes)]
    far = matched.loc["long"]
    tested = p_value(far["p_value"], int(far["permutations"]))
    cells = [number(far["top"]), interval(far), milder_sets(one, "random"), tested]
    try:
        anywhere = one.contrasts(control="anywhere").set_index("reach")
        cells.append(interval(anywhere[anywhere["k"] == max(one.sizes)].loc["long"]))
    except ValueError:
        cells.append("")
    cells.append(milder_sets(one, "anywhere"))
    return [*cells, number(matched.loc["short"]["top"])]


def milder_sets(one: ph.AblationStudy, kind: str) -> str:
    """How many sets of a control cost less than the top heads, far answers; they vary, the interval does not say so."""
    sets = one.by_set()
    far = sets[(sets["reach"] == "long") & (sets["k"] == max(one.sizes))].set_index("kind")["effect"]
    if kind not in far.index:
        return ""
    effects = far.loc[[kind]]
    return f"{int((effects > far['top']).sum())} of {len(effects)}"


def exam_table() -> str:
    """What the model does on the exam with all its heads, beside a guess."""

    def rows() -> Iterator[Sequence[Any]]:
        for part in PARTS:
            one = study("rho-zero").where(part=part)
            effects = one.effects()
            intact = effects[effects["kind"] == "none"].set_index("reach")
            exact = one.effects("exact")
            right = exact[exact["kind"] == "none"].set_index("reach")["effect"]
            cells = [f"{row['effect']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for _, row in intact.iterrows()]
            guess = f"{one.chance['log_prob']:.2f}" if "log_prob" in one.chance else ""
            shares = [f"{right[reach]:.2f}" for reach in ("long", "short")]
            yield [part, *cells[:2], guess, *shares]

    header = ["task", "log-probability, far (95 %)", "nearby", "of a guess", "right answers, far", "nearby"]
    return table(header, rows())


def interval(row: Any) -> str:
    """A difference and its interval."""
    return f"{number(row['difference'])} ({number(row['low'])} to {number(row['high'])})" if row["random_sets"] else ""


def p_value(value: float, permutations: int) -> str:
    """A p-value, with the number of permutations that it comes from."""
    return f"{value:.2f} of {permutations}"


def predictors_table() -> str:
    """How each measure of a head predicts the harm of ablating it alone."""
    ranked, alone = scores("prose-512"), study("singles")
    measures = {
        "rho": ranked.rho,
        "excess": ranked.excess,
        "excess without the first 64 keys": ranked.control.excess if ranked.control is not None else ranked.excess,
        "rho of the curve": ranked.rho_curve,
        "retrieval score": study("retrieval-zero").ranked_by,
        "mean distance of attention": torch.tensor(json.loads((HERE / "reach.json").read_text(encoding="utf-8"))),
    }

    def rows() -> Iterator[Sequence[Any]]:
        found = {part: alone.where(part=part).predictors(measures).set_index(["measure", "reach"]) for part in PARTS}
        for reach in ("long", "short"):
            for name in measures:
                cells = []
                for part in PARTS:
                    one = found[part].loc[(name, reach)]
                    cells.append(f"{number(one['correlation'])} ({number(one['low'])} to {number(one['high'])})")
                yield [f"{name}, {'far' if reach == 'long' else 'near'}", *cells]

    return table(["rank correlation with harm", *PARTS], rows())


def extrapolation_table() -> str:
    """Passkey, loss and allocation of each method at each length, after the plain model within its training length."""
    study = ph.ExtrapolationStudy.load(HERE / "extrapolation")

    def rows() -> Iterator[Sequence[Any]]:
        yield [f"none, {study.training_length} tokens", number(study.plain["log_prob"]), "1.00", *[""] * 4]
        for row in study.to_frame().to_dict("records"):
            cells = [f"{row[name]:.2f}" for name in ("efficiency", "loss", "rho_within", "rho_beyond", "jump")]
            yield [f"{row['method']}, {row['length']} tokens", number(row["log_prob"]), *cells]

    header = ["method, length", "passkey", "efficiency", "loss of text", "rho within", "rho beyond", "jump (sd)"]
    return table(header, rows())


def stretch_table() -> str:
    """The stretch of each head's curve under each method, and the share of variance that it explains."""
    study = ph.ExtrapolationStudy.load(HERE / "extrapolation")

    def rows() -> Iterator[Sequence[Any]]:
        for (method, length), heads in study.by_head().groupby(["method", "length"], sort=False):
            cells = zip(heads["stretch"], heads["explained"], strict=True)
            yield [f"{method} to {length}", *(f"{stretch:.2f} ({explained:.2f})" for stretch, explained in cells)]

    return table(["stretch (explained)", *map(str, study.heads)], rows())


def link_table() -> str:
    """The rank correlation over methods and lengths of each measure of allocation with efficiency."""
    link = ph.ExtrapolationStudy.load(HERE / "extrapolation").link()

    def rows() -> Iterator[Sequence[Any]]:
        for row in link.to_dict("records"):
            low, high = number(row["low"]), number(row["high"])
            yield [row["measure"].replace("_", " "), f"{number(row['correlation'])} ({low} to {high})"]

    points = link["points"].max()
    return table(["measure of allocation", f"rank correlation with efficiency, {points} methods and lengths"], rows())


@cache
def plans(name: str) -> ph.PlanStudy:
    """A study of plans that is kept; of exams, the parts that ask for something far back."""
    one = ph.PlanStudy.load(HERE / "plans" / name)
    return one.where(part=list(RECALL)) if "exam" in name else one


def plan_costs(name: str) -> dict[str, list[str]]:
    """What plans cost at each budget, by measure, with intervals; that of random plans from the worst to the best."""
    far = plans(name).effects().query("reach == 'long'")
    random = plans(name).by_set().query("reach == 'long' and kind == 'chance'")
    found = {}
    for (kind, by), rows in far[far["kind"].isin(["plan", "chance"])].groupby(["kind", "by"], sort=False):
        ends = [(row["low"], row["high"]) for _, row in rows.iterrows()]
        if kind == "chance":
            ends = [(group.min(), group.max()) for _, group in random.groupby("k", sort=False)["effect"]]
        pairs = zip(rows["effect"], ends, strict=True)
        found[by] = [f"{number(effect)} ({number(low)} to {number(high)})" for effect, (low, high) in pairs]
    return found


def plans_table(name: str) -> str:
    """What plans cost, by measure, the cheapest first; what they gain over random plans, and over the cheapest."""
    one, costs = plans(name), plan_costs(name)
    gains = one.contrasts().query("reach == 'long' and budget == 'all'").sort_values("effect", ascending=False)
    behind = one.differences().query("reach == 'long' and budget == 'all'").set_index("by")

    def rows() -> Iterator[Sequence[Any]]:
        for row in gains.to_dict("records"):
            by = row["by"]
            gain = f"{number(row['gain'])} ({number(row['low'])} to {number(row['high'])})"
            lead = behind.loc[by] if by in behind.index else None
            lost = "" if lead is None else f"{number(lead['gain'])} ({number(lead['low'])} to {number(lead['high'])})"
            yield [f"`{by}`", *costs[by], gain, f"{row['p_chance']:.2f}", lost]
        yield [f"chance, {row['plans']} plans", *costs["chance"], "", "", ""]
        everything = one.effects().query("reach == 'long' and kind == 'all'")["effect"].iloc[0]
        yield ["every one", number(everything), *[""] * (len(one.budgets) + 2)]

    kept = [f"{budget:.0%} keep" for budget in one.budgets]
    return table(["", *kept, "gain over chance", "p", "gain over the best"], rows())


def plan_parts_table() -> str:
    """The measure that costs least on each part of the exam, and what plans by some cost there, over all budgets."""
    whole = ph.PlanStudy.load(HERE / "plans" / "exam-1024")
    shown = ("kernel", "retrieval", "reach", "rho", "distant_mass", "excess")

    def rows() -> Iterator[Sequence[Any]]:
        for part in PARTS:
            one = whole.where(part=part)
            over = one.contrasts().query("reach == 'long' and budget == 'all'").set_index("by")
            random = one.effects().query("reach == 'long' and kind == 'chance'")["effect"].mean()
            cells = [f"{number(over.loc[by]['effect'])} (p {over.loc[by]['p_chance']:.2f})" for by in shown]
            yield [part, f"`{over['effect'].idxmax()}` {number(over['effect'].max())}", *cells, number(random)]

    return table(["", "cheapest", *(f"`{by}`" for by in shown), "chance"], rows())


def readme_plans() -> str:
    """The costs of windows and of frozen pairs in one table."""
    rows: list[Sequence[Any]] = []
    for name, what, shown in (
        ("exam-1024", "windows", ("kernel", "retrieval", "reach", "rho", "distant_mass", "excess")),
        ("pairs-exam-1024-freeze", "frozen pairs", ("center", "band_norm", "high", "low")),
    ):
        costs = plan_costs(name)
        random = sum(one.kind == "chance" and one.budget == plans(name).budgets[0] for one in plans(name).cells)
        rows += [[f"{what}, by `{by}`", *costs[by]] for by in shown if by in costs]
        rows.append([f"{what}, by chance ({random}: worst to best)", *costs["chance"]])
    kept = [f"{budget:.0%} keep" for budget in plans("exam-1024").budgets]
    return table(["change in nats per token (95 %)", *kept], iter(rows))


def ranks_table() -> str:
    """How far our order of the pairs agrees with that which MHA2MLA published for a like model."""
    theirs = ph.formats.published("mha2mla/SmolLM-135M")

    def rows() -> Iterator[Sequence[Any]]:
        for name in (*KINDS, "all"):
            ours = ph.formats.read_mha2mla_ranks(HERE / "plans" / "ranks" / f"{name}.pth")
            cells = [spearman(ours.double().mean((0, 1)), theirs.double().mean((0, 1)))]
            for shift in (0, 1):  # key heads beside those of the same number, then beside the next one's
                pairs = zip(ours.flatten(0, 1), theirs.roll(shift, 1).flatten(0, 1), strict=True)
                cells.append(sum(spearman(a, b) for a, b in pairs) / (ours.shape[0] * ours.shape[1]))
            yield [name, *(f"{cell:.3f}" for cell in cells)]

    header = ["text", "mean rank of a pair", "each key head", "each beside the next key head"]
    return table(header, rows())


def moved_table() -> str:
    """What frozen pairs of the top heads by rho cost each part of the exam, at long and at short range."""
    study = ph.ManipulationStudy.load(HERE / "beyond" / "moved-rho-freeze")
    parts = {part: study.where(part=part) for part in ("passkey", "copy", "text")}
    effects = {part: one.effects().set_index(["kind", "reach"]) for part, one in parts.items()}

    def rows() -> Iterator[Sequence[Any]]:
        for kind in ("slowest", "fastest", "dominant", "random pairs", "random heads", "all pairs"):
            found = (effects[part].loc[(kind, reach)] for part in parts for reach in ("long", "short"))
            yield [kind, *(f"{row['effect']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" for row in found)]

    return table(["", *(f"{part}, {reach}" for part in parts for reach in ("long", "short"))], rows())


def retrieval_pairs_table() -> str:
    """What frozen and zeroed pairs of the top heads by retrieval score cost at long range, and the passkeys left."""
    studies = {how: ph.ManipulationStudy.load(HERE / "beyond" / f"moved-retrieval-{how}") for how in ("freeze", "zero")}
    parts = ("passkey", "copy", "text")

    def rows() -> Iterator[Sequence[Any]]:
        for kind in ("slowest", "fastest", "dominant", "random pairs", "all pairs"):
            cells = []
            for study in studies.values():
                for part in parts:
                    row = study.where(part=part).effects().set_index(["kind", "reach"]).loc[(kind, "long")]
                    cells.append(f"{row['effect']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})")
                passkeys = study.where(part="passkey", reach="long")
                sets = [passkeys.sets.index(cell.heads) for cell in passkeys.cells if cell.kind == kind]
                cells.append(f"{passkeys.values['exact'][sets].double().mean():.2f}")
            yield [kind, *cells]

    header = [f"{name}, {how}" for how in ("frozen", "zeroed") for name in (*parts, "exact")]
    return table(["", *header], rows())


@cache
def adapted() -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """Heads with an adapter against those without, what was said of them, and the loss of each sequence."""
    folder = HERE / "adapter"
    told, losses = (json.loads((folder / f"{name}.json").read_text()) for name in ("comparisons", "losses"))
    return pd.read_csv(folder / "heads.csv").set_index(["run", "text"]), told, losses


def spanned(values: Any) -> str:
    """The mean of values, with its interval over them."""
    units = torch.tensor([*values], dtype=torch.float64)
    low, high = mean_interval(units).tolist()
    return f"{number(float(units.mean()))} ({number(low)} to {number(high)})"


def adapter_table() -> str:
    """What an adapter changes: loss, rho, heads above their null, curves, and where among the pairs."""
    frame, told, losses = adapted()

    def rows() -> Iterator[Sequence[Any]]:
        for text in ("code", "prose"):
            for way in ("trained", "permuted", "scaled"):
                for seed in "01":
                    run = f"{way}-{seed}"
                    heads, said = frame.loc[(run, text)], told[f"{run}, {text}"]
                    pairs = zip(losses[run][text], losses["off"][text], strict=True)
                    seen, slow, beats = said["rho"], said["slow"], heads["beats"].value_counts()
                    yield [
                        f"{text}, {way}, seed {seed}",
                        spanned(on - off for on, off in pairs),
                        int((benjamini_hochberg(torch.tensor(heads["change_p"].to_numpy())) <= ALPHA).sum()),
                        f"{seen['correlation']:.3f} ({seen['low']:.3f} to {seen['high']:.3f})",
                        f"{beats.get('b only', 0)} / {beats.get('a only', 0)}",
                        f"{heads['curve_distance'].median():.2f}",
                        f"{heads['pair_change'].median():.2f}",
                        f"{slow['share']:.2f} ({slow['low']:.2f} to {slow['high']:.2f})",
                    ]

    header = [
        "measured on",
        "change of loss, nats per token (95 %)",
        "heads whose rho differs",
        "rank correlation of rho (95 %)",
        "heads above their null: more / fewer",
        "curves moved, median",
        "pairs changed, median",
        "share in the slow half (even 0.50)",
    ]
    return table(header, rows())


def agreed(some: Any, others: Any) -> str:
    """Rank correlation over heads, with an interval as if heads were independent (Bonett and Wright 2000)."""
    found = stats.spearmanr(some, others).statistic
    half = stats.norm.ppf(0.975) * math.sqrt((1 + found**2 / 2) / (len(some) - 3))
    low, high = (math.tanh(math.atanh(found) + side) for side in (-half, half))
    return f"{found:.2f} ({low:.2f} to {high:.2f})"


def adapter_pairs() -> str:
    """How far the sizes of the change agree over heads, and how much more of it is slow than in the controls."""
    frame, _, _ = adapted()

    def rows() -> Iterator[Sequence[Any]]:
        for text in ("code", "prose"):
            size, slow = (
                {run: frame.loc[(run, text), name].to_numpy() for run in frame.index.unique("run")}
                for name in ("pair_change", "slow_share")
            )
            both = (agreed(size[f"{way}-0"], size[f"{way}-1"]) for way in ("trained", "scaled"))
            mixed = [stats.spearmanr(size[f"trained-{a}"], size[f"scaled-{b}"]).statistic for a in "01" for b in "01"]
            more = (spanned(slow[f"trained-{seed}"] - slow[f"scaled-{seed}"]) for seed in "01")
            yield [text, *both, f"{min(mixed):.2f} to {max(mixed):.2f}", *more]

    header = ["measured on", "both adapters (95 %)", "both scaled controls (95 %)", "adapter and scaled control"]
    return table([*header, "slow share above the scaled control's, seed 0", "seed 1"], rows())


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Rank correlation."""
    return float(stats.spearmanr(a.numpy(), b.numpy()).statistic)


def costs_table() -> str:
    """Minutes of one thread that each part took."""

    def minutes(*folders: Path) -> str:
        took = [json.loads((folder / "time.json").read_text(encoding="utf-8")) for folder in folders]
        return f"{sum(one.get('cpu_minutes', one['minutes']) for one in took):.0f}"

    def rows() -> Iterator[Sequence[Any]]:
        done, ablated = HERE / "scores", HERE / "ablation"
        for length in LENGTHS:
            yield [f"scores, {length} tokens, one text", *map(minutes, sorted(done.glob(f"prose-{length}")))]
        yield ["each head alone", minutes(ablated / "singles")]
        yield ["extrapolation, five methods at two lengths", minutes(HERE / "extrapolation")]
        for file in sorted((HERE / "plans").glob("*/time.json")):
            device = json.loads(file.read_text(encoding="utf-8")).get("device")
            yield [f"plans, {file.parent.name}" + (f", on an {device}" if device else ""), minutes(file.parent)]
        for file in sorted((HERE / "beyond").glob("*/time.json")):
            yield [f"beyond, {file.parent.name}", minutes(file.parent)]
        for mode in ("zero", "mean", "far"):
            for folder in sorted(ablated.glob(f"*-{mode}")):
                yield [f"ablation, {folder.name.replace('-', ', ')}", minutes(folder)]

    return table(["", "minutes of one thread"], rows())


TABLES: dict[str, Callable[[], str]] = {
    "scores": scores_table,
    "stability": stability_table,
    "stable heads": stable_heads,
    "exam": exam_table,
    "ablation": ablation_table,
    "predictors": predictors_table,
    "extrapolation": extrapolation_table,
    "stretch": stretch_table,
    "link": link_table,
    "windows": partial(plans_table, "exam-1024"),
    "windows by part": plan_parts_table,
    "frozen pairs": partial(plans_table, "pairs-exam-1024-freeze"),
    "dropped pairs": partial(plans_table, "pairs-exam-1024-drop"),
    "ranks": ranks_table,
    "moved": moved_table,
    "pairs of retrieval heads": retrieval_pairs_table,
    "adapter": adapter_table,
    "adapter pairs": adapter_pairs,
    "plans": readme_plans,
    "costs": costs_table,
}


TABLES |= {name: partial(lambda header, rows: table(header, rows()), *made) for name, made in HEADERS.items()}


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        pattern = BLOCK.format(name=name)
        if re.search(pattern, text, re.DOTALL):
            made = make()
            text = re.sub(pattern, lambda found, made=made: f"{found[1]}{made}{found[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for written in PAGES:
        written.write_text(page(written.read_text(encoding="utf-8")), encoding="utf-8")
