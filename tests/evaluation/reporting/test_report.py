"""A report tells exactly what the records hold, to machines, readers and terminals, and needs no network."""

import io
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import escape
from rich.console import Console

from maep.config.schema import Settings
from maep.data.shards import ShardSet
from maep.evaluation.audit.findings import ALARM, WorstCase
from maep.evaluation.reporting import report as report_module
from maep.evaluation.reporting.curves import read_metrics
from maep.evaluation.reporting.provenance import Environment, environment, git_state
from maep.evaluation.reporting.report import build_report, read_results, write_environment
from maep.evaluation.reporting.report_document import Report
from maep.evaluation.reporting.report_page import _stood, render_page
from maep.evaluation.reporting.terminal_table import terminal_table
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.metrics import wilson_interval
from maep.evaluation.scoring.tasks import eps_text
from maep.evaluation.workers import evaluate_all
from maep.runtime.errors import UserError
from tests.evaluation.small_evaluation import directory_of, run, settings_for
from tests.small import Blur, train_small, write_shards
from tests.tiny import ROOT

FIELDS = [
    "dataset",
    "classifier",
    "purifier",
    "threat_model",
    "attack",
    "norm",
    "eps",
    "n",
    "clean_accuracy",
    "robust_accuracy",
    "clean_ci95",
    "robust_ci95",
    "average_accuracy",
    "undefended_clean_accuracy",
    "undefended_robust_accuracy",
    "psnr_clean",
    "psnr_adversarial",
    "ssim_clean",
    "ssim_adversarial",
    "seconds_per_image",
    "seed",
    "config_hash",
]
MORE = {
    "robust_accuracy_8bit",
    "eps_used",
    "eps_used_8bit",
    "energy_removed",
    "energy_added",
    "distance_clean",
    "distance_adversarial",
    "direction_cosine",
    "seconds_attack",
    "seconds_purify",
    "seconds_classify",
    "image_set",
    "records",
    "per_class",
    "kind",
    "deterministic",
    "parameters",
    "alarms",
    "continued",
}


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards") / "test", 30)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, test_set: ShardSet) -> Settings:
    """A finished evaluation of two purifiers, with curves and environment, not yet reported."""
    settings = settings_for(tmp_path_factory.mktemp("evaluated"), eps=[8 / 255, 0.1])
    settings.finetune.method = "lora"
    run(settings, test_set)
    defense = Defense(Blur(), train_small(), "tuned", "small")
    evaluate_all([Evaluation(settings, defense, test_set, directory_of(settings).with_name("lora"))])
    directory = Path(settings.run.dir)
    for name, loss in (("metrics.jsonl", 1.0), ("metrics-finetune.jsonl", 0.1)):
        lines = [
            {"step": s, "loss": loss / s, "lr": 1e-3, "samples": 8 * s, "images_per_second": 9.0} for s in range(1, 30)
        ]
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_environment(directory, ["maep", "<b>&"])
    return settings


@pytest.fixture(scope="module")
def reported(settings: Settings) -> dict[str, Any]:
    continued = {"pretrain": [12, 20], "finetune": [5]}
    return build_report(settings, Path(settings.run.dir), continued=continued).to_json()


def _page(settings: Settings) -> str:
    return (Path(settings.run.dir) / "report.html").read_text()


def test_json_is_the_contract(settings: Settings, reported: dict[str, Any]) -> None:
    """Schema 1, exactly its fields, in percent, valid JSON without infinities, equal to what was returned."""
    text = (Path(settings.run.dir) / "report.json").read_text()
    loaded = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert loaded == reported
    assert list(loaded) == ["schema", "environment", "results", "honesty", "purifying"]
    assert loaded["schema"] == 1
    assert loaded["environment"]["command"] == ["maep", "<b>&"]
    for result in loaded["results"]:
        assert list(result)[: len(FIELDS)] == FIELDS
        assert set(list(result)[len(FIELDS) :]) == MORE
    keys = {(r["purifier"], r["threat_model"], r["attack"], round(r["eps"], 4), r["n"]) for r in loaded["results"]}
    assert keys == {
        (purifier, threat, attack, eps, n)
        for purifier in ("maep", "maep+lora")
        for threat, n in (("oblivious", 20), ("adaptive", 6))
        for attack in ("fgsm", "pgd-3")
        for eps in (0.0314, 0.1)
    }


def test_numbers_are_those_of_the_records(settings: Settings, reported: dict[str, Any]) -> None:
    """Accuracies, intervals, averages and likeness, computed again from the record files."""
    folder = directory_of(settings) / "oblivious" / "pgd-3-Linf-0.1"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("chunk-*.json"))]
    pairs = [pair for r in records for pair in zip(r["predictions"]["defended_adversarial"], r["labels"], strict=True)]
    right = sum(prediction == label for prediction, label in pairs)
    result = next(
        r for r in reported["results"]
        if (r["purifier"], r["threat_model"], r["attack"], r["eps"]) == ("maep", "oblivious", "pgd-3", 0.1)
    )  # fmt: skip
    assert len(records) == 3
    assert result["n"] == len(pairs) == 20
    assert 0 < right < 20
    assert result["robust_accuracy"] == 100 * right / 20
    low, high = wilson_interval(right, 20)
    assert result["robust_ci95"] == pytest.approx([100 * low, 100 * high], abs=1e-3)
    assert result["average_accuracy"] == (result["clean_accuracy"] + result["robust_accuracy"]) / 2
    for name in ("psnr_adversarial", "distance_clean", "distance_adversarial", "direction_cosine"):
        values = [value for record in records for value in record[name]]
        assert result[name] == pytest.approx(sum(values) / 20, abs=1e-3)
        assert result[name] > 0
    assert result["distance_adversarial"] != result["distance_clean"]
    spent = sum(record["seconds"][what] for record in records for what in ("purify", "classify"))
    assert result["seconds_per_image"] == pytest.approx(spent / 40, abs=1e-5)


class _Links(HTMLParser):
    """Collects what a browser would fetch, and tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_training_that_was_made_longer_is_said(settings: Settings, reported: dict[str, Any]) -> None:
    """With the rows of the purifiers that it is behind, and beside the numbers for people."""
    rows = {row["purifier"]: row["continued"] for row in reported["results"]}
    assert rows == {"maep": {"pretrain": [12, 20]}, "maep+lora": {"pretrain": [12, 20], "finetune": [5]}}
    page = " ".join(_page(settings).split())
    assert "<li>maep: pretrain continued from step 12, 20 with a longer schedule" in page
    assert "maep+lora: finetune continued from step 5 with a longer schedule" in page
    assert "maep: finetune continued" not in page
    assert Report.read(Path(settings.run.dir) / "report.json").to_json() == reported


def test_page_needs_no_network(settings: Settings, reported: dict[str, Any]) -> None:
    """The page refers to nothing outside itself: no address, no foreign script, only inline images; its tags match."""
    page = _page(settings)
    parser = _Links()
    parser.feed(page)
    assert parser.open == []
    assert parser.links
    assert all(link.startswith("data:image/") for link in parser.links)
    assert not {"link", "iframe", "object", "base"} & parser.tags
    without_data = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//\w|url\(|@import", without_data)


def test_page_tells_the_truth(settings: Settings, reported: dict[str, Any]) -> None:
    """Every accuracy stands beside its interval and n; threat models are explained; strings are escaped."""
    page = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", _page(settings))
    flat = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for result in reported["results"]:
        low, high = result["robust_ci95"]
        assert f"{result['robust_accuracy']:.1f} [{low:.1f}, {high:.1f}]" in flat
        assert f"{eps_text(result['eps'])} Linf {result['n']} " in flat
        assert f"{result['energy_removed'] * 100:.0f} %, +" in flat
    assert "The attacker knows everything" in flat
    assert "nothing about an attacker who knows the purifier" in flat
    assert "AutoAttack was not run" in flat
    assert "maep &lt;b&gt;&amp;" in page
    assert "figure_images: 3" in page


def test_honesty_is_in_the_json(reported: dict[str, Any]) -> None:
    """Each purifier has its findings, the answers behind them, and what stood against every attack together."""
    assert set(reported["honesty"]) == {"maep", "maep+lora"}
    for name, honesty in reported["honesty"].items():
        assert {finding["level"] for finding in honesty["findings"]} <= {"passed", "warning", "alarm"}
        assert len(honesty["checks"]["against_eps"]) == 7
        worst = {entry["eps"]: entry["robust_accuracy"] for entry in honesty["worst_case"]}
        rows = [result for result in reported["results"] if result["purifier"] == name]
        for eps, value in worst.items():
            adaptive = [r["robust_accuracy"] for r in rows if r["threat_model"] == "adaptive" and r["eps"] == eps]
            assert value <= min(adaptive)


def test_the_verdict_repeats_every_alarm(settings: Settings, reported: dict[str, Any]) -> None:
    """Of each purifier, and says where it has none; that nobody knew the purifier is said of no run where one did."""
    sections = re.findall(r'(?s)<section class="opening.*?</section>', _page(settings))
    assert len(sections) == len(reported["honesty"])
    for section, honesty in zip(sections, reported["honesty"].values(), strict=True):
        alarms = [finding["check"] for finding in honesty["findings"] if finding["level"] == "alarm"]
        assert re.findall(r'<li class="alarm">([^:]*):', section) == alarms
        assert ("Alarms: none" in section) == (not alarms)
        assert "No attacker who knows" not in section


def test_the_verdict_opens_with_what_set_off_an_alarm(settings: Settings) -> None:
    """Each by its check and its text, for the purifier whose it is; the other's has none."""
    *others, last = read_results(settings, Path(settings.run.dir) / "evaluation")
    flat = tuple(replace(point, loss=9.0 - number) for number, point in enumerate(last.checks.against_eps))
    last = replace(last, checks=replace(last.checks, against_eps=(replace(flat[0], accuracy=90.0), *flat[1:])))
    alarms = [finding for finding in last.findings if finding.level == ALARM]
    assert "loss against eps" in [finding.check for finding in alarms]
    results = [*others, last]
    rows = [row for result in results for row in result.rows]
    report = Report(environment(["test"]), (), {})
    page = render_page(settings, results, rows, {}, [], report, "")
    *_, section = re.findall(r'(?s)<section class="opening alarms">.*?</section>', page)
    assert re.findall(r'<li class="alarm">(.*?): (.*)</li>', section) == [
        (finding.check, str(escape(finding.text))) for finding in alarms
    ]
    assert f"{len(alarms)} alarm" in section
    assert "Alarms: none" not in section


@pytest.mark.parametrize("ssim", [0.02, 0.31])
def test_purified_images_that_are_none_are_said_in_the_verdict(settings: Settings, ssim: float) -> None:
    """With their likeness and how many they are, as a purifier makes that was trained for one classifier alone; what
    people still recognise is worth no line.
    """
    *_, last = read_results(settings, Path(settings.run.dir) / "evaluation")
    rows = [replace(row, result=replace(row.result, ssim_clean=ssim, psnr_clean=8.76)) for row in last.rows]
    page = render_page(settings, [replace(last, rows=rows)], rows, {}, [], Report(environment(["test"]), (), {}), "")
    (section,) = re.findall(r'(?s)<section class="opening.*?</section>', page)
    n = max(row.result.n for row in rows)
    text = f"purified clean images are unlike the clean ones (SSIM 0.02, 8.8 dB in the mean of {n})"
    assert (f'<li class="warning">purified images: {text}' in section) == (ssim == 0.02)
    assert ("purified images:" in section) == (ssim == 0.02)


def test_what_guessing_reaches_is_called_so() -> None:
    """In the verdict, up to chance itself."""
    assert [_stood(WorstCase(0.1, 100, accuracy), 10.0).is_guessing for accuracy in (9.0, 10.0, 11.0)] == [
        True, True, False,
    ]  # fmt: skip


def test_per_class_adds_up(reported: dict[str, Any]) -> None:
    """The classes' images and right answers are those of the whole."""
    for result in reported["results"]:
        lines = result["per_class"]
        assert sum(line["n"] for line in lines) == result["n"]
        for name, total in (
            ("defended_adversarial", "robust_accuracy"),
            ("undefended_clean", "undefended_clean_accuracy"),
        ):
            right = sum(line["n"] * line[name] for line in lines) / result["n"]
            assert right == pytest.approx(result[total], abs=0.01)


def test_figures(settings: Settings, reported: dict[str, Any]) -> None:
    """Figures are PNG files: accuracies, bounds, curves, and images of each purifier and threat model."""
    names = {path.name for path in (Path(settings.run.dir) / "figures").iterdir()}
    assert {"accuracy.png", "bounds.png", "pretraining.png", "finetuning.png"} < names
    assert "samples-maep+lora-adaptive-pgd-3-Linf-0.0313725.png" in names
    assert {"checks-maep.png", "checks-maep+lora.png"} < names
    assert len(names) == 4 + 2 + 4
    for path in (Path(settings.run.dir) / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_terminal_table_fits(settings: Settings, reported: dict[str, Any]) -> None:
    """In 80 columns the widest usual line is neither cut nor wrapped; interval and n stand beside the accuracy."""
    rows = read_results(settings, Path(settings.run.dir) / "evaluation")[0].rows
    usual: dict[str, Any] = {
        "attack": "autoattack-standard", "purifier": "maep+lora", "n": 10000, "robust_accuracy": 88.73,
        "robust_ci95": [88.09, 89.34], "eps": 8 / 255, "clean_accuracy": 92.3,
    }  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table([replace(rows[0], result=replace(rows[0].result, **usual))]))
    line = next(line for line in console.export_text().splitlines() if "AutoAttack" in line)
    assert line.split()[:4] == ["AutoAttack", "8/255", "maep+lora", "10000"]
    assert line.split()[-4:] == ["92.3", "88.7", "[88.1,", "89.3]"]


def test_missing_chunk_is_named(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one record there is no total, no table and no file, but the record's name."""
    record = directory_of(settings) / "oblivious" / "fgsm-Linf-0.1" / "chunk-0001.json"
    hidden = tmp_path / "record"
    report = Path(settings.run.dir) / "report.json"
    report.unlink(missing_ok=True)
    record.rename(hidden)
    capsys.readouterr()
    try:
        with pytest.raises(UserError, match=r"fgsm-Linf-0.1/chunk-0001.json: this chunk has not been evaluated"):
            build_report(settings, Path(settings.run.dir))
    finally:
        hidden.rename(record)
    assert not report.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"classifier": "another"}, "model"),
        ({"purifier": "another"}, "purifier"),
        ({"seed": 1}, "seed"),
        ({"count": 29}, "image set"),
        ({"attack": "pgd-3"}, "attack"),
        ({"purifier": "another", "seed": 1}, "purifier and seed"),
        ({"batch_size": 3}, "setting"),
    ],
)
def test_record_of_something_else_is_named(
    settings: Settings, test_set: ShardSet, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    """A record that another evaluation wrote is refused, saying what it was written for instead."""
    quick = {"attacks": [change.get("attack", "fgsm")], "threat_models": ["oblivious"], "check_images": 1}
    other = settings_for(tmp_path, **quick, eps=[0.1], batch_size=change.get("batch_size", 5))
    other.run.seed = change.get("seed", 0)
    images = write_shards(tmp_path / "images", change["count"]) if "count" in change else test_set
    run(other, images, purifier=change.get("purifier", "blur"), classifier=change.get("classifier", "small"))
    foreign = directory_of(other) / "oblivious" / f"{quick['attacks'][0]}-Linf-0.1" / "chunk-0000.json"
    record = directory_of(settings) / "oblivious" / "fgsm-Linf-0.1" / "chunk-0000.json"
    before = record.read_text()
    record.write_text(foreign.read_text())
    try:
        with pytest.raises(
            UserError, match=f"fgsm-Linf-0.1/chunk-0000.json: was written for another {difference}, not for"
        ):
            build_report(settings, Path(settings.run.dir))
    finally:
        record.write_text(before)


def test_other_settings_are_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of other evaluation settings are not reported under these."""
    monkeypatch.setattr(settings.evaluation, "images", 10)
    with pytest.raises(UserError, match=r"plan.json: was made with other evaluation settings"):
        build_report(settings, Path(settings.run.dir))


def test_nothing_evaluated(tmp_path: Path) -> None:
    """A run without an evaluation ends in one line that says what to run."""
    with pytest.raises(UserError, match="run stage=evaluate first"):
        build_report(settings_for(tmp_path), tmp_path / "run")


def test_adaptive_left_out_is_said(tmp_path: Path, test_set: ShardSet) -> None:
    """A report without an attacker who knows the purifier says that it proves nothing against one."""
    settings = settings_for(tmp_path, adaptive_images=0, attacks=["fgsm"], images=4)
    run(settings, test_set)
    write_environment(Path(settings.run.dir), ["test"])
    build_report(settings, Path(settings.run.dir))
    assert "<b>No attacker who knows the purifier was run</b>" in _page(settings), "in the verdict"
    assert "<li>No attacker who knows the purifier was run" in _page(settings), "among the notes"


def test_metrics_after_kill_and_resume(tmp_path: Path) -> None:
    """A last line cut by a kill is left out, steps logged again count once; a bad line elsewhere raises."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 1}]
    path.write_text('{"step"\n{"step": 2, "loss": 2}\n')
    with pytest.raises(UserError, match="line 1: cannot be read"):
        read_metrics(path)
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_environment_has_no_host_name() -> None:
    """Versions, device, threads and date are there; the machine's name is not."""
    import socket

    facts = environment(["maep"])
    assert {"command", "commit", "dirty", "date", "device", "threads", "versions"} <= set(facts)
    assert {"python", "torch", "timm", "peft", "deepspeed", "accelerate", "webdataset", "pyautoattack", "submitit",
            "omegaconf"} <= set(facts["versions"])  # fmt: skip
    assert all(facts["versions"].values())
    assert socket.gethostname() not in json.dumps(facts)


def test_environment_names_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the settings say cpu, the processor, though there is a GPU; and so many threads as they say, if any."""
    processor = environment(["maep"], "cpu")["device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    assert {device: environment(["maep"], device)["device"] for device in ("auto", "cuda", "cpu")} == {
        "auto": "some GPU", "cuda": "some GPU", "cpu": processor,
    }  # fmt: skip
    assert Environment.current(["maep"], "cpu", torch.get_num_threads() + 3).threads == torch.get_num_threads() + 3
    assert Environment.current(["maep"], "cpu", 0).threads == torch.get_num_threads()


def test_git_state(tmp_path: Path) -> None:
    """The commit and whether files differ; None outside a checkout and in a folder inside someone else's."""
    assert git_state(tmp_path) == (None, None)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert git_state(tmp_path) == (None, None)
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    commit, dirty = git_state(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", commit or "")
    assert dirty is False
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == (commit, True)
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") == (None, None)


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.5, "0.5"), (1.0, "1"), (128 / 255, "0.502"), (0.0, "0"), (0.1, "0.1")]
)
def test_eps_text(eps: float, text: str) -> None:
    """Budgets read as fractions of 255 where they are, L2 ones as numbers."""
    assert eps_text(eps) == text


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        ([str(ROOT / "maep" / "__main__.py"), "evaluate"], ["-m", "maep", "evaluate"]),
        ([str(ROOT / "launch" / "local.py"), "cfg=digits"], ["launch/local.py", "cfg=digits"]),
        (["launch/local.py", "cfg=digits"], ["launch/local.py", "cfg=digits"]),
        (["/home/me/.venv/bin/maep", "run", "cfg=digits"], ["maep", "run", "cfg=digits"]),
    ],
)
def test_command_is_the_one_that_was_typed(argv: list[str], typed: list[str]) -> None:
    """Not the path of the checkout on one machine."""
    assert environment(argv)["command"] == typed


def test_report_module_offers_the_environment() -> None:
    """`write_environment` can be had from the report module, where the pipeline takes it from."""
    assert report_module.write_environment is write_environment
