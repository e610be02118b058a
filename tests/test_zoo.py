"""The models that ship: their cards, and the pages that are made of them."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import cosmofields as cf
from cosmofields.scoring import ROWS
from cosmofields.unet import load_cards, zoo

ROOT = Path(__file__).parents[1]


def test_models_that_ship() -> None:
    rows = cf.models()
    assert [row["name"] for row in rows] == list(zoo())
    assert rows[0]["name"] == "default"
    assert rows[0]["number_density"] == [1e-4, 1e-3, 2e-3, 3e-3]
    files = [path for folder in zoo().values() for path in folder.iterdir()]
    # As they are downloaded: a wheel is compressed.
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 20e6
    for row in rows:
        cards = load_cards(row["name"])
        assert row["targets"] == list(cards)
        kinds = [card["trained_for"] for card in cards.values()]
        assert all(kind == kinds[0] for kind in kinds), "the steps of a model see the same halos"
        for card in cards.values():
            used = [*card["training"]["boxes"], *card["training"]["validation"]]
            tests = [name for name, box in card["scores"].items() if box["role"] == "test"]
            assert not set(used) & set(tests)


def test_page_is_up_to_date(make_scores: SimpleNamespace) -> None:
    page = make_scores.PAGE.read_text()
    assert page == make_scores.replaced(page), "run `python tools/make_scores.py`"
    with pytest.raises(ValueError, match="do not edit"):
        make_scores.replaced("a page without a mark")


def test_front_page_is_up_to_date(make_scores: SimpleNamespace) -> None:
    readme = make_scores.README.read_text()
    assert readme == make_scores.with_headlines(readme), "run `python tools/make_scores.py`"
    with pytest.raises(ValueError, match="no '<!-- written"):
        make_scores.with_headlines("a page without a mark")


def test_goals_and_the_paper_have_rows(make_scores: SimpleNamespace) -> None:
    labels = {row.label for row in ROWS}
    assert set(make_scores.GOALS) <= labels
    assert set(make_scores.PAPER) <= labels
    assert labels >= make_scores.HEADLINES


def test_models_page_lists_the_models() -> None:
    page = ROOT / "docs" / "models.md"
    if not page.is_file():
        pytest.skip("the pages are in the repository only")
    table = page.read_text().partition("## The models that ship")[2].partition("\n## ")[0]
    for row in cf.models():
        (line,) = (x for x in table.splitlines() if x.startswith(f"| `{row['name']}` |"))
        _, _, densities, weighting, *_ = (cell.strip() for cell in line.split("|"))
        assert [float(n) for n in densities.replace(", one bin", "").split(",")] == pytest.approx(
            row["number_density"]
        )
        assert weighting == row["weighting"]
