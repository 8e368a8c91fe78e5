"""Plans, studies of plans and recommendations on the report's page, one section for each."""

from collections.abc import Sequence

from positional_heads.results.head_plan import CHANCE, HeadPlan
from positional_heads.results.pair_plan import DONE, PairPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_words import ALL_BUDGETS, WINDOWS, plan_words
from positional_heads.results.printed_plans import key_heads_table, pairs_table, plan_table
from positional_heads.results.recommendation import Recommendation
from positional_heads.results.recommendation_tables import (
    BESIDE,
    IN_PLACE,
    config_text,
    recommendation_line,
    recommendation_table,
)
from positional_heads.results.record import json_rows
from positional_heads.results.tables import change_line
from positional_heads.results.text import printable, signed
from positional_heads.views.plans import loss_by_budget
from positional_heads.views.recommendation import loss_by_factor
from positional_heads.views.report.sections import Code, Section, Table, plot


def plan_section(plan: HeadPlan | PairPlan, number: int) -> Section:
    """A plan: which key heads have a window, or which pairs keep their rotation."""
    if isinstance(plan, HeadPlan):
        title, caption = "Windows on key heads", "Key heads of every layer, by number"
        table = key_heads_table(json_rows(plan.to_frame()))
    else:
        title = "Rotary pairs that are kept"
        caption = "Pairs of each key head that rotate, by number, 0 being the fastest"
        table = pairs_table(plan.digits)
    return Section(
        f"plan-{number}",
        f"{title}, by {plan.by}",
        verdict=plan.verdict,
        paragraphs=[plan.description],
        facts=_plan_facts(plan),
        glossary=table.glossary,
        tables=[Table(caption, table.cells)],
        points=plan.notes,
    )


def _plan_facts(plan: HeadPlan | PairPlan) -> list[tuple[str, str]]:
    """The settings of a plan: its own, not those of its profile."""
    chance = [("Seed", str(plan.provenance["plan"]["seed"]))] if plan.by == CHANCE else []
    if isinstance(plan, HeadPlan):
        windows = _windows(plan.window, plan.sinks)
        return [
            ("Budget", _budgets([plan.budget], WINDOWS)),
            *windows,
            *_measures([plan.by]),
            *chance,
        ]
    others = ("Other pairs", f"{DONE[plan.how]} ({plan.how})")
    return [("Budget", _budgets([plan.budget], f"{DONE[plan.how]} pairs")), others, *_measures([plan.by]), *chance]


def _study_facts(study: PlanStudy) -> list[tuple[str, str]]:
    """The settings of a study of plans, as far as its provenance says them."""
    settings = study.provenance.get("settings", {})
    facts = [("Budgets", _budgets(study.budgets, study.planned))]
    if study.planned == WINDOWS:
        facts += _windows(settings.get("window", "?"), settings.get("sinks", "?"))
    known = {
        "windowable": "Key heads that can get a window",
        "n_random": "Random plans of each budget",
        "n_matched": "Random plans with as many windows in every layer",
        "seed": "Seed",
    }
    return [
        *facts,
        *_measures(study.by),
        *(
            (said, str(settings[name]))
            for name, said in known.items()
            if name in settings and (settings[name] or name == "seed")
        ),
    ]


def _budgets(budgets: Sequence[float], planned: str) -> str:
    kept = plan_words(planned).budget.replace(" that", "")
    return f"{', '.join(f'{budget:.4g}' for budget in budgets)} of the {kept}"


def _windows(window: object, sinks: object) -> list[tuple[str, str]]:
    return [("Window", f"the last {window} keys, the query's own among them"), ("Sinks", f"the first {sinks} keys")]


def _measures(by: Sequence[str]) -> list[tuple[str, str]]:
    return [("Measures" if len(by) > 1 else "Measure", ", ".join(printable(one, newlines=False) for one in by))]


def plan_study_section(study: PlanStudy, number: int, dpi: int) -> Section:
    """A study of plans: what the choice of each measure costs, beside random ones."""
    first, measure = study.reaches[0], study.measures[0]
    rows = json_rows(study.contrasts())
    shown = [row for row in rows if row["reach"] == first or row["budget"] == ALL_BUDGETS]
    table = plan_table(shown, study.planned)
    means = [row for row in rows if row["reach"] == first and row["budget"] == ALL_BUDGETS]
    caption = f"Plans at {first} range by measure and budget, and over all budgets at every range"
    over = "; ".join(f"{row['by']} {signed(row['effect'])}" for row in means)
    return Section(
        f"plan-study-{number}",
        f"Plans compared: {study.planned}, {study.task}",
        verdict=study.verdict,
        facts=_study_facts(study),
        paragraphs=[
            study.description,
            change_line(measure, json_rows(study.effects()), f" with {study.planned}"),
        ],
        glossary=table.glossary,
        tables=[Table(caption, table.cells)],
        plots=[
            plot(
                loss_by_budget(study),
                dpi,
                f"Change of {measure} by share of {plan_words(study.planned).budget}, at {first} range. Mean over "
                f"budgets: {over}.",
                "What plans cost by budget, one line per measure, with intervals; random plans are the grey band.",
            )
        ],
        points=study.notes,
    )


def recommendation_section(made: Recommendation, number: int, dpi: int) -> Section:
    """A recommendation: what to put into config.json, and the evidence."""
    content = made._content()
    table, config = recommendation_table(content), config_text(content)
    losses = "; ".join(f"{row['candidate']} {signed(row['loss_change'])}" for row in content["table"])
    return Section(
        f"recommendation-{number}",
        f"Extending the context to {made.target_length} tokens",
        verdict=made.verdict,
        paragraphs=[recommendation_line(content), f"Diagnosis: {made.diagnosis}"],
        glossary=[] if table is None else table.glossary,
        tables=[] if table is None else [Table("Candidates, and their changes from no extension", table.cells)],
        plots=[]
        if table is None
        else [
            plot(
                loss_by_factor(made),
                dpi,
                f"Change of loss beyond {made.training_length} tokens against no extension: {losses}.",
                "Change of loss by factor, one line per method, on long and on short texts, with intervals.",
            )
        ],
        points=made.notes,
        codes=[] if config is None else [Code(IN_PLACE, config, BESIDE)],
    )
