"""The report page works in a real browser without a network: sorting, filtering, and nothing wider than a phone."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from maep.ablation.tables.paper_page import render_paper
from maep.evaluation.reporting.provenance import write_environment
from maep.evaluation.reporting.report import build_report
from tests.evaluation.small_evaluation import run, settings_for
from tests.small import write_shards
from tests.tiny import ROOT

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; .ci/run installs it")
PHONE, SMALL_PHONE = 390, 360


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real evaluation in all threat models."""
    directory = tmp_path_factory.mktemp("page")
    settings = settings_for(
        directory, images=12, chunk_images=12, attacks=["fgsm", "pgd-3"], eps=[0.05, 0.15], check_images=2,
        threat_models=["oblivious", "bpda", "adaptive", "adaptive-eot", "blackbox"], figure_images=6,
    )  # fmt: skip
    run(settings, write_shards(directory / "test", 12))
    write_environment(Path(settings.run.dir), ["test"])
    build_report(settings, Path(settings.run.dir))
    return Path(settings.run.dir) / "report.html"


def in_browser(page: Path, script: str, width: int = 1200) -> Any:
    """What the script's `answer` is after it ran in the page, opened `width` pixels wide."""
    inner = page.with_name("tested.html")
    post = "parent.postMessage(JSON.stringify(answer), '*');"
    ending = f"<script>addEventListener('load', () => {{ let answer; {script}; {post} }});</script></body>"
    inner.write_text(page.read_text().replace("</body>", ending))
    outer = page.with_name("frame.html")
    listener = "addEventListener('message', event => { document.getElementById('answer').textContent = event.data; });"
    frame = f"<iframe src=tested.html style='width:{width}px;height:900px'></iframe>"
    outer.write_text(f"<body><pre id=answer></pre><script>{listener}</script>{frame}")
    options = ["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--virtual-time-budget=4000"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [str(CHROMIUM), "--headless", *options, offline, "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre id=\"answer\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-500:]
    assert found[1], done.stderr[-500:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@needs_chromium
def test_tables_sort_by_clicking(page: Path) -> None:
    """A click on a head sorts by its numbers downwards, another one upwards; ε by its value, not its text."""
    column = (
        "const column = number => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[number].textContent));"
    )
    eps = "[...table.tBodies[0].rows].map(row => Number(row.cells[2].dataset.value))"
    answer = in_browser(
        page,
        f"const table = document.querySelector('table.sortable'); {column}"
        "const heads = table.tHead.rows[0].cells; answer = [];"
        "heads[7].click(); answer.push(column(7)); heads[7].click(); answer.push(column(7));"
        f"heads[2].click(); answer.push({eps}); answer.push(heads[2].getAttribute('aria-sort'));",
    )
    down, up, budgets, order = answer
    assert len(set(down)) > 1
    assert down == sorted(down, reverse=True)
    assert up == sorted(down)
    assert budgets == sorted(budgets, reverse=True)
    assert order == "descending"


@needs_chromium
def test_gallery_shows_what_was_saved_or_lost(page: Path) -> None:
    """The buttons leave the saved or the lost images, each with label, confidence and its five pictures."""
    answer = in_browser(
        page,
        "const filter = document.querySelector('.filter');"
        "const rows = [...filter.nextElementSibling.querySelectorAll('tbody tr')];"
        "const shown = () => rows.filter(row => row.offsetParent !== null).map(row => row.dataset.kind);"
        "answer = [shown()]; for (const kind of ['saved', 'lost', '']) {"
        "filter.querySelector(`[data-kind='${kind}']`).click(); answer.push(shown()); }"
        "answer.push(rows[0].querySelectorAll('img').length, rows[0].textContent,"
        " [...document.images].every(image => image.complete && image.naturalWidth > 0));",
    )
    every, saved, lost, again, pictures, text, loaded = answer
    assert {"saved", "lost"} == set(every)
    assert set(saved) == {"saved"}
    assert set(lost) == {"lost"}
    assert again == every
    assert pictures == 5
    assert re.search(r"\d %", text)
    assert loaded


@needs_chromium
def test_fits_a_phone(page: Path) -> None:
    """At 390 pixels nothing makes the page wider than the screen, and tables sort by a menu."""
    width, visible, values = in_browser(
        page,
        "const menu = document.querySelector('.sortby select'), table = document.querySelector('table.sortable');"
        "menu.value = 7; menu.dispatchEvent(new Event('change'));"
        "answer = [document.documentElement.scrollWidth, menu.offsetParent !== null,"
        "[...table.tBodies[0].rows].map(row => parseFloat(row.cells[7].textContent))];",
        width=PHONE,
    )
    assert width <= PHONE
    assert visible
    assert values == sorted(values, reverse=True)


@needs_chromium
def test_tables_fit_a_desktop(page: Path) -> None:
    """At 1200 pixels no table has to be scrolled sideways, also where attacks and purifiers have long names."""
    hidden = in_browser(
        page,
        "document.querySelectorAll('tbody th').forEach(head => { head.textContent = 'autoattack-standard'; });"
        "document.querySelectorAll('td[data-label=purifier]').forEach(cell => { cell.textContent = 'cifar10_cpu'; });"
        "answer = [...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth);",
    )
    assert hidden
    assert not any(hidden)


@needs_chromium
def test_fits_a_small_phone(page: Path) -> None:
    """At 360 pixels, with everything opened, no row, label or gallery line is wider than the screen; names of runs,
    classifiers and purifiers may be as long as they like.
    """
    width, wide, label = in_browser(
        page,
        "const named = 'h1, header b, h2 code, h3 code, .tile .name, .findings li b, td[data-label=purifier],"
        " .numbers tbody th';"
        f"document.querySelectorAll(named).forEach(each => {{ each.textContent = '{'robust_cifar10_' * 4}'; }});"
        "document.querySelectorAll('details').forEach(details => { details.open = true; });"
        "const rows = [...document.querySelectorAll('.numbers td, .gallery tr, .tile, .verdict-line')];"
        "const wide = rows.filter(row => row.getBoundingClientRect().right > 360).map(row => row.textContent.trim());"
        "answer = [document.documentElement.scrollWidth, wide,"
        "document.querySelector('.gallery tbody th').getBoundingClientRect().width];",
        width=SMALL_PHONE,
    )
    assert width <= SMALL_PHONE
    assert wide == []
    assert label > 100


@needs_chromium
def test_the_page_of_all_tables_fits_a_phone(tmp_path: Path) -> None:
    """A sweep with long names among them scrolls within itself; one that is no table of the paper has its title."""
    path = tmp_path / "paper.html"
    path.write_text(render_paper([ROOT / "tests/reports/ablation/zoo_generative.json"]))
    width, heads = in_browser(
        path,
        "answer = [document.documentElement.scrollWidth,"
        " [...document.querySelectorAll('h2')].map(head => head.textContent)]",
        width=PHONE,
    )
    assert width <= PHONE
    assert sum(head.startswith("Generative purifiers side by side") for head in heads) == 1
    assert sum(head.startswith("Table ") for head in heads) == len(heads) - 1


def test_the_verdict_comes_first(page: Path) -> None:
    """Worst case, alarms and chance level stand before every tile, and every column has a title."""
    text = page.read_text()
    verdict = text.partition("Verdict: ")[2].partition('<div class="tiles">')[0]
    assert "Worst case within ε = 0.05" in verdict
    assert "Chance level: 10.0 % (10 classes)" in verdict
    assert "larm" in verdict
    heads = re.findall(r"<th( title=\"[^\"]+\")?>", "".join(re.findall(r"<thead>.*?</thead>", text)))
    assert heads.count("") == text.count("<th>label</th>") * 6
