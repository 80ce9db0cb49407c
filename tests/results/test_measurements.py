"""What the results page says of transfer, pyautoattack, speed and one GPU is what the committed reports have."""

import json

import pytest

from tests.results.committed import (
    README,
    RESULTS,
    ROOT,
    attacked_twice,
    flowing,
    minutes,
    robust,
    row_like,
    rows_of,
)


def test_cross_check_is_as_told() -> None:
    """On two nets and under two seeds each, every image is pyautoattack's, and no attack had nothing to do."""
    reports = [json.loads(path.read_text()) for path in sorted((ROOT / "tests/reports/cross_check").glob("*.json"))]
    assert [report["classifier"] for report in reports] == ["cifar_resnet20", "wrn28_1"]
    rows = [row for report in reports for row in report["rows"]]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert all(report["environment"]["dirty"] is False for report in reports)
    assert all(row["standing"]["fab-t"] > 0 for row in rows), "Square had nothing to do"
    count = sum(row["n"] for row in rows)
    for what in ("equal_images", "equal_answers"):
        assert f"{sum(row[what] for row in rows)} of {count} images" in flowing(RESULTS)


def test_imagenet_sentence_is_the_report() -> None:
    """What the text says of ImageNet transfer is what the report has."""
    results = json.loads((ROOT / "tests/reports/imagenet_transfer/report.json").read_text())["results"]
    small, large = (result for result in results if result["threat_model"] == "oblivious")
    text = flowing(RESULTS)
    assert f"On ImageNet ({small['n']:,} images, by tiles)" in text
    saved = f"{small['robust_accuracy']:.1f} % of the attacked images at 4/255 and {large['robust_accuracy']:.1f} %"
    assert f"{saved} at 8/255" in text


def test_figures_in_the_text_are_those_of_the_reports() -> None:
    """What the results page says in words of masked gradients, transfer, speed and the tables."""
    text = flowing(RESULTS)
    by_pgd, by_square = (
        [robust(f"masking_{name}", threat_model, attack) for name in ("rounding", "jpeg")]
        for threat_model, attack in (("adaptive", "pgd-20"), ("blackbox", "square-1000"))
    )
    assert (
        f"PGD leaves {by_pgd[0]:.1f} and {by_pgd[1]:.1f} % of the images of the two defenses standing, "
        f"Square {by_square[0]:.1f} and {by_square[1]:.1f} %" in text
    )
    unseen, seen = robust("cifar10_wrn28_1", "oblivious"), robust("cifar10_resnet20", "oblivious")
    assert f"{unseen:.1f} against {seen:.1f} for the oblivious attacker" in text
    assert robust("cifar10_wrn28_1", "blackbox", "square") == 100 / 64
    assert "one of 64 images survives them" in text
    assert f"reaches {robust('cifar10_cpu_paper', 'oblivious'):.1f} where these reach" in text
    cells = json.loads((ROOT / "tests/reports/ablation/table08.json").read_text())["cells"]
    papers = [measure["paper"] for cell in cells[:3:2] for measure in cell["measures"] if "robust" in measure["name"]]
    assert f"The paper's Table 8 has {papers[0]:.1f} and {papers[1]:.1f}" in text
    counts = [adaptive["n"] for _, adaptive in attacked_twice() if adaptive["purifier"] != "robust"]
    assert f"{min(counts)} to {max(counts)} images" in text


def test_what_is_said_of_cifar100_is_so() -> None:
    """Clean and attacked, at both budgets, beside the classifier alone and beside LoRA; and which finding is red."""
    text, report = flowing(RESULTS), json.loads((ROOT / "tests/reports/cifar100_cpu/report.json").read_text())
    rows = {(row["purifier"], row["threat_model"], row["eps"], row["attack"]): row for row in report["results"]}
    first, second = (rows["maep", "oblivious", level / 255, "autoattack-standard"] for level in (8, 4))
    assert f"a ResNet-32 of {first['undefended_clean_accuracy']:.1f} %): {first['clean_accuracy']:.1f} %" in text
    told = f"{first['robust_accuracy']:.1f} % of those that AutoAttack changed within 8/255, "
    assert f"{told}{second['robust_accuracy']:.1f} % within 4/255" in text
    for measure in ("clean_accuracy", "robust_accuracy"):
        lora = rows["maep+lora", "oblivious", 8 / 255, "autoattack-standard"]
        assert lora[measure] == pytest.approx(first[measure], abs=0.2)
    knowing = [row for key, row in rows.items() if key[1::2] == ("adaptive", "autoattack-standard")]
    assert [row["robust_accuracy"] for row in knowing] == [0] * 4
    red = [finding for finding in report["honesty"]["maep"]["findings"] if finding["level"] == "alarm"]
    assert [finding["check"] for finding in red] == ["smaller budget"]


def test_the_run_on_a_gpu_is_as_told() -> None:
    """The paper's model for an eighth of its epochs, and what the accelerator's benchmark shows."""
    text, text_of_front = flowing(RESULTS), flowing(README)
    report = json.loads((ROOT / "tests/reports/cifar10_short/report.json").read_text())
    assert "pretrain.epochs=50" in report["environment"]["command"]
    assert "H200" in report["environment"]["device"]
    first, tuned = (
        next(r for r in report["results"] if (r["purifier"], r["threat_model"], r["attack"]) == key)
        for key in (("maep", "oblivious", "autoattack-standard"), ("maep+lora", "oblivious", "autoattack-standard"))
    )
    figures = f"{first['clean_accuracy']:.1f} clean and {first['robust_accuracy']:.1f} attacked"
    assert f"reaches {figures} here" in text
    assert f"keeps {first['clean_accuracy']:.1f} % of the clean images and {first['robust_accuracy']:.1f} %" in text
    assert f"keeps {tuned['clean_accuracy']:.1f} and {tuned['robust_accuracy']:.1f} %" in text
    assert robust("cifar10_cpu_paper", "oblivious") > first["robust_accuracy"]
    assert f"{minutes('cifar10_short')} on one H200" in text_of_front
    rows = rows_of("bench_h200")
    idle = [
        rows[f"device idle, {what}, bf16, compiled"]["ratio"] for what in ("training step, r = 0.5", "purification")
    ]
    assert idle == pytest.approx([0.4, 0.4], abs=0.05)
    assert f"reaches {rows['attack step (wrn28_10), bf16, compiled']['ratio']:.2f} of the measured" in text
    assert f"gives {rows['loader']['ratio']:.1f} times what training takes" in text


@pytest.mark.parametrize("name", ["cifar100_cpu", "cifar10_cpu", "cifar10_cpu_paper", "digits"])
def test_durations_are_the_recorded_ones(name: str) -> None:
    """The minutes that the READMEs give are the sum of the run's stages."""
    seconds = json.loads((ROOT / "tests" / "reports" / name / "seconds.json").read_text())
    assert seconds["total"] == pytest.approx(sum(seconds["stages"].values()), abs=0.1)
    assert f"`cfg={name}` took {seconds['total'] / 60:.0f} minutes" in flowing(RESULTS)


def test_speeds_in_the_text_are_those_of_the_reports() -> None:
    """bf16 and compiling, in training and in attacks."""
    rows, text = rows_of("bench"), flowing(RESULTS)
    full, half = (row_like(rows, "training step, ", end) for end in (", fp32", ", bf16, compiled"))
    products = [float(row["limit"].split()[2]) for row in (half, full)]
    assert f"multiplies matrices in bf16 at {products[0] / products[1]:.1f} times its rate in fp32" in text
    assert f"the step runs at {half['rate'] / full['rate']:.1f} times the rate of fp32" in text
    one = row_like(rows, "training step, ", ", fp32, one thread")
    assert f"One thread reaches {one['ratio']:.2f} of the matrix product of one" in text
    assert f"two threads {full['ratio']:.2f} of that of two" in text
    assert min(full["ratio"], one["ratio"]) >= 0.75, "which was wanted"
    few, many, compiled = (
        rows[f"training step{how} beside the official MAE's, {count} images"]["ratio"]
        for how, count in (("", 8), ("", 64), (", compiled,", 8))
    )
    assert (
        f"as fast as each other, {few:.2f}, and ours compiled (theirs has no such option) {compiled:.2f} times" in text
    )
    assert "where we wanted 1.1" in text
    assert max(few, compiled) < 1.1 < many
    assert f"ours is {many:.2f} times as fast" in text
    loader = rows_of("bench_loader")
    assert loader["pair loader, 10,000 shards, raw"]["ratio"] == pytest.approx(1 - 1 / 14, abs=0.005)
    assert loader["pair loader, 10,000 shards, raw"]["ratio"] >= 0.9
    assert loader["pair loader, 50 shards, raw"]["rate"] == pytest.approx(1 / 41e-6, rel=0.02)
    assert loader["pair loader, 1,000 shards, raw"]["ratio"] == pytest.approx(1, abs=0.01)
    assert loader["shard build"]["ratio"] >= 1
    surrogates = rows_of("evaluation_bench")
    plain, compiled = (surrogates[f"pgd-20 by a bf16{end} surrogate"]["ratio"] for end in ("", ", compiled"))
    assert f"one in bf16 is, {plain:.2f} times, compiled {compiled:.2f} times" in text
    assert surrogates["pgd-20 by a fp32, compiled surrogate"]["ratio"] < 1.01, "gains nothing"
    assert surrogates["purifier on 49 tiles"]["ratio"] >= 0.75
    assert surrogates["pgd-20 beside torchattacks"]["ratio"] >= 1
    assert surrogates["second purifier"]["ratio"] < 50
    assert "not 50 times faster than attacking" in text
