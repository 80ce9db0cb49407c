"""What the READMEs say of attackers who know the purifier, and of certificates, is what the committed reports have."""

import json
from statistics import fmean
from typing import Any

from tests.results.committed import (
    README,
    RESULTS,
    ROOT,
    attacked_twice,
    committed,
    flowing,
    robust,
    row_under,
    share,
    table,
)
from tests.tables import attacked_lines, certified_line, entries, over_seeds


def test_verdict_is_what_the_reports_say() -> None:
    """The purifier helps against who does not know it: always more than without; and against who does: not once.

    One that was trained against him does, as its report says, and no attacker who knows less does better than he.
    """
    pairs = [pair for pair in attacked_twice() if pair[0]["attack"] == "autoattack-standard"]
    trained = [adaptive for _, adaptive in pairs if adaptive["purifier"] == "robust"]
    for oblivious, adaptive in pairs:
        assert oblivious["robust_ci95"][0] > oblivious["undefended_robust_accuracy"]
        assert adaptive["undefended_robust_accuracy"] == 0
        if adaptive not in trained:
            assert adaptive["robust_accuracy"] == 0
    for row in trained:
        assert row["robust_ci95"][0] > 0
        if row["alarms"]:
            assert row == row_under("robust_cifar10_quarter", "adaptive")
            assert row["alarms"] == ["gradients"]
            assert "report of the quarter says in red that its gradients nearly vanish" in flowing(RESULTS)
    digits, cifar = row_under("robust_digits", "adaptive", eps=32 / 255), row_under("robust_cifar10", "adaptive")
    longer = row_under("robust_cifar10_longer", "adaptive")
    verdict = (
        "Against an attacker who knows it, it does not help at all, unless it was trained against him: that keeps "
        f"{digits['robust_accuracy']:.1f} % of the digits, and {longer['robust_accuracy']:.1f} % of CIFAR-10"
    )
    assert verdict in flowing(README)
    shares = f"{digits['clean_accuracy']:.1f} % of {digits['n']} clean images, and {share(digits)}"
    assert f"keeps {shares} under AutoAttack at 32/255" in flowing(RESULTS)
    shares = f"{cifar['clean_accuracy']:.1f} % of {cifar['n']} images clean, and {share(cifar)}"
    assert f"keeps {shares} of the same under AutoAttack at 8/255" in flowing(RESULTS)
    assert f"PGD-20 leaves {robust('robust_cifar10', 'adaptive', 'pgd-20'):.1f} %" in flowing(RESULTS)
    all_of_them = row_under("robust_cifar10", "oblivious")
    clean, attacked = (all_of_them[f"{kind}_accuracy"] for kind in ("clean", "robust"))
    assert f"keeps {clean:.1f} % clean and {attacked:.1f} % under the oblivious attacker" in flowing(RESULTS)
    assert longer["n"] == cifar["n"]
    gained = f"{longer['clean_accuracy']:.1f} % of the {longer['n']} clean, {share(longer)} at 8/255"
    assert gained in flowing(RESULTS)
    half = row_under("robust_cifar10_longer", "adaptive", eps=4 / 255)
    assert half["n"] == longer["n"]
    assert f"At 4/255 that one keeps {share(half)}." in flowing(RESULTS)
    clean = row_under("robust_cifar10_longer", "oblivious")["clean_accuracy"]
    assert f"and {clean:.1f} % of the 1,000 clean" in flowing(RESULTS)
    low = digits["robust_ci95"][0]
    weaker = (("blackbox", "square-1000"), ("adaptive", "pgd-20"))
    square, pgd = (robust("robust_digits", *attack, 32 / 255) for attack in weaker)
    assert min(square, pgd) >= low, "an attacker who knows less does better: the gradients are masked"
    assert f"leaves {square:.1f} %, and PGD-20 {pgd:.1f} %" in flowing(RESULTS)
    small = [o for o, _ in pairs if o["classifier"] == "cifar_resnet20" and o["eps"] == 8 / 255]
    best = max(small, key=lambda row: row["robust_accuracy"])
    gain = f"from {best['undefended_robust_accuracy']:.1f} to {best['robust_accuracy']:.1f} %"
    assert gain in flowing(RESULTS)


def test_finetuning_through_the_classifier_is_as_told() -> None:
    """What it adds under both attacks, beyond the intervals, and to clean accuracy; adaptive attacks leave nothing."""
    results = json.loads((ROOT / "tests/reports/cifar10_cpu/report.json").read_text())["results"]
    rows = {(r["purifier"], r["threat_model"], r["attack"]): r for r in results if r["eps"] == 8 / 255}
    before, after = (
        [rows[name, "oblivious", attack] for attack in ("autoattack-standard", "pgd-20")]
        for name in ("maep", "maep+full")
    )
    assert all(new["robust_ci95"][0] > old["robust_ci95"][1] for old, new in zip(before, after, strict=True))
    (aa, pgd), (aa_after, pgd_after) = ([row["robust_accuracy"] for row in each] for each in (before, after))
    assert f"from {aa:.1f} to {aa_after:.1f} % (PGD-20: {pgd:.1f} to {pgd_after:.1f})" in flowing(RESULTS)
    clean = [each[0]["clean_accuracy"] for each in (before, after)]
    assert f"Clean accuracy is {clean[0]:.1f} before it and {clean[1]:.1f} after it" in flowing(RESULTS)
    assert not any(row["robust_accuracy"] for row in results if row["threat_model"] == "adaptive")


def test_a_smaller_budget_finds_more_than_the_one_that_was_trained_for() -> None:
    """Of the finetuned purifier, by both attacks, before the classifier it was finetuned by; not of the one before its
    finetuning. The report warns of it. What it keeps before another classifier.
    """
    text = flowing(RESULTS)
    aa = [robust("cifar10_cpu", "oblivious", eps=eps / 255, purifier="maep+full") for eps in (8, 4)]
    pgd = [robust("cifar10_cpu", "oblivious", "pgd-20", eps / 255, "maep+full") for eps in (8, 4)]
    told = "leaves {:.1f} % of the attacked images at 4/255 where it leaves {:.1f} % at 8/255"
    assert told.format(aa[1], aa[0]) in text
    assert f"those of 4/255 leave {aa[1]:.1f} %." in flowing(README)
    assert f"(PGD-20: {pgd[1]:.1f} and {pgd[0]:.1f})" in text
    before = [robust("cifar10_cpu", "oblivious", eps=eps / 255, purifier="maep") for eps in (8, 4)]
    assert before[1] > before[0]
    assert f"At 4/255 it gains nothing by it ({before[1]:.1f} before it)" in text
    assert aa[1] < before[1]
    assert aa[1] < aa[0]
    assert pgd[1] < pgd[0]
    findings = committed("cifar10_cpu", "honesty")["maep+full"]["findings"]
    assert [each["level"] for each in findings if each["check"] == "smaller budget"] == ["warning"]
    unseen = [robust("cifar10_cpu_wrn28_1", "oblivious", eps=eps / 255) for eps in (8, 4)]
    clean = row_under("cifar10_cpu_wrn28_1", "oblivious")["clean_accuracy"]
    assert "keeps {:.1f} % at 8/255 and {:.1f} % at 4/255, {:.1f} % clean".format(*unseen, clean) in text
    assert all(other > own for other, own in zip(unseen, aa, strict=True)), "more than before ResNet-20"
    known = [row for row in committed("cifar10_cpu_wrn28_1") if row["threat_model"] == "adaptive"]
    assert known
    assert not any(row["robust_accuracy"] for row in known)


def test_plain_adversarial_training_stands_beside_the_purifier() -> None:
    """The page says which of the two withstands more, on the same images, and by how much."""
    report = json.loads((ROOT / "tests/reports/robust_digits_plain/report.json").read_text())
    assert "classifier.epochs=16" in report["environment"]["command"]
    plain = next(row for row in report["results"] if row["attack"] == "autoattack-custom:apgd-ce+apgd-t")
    purified = json.loads((ROOT / "tests/reports/robust_digits/report.json").read_text())["results"]
    row = next(r for r in purified if r["attack"] == "autoattack-standard" and r["threat_model"] == "adaptive")
    assert (plain["n"], plain["eps"], plain["classifier"]) == (row["n"], row["eps"], row["classifier"])
    kept, clean = plain["undefended_robust_accuracy"], plain["undefended_clean_accuracy"]
    assert kept > row["robust_accuracy"]
    assert f"keeps {kept:.1f} % of the same {plain['n']} images, {clean:.1f} % of them clean" in flowing(RESULTS)
    digits = kept
    plain = row_under("robust_cifar10_plain", "oblivious")
    row = row_under("robust_cifar10", "adaptive")
    assert (plain["n"], plain["image_set"], plain["classifier"]) == (row["n"], row["image_set"], row["classifier"])
    kept, clean = plain["undefended_robust_accuracy"], plain["undefended_clean_accuracy"]
    half = row_under("robust_cifar10_plain", "oblivious", eps=4 / 255)["undefended_robust_accuracy"]
    assert half > row_under("robust_cifar10_longer", "adaptive", eps=4 / 255)["robust_accuracy"]
    sentence = f"keeps {kept:.1f} % of the same {plain['n']} images under AutoAttack at 8/255, {half:.1f} % at 4/255"
    assert f"{sentence}, and {clean:.1f} % of them clean" in flowing(RESULTS)
    assert f"Classifiers trained so keep {digits:.1f} and {kept:.1f} %." in flowing(README)
    longer = row_under("robust_cifar10_longer", "adaptive")
    assert kept > longer["robust_accuracy"] > row["robust_accuracy"]
    assert clean > longer["clean_accuracy"] > row["clean_accuracy"]


def test_three_lengths_of_robust_training_are_as_told() -> None:
    """On the same images, from one length to the next: what is gained becomes less, of robust images to nothing."""
    reports = ("robust_cifar10_quarter", "robust_cifar10", "robust_cifar10_longer")
    rows = [row_under(report, "adaptive", "pgd-20") for report in reports]
    assert len({(row["n"], row["image_set"], row["classifier"]) for row in rows}) == 1
    command = committed("robust_cifar10_quarter", "environment")["command"]
    assert {"pretrain.steps=1400", "robust.check_every=200"} <= set(command)
    stand, clean = ([row[f"{kind}_accuracy"] for row in rows] for kind in ("robust", "clean"))
    assert stand[1] - stand[0] > 10 > 1 > stand[2] - stand[1]
    told = "keeps {:.1f} %, the whole of it {:.1f} %, and as long again {:.1f} %".format(*stand)
    assert f"{told}; of clean images {clean[0]:.1f}, {clean[1]:.1f} and {clean[2]:.1f} %" in flowing(RESULTS)
    by_autoattack = [robust(report, "adaptive") for report in reports]
    assert by_autoattack == sorted(by_autoattack)
    assert "AutoAttack leaves {:.1f}, {:.1f} and {:.1f} %".format(*by_autoattack) in flowing(RESULTS)


def test_what_helps_a_robust_purifier_is_as_told() -> None:
    """Two changes leave next to nothing; three others move it by five points in every seed, and no fourth does."""
    sweeps, text = ("robust", "robust_seed1", "robust_seed2"), flowing(RESULTS)
    stand = over_seeds(sweeps, "adaptive", "robust_accuracy")
    clean = {name: fmean(each) for name, each in over_seeds(sweeps, "adaptive", "clean_accuracy").items()}
    blind = {name: fmean(each) for name, each in over_seeds(sweeps, "oblivious", "robust_accuracy").items()}
    first = stand.pop("PGD on the whole")
    gains = {name: [own - other for own, other in zip(each, first, strict=True)] for name, each in stand.items()}
    moved = {name for name, each in gains.items() if min(each) > 4.9 or max(each) < -4.9}
    fallen = {name for name in moved if fmean(stand[name]) < 10}
    assert fallen == {"residual path", "the classifier alone attacked"}
    assert moved - fallen == {"no pixel term", "N-FGSM", "two frozen classifiers"}
    alone, residual = (fmean(stand[name]) for name in ("the classifier alone attacked", "residual path"))
    assert (
        f"{alone:.1f} %, and one whose prediction is added to its input {residual:.1f} %, where the first keeps "
        f"{fmean(first):.1f} %" in text
    )
    unknowing = (blind["the classifier alone attacked"], blind["residual path"])
    assert "{:.1f} and {:.1f} % stand against him".format(*unknowing) in text
    for name, told in (
        ("no pixel term", "term costs {:.1f} points** ({:.1f} to {:.1f}): without it"),
        ("N-FGSM", "one gradient for PGD's three, costs {:.1f} points** ({:.1f} to {:.1f})"),
        ("two frozen classifiers", "a second frozen classifier {:.1f} before the first of them ({:.1f} to {:.1f})"),
        ("a wide encoder", "A wide encoder gains {:.1f} ({:.1f} to {:.1f})"),
        ("half hidden, r = 0.5", "half of the patches hidden loses {:.1f} ({:.1f} to {:.1f})"),
        ("pretrained start", "for a training more, gains {:.1f} ({:.1f} to {:.1f})"),
    ):
        sizes = sorted(abs(gain) for gain in gains[name])
        assert told.format(abs(fmean(gains[name])), sizes[0], sizes[-1]) in text, name
    kept = fmean(stand["no pixel term"]), clean["no pixel term"], clean["PGD on the whole"]
    assert "without it {:.1f} % stand, and of clean images {:.1f} % instead of {:.1f} %".format(*kept) in text
    lost = clean["PGD on the whole"] - clean["two frozen classifiers"]
    assert f"and {lost:.1f} points of clean accuracy" in text
    assert f"keeps {clean['pretrained start']:.1f} % of the clean images" in text
    commands = [json.loads((ROOT / f"tests/reports/ablation/{name}.json").read_text())["command"] for name in sweeps]
    assert [f"seeds=[{seed}]" in command for seed, command in enumerate(commands)] == [True] * 3


def test_the_robust_purifier_before_an_unseen_classifier() -> None:
    """Attacked end to end before another classifier than in its training: the page has the number and the attack."""
    report = json.loads((ROOT / "tests/reports/robust_digits_transfer/report.json").read_text())
    (row,) = report["results"]
    assert (row["classifier"], row["threat_model"], row["attack"]) == ("cifar_resnet14", "adaptive", "pgd-20")
    assert row["alarms"] == []
    assert f"keeps {share(row)} under PGD-20, {row['clean_accuracy']:.1f} % clean" in flowing(RESULTS)


def test_the_robust_purifier_of_cifar10_is_for_its_classifier_alone() -> None:
    """Before another one clean images are guessed: the report raises the alarm, and the page says so."""
    (row,) = json.loads((ROOT / "tests/reports/robust_cifar10_transfer/report.json").read_text())["results"]
    assert (row["classifier"], row["alarms"]) == ("wrn28_1", ["clean accuracy"])
    assert row["clean_accuracy"] < 10
    assert f"{row['clean_accuracy']:.1f} % of {row['n']} clean images" in flowing(RESULTS)


def test_a_second_classifier_makes_no_images_of_the_code() -> None:
    """On a quarter of the training: before an unseen classifier clean images are guessed; Square takes no more."""
    row = row_under("robust_cifar10_classifiers_transfer", "adaptive", "pgd-20")
    assert (row["classifier"], row["alarms"]) == ("wrn28_1", ["clean accuracy"])
    assert f"before WRN-28-1 {row['clean_accuracy']:.1f} % of {row['n']} clean images are right" in flowing(RESULTS)
    command = committed("robust_cifar10_classifiers", "environment")["command"]
    words = [
        "pretrain.steps=1400",
        "robust.check_every=200",
        "robust.classifiers=[cifar_resnet8]",
        "classifier.epochs=5",
    ]
    assert set(words) <= set(command)
    assert f"`{' '.join(words)}`" in flowing(RESULTS)
    pgd = row_under("robust_cifar10_classifiers", "adaptive", "pgd-20")
    square = row_under("robust_cifar10_classifiers", "blackbox", "square-1000")
    assert pgd["image_set"] == square["image_set"] == row["image_set"]
    assert square["robust_accuracy"] >= pgd["robust_ci95"][0], "else the gradients would be masked"
    told = (pgd["robust_accuracy"], square["robust_accuracy"])
    assert "PGD-20 leaves {:.1f} % of them, and Square with 1,000 questions {:.1f} %".format(*told) in flowing(RESULTS)
    strongest = row_under("robust_cifar10_classifiers", "adaptive", "autoattack-standard")
    assert strongest["image_set"] == pgd["image_set"]
    assert f"AutoAttack leaves {share(strongest)}." in flowing(RESULTS)


def held_within(row: dict[str, Any], radius: float) -> tuple[float, float, float]:
    """Certified accuracy at a radius and its interval, percent."""
    index = [each for each, _ in row["certified"]].index(radius)
    low, high = row["certified_ci95"][index]
    return row["certified"][index][1], low, high


def test_certificates_are_the_committed_reports() -> None:
    """Table and verdict; and what it says: without a purifier next to none holds, beyond the intervals."""
    assert table("certified") == [certified_line(row) for row in entries("certificates")]
    told = {("digits", 0.5): (1,), ("cifar10", 0.25): (0.25, 0.5), ("cifar10", 0.5): (0.75, 1)}
    rows = entries("certificates")
    assert {(row["dataset"], row["sigma"]) for row in rows} == set(told)
    for (dataset, sigma), radii in told.items():
        purified, alone = (row for row in rows if (row["dataset"], row["sigma"]) == (dataset, sigma))
        for radius in radii:
            (held, low, high), (other, least, most) = held_within(purified, radius), held_within(alone, radius)
            assert low > most
            sentence = f"{held:.1f} % [{low:.1f}, {high:.1f}] of {purified['n']} images within an L2 radius of {radius}"
            assert f"{sentence}; without the purifier it is {other:.1f} % [{least:.1f}, {most:.1f}]" in flowing(RESULTS)


def test_attacks_beside_certificates_are_the_committed_reports() -> None:
    """And no attack on what is certified has left less than that."""
    rows = entries("certificates")
    assert table("attacked") == [line for row in rows for line in attacked_lines(row)]
    beside = [each for row in rows for each in row.get("attacked", ())]
    assert all(each["certified"] <= each["smoothed"] and not each["broken"] for each in beside)
