"""The report says what the results say, finds all of them, and is one page that anyone can read."""

import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.core.heads import Head
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.files import ResultFileError
from positional_heads.results.scores import NullScores
from positional_heads.results.tables import scores_line
from positional_heads.views.report import page as report_page
from positional_heads.views.report.caveats import caveats
from positional_heads.views.report.commands import score_command, study_commands
from positional_heads.views.report.folder import write_report
from positional_heads.views.report.lines import score_lines
from positional_heads.views.report.local_names import short_name
from positional_heads.views.report.page import read_results, report_html, write_report_page
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_comparison import planted_nulls
from tests.support.synthetic_examples import HOSTILE, synthetic_examples
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_studies import all_heads, planted_study
from tests.views.test_tokens import Page

REPOSITORY = Path(__file__).parents[2]


def ablation_study():
    effects = np.zeros((4, 8))
    study = planted_study(effects, effects, all_heads(), significant=0)
    return replace(study, provenance={**study.provenance, "settings": {"n_random": 20, "seed": 3}})


def extrapolation_study(labels=("none", "yarn")):
    generator = torch.Generator().manual_seed(0)
    many = len(labels)
    curves = torch.rand(many, 1, 32, generator=generator, dtype=torch.float64)
    return ExtrapolationStudy(
        labels=list(labels),
        lengths=[32] * many,
        methods=[{"name": label} for label in labels],
        heads=[Head(0, 1)],
        curves=curves,
        frequencies=torch.tensor([[1.0, 0.1, 0.01]], dtype=torch.float64).repeat(many, 1),
        rho_within=torch.rand(many, 1, generator=generator, dtype=torch.float64),
        rho_beyond=torch.rand(many, 1, generator=generator, dtype=torch.float64),
        performance={
            name: -torch.rand(many, generator=generator, dtype=torch.float64) for name in ("exact", "log_prob", "loss")
        },
        plain={"exact": 1.0, "log_prob": -0.1},
        plain_curves=curves[0, :, :16],
        training_length=16,
        provenance={
            "versions": {},
            "model": {"name": "planted"},
            "task": {"name": "passkey"},
            "data": {"sequences": 1},
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scores and examples in a folder, an ablation and two extrapolations one level below."""
    folder = tmp_path_factory.mktemp("results") / "report"
    synthetic_scores().save(folder / "scores.safetensors")
    synthetic_examples(pairs=4).save(folder / "examples.safetensors")
    ablation_study().save(folder / "ablation" / "study.safetensors")
    extrapolation_study().save(folder / "first" / "extrapolation.safetensors")
    extrapolation_study(("none", "yarn", "linear", "ntk")).save(folder / "second" / "extrapolation.safetensors")
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return report_html(folder)


def test_every_verdict_and_every_file_is_there(folder, html):
    said = unescape(html)
    for result in (
        ph.HeadScores.load(folder),
        ph.AblationStudy.load(folder / "ablation"),
        ph.ExtrapolationStudy.load(folder / "first"),
        ph.ExtrapolationStudy.load(folder / "second"),
    ):
        assert result.verdict in said
    for file in ("scores.safetensors", "examples.safetensors", "ablation/study.safetensors"):
        assert file in said
    assert "torch 0" in said
    assert "Fingerprint of the weights" in said


def test_tables_hold_the_results_own_numbers(folder, html):
    scores = ph.HeadScores.load(folder)
    frame = scores.to_frame().dropna(subset="rho").sort_values("excess", ascending=False)
    places = []
    for row in frame.itertuples():
        line = f'<th scope="row">{row.name}</th>' + "".join(
            f"<td>{value:.3f}</td>" if not 1e-12 < abs(value) < 5e-4 else f"<td>{value:.1g}</td>"
            for value in (row.rho, row.low, row.high, row.null_mean, row.excess)
        )
        line += f"<td>{'&lt; 0.001' if row.q_value < 0.001 else f'{row.q_value:.3f}'}</td><td>{row.rho_curve:.3f}</td>"
        line = line.replace("<td>-0.000<", "<td>0.000<")  # of what rounds to 0, no sign
        places.append(html.index(line))
    assert places[0] == min(places)  # L0H3; all the others have an excess of 0
    assert html.index("What the columns mean") < html.index("The head that beats its null, then others")
    contrast = ph.AblationStudy.load(folder / "ablation").contrasts().iloc[0]
    assert f"<td>{contrast['difference']:.3f}</td>" in html
    for row in ph.ExtrapolationStudy.load(folder / "second").to_frame().itertuples():
        assert f'<th scope="row">{row.method}</th><td>32</td><td>{row.rho_within:.3f}</td>' in html


def test_the_page_has_every_landmark_and_every_anchor_it_refers_to(html):
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("h1", "header", "main", "nav", "footer")] == [1] * 5
    attributes = [own for _, own in page.elements]
    named = [own["id"] for own in attributes if "id" in own]
    assert len(named) == len(set(named))
    for own in attributes:
        for key in ("aria-labelledby", "data-props"):
            assert own.get(key) in {None, *named}
        if own.get("href"):
            assert own["href"].removeprefix("#") in named


def test_every_picture_has_a_text_alternative(html):
    images = [own for tag, own in Page(html).elements if tag == "img"]
    assert len(images) == 3 + 1 + 2 + 3  # scores, ablation, and methods compared only where there are enough
    assert all(len(own["alt"]) > 20 and own["src"].startswith("data:image/svg+xml;base64,") for own in images)
    assert "2 beat" not in images[0]["alt"]
    assert "from -0.100 (L0H0) to 0.400 (L0H3); 1 beat their null; beside it, the excess" in images[0]["alt"]
    assert "to 0.300 (L0H3)" in images[0]["alt"]


@pytest.mark.usefixtures("undrawn")
def test_every_head_that_beats_its_null_is_in_a_table_with_whether_it_stays(tmp_path):
    """40 heads, of which 20 beat their null and the first 3 of these stay; the highest rho is geometry's."""
    plain = torch.linspace(0.1, 0.2, 40, dtype=torch.float64).reshape(4, 10)
    noise = 0.001 * torch.randn(20, 4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain, control_gain = torch.zeros(40), torch.zeros(40)
    gain[:20], control_gain[:3] = torch.arange(20, 0, -1) / 50, 0.5
    gain, control_gain = gain.reshape(4, 10), control_gain.reshape(4, 10)

    def scores_of(gain, **more):
        curve = torch.rand(4, 10, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        null = NullScores(plain - gain + noise, curve, curve)
        per_layer = {"frequencies": torch.rand(4, 4), "pair_counts": torch.ones(4, 9, dtype=torch.long)}
        return replace(
            synthetic_scores(),
            rho=plain,
            rho_curve=plain,
            bound=plain,
            curve=curve,
            null=null,
            bootstrap_rho=None,
            reasons={},
            **per_layer,
            **more,
        )

    scores = scores_of(gain, control=scores_of(control_gain))
    known = {
        "model": {"name": "m", "layers": 4, "heads": 10},
        "settings": scores.provenance["settings"] | {"control_keys": 64},
    }
    scores = replace(scores, provenance=scores.provenance | known)
    scores.save(tmp_path)
    html = report_html(tmp_path)
    caption = re.search(r"<figcaption>(Rho of every head.*?)</figcaption>", html)[1]
    of_rho, of_excess, marks = re.split(r"(?<=\.) ", caption)
    assert "D shifts to slower pairs" in of_rho
    assert of_excess.startswith("Excess over the null")
    assert "shuffled positions" in of_excess
    assert "pairs" not in of_excess  # the excess says nothing about slower or faster ones
    assert marks.endswith("a diamond one that stays: it also does so without the first 64 keys.")
    first, second = re.findall(r"<table>.*?</table>", html.split('id="scores"', 1)[1], re.DOTALL)[:2]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in second.split("<tr>")[2:]]
    stays = rows and re.findall(r"<th[^>]*>([^<]*)</th>", second.split("</thead>")[0]).index("stays")
    assert [(row[0], row[stays]) for row in rows] == [
        (f"L{index // 10}H{index % 10}", "yes" if index < 3 else "no") for index in range(20)
    ]
    assert first.count("<tr>") == 11
    assert "The 10 heads with the largest excess of the 20 that beat their null" in first
    assert "L3H9" not in second  # the highest rho
    assert '<details class="folded"><summary>The 20 heads that beat their null, the largest excess first<' in html


@pytest.mark.usefixtures("undrawn")
def test_heads_and_sections_link_to_the_explorer_only_if_there_is_one(folder, html):
    assert "explorer" not in html
    with_links = Page(report_html(folder, "a folder/explorer.html"))
    links = [own["href"] for tag, own in with_links.elements if tag == "a" and not own["href"].startswith("#")]
    assert links[0] == "a%20folder/explorer.html"
    assert {"a%20folder/explorer.html#L0H3", "a%20folder/explorer.html#L0H0&part=tokens"} <= {*links}
    assert "a%20folder/explorer.html#L0H3&part=curves" in links
    assert all(link.startswith("a%20folder/explorer.html") for link in links)
    hostile = Page(report_html(folder, 'javascript:alert(1)"><script>'))
    addresses = [own["href"] for tag, own in hostile.elements if tag == "a" and not own["href"].startswith("#")]
    assert all(link.startswith("javascript%3Aalert%281%29%22%3E%3Cscript%3E") for link in addresses)  # a file's name


HOME = "/home/mallory/secret"


def test_no_local_path_is_anywhere_on_the_page(tmp_path, undrawn):
    """A model, an adapter and a text from a private folder, in every kind of result that names them."""

    def private(result):
        model = {
            **result.provenance["model"],
            "name": f"{HOME}/models/tiny/",
            "adapter": f"{HOME}/lora",
            "weights": "w",
        }
        data = {**result.provenance.get("data", {}), "texts": [f"{HOME}/notes.txt"]}
        return replace(result, provenance={**result.provenance, "model": model, "data": data})

    scores = private(synthetic_scores())
    scores.save(tmp_path / "scores")
    private(synthetic_examples(pairs=4)).save(tmp_path / "scores")
    private(ablation_study()).save(tmp_path / "ablation")
    private(extrapolation_study()).save(tmp_path / "extrapolation")
    profile = synthetic_profile()
    replace(private(profile), scores=private(profile.scores)).save(tmp_path / "profile")
    a, b = map(private, planted_nulls())
    model = {**b.provenance["model"], "name": f"{HOME}/models/other", "weights": "v"}
    ph.compare(a, replace(b, provenance={**b.provenance, "model": model})).save(tmp_path / "compare")
    html = unescape(report_html(tmp_path))
    for said in (html, *undrawn):
        assert not re.findall(".{,40}(?:mallory|secret).{,20}", said)
    assert len(undrawn) >= 10
    assert "tiny (adapter lora)" in html
    assert "notes.txt" in html
    assert "positional-heads score FOLDER/tiny " in html
    assert "--adapter FOLDER/lora" in html
    assert "ph.load_model('FOLDER/tiny', adapter='FOLDER/lora')" in html
    assert "replace FOLDER/tiny" in html


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("/home/a/m", "m"),
        ("~/m/", "m"),
        ("./runs/m", "m"),
        ("C:\\models\\m", "m"),
        ("runs/of/m", "m"),
        ("/x/a and /x/b", "a and b"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("bundled:prose", "bundled:prose"),
        ("</script><script>/x</script>", "</script><script>/x</script>"),
    ],
)
def test_a_path_is_its_last_part_and_a_hub_name_stays(name, short):
    assert short_name(name) == short


def test_tables_name_their_rows_and_columns_and_scroll_from_the_keyboard(html):
    page = Page(html)
    assert all(own.get("scope") in {"row", "col"} for tag, own in page.elements if tag == "th")
    scrolling = [own for _, own in page.elements if own.get("class") == "scroll" and own.get("role") == "region"]
    assert scrolling
    assert all(own["tabindex"] == "0" and own["aria-label"] for own in scrolling)


def test_it_is_one_small_page_with_one_bundle_and_no_requests(html):
    page = Page(html)
    assert len(html.encode()) < 6_000_000
    running = [text for own, text in page.scripts if own.get("type") != "application/json"]
    assert len(running) == 2
    assert html.count("CircuitsVis=") == 1
    assert "img-src data:;" in page.policy
    assert "default-src 'none'" in page.policy
    for tag, own in page.elements:
        assert not own.get("src", "data:").startswith(("http", "/", "."))
        assert tag not in {"link", "iframe", "object", "base", "form"}


def test_a_page_that_grows_too_large_gets_coarser_plots_and_then_a_refusal(tmp_path, monkeypatch):
    synthetic_scores(null=False).save(tmp_path)
    monkeypatch.setattr(report_page, "RESOLUTIONS", (60, 30))
    fine = len(report_html(tmp_path))
    monkeypatch.setattr(report_page, "LARGEST_PAGE", fine)
    assert len(report_html(tmp_path)) < fine
    monkeypatch.setattr(report_page, "RESOLUTIONS", (60,))
    with pytest.raises(ValueError, match="exceed 0 MB; report on its subfolders"):
        report_html(tmp_path)


def test_hostile_names_are_text_everywhere(tmp_path):
    folder = tmp_path / "<b onclick=x>\udcff"
    scores = synthetic_scores(name=HOSTILE[0])
    provenance = {
        **scores.provenance,
        "versions": {HOSTILE[1]: HOSTILE[0]},
        "settings": {**scores.provenance["settings"], HOSTILE[2]: HOSTILE[3]},
    }
    replace(scores, provenance=provenance, reasons={Head(2, 0): HOSTILE[1]}).save(folder / "scores.safetensors")
    synthetic_examples(HOSTILE, name="\0").save(folder / "examples.safetensors")
    html = write_report_page(folder, tmp_path / "out.html").read_text(encoding="utf-8")
    page = Page(html)
    assert [own.get("type") for own, _ in page.scripts][-2:] == [None, None]
    assert sum(own.get("type") is None for own, _ in page.scripts) == 2
    assert not [tag for tag, own in page.elements if tag == "b" or any(name.startswith("on") for name in own)]
    assert all(own["src"].startswith("data:") for tag, own in page.elements if tag == "img")
    assert "\0" not in html
    assert r"<b onclick=x>\udcff" in unescape(html)
    assert HOSTILE[0] in unescape(html)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["study", "extrapolation", "examples"])
def test_a_folder_with_one_result_of_any_kind_has_a_page(tmp_path, kind):
    made = {"study": ablation_study, "extrapolation": extrapolation_study, "examples": synthetic_examples}[kind]()
    made.save(tmp_path)
    html = report_html(tmp_path)
    assert "How to cite" in html
    assert "Scores of the heads" not in html
    assert "no ablation study" in html or kind == "study"


def test_results_without_any_score_or_null_have_a_page(tmp_path):
    scores = synthetic_scores(null=False, bootstrap=False)
    replace(scores, rho=torch.full((3, 4), torch.nan)).save(tmp_path)
    html = report_html(tmp_path)
    assert "no head has a score" in html
    assert "No null was computed" in html
    assert not re.search("<figcaption>Rho of every head[^<]*(?:Excess|dot|diamond)", html)
    assert "a single sequence" in html


@pytest.mark.usefixtures("undrawn")
def test_results_left_out_are_listed(tmp_path):
    synthetic_scores().save(tmp_path / "a")
    synthetic_scores(name="another").save(tmp_path / "b")
    other = synthetic_examples()
    replace(other, provenance={"model": {"name": "other", "weights": "other"}}).save(tmp_path / "b")
    for number in range(6):
        ablation_study().save(tmp_path / f"study{number}")
    found = read_results(tmp_path)
    assert found.examples is None
    assert len(found.ablations) == 4
    assert found.notes == [
        f"Not shown, because a page has room for 1 of a kind: {Path('b', 'scores.safetensors')}.",
        "Not shown, because a page has room for 4 of a kind: study4/study.safetensors, study5/study.safetensors.",
        "examples.safetensors is left out: its model has other weights than that of the scores.",
    ]
    html = unescape(report_html(tmp_path))
    assert all(note in html for note in found.notes)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("context", [8192, 16, None])
def test_a_training_length_that_is_not_the_context_says_where_it_comes_from(tmp_path, context):
    study = extrapolation_study()
    model = study.provenance["model"] | ({} if context is None else {"context": context})
    replace(study, provenance=study.provenance | {"model": model}).save(tmp_path)
    html = unescape(report_html(tmp_path))
    section = html.split('<section class="card" id="extrapolation-1"')[1].split("</p>")[0]
    said = (
        "planted, taken as trained on 16 tokens (set for this study, or the context before the model's own extension; "
        "the model's context is 8192 tokens): passkey"
    )
    assert (said in section) == (context == 8192)
    assert ("planted, trained on 16 tokens: passkey" in section) == (context != 8192)


def test_what_cannot_be_reported_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; give the --out folder of positional-heads score"):
        read_results(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"holds no result \(scores.safetensors, "):
        read_results(tmp_path)
    (tmp_path / "study.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(ResultFileError, match=r"study\.safetensors: not a result file, or a truncated one"):
        read_results(tmp_path)


def test_caveats_are_those_of_the_results():
    few = " ".join(caveats(synthetic_scores(), [], []))
    assert "5 groups of sequences" in few
    assert "6 shuffles" in few
    assert "no ablation study" in few
    scores = synthetic_scores()
    settings = {"null_repeats": 20, "skip_keys": 64}
    provenance = {**scores.provenance, "settings": settings, "data": {"groups": 16}, "extension": {"name": "yarn"}}
    enough = " ".join(caveats(replace(scores, provenance=provenance), [ablation_study()], [extrapolation_study()]))
    for absent in ("groups of sequences", "shuffles", "skip_keys", "no ablation study", "permuted rankings"):
        assert absent not in enough
    assert "context extended" in enough
    assert "share a model and a text" in enough


@pytest.mark.usefixtures("undrawn")
def test_what_needs_a_curve_says_that_it_was_left_out(tmp_path):
    small = synthetic_scores().without_curves()
    with pytest.raises(ValueError, match=r"kept without curves .HeadScores\.without_curves.*score again"):
        ph.views.allocation_curves(small, [Head(0, 3)])
    assert [file.name for file in write_report(small, tmp_path)] == [
        *("scores.safetensors", "heads.csv", "rho.png", "report.md")
    ]
    for said in (report_html(tmp_path), (tmp_path / "report.md").read_text()):
        assert "Curves over distance were left out when these scores were saved" in said
        assert "curves.png" not in said


def test_a_control_is_part_of_caveats_and_commands():
    scores = synthetic_scores()
    assert "score with control_keys=64" in " ".join(caveats(scores, [], []))
    settings = scores.provenance["settings"] | {"control_keys": 4}
    scores = replace(scores, control=scores, provenance={**scores.provenance, "settings": settings})
    assert "without the first 4 too" in " ".join(caveats(scores, [], []))
    assert "--control-keys 4" in score_command(scores.provenance)
    assert "a control without the first 4 keys" in scores_line(scores.provenance)


HOW_SEQUENCES_ARE_TAKEN = {
    "first": lambda model: ph.cut_text(model, ph.bundled_text(), 64)[:3],
    "drawn": lambda model: ph.cut_text(model, ph.bundled_text("code"), 64, sequences=3, seed=5),
}


@pytest.mark.parametrize("taken", HOW_SEQUENCES_ARE_TAKEN)
def test_the_printed_python_reproduces_the_scores(bundled, monkeypatch, taken):
    tokens = HOW_SEQUENCES_ARE_TAKEN[taken](bundled)
    scores = ph.score_heads(bundled, tokens, null_repeats=2, skip_keys=1, max_distance=40, seed=5)
    monkeypatch.setattr(ph, "load_bundled_model", lambda: bundled)
    namespace: dict[str, object] = {}
    exec(score_lines(scores.provenance), namespace)
    torch.testing.assert_close(namespace["scores"].rho, scores.rho, rtol=0, atol=0)
    torch.testing.assert_close(namespace["scores"].null.rho, scores.null.rho, rtol=0, atol=0)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("taken", "text"), [("first", "bundled"), ("drawn", "bundled:code")])
def test_the_printed_command_runs(bundled, tmp_path, taken, text):
    tokens = HOW_SEQUENCES_ARE_TAKEN[taken](bundled)
    settings = {"null_repeats": 2, "skip_keys": 1, "control_keys": 9, "max_distance": 40, "seed": 5}
    scores = ph.score_heads(bundled, tokens, **settings, bins=64)
    command = score_command(scores.provenance)
    words = shlex.split(command, comments=True)
    assert words[:2] == ["positional-heads", "score"]
    assert "# the command has no option for bins 64\n" in command
    assert ("# how the sequences were made is not recorded" in command) == (taken == "first")
    assert words[words.index("--text") + 1] == text
    assert ("--in-order" in words) == (taken == "first")
    out = tmp_path / "again"
    words[words.index("--out") + 1] = str(out)
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    again = ph.HeadScores.load(out).provenance
    assert again["data"] == scores.provenance["data"]
    for key in (*settings, "temperature"):
        assert again["settings"][key] == scores.provenance["settings"][key]


def test_texts_of_a_draw_are_named_and_another_seed_is_told(bundled):
    tokens = ph.cut_text(bundled, [ph.bundled_text("prose"), ph.bundled_text()[:9000]], 20, sequences=3, seed=2)
    provenance = ph.score_heads(bundled, tokens, null_repeats=0, resamples=2).provenance
    command = score_command(provenance)
    assert "--text bundled:prose --text TEXT2.txt --sequences 3 --length 20" in command
    assert "\n# it draws other sequences: the seed of these was 2, see the lines in Python\n" in command
    cut = "ph.cut_text(model, [ph.bundled_text('prose'), Path('TEXT2.txt')], length=20, sequences=3, seed=2"
    assert cut in score_lines(provenance)


@pytest.mark.usefixtures("undrawn")
def test_another_text_is_not_taken_for_the_bundled_one(bundled, tmp_path, monkeypatch):
    """Its ends of lines are tokens too: read by the printed lines, they come out as the command line read them."""
    monkeypatch.chdir(tmp_path)
    Path("TEXT.txt").write_bytes(b"In the beginning\r\nGod created the heaven\r\n" * 4)
    options = ["--length", "40", "--sequences", "3", "--null-repeats", "2", "--out", "r"]
    done = CliRunner().invoke(app, ["score", "bundled", "--text", "TEXT.txt", *options])
    assert done.exit_code == 0, done.output
    scores = ph.HeadScores.load("r")
    words = shlex.split(score_command(scores.provenance), comments=True)
    assert words[words.index("--text") + 1] == "TEXT.txt"
    namespace: dict[str, object] = {}
    exec(score_lines(scores.provenance), namespace)
    torch.testing.assert_close(namespace["scores"].rho, scores.rho, rtol=0, atol=0)


def test_commands_quote_the_name_of_a_model():
    provenance = synthetic_scores(name="a; rm -rf $HOME").provenance
    assert shlex.split(score_command(provenance), comments=True)[2] == "a; rm -rf $HOME"
    study = ablation_study()
    hostile = replace(study, provenance={**study.provenance, "task": {**study.provenance["task"], "name": "a b"}})
    (line,) = study_commands([hostile], []).splitlines()
    assert shlex.split(line)[6] == "a b"
    assert "--n-random=20" in line
    other, _ = study_commands([], [extrapolation_study()]).splitlines()
    assert shlex.split(other)[2:] == shlex.split(
        "planted --methods none,yarn --factors 2 --training-length=16 "
        "--text TEXT.txt --sequences=1 --in-order --task passkey --out extrapolation"
    )


REPEATED = {
    "copy": "--passage 30 --cue 12 --length 200 --length 300 --depths 2 --examples 1 --mode far --distance 20 --seed 4",
    "perplexity": "--near 16 --length 100 --examples 2 --mode near --distance 3 --rank-by excess",
    "needle": "--answer seven --statement 'It is {answer}.' --question 'It is' --length 200 --haystack HAYSTACK.txt",
}


@pytest.fixture
def unmeasured(no_retrieval, monkeypatch):
    """Studies that take no time, and find nothing: which study a command makes does not depend on it."""

    def zeros(task, *_):
        return {name: torch.zeros(len(task.rows), dtype=torch.float64) for name in task.measures}

    monkeypatch.setattr(ph.AnswerTask, "measure", zeros)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("task", REPEATED)
def test_the_printed_command_of_a_study_makes_the_same_study(bundled, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("HAYSTACK.txt").write_bytes(ph.bundled_text()[5000:9000].encode())
    ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 64)[:3], null_repeats=2).save("report")
    options = ["--fractions", "0.03,0.1", "--n-random", "1", "--singles", "none", "--scores", "report"]
    first = ["ablate", "bundled", "--task", task, *shlex.split(REPEATED[task]), *options, "--out", "first"]
    done = CliRunner().invoke(app, first)
    assert done.exit_code == 0, done.output
    study = ph.AblationStudy.load("first")
    command, weights = study_commands([study], []).splitlines()
    assert weights == f"# the same weights have the fingerprint {study.provenance['model']['weights']}"
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert ph.AblationStudy.load("ablation").provenance == study.provenance


@pytest.mark.usefixtures("undrawn")
def test_the_printed_command_of_an_extrapolation_makes_the_same_study(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--methods none,yarn --factors 1.5 --training-length 100 --depths 2 --examples 1 --sequences 1 --seed 2"
    done = CliRunner().invoke(app, ["extrapolate", "bundled", *options.split(), "--out", "first"])
    assert done.exit_code == 0, done.output
    study = ph.ExtrapolationStudy.load("first")
    command, comment, weights = study_commands([], [study]).splitlines()
    assert comment.startswith("# ")
    assert study.provenance["model"]["weights"] in weights
    assert str(study.heads[0]) in comment
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    again = ph.ExtrapolationStudy.load("extrapolation")
    assert again.provenance == study.provenance
    assert again.lengths == study.lengths
    assert study.provenance["data"]["drawn"]["seed"] == 2


def test_settings_without_an_option_are_listed_below_the_command():
    study = ablation_study()
    task = {"name": "kv", "keys": 3, "depths": [0.1, 0.5], "seed": 7}
    ablation = {"mode": "mean", "distance": None, "reference": "abc"}
    printed = study_commands([replace(study, provenance={**study.provenance, "task": task, "ablation": ablation})], [])
    command, *comments = printed.splitlines()
    assert "--keys=3" in shlex.split(command)
    assert "--depths" not in command
    depths, seed, reference = comments
    assert "no option for depths [0.1, 0.5]" in depths
    assert "was 7" in seed
    assert "--reference FILE" in reference
    other = extrapolation_study(("none", "yarn (factor 4)"))
    provenance = {**other.provenance, "task": {"name": "kv", "keys": 3, "depths": 2}}
    command, keys, method, heads = study_commands([], [replace(other, provenance=provenance)]).splitlines()
    assert "--depths=2" in shlex.split(command)
    assert "no option for keys 3" in keys
    assert "yarn (factor 4)" in method
    assert "L0H1" in heads


def test_the_citation_is_that_of_the_repository(html):
    file = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    (paper,) = file["references"]
    cited = report_page.PAPER.replace("{RoPE}", "RoPE")
    assert f"{{{paper['title']}}}" in cited
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]) in cited
    assert paper["collection-title"] in cited
    assert f"{{{paper['year']}}}" in cited
    assert paper["identifiers"][0]["value"] in cited
    assert paper["url"] in cited
    for value in (file["title"], file["version"], file["license"], file["authors"][0]["name"]):
        assert value in report_page.SOFTWARE
    assert report_page.PAPER in unescape(html)
    assert report_page.SOFTWARE in unescape(html)


def test_the_command_writes_the_page_and_replaces_nothing_unasked(tmp_path):
    folder, run = tmp_path / "results", CliRunner().invoke
    synthetic_examples().save(folder / "examples.safetensors")
    out = tmp_path / "deep" / "page.html"
    done = run(app, ["report", str(folder), "--out", str(out)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(out))
    before = out.read_bytes()
    again = run(app, ["report", str(folder), "--out", str(out)])
    assert again.exit_code == 1
    assert "exists already; choose another --out, or add --overwrite" in again.stderr
    assert run(app, ["report", str(folder), "--out", str(out), "--overwrite"]).exit_code == 0
    assert out.read_bytes() == before
    assert run(app, ["report", str(folder), "--out", str(tmp_path)]).stdout.strip() == str(tmp_path / "report.html")
    assert run(app, ["report", str(folder)]).stdout.strip() == str(folder / "report.html")


def test_mistakes_end_in_one_line(tmp_path):
    for arguments, message in (
        ([tmp_path], "holds no result"),
        ([tmp_path / "missing"], "no such folder"),
    ):
        done = CliRunner().invoke(app, ["report", *map(str, arguments)])
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_title_of_a_comparison_says_what_differs(tmp_path):
    a, b = planted_nulls()
    a, b = (
        replace(one, provenance=one.provenance | {"settings": one.provenance["settings"] | {"temperature": chosen}})
        for one, chosen in ((a, 1.0), (b, "attention"))
    )
    ph.compare(a, b, names=["prose", "<code>"]).save(tmp_path / "two")
    title = re.search(r"<title>(.*?)</title>", report_html(tmp_path / "two"))[1]
    assert title == "Positional Heads: &lt;code&gt; against prose, planted; text, temperature attention against 1"
    ph.compare_all({"x": a, "y": b}).save(tmp_path / "many")
    assert "<title>Positional Heads: x, y side by side, planted</title>" in report_html(tmp_path / "many")
