"""The report: what lies in its directory, that its numbers are the results, what it refuses."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.cli import main
from cosmofields.conventions import (
    CatalogError,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    StoreError,
)
from cosmofields.evaluation import evaluate, scores_table
from cosmofields.reporting import figures, group_name, inputs, report, summary
from cosmofields.reporting.page import Section, render
from cosmofields.reporting.tables import Table

SIDE, N = 37.5, 16
HOSTILE = '<b onclick="x">"&</b>'
NAME = "b_onclick__x______b"  # its group


@pytest.fixture(scope="module")
def box(make_box: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_box(tmp_path_factory.mktemp("box") / "box_7.h5", n_grid=N, box_size=SIDE)


@pytest.fixture(scope="module")
def universe(box: Path) -> dict[str, xr.Dataset]:
    """One small universe: halos in both spaces, the observed, linear, predicted and true fields."""
    halos, true = cf.open_box(box)
    chosen = halos.recon.select([1e-3, 3e-3])
    tracers = chosen.recon.to_redshift_space("z")
    observed = tracers.recon.paint(N)
    true = true.load()
    rng = np.random.default_rng(0)
    noise = xr.DataArray(rng.normal(0, 40, true["velocity"].shape), dims=true["velocity"].dims)
    predicted = xr.Dataset(
        {
            # The box facts are the Dataset's alone.
            "density": (0.2 + 0.8 * true["density"]).assign_attrs(units="1"),
            "velocity": (0.9 * true["velocity"] + noise).assign_attrs(units="km/s"),
        },
        attrs={**true.attrs, "los": "z", "history": "2026-01-01 made <up>"},
    )
    return {
        "halos": tracers,
        "halos_true": chosen,
        "observed": observed,
        "linear": observed.recon.linear_theory(bias=[2.0, 1.5]),
        "predicted": predicted,
        "true": true,
    }


@pytest.fixture(scope="module")
def written(
    universe: dict[str, xr.Dataset], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, xr.DataTree]:
    """A whole report, with everything that one box allows."""
    out = tmp_path_factory.mktemp("written") / "report"
    given = dict(universe)
    predicted, true = given.pop("predicted"), given.pop("true")
    epochs = np.arange(3)
    curves = xr.Dataset(
        {
            "train_loss": ("epoch", 1 / (1.0 + epochs)),
            "val_loss": ("epoch", 2 / (1.0 + epochs)),
            "step": ("epoch", 50 * (1 + epochs)),
        },
        {"epoch": epochs},
    )
    tree = report(
        {HOSTILE: predicted},
        true,
        out,
        **given,
        training=curves,
        sub_boxes=SIDE / 2,
        stride=SIDE / 2,
        title=HOSTILE,
        command="cosmofields evaluate 'a b' <c>",
    )
    return out, tree


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one figure alone: for tests that are not about figures."""

    def first(contents: figures.Contents) -> Iterator[figures.Plan]:
        yield next(iter(figures._spectra(contents)))

    monkeypatch.setitem(report.__globals__, "plan", first)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


# --- the directory ---


def test_directory(written: tuple[Path, xr.DataTree]) -> None:
    out = written[0]
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "results.zarr",
        "results.nc",
        "tables",
        "figures",
    }
    names = {path.stem for path in (out / "figures").iterdir()}
    for name in names:
        for suffix in ("png", "pdf", "csv", "txt"):
            assert (out / "figures" / f"{name}.{suffix}").stat().st_size > 0, name
    assert names == {
        *(f"slices_{field}" for field in ("velocity", "momentum", "density")),
        *(f"histograms_{kind}" for kind in ("magnitudes", "divergences", "directions")),
        *("joint_magnitudes", "joint_divergences", "density_relation"),
        *(f"spectra_{f}" for f in ("density", "vectors", "divergences", "magnitudes", "curls")),
        *("multipoles_density", "xi_density", "xi_velocity", "xi_2d_density"),
        *("halos_xi_2d", "halos_multipoles", "halos_xi", "training"),
    }
    assert {path.name for path in (out / "tables").iterdir()} == {
        f"{name}.{suffix}"
        for name in ("scores", "sub_boxes", "deviations", "spectra", "halos")
        for suffix in ("csv", "tex")
    }
    assert not list(out.parent.glob(".*"))


def test_results_come_back(
    written: tuple[Path, xr.DataTree], universe: dict[str, xr.Dataset]
) -> None:
    out, tree = written
    expected = evaluate(universe["predicted"], universe["true"])
    xr.testing.assert_identical(tree[NAME].to_dataset().drop_attrs(), expected.drop_attrs())
    assert tree[NAME].attrs["label"] == HOSTILE
    assert set(tree.children) == {
        NAME,
        "linear_theory",
        "combined",
        "sub_boxes",
        "observed",
        "halos",
    }
    stored = cf.open_store(out / "results.zarr")
    netcdf = xr.open_datatree(out / "results.nc", engine="h5netcdf")
    for group in tree.groups:
        for back in (stored, netcdf):
            xr.testing.assert_equal(back[group].to_dataset().load(), tree[group].to_dataset())
    netcdf.close()


def test_numbers_behind_the_figures_are_the_results(written: tuple[Path, xr.DataTree]) -> None:
    out, tree = written
    result, combined = tree[NAME].to_dataset(), tree[f"combined/{NAME}"]
    folder = out / "figures"

    ours = [row for row in rows_of(folder / "spectra_vectors.csv") if row["label"] == HOSTILE]
    ours = [row for row in ours if row["field"] == "velocity"]
    for column in ("relative_deviation", "relative_deviation_spread", "power_true"):
        values = [float(row[column]) for row in ours]
        np.testing.assert_allclose(values, combined[column].sel(field="velocity"), rtol=1e-6)
    low = [float(row["k_low"]) for row in ours]
    np.testing.assert_allclose(low, combined["k_bounds"].values[:, 0], rtol=1e-6)

    cells = [row for row in rows_of(folder / "joint_magnitudes.csv") if row["field"] == "density"]
    inside = result["joint"].sel(scalar="density")
    assert sum(float(row["cells"]) for row in cells) == int(inside.sum())
    fullest = max(cells, key=lambda row: float(row["cells"]))
    p, t = np.unravel_index(np.argmax(inside.values), inside.shape)
    bounds = result["value_bounds"].sel(field="density").values
    assert float(fullest["predicted_low"]) == pytest.approx(bounds[p, 0])
    assert float(fullest["true_high"]) == pytest.approx(bounds[t, 1])

    mine = [
        float(row["histogram_predicted"])
        for row in rows_of(folder / "histograms_magnitudes.csv")
        if (row["label"], row["field"]) == (HOSTILE, "velocity_magnitude")
    ]
    expected = result["histogram_predicted"].sel(field="velocity_magnitude")
    np.testing.assert_array_equal(mine, expected)
    turned = rows_of(folder / "histograms_directions.csv")
    mine = [row for row in turned if (row["label"], row["vector"]) == (HOSTILE, "velocity")]
    cosine = [0.5 * (float(row["angle_low"]) + float(row["angle_high"])) for row in mine]
    share = [float(row["misalignment_histogram"]) / N**3 for row in mine]
    mean = float(result["misalignment_mean"].sel(vector="velocity"))
    assert np.dot(cosine, share) == pytest.approx(mean, abs=0.005)

    slab = rows_of(folder / "slices_velocity.csv")
    assert len(slab) == N**2
    assert float(slab[1]["across"]) - float(slab[0]["across"]) == pytest.approx(SIDE / N)

    xi = rows_of(folder / "xi_density.csv")
    mine = [float(row["xi_predicted"]) for row in xi if row["label"] == HOSTILE]
    expected = result["xi_predicted"].sel(field="density").values.ravel()
    np.testing.assert_allclose(mine, expected, rtol=1e-6)
    losses = rows_of(folder / "training.csv")
    assert {float(row["y"]) for row in losses} == {1.0, 0.5, 0.3333333, 2.0, 0.6666667}

    power = rows_of(folder / "halos_multipoles.csv")
    np.testing.assert_allclose(
        [float(row["real space"]) for row in power],
        tree["halos"]["power"].sel(sample="real space").values.ravel(),
        rtol=1e-6,
    )


def test_tables_are_the_results(written: tuple[Path, xr.DataTree]) -> None:
    out, tree = written
    result = tree[NAME]
    scores = rows_of(out / "tables" / "scores.csv")
    found = {(row["field"], row["score"]): float(row[HOSTILE]) for row in scores}
    velocity = result.sel(field="velocity", vector="velocity")
    assert found["velocity", "C_r"] == pytest.approx(float(velocity["correlation_coefficient"]))
    assert found["velocity", "1 - cos phi, mean"] == pytest.approx(
        float(velocity["misalignment_mean"])
    )
    assert ("velocity", "rms error of component z") in found
    boxes = rows_of(out / "tables" / "sub_boxes.csv")
    row = next(
        row
        for row in boxes
        if (row["label"], row["field"], row["score"]) == (HOSTILE, "density", "slope")
    )
    slopes = tree[f"sub_boxes/{NAME}"]["slope"].sel(field="density")
    assert slopes.size == 8
    assert float(row["mean"]) == pytest.approx(slopes.values.mean())
    assert float(row["scatter"]) == pytest.approx(slopes.values.std(ddof=1))
    latex = (out / "tables" / "deviations.tex").read_text()
    assert r"\begin{tabular}" in latex
    assert latex.count(r"\\") == 1 + tree[f"combined/{NAME}"].sizes["k"]
    for path in (out / "tables").glob("*.tex"):
        check_latex(path.read_text())


def check_latex(text: str) -> None:
    """Environments, braces and dollars pair, every row has its columns, nothing is left bare."""
    text = re.sub(r"(?m)^%.*\n", "", text)
    assert text.isascii() or not re.search(r"[\u2212\u00b1]", text)
    opened: list[str] = []
    for which, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if which == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    bare = re.sub(r"\\[\\{}$&%#_^]", "", text)
    depth = 0
    for sign in re.findall(r"[{}]", bare):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    outside = "".join(bare.split("$")[::2])
    assert not re.search(r"[_^#%]|\d[eE][+-]\d", outside)
    columns = re.search(r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}", text)
    assert columns
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    rows = [line for line in rows if not line.startswith(r"\caption")]
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {len(columns[1])}


def test_long_tables_break_over_pages() -> None:
    table = Table("t", "P(k)", {"k low": np.arange(41.0), "P_0, a_b & {c}": np.full(41, -1.5e-7)})
    latex = table.latex()
    check_latex(latex)
    assert r"\begin{longtable}{rr}" in latex
    assert r"\caption{$P(k)$.} \\" in latex
    assert latex.count(r"$k_\mathrm{low}$ & $P_0$, a\_b \& \{c\} \\") == 2  # on the next pages too
    assert latex.count(r" & $-1.5\times10^{-07}$ \\".replace("-07", "-7")) == 41


def test_symbols_in_latex() -> None:
    texts = ["C_r of component x", "1 - cos phi, mean", "velocity divergence", "km/s", "1 +- 2"]
    latex = Table("t", "T", {"score": texts}).latex()
    check_latex(latex)
    for symbol in (r"$C_r$ of", r"$1-\cos\phi$", r"$\nabla\cdot v$", r"$\pm$", r"\mathrm{km"):
        assert symbol in latex
    assert r"\hline" not in latex


def test_rounding_is_no_score(universe: dict[str, xr.Dataset]) -> None:
    result = evaluate(universe["linear"], universe["true"])
    curl = result.sel(field="velocity_curl")
    assert float(curl["std_predicted"]) < 1e-4 * float(curl["std_true"])
    table = scores_table({"linear": result})["linear"]
    assert (
        table["velocity_curl"]["slope"] is table["velocity_curl"]["correlation_coefficient"] is None
    )
    assert table["velocity_curl"]["mean_predicted"] == table["velocity_curl"]["std_predicted"] == 0
    assert table["velocity_divergence"]["mean_predicted"] == 0
    assert table["velocity"]["slope"] == pytest.approx(float(result["slope"].sel(field="velocity")))
    assert table["density"]["mean_true"] == pytest.approx(1)


def test_captions_say_what_was_done(written: tuple[Path, xr.DataTree]) -> None:
    out, tree = written
    words = {path.stem: path.read_text() for path in (out / "figures").glob("*.txt")}
    assert "velocity curl of linear theory" in words["spectra_curls"]
    assert "window of the mesh is taken out" in words["spectra_density"]
    assert tree["observed/power"].attrs["window"] == "cic-aliased"
    assert "overlap" not in words["spectra_density"]  # these sub-boxes lie side by side


@pytest.mark.parametrize(("factor", "said"), [(1.0, False), (0.4, True)])
def test_bands_of_sub_boxes_that_overlap(
    universe: dict[str, xr.Dataset], factor: float, said: bool
) -> None:
    bands = {"a": xr.Dataset(attrs={"volume_factor": factor})}
    contents = figures.Contents(universe["true"], {}, {}, bands=bands)
    assert ("lower bound" in contents.words_on_bands) == said


# --- the page ---


@pytest.fixture(scope="module")
def page(written: tuple[Path, xr.DataTree]) -> str:
    return (written[0] / "report.html").read_text(encoding="utf-8")


def test_page_stands_alone(page: str) -> None:
    assert len(page) < 8e6
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) > 50
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_page_escapes_what_it_is_given(page: str) -> None:
    assert "<b onclick" not in page
    assert "made <up>" not in page
    assert HOSTILE in unescape(page)
    assert "cosmofields evaluate 'a b' <c>" in unescape(page)


def test_page_says_what_was_scored_on_what(page: str) -> None:
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page)))
    for words in (
        "box_7.h5: 37.5 Mpc/h, 16³ cells of 2.344 Mpc/h; z = 0.59; line of sight z; a training box",
        "(training box): velocity Cr = ",
        "box_7.h5 is a training box",
        "The box lacks waves longer than 37.5 Mpc/h",
        "297.22 ± 135.31",
        "another simulation",
        "Omega_m 0.268",
        "Scores of 8 sub-boxes",
    ):
        assert words in text, words
    assert "What is not here" not in text


def test_downloads_are_the_files(page: str, written: tuple[Path, xr.DataTree]) -> None:
    found = dict(re.findall(r'href="(data:[^"]*)" download="([^"]*)"', page)[::-1])
    names = {name: uri for uri, name in found.items()}
    assert len(names) > 20
    for name, uri in names.items():
        raw = base64.b64decode(uri.partition(",")[2])
        raw = gzip.decompress(raw) if name.endswith(".gz") else raw
        stem = name.removesuffix(".gz")
        here = [written[0] / folder / stem for folder in ("tables", "figures")]
        assert raw == next(path for path in here if path.exists()).read_bytes()


def test_a_table_too_large_for_the_page_stays_beside_it() -> None:
    noise = np.random.default_rng(0).normal(size=2 * 10**5)
    large = Section("large", "Large", tables=[Table("noise", "Noise", {"x": noise})])
    context: dict[str, Any] = dict.fromkeys(
        ("title", "subtitle", "created", "version", "command"), "word"
    )
    lists = ("verdict", "warnings", "missing", "definitions", "facts", "histories")
    html = render([large], **context, **dict.fromkeys(lists, []), headline=Table("h", "", {}))
    assert len(html) < 1e5
    assert "noise.csv <span" in html
    assert "The first 100 of 200,000 rows" in html


# --- what it is made of ---


def test_table_as_text() -> None:
    table = Table(
        "t",
        "Of 5 % & more_",
        {"na_me": ["a&b", "c"], "n": [1, 2], "x": np.array([0.12345678, np.nan])},
    )
    assert table.csv() == "na_me,n,x\na&b,1,0.1234568\nc,2,nan\n"
    latex = table.latex()
    assert r"\caption{Of 5 \% \& more\_." in latex
    assert r"\begin{tabular}{lrr}" in latex
    assert r"a\&b & 1 & 0.1235 \\" in latex
    assert r"c & 2 & - \\" in latex
    assert table.shown(1) == [["a&b", "1", "0.1235"]]
    assert len(table) == 2


def test_warnings(universe: dict[str, xr.Dataset]) -> None:
    true = universe["true"].assign_attrs(source={})
    still = universe["predicted"].assign(velocity=0 * universe["true"]["velocity"])
    found = "\n".join(
        summary.warnings(true, {"copy": evaluate(true, true), "still": evaluate(still, true)}, {})
    )
    assert "copy: equal to the truth in every cell of density" in found
    assert f"still: cells where a vector is zero, left out of 1 − cos φ: velocity {N**3}" in found
    assert "no role" in found
    assert "still: R(k) is undefined" not in found
    assert "training box" not in found


def test_headline_is_the_paper_beside_the_judged(universe: dict[str, xr.Dataset]) -> None:
    result = evaluate(universe["predicted"], universe["true"])
    table = summary.headline({"mine": result, "other": result})
    assert list(table.columns) == ["quantity", "mine", "the paper, another simulation", "other"]
    rows = {row[0]: row[1:] for row in table.rows()}
    value = float(result["correlation_coefficient"].sel(field="velocity"))
    assert rows["C_r of the velocity"] == (f"{value:.3f}", "about 0.9", f"{value:.3f}")
    inside = (result["k_mean"] >= 0.05) & (result["k_mean"] < 0.3)
    deviation = result["relative_deviation"].sel(field="velocity_divergence")
    assert rows["largest |R(k)| of div v, k 0.05 to 0.3 h/Mpc"] == (
        f"{float(abs(deviation[inside.values]).max()):.3f}",
        "< 0.1",
        f"{float(abs(deviation[inside.values]).max()):.3f}",
    )
    # No bin of so small a box lies there.
    assert not any("k 0.03 to 0.05" in text for text in rows)


def test_group_names() -> None:
    assert group_name("linear, eq. 2", {}) == "linear__eq__2"
    assert group_name("linear, eq. 2", {"linear__eq__2": 0}) == "linear__eq__2_2"
    assert group_name("../..", {}) == "prediction"
    assert group_name("halos", {}) == "halos_2"


# --- again, and refused ---


def test_another_run_replaces_and_a_death_leaves_the_old(
    universe: dict[str, xr.Dataset],
    one_figure: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "new" / "report"
    report(universe["predicted"], universe["true"], out, title="first")
    (out / "figures" / "old.png").touch()
    report(universe["predicted"], universe["true"], out, title="second")
    assert "second" in (out / "report.html").read_text()
    assert not (out / "figures" / "old.png").exists()

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(report.__globals__, "write_store", die)
    for place in (out, tmp_path / "never"):
        with pytest.raises(KeyboardInterrupt):
            report(universe["predicted"], universe["true"], place)
    assert "second" in (out / "report.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["report"]
    assert not (tmp_path / "never").exists()


def test_what_is_not_ours_is_left_alone(universe: dict[str, xr.Dataset], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        report(universe["predicted"], universe["true"], tmp_path / "file")
    with pytest.raises(StoreError, match="something else than a report"):
        report(universe["predicted"], universe["true"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_errors(universe: dict[str, xr.Dataset], tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted, true = universe["predicted"], universe["true"]
    with pytest.raises(MissingVariableError, match="No prediction"):
        report({}, true, out)
    with pytest.raises(DimensionError, match="lines of sight differ: x, z"):
        report({"a": predicted, "b": predicted.assign_attrs(los="x")}, true, out)
    halos, real = universe["halos"], universe["halos_true"]
    for wrong in ({"halos": real}, {"halos": halos, "halos_true": halos}):
        with pytest.raises(CatalogError, match="halos_true in real space"):
            report(predicted, true, out, **wrong)
    with pytest.raises(GridMismatchError, match="in a box of 75"):
        report(predicted, true, out, halos=halos.assign_attrs(box_size=75.0))
    with pytest.raises(GridMismatchError, match="different grids"):
        report(predicted, true, out, observed=universe["observed"].isel(x=slice(0, 8)))
    with pytest.raises(DimensionError, match="no whole number of cells"):
        report(predicted, true, out, sub_boxes=10.0)
    assert not out.exists()


@pytest.mark.parametrize("name", ["density", "velocity"])
def test_one_field_alone(
    name: str,
    universe: dict[str, xr.Dataset],
    tmp_path: Path,
) -> None:
    given = {key: universe[key] for key in ("halos", "halos_true", "observed")}
    predicted = universe["predicted"][[name]]
    report(predicted, universe["true"], tmp_path / "report", **given)
    text = (tmp_path / "report" / "report.html").read_text()
    figures = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert f"slices_{name}" in figures
    assert "slices_momentum" not in figures
    assert "halos_xi" in figures
    assert ("Halos moved back by prediction: it has no velocity" in text) == (name == "density")


def test_box_that_is_not_periodic(
    universe: dict[str, xr.Dataset], one_figure: None, tmp_path: Path
) -> None:
    predicted, true = (
        universe[name].assign_attrs(periodic=False) for name in ("predicted", "true")
    )
    tree = report(predicted, true, tmp_path / "report")
    assert "xi_true" not in tree["prediction"]
    text = (tmp_path / "report" / "report.html").read_text()
    assert "The box is not periodic" in text


# --- the command line ---


@pytest.fixture(scope="module")
def store(universe: dict[str, xr.Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "fields.zarr"
    groups = {
        name: universe[name] for name in ("observed", "linear", "halos", "halos_true", "true")
    }
    groups["reconstructed"] = universe["predicted"]
    cf.write_store(xr.DataTree.from_dict(groups), path)
    return path


def test_gather_takes_what_lies_beside(store: Path, box: Path) -> None:
    given = inputs.gather(store, store)
    assert list(given["predicted"]) == ["reconstructed"]
    assert set(given) == {"predicted", "true", "linear", "observed", "halos", "halos_true"}
    given = inputs.gather(store / "linear", box, label="lin")
    assert list(given["predicted"]) == ["lin"]
    assert given["predicted"]["lin"].identical(cf.open_store(store, "linear"))
    assert given["true"].attrs["source"]["file"] == "box_7.h5"
    given = inputs.gather(store / "reconstructed", store / "true", linear=store / "true")
    assert given["linear"].identical(cf.open_store(store, "true"))


def test_gather_of_a_plain_store_and_a_box(
    universe: dict[str, xr.Dataset], make_box: Callable[..., Path], tmp_path: Path
) -> None:
    cf.write_store(universe["predicted"], tmp_path / "alone.zarr")
    given = inputs.gather(
        tmp_path / "alone.zarr", make_box(tmp_path / "b.h5", n_grid=N, box_size=SIDE)
    )
    assert list(given["predicted"]) == ["prediction"]
    # The halos of the box, of which there are enough for the paper's four bins.
    assert given["halos"].attrs["space"] == "redshift"
    assert given["halos"].sizes == given["halos_true"].sizes
    assert len(given["halos"].attrs["number_density"]) == 4


def test_gather_takes_the_halos_that_were_observed(
    universe: dict[str, xr.Dataset], make_box: Callable[..., Path], tmp_path: Path
) -> None:
    box = make_box(tmp_path / "b.h5", n_grid=N, box_size=SIDE)
    tracers = cf.select(cf.open_box(box)[0], [1e-3]).recon.to_redshift_space("z")
    observed = cf.paint(tracers, N, weighting="number")
    tree = xr.DataTree.from_dict({"reconstructed": universe["predicted"], "observed": observed})
    cf.write_store(tree, tmp_path / "run.zarr")
    given = inputs.gather(tmp_path / "run.zarr", box)
    assert given["halos"].attrs["number_density"] == [1e-3]
    assert given["halos"].sizes == tracers.sizes


def test_errors_of_the_command(
    store: Path,
    universe: dict[str, xr.Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"

    def complaint(*argv: object, to: Path = out) -> str:
        assert main(["evaluate", *map(str, argv), "--out", str(to)]) == 2
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err

    assert "nothing at that path" in complaint(tmp_path / "none.zarr", store)
    text = complaint(store / "nothing", store)
    assert "No group 'nothing'" in text
    assert "reconstructed" in text
    assert "none of density, velocity, momentum" in complaint(store / "observed", store)
    coarse = universe["true"].isel(x=slice(0, 8)).assign_attrs(box_size=[SIDE / 2, SIDE, SIDE])
    cf.write_store(coarse, tmp_path / "coarse.zarr")
    assert "different grids" in complaint(store, tmp_path / "coarse.zarr")
    cf.write_store(universe["true"][["density"]], tmp_path / "density.zarr")
    cf.write_store(universe["true"][["velocity"]], tmp_path / "velocity.zarr")
    assert "Nothing to compare" in complaint(tmp_path / "density.zarr", tmp_path / "velocity.zarr")
    assert "no groups" in complaint(tmp_path / "density.zarr" / "x", store)
    (tmp_path / "file").touch()
    assert "is a file" in complaint(store, store, to=tmp_path / "file")
    assert "--stride needs --sub-boxes" in complaint(store, store, "--stride", 5)
    assert "No group 'linear'" in complaint(
        store, store, "--linear", _only(universe["true"], tmp_path / "grouped.zarr")
    )
    assert not out.exists()


def _only(ds: xr.Dataset, path: Path) -> Path:
    cf.write_store(xr.DataTree.from_dict({"true": ds}), path)
    return path


def test_evaluate_from_the_command_line(
    store: Path,
    one_figure: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "report"
    argv = ["evaluate", str(store), str(store), "--out", str(out), "--label", "mine"]
    assert main(argv) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    assert main([*argv[:4], str(tmp_path / "again"), *argv[5:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(tmp_path / "again" / "report.html")
    assert set(printed["scores"]) == {"mine", "linear theory"}
    assert printed["scores"]["mine"]["density"]["units"] == "1"
    text = unescape((out / "report.html").read_text())
    assert f"cosmofields {' '.join(argv)}" in text
    for missing in ("Bands around the spectra: one box", "Training curves (Fig. 3 of the paper)"):
        assert missing in text
    assert set(cf.open_store(out / "results.zarr").children) == {
        "mine",
        "linear_theory",
        "observed",
        "halos",
    }
