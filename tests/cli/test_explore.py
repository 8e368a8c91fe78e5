"""`positional-heads explore` writes a page, prints JSON, or serves, and says what it did."""

import json
from http.server import ThreadingHTTPServer

import jsonschema
import pytest
from typer.testing import CliRunner

from positional_heads.cli import app
from positional_heads.cli.common import prepared_folder
from positional_heads.results.files import SCORES
from positional_heads.views.explorer import explorer as explorers
from positional_heads.views.explorer.document import schema
from tests.support.synthetic import synthetic_scores


def invoke(*arguments):
    return CliRunner().invoke(app, ["explore", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    synthetic_scores().save(tmp_path)
    return tmp_path


def test_a_page_is_written_once_and_the_next_steps_are_said(folder):
    done = invoke(folder)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{folder / 'explorer.html'}\n"
    assert "open it in a browser" in done.stderr
    assert "explorer.html#L0H3" in done.stderr  # the head with the largest excess
    first = (folder / "explorer.html").read_bytes()
    again = invoke(folder)
    assert again.exit_code == 1
    assert "exists already; choose another --out, or add --overwrite" in again.stderr
    assert invoke(folder, "--overwrite").exit_code == 0
    assert (folder / "explorer.html").read_bytes() == first
    assert invoke(folder, "--out", folder / "other.html").stdout == f"{folder / 'other.html'}\n"


def test_json_is_the_document_and_nothing_is_written(folder):
    done = invoke(folder, "--json")
    assert done.exit_code == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), schema())
    assert [file.name for file in folder.iterdir()] == ["scores.safetensors"]


def test_a_large_page_says_that_it_needs_a_server(folder, monkeypatch):
    monkeypatch.setattr(explorers, "LARGEST_PAGE", 1000)
    done = invoke(folder)
    assert "3 files in explorer_data beside it" in done.stderr
    assert f"positional-heads explore {folder} --serve" in done.stderr
    assert len(list((folder / "explorer_data").iterdir())) == 3


def test_serving_says_where_and_ends_on_interrupt(folder, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    done = invoke(folder, "--serve")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
    assert done.stderr.endswith("ended\n")
    assert [file.name for file in folder.iterdir()] == ["scores.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--serve"], "--json prints and --serve shows: give one of them"),
        (["--json", "--out", "x.html"], "--out is a file to write, and --json writes none"),
        (["--serve", "--out", "x.html"], "--out is a file to write, and --serve writes none"),
        (["--port", "80"], "--port is that of --serve: add it"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, arguments, message):
    done = invoke(folder, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert [file.name for file in folder.iterdir()] == ["scores.safetensors"]


def test_a_folder_without_results_is_refused_in_one_line(tmp_path):
    done = invoke(tmp_path)
    assert done.exit_code == 1
    assert "holds no result that an explorer shows" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_port_that_is_taken_is_said(folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), None) as taken:  # type: ignore[arg-type]
        done = invoke(folder, "--serve", "--port", taken.server_port)
    assert done.exit_code == 1
    assert "cannot listen there (Address already in use); choose another, or 0 for a free one" in done.stderr


def test_a_page_of_a_replaced_result_goes_and_one_of_another_hand_stays(folder, monkeypatch, capsys):
    monkeypatch.setattr(explorers, "LARGEST_PAGE", 1000)
    assert invoke(folder).exit_code == 0
    with prepared_folder(folder, SCORES.file_name, True):
        synthetic_scores(seed=1).save(folder)
    assert f"positional-heads explore {folder} writes the page" in capsys.readouterr().err
    assert not (folder / "explorer.html").exists()
    assert not list(folder.glob("explorer_data/*"))
    (folder / "explorer.html").write_text("a page of mine")
    with prepared_folder(folder, SCORES.file_name, True):
        synthetic_scores(seed=2).save(folder)
    assert (folder / "explorer.html").read_text() == "a page of mine"
