"""What the results page says of other defenses is what the committed reports have."""

import json
from statistics import fmean

import pytest

from maep.evaluation.scoring.metrics import wilson_interval
from tests.results.committed import README, RESULTS, ROOT, cifar10_rows, committed, flowing, robust, row_under, table
from tests.tables import KNOWING_MORE, SAME_BUDGET, over_seeds, readings_of, same_budget_lines, zoo_lines

DISCO_UNDEFENDED = 94.78  # clean accuracy of WRN-28-10 without a defense, in DISCO's own logs

# Attackers of a purifier without a gradient: BPDA's, and those who follow what else it shows of itself.
SHOWN_PARTS = ("bpda", "bpda-intermediate", "auxiliary-aware")


def test_who_follows_what_soap_shows_of_itself() -> None:
    """Neither attacker takes much more than BPDA's, and the report stays red."""
    report = json.loads((ROOT / "tests/reports/soap_reconstruction_digits/report.json").read_text())
    left = {row["threat_model"]: row["robust_accuracy"] for row in report["results"]}
    told = (
        "BPDA leaves {:.1f} %, who follows the classifier at all images between {:.1f} %, and who lowers SOAP's loss "
        "as well (at a weight of 1) {:.1f} %"
    )
    assert told.format(*(left[name] for name in SHOWN_PARTS)) in flowing(RESULTS)
    assert "evaluation.auxiliary_weight=1" in report["environment"]["command"]
    honesty = report["honesty"]["soap"]
    assert f"{honesty['worst_case'][0]['robust_accuracy']:.1f} % stand against all of them" in flowing(RESULTS)
    assert "alarm" in {finding["level"] for finding in honesty["findings"]}


def test_what_is_said_of_soap_on_cifar10_is_so() -> None:
    """It brings next to nothing back, whoever attacks."""
    report = json.loads((ROOT / "tests/reports/soap_cifar10/report.json").read_text())
    rows = {row["threat_model"]: row for row in report["results"]}
    unaware, (bpda, between) = rows["oblivious"], (rows[name] for name in SHOWN_PARTS[:2])
    left = [row["robust_accuracy"] for row in (unaware, bpda, between)]
    told = (
        f"{unaware['clean_accuracy']:.1f} % clean, {left[0]:.1f} % under the oblivious AutoAttack, and of {bpda['n']} "
        f"images under PGD-10 {left[1]:.1f} % where BPDA and {left[2]:.1f} % where the classifier's gradients"
    )
    assert told in flowing(RESULTS)
    assert (unaware["n"], between["n"], max(left) < 5) == (1000, 64, True)


def test_what_dram_finds_on_cifar10() -> None:
    """No more of the attacked images than of clean ones, but for what chance may do; and it repairs one."""
    report = json.loads((ROOT / "tests/reports/dram_cifar10/report.json").read_text())
    row = next(row for row in report["results"] if row["threat_model"] == "oblivious")
    clean, attacked = row["detected_clean"], row["detected_adversarial"]
    told = (
        f"takes {clean:.1f} % of {row['n']:,} clean images for attacked and {attacked:.1f} % of those that AutoAttack"
    )
    assert f"{told} attacked without knowing it, and one of these is right after its repair" in flowing(RESULTS)
    assert (row["attack"], round(row["robust_accuracy"] * row["n"] / 100)) == ("autoattack-standard", 1)
    intervals = [wilson_interval(round(share * row["n"] / 100), row["n"]) for share in (clean, attacked)]
    assert intervals[1][0] < intervals[0][1]


def test_what_tvm_keeps_of_who_averages_over_its_draws() -> None:
    """Next to nothing, less than AutoAttack without an average leaves."""
    report = json.loads((ROOT / "tests/reports/tvm_cifar10/report.json").read_text())
    assert "evaluation.draws=10" in report["environment"]["command"]
    rows = {row["threat_model"]: row for row in report["results"]}
    left = {name: row["robust_accuracy"] for name, row in rows.items()}
    told = (
        "leaves {:.1f} % where BPDA goes around it and {:.1f} % where it goes through it, both without an average, and "
        "{:.1f} % over ten draws (EOT), one image"
    )
    assert told.format(left["bpda"], left["adaptive"], left["adaptive-eot"]) in flowing(RESULTS)
    assert {(row["attack"], row["n"]) for name, row in rows.items() if name != "oblivious"} == {("pgd-20", 64)}
    assert round(left["adaptive-eot"] * 64 / 100) == 1
    assert rows["adaptive-eot"]["robust_worst"] == 0
    assert rows["adaptive-eot"]["draws"] == 10
    by_autoattack = readings_of("zoo_cifar10_iterative")["TVM"]["adaptive"]["robust_accuracy"]["mean"]
    assert max(left["bpda"], left["adaptive"], left["adaptive-eot"]) < by_autoattack / 2


def test_what_is_said_of_the_defenses_is_so() -> None:
    """The text says how some were made cheaper, and orders those that it names."""
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in zoo_lines()}
    robust = {name: [float(cell.split()[0]) for cell in row[1:5]] for name, row in rows.items()}
    assert {name for name, row in robust.items() if row[0] > 10} == {
        "MAEP", "DISCO", "plain CNN", "NIM-MAE", "NRP", "ComDefend", "SOAP reconstruction",
    }  # fmt: skip
    assert {name for name, row in robust.items() if min(row)} == {"ComDefend", "SOAP reconstruction"}
    assert robust["ComDefend"][3] == 31.2
    assert robust["NRP"][0] == max(row[0] for row in robust.values()) == 97.2
    assert robust["NRP"][1:] == [93.8, 0, 0]
    assert robust["DISCO"][0] > robust["DISCO"][1] == 89.1 > robust["DISCO"][2] == 0
    assert robust["Anti-Adv"] == [0, 23.4, 23.4, 23.4]
    assert all(len(set(robust[name][1:])) == 1 for name in ("bit depth", "JPEG", "SOAP", "DRAM"))
    assert robust["plain CNN"] == [93.6, 82.8, 0, 0]
    assert robust["DISCO"][0] == 93.9
    fallen = ("SOAP", "SOAP trained so", "DRAM", "frequency prompts (reconstructed)")
    assert {max(robust[name]) for name in fallen} == {0}
    assert robust["SOAP reconstruction"] == [44.2, 43.8, 43.8, 43.8]
    command = json.loads((ROOT / "tests/reports/ablation/zoo.json").read_text())["command"]
    for word in ("soap/digits:evaluation.images=120", "soap/digits:soap.radii=4", "tvm/digits:tvm.iterations=25",
                 "nrp/digits:nrp.blocks=2", "nrp/digits:nrp.features=16", "nrp/digits:attack.steps=10",
                 "residual_cnn/digits:residual_cnn.scale=2", "dram/digits:dram.steps=8",
                 "dram/digits:evaluation.adaptive_images=32",
                 "soap/digits_reconstruction:evaluation.adaptive_images=32"):  # fmt: skip
        assert word in command
        assert word.partition(":")[2] in RESULTS


def test_what_is_said_of_the_short_trainings_on_cifar10_is_so() -> None:
    """What each keeps of who does not know it, what that costs, and what is left to who does."""
    rows, text = readings_of("zoo_cifar10_trained"), flowing(RESULTS)
    kept = {name: row["oblivious"]["robust_accuracy"]["mean"] for name, row in rows.items()}
    assert sorted(kept, key=lambda name: -kept[name]) == ["NRP", "ComDefend", "plain CNN", "DISCO"]
    assert "{NRP:.1f} and {ComDefend:.1f} % oblivious".format(**kept) in text
    assert f"the plain CNN keeps {kept['plain CNN']:.1f} % and DISCO {kept['DISCO']:.1f} %" in text
    (alone,) = {row["undefended_clean_accuracy"] for row in cifar10_rows() if row["n"] == 1000}
    costs = [alone - rows[name]["oblivious"]["clean_accuracy"]["mean"] for name in ("NRP", "ComDefend")]
    assert "It costs {:.0f} and {:.0f} points of clean accuracy".format(*costs) in text
    ends = {name: [row[each]["robust_accuracy"]["mean"] for each in KNOWING_MORE[1:]] for name, row in rows.items()}
    assert {name for name, each in ends.items() if any(each)} == {"ComDefend"}
    bpda, adaptive, averaged = ends["ComDefend"]
    assert bpda == adaptive
    assert f"{adaptive:.1f} % that ComDefend keeps become {averaged:.1f} % under EOT, of 64 images" in text


def test_what_is_said_of_the_filters_that_keep_edges_is_so() -> None:
    """They are between a blur and the median before who does not know them, and fall to who does."""
    rows, others, text = readings_of("zoo_cifar10_filters"), readings_of("zoo_cifar10"), flowing(RESULTS)
    kept = {name: row["oblivious"]["robust_accuracy"]["mean"] for each in (rows, others) for name, row in each.items()}
    told = "filter keeps {bilateral:.1f} % of who does not know it, little more than the blur ({Gaussian blur:.1f} %)"
    assert told.format(**kept) in text
    clean = rows["non-local means"]["oblivious"]["clean_accuracy"]["mean"]
    assert f"non-local means {kept['non-local means']:.1f} %, at {clean:.1f} % clean, less than JPEG" in text
    assert kept["Gaussian blur"] < kept["bilateral"] < kept["non-local means"] < min(kept["JPEG"], kept["median"])
    ends = [row[each]["robust_accuracy"]["mean"] for row in rows.values() for each in KNOWING_MORE[1:]]
    assert set(ends) == {0}


def test_what_is_said_of_those_that_only_reconstruct_on_cifar10_is_so() -> None:
    """What MAEP keeps before its finetuning and after; what NIM-MAE's noise costs and is worth, by draws."""
    rows, text = readings_of("zoo_cifar10_reconstruction"), flowing(RESULTS)
    clean, kept = (
        {name: row["oblivious"][measure]["mean"] for name, row in rows.items()}
        for measure in ("clean_accuracy", "robust_accuracy")
    )
    tuned = readings_of("zoo_cifar10")["MAEP, finetuned"]["oblivious"]["robust_accuracy"]["mean"]
    assert f"MAEP keeps {kept['MAEP']:.1f} %**, at {clean['MAEP']:.1f} % clean" in text
    assert f"makes {tuned:.1f} % of it" in text
    assert f"{clean['NIM-MAE']:.1f} % are right, and of those nearly all stand" in text
    assert f"({kept['NIM-MAE']:.1f} %)" in text
    one, four = (rows["NIM-MAE"][each]["robust_accuracy"]["mean"] for each in ("adaptive", "adaptive-eot"))
    assert f"leaves {four:.1f} % of 64 where one leaves {one:.1f} %" in text
    assert not any(rows["MAEP"][each]["robust_accuracy"]["mean"] for each in KNOWING_MORE[1:])


def test_what_is_said_of_normalized_patches_is_so() -> None:
    """They cost as many clean images of CIFAR-10, and keep no more attacked ones there or of the digits."""
    text, row = flowing(RESULTS), row_under("nim_cifar10_normalized", "oblivious")
    pixels = readings_of("zoo_cifar10_reconstruction")["NIM-MAE"]["oblivious"]["clean_accuracy"]["mean"]
    assert row["clean_accuracy"] == pytest.approx(pixels, abs=1)
    told = "costs as much: {:.1f} % of clean images and {:.1f} % of attacked ones are right, and PGD-20 leaves {:.1f} %"
    adaptive = robust("nim_cifar10_normalized", "adaptive", "pgd-20")
    assert told.format(row["clean_accuracy"], row["robust_accuracy"], adaptive) in text
    digits = [row_under(f"nim_digits_{name}", "oblivious", "pgd-20", 32 / 255) for name in ("normalized", "pixels")]
    assert digits[0]["robust_accuracy"] < digits[1]["robust_accuracy"]
    told = "{:.1f} % of attacked images are right with normalized patches, {:.1f} % with pixels, of {}"
    assert told.format(*(row["robust_accuracy"] for row in digits), digits[0]["n"]) in text


def test_what_is_said_of_the_iterative_ones_on_cifar10_is_so() -> None:
    """TVM keeps more than any other filter, for what clean accuracy; Anti-Adv falls to who knows it."""
    rows, text = readings_of("zoo_cifar10_iterative"), flowing(RESULTS)
    kept = {name: row["oblivious"]["robust_accuracy"]["mean"] for name, row in rows.items()}
    filters = {name: row["oblivious"]["robust_accuracy"]["mean"] for name, row in readings_of("zoo_cifar10").items()}
    assert kept["TVM"] > max(each for name, each in filters.items() if name != "MAEP, finetuned")
    (alone,) = {row["undefended_clean_accuracy"] for row in cifar10_rows() if row["n"] == 1000}
    cost = alone - rows["TVM"]["oblivious"]["clean_accuracy"]["mean"]
    assert f"{kept['TVM']:.1f} % oblivious, at {cost:.0f} points of clean accuracy" in text
    assert f"Its {rows['TVM']['adaptive']['robust_accuracy']['mean']:.1f} % of 64 images under" in text
    assert [rows["Anti-Adv"][each]["robust_accuracy"]["mean"] for each in ("bpda", "adaptive")] == [0, 0]


def test_what_is_said_of_the_transforms_on_cifar10_is_so() -> None:
    """Which keep what DISCO's log has, that none withstands who knows it, and what the untrained ones are ahead of."""
    rows, text = readings_of("zoo_cifar10"), flowing(RESULTS)
    kept = {name: row["oblivious"]["robust_accuracy"] for name, row in rows.items()}
    published = {name: each for name, each in kept.items() if each["paper"] is not None}
    assert {name for name, each in published.items() if abs(each["difference"]) <= 5} == {"bit depth", "resize-pad"}
    for name, each in published.items():
        assert f"{name} {each['mean']:.1f} ({each['paper']:.4g})" in text
    before = (robust(f"cifar10_{name}", "oblivious") for name in ("resnet20", "wrn28_1"))
    assert "keeps {:.1f} % before ResNet-20 and {:.1f} % before WRN-28-1".format(*before) in text
    (alone,) = {row["undefended_clean_accuracy"] for row in cifar10_rows() if row["n"] == 1000}
    for name, words in (("JPEG", "JPEG takes {:.1f} points"), ("median", "median {:.1f}")):
        clean = rows[name]["oblivious"]["clean_accuracy"]
        costs = (alone - clean["mean"], DISCO_UNDEFENDED - clean["paper"])
        assert f"{words} ({{:.1f}} there)".format(*costs) in text
    ends = {name: [row[each]["robust_accuracy"]["mean"] for each in KNOWING_MORE[1:]] for name, row in rows.items()}
    assert {name for name, each in ends.items() if any(each)} == {"Gaussian noise", "resize-pad"}
    assert f"and MAEP**, whose {kept['MAEP, finetuned']['mean']:.1f} % become 0.0" in text
    assert "EOT leaves {:.1f} % to resize-pad and {:.1f} % to Gaussian noise".format(
        *(ends[name][2] for name in ("resize-pad", "Gaussian noise"))
    ) in text  # fmt: skip
    trained = json.loads((ROOT / "tests/reports/ablation/same_budget.json").read_text())["cells"]
    small = max(cell["measures"][1]["interval"][1] for cell in trained if "4.5 TFLOP" in cell["names"][0])
    assert kept["JPEG"]["interval"][0] > kept["median"]["interval"][0] > small
    pretrained = next(r for r in cifar10_rows() if (r["purifier"], r["attack"]) == ("maep", "autoattack-standard"))
    assert kept["JPEG"]["interval"][0] < pretrained["robust_accuracy"] < kept["JPEG"]["interval"][1]
    assert f"JPEG alone keeps {kept['JPEG']['mean']:.1f} % before ResNet-20" in flowing(README)


def test_the_anti_adversary_layer_is_worth_its_classifier_to_who_ignores_it() -> None:
    """It ends within a point of the classifier alone; moved in pixels, farther than by its authors, it does not."""
    normalized, pixels = (
        json.loads((ROOT / f"tests/reports/anti_adversary_cifar10{name}/report.json").read_text())
        for name in ("", "_pixels")
    )
    assert "anti_adversary.scale=normalized" in normalized["environment"]["command"]
    (row,), (far,) = normalized["results"], pixels["results"]
    assert row["undefended_robust_accuracy"] <= row["robust_accuracy"] < row["undefended_robust_accuracy"] + 1
    assert (row["threat_model"], row["attack"], row["n"]) == ("oblivious", "autoattack-standard", 1000)
    text = flowing(RESULTS)
    assert f"keeps {row['clean_accuracy']:.1f} % of clean images and {row['robust_accuracy']:.1f} % of attacked" in text
    assert f"keep {far['clean_accuracy']:.1f} % and {far['robust_accuracy']:.1f} %" in text


def test_generative_defenses_are_in_the_known_order() -> None:
    """The one that re-evaluations found: exact below BPDA, BPDA below oblivious; the page names the equal ones."""
    rows = {
        name: [readings[each]["robust_accuracy"]["mean"] for each in ("adaptive", "bpda", "oblivious")]
        for name, readings in readings_of("zoo_generative").items()
    }
    assert all(row == sorted(row) for row in rows.values())
    exact = {name for name, (adaptive, bpda, _) in rows.items() if adaptive == bpda}
    blind = {name for name, (_, bpda, oblivious) in rows.items() if bpda == oblivious}
    assert (exact, blind) == ({"Hill"}, {"ScoreOpt-O"})
    assert f"{rows['ScoreOpt-O'][2]:.1f} % under both, and {rows['ScoreOpt-O'][0]:.1f} % under" in flowing(RESULTS)
    for name in ("DiffPure", "GDMP", "FreqPure", "Hill", "FlowPure", "ADBM", "ADP"):
        assert f"{name.replace('Hill', 'Hill et al.')} ({rows[name][2]:.1f})" in flowing(RESULTS)
    (equal,) = {row[2] for name, row in rows.items() if name.startswith("MAEP")}
    assert f"of the cheapest it keeps {equal:.1f} %" in flowing(RESULTS)
    assert f"ScoreOpt ({rows['ScoreOpt-O'][2]:.1f} and {rows['ScoreOpt-N'][2]:.1f})" in flowing(RESULTS)
    assert {name for name, row in rows.items() if row[2] > equal} >= {"FlowPure", "ScoreOpt-O", "ScoreOpt-N"}
    assert {name.partition(",")[0] for name, row in rows.items() if not row[0]} == {"MAEP", "FlowPure", "ADP"}
    told = f"ScoreOpt-N's {rows['ScoreOpt-N'][0]:.1f} % (with EOT {{:.1f}}) are not to be believed"
    lowest = readings_of("zoo_generative")["ScoreOpt-N"]["adaptive-eot"]["robust_accuracy"]["mean"]
    assert told.format(lowest) in flowing(RESULTS)


def test_the_draws_of_generative_defenses_are_as_told() -> None:
    """The worst is never above the mean; the majority is below it where few draws withstand, and once of clean ones."""
    text, kinds = flowing(RESULTS), ("adp", "diffpure", "gdmp", "scoreopt", "scoreopt_n")
    names = [f"{kind}_{data}" for kind in kinds for data in ("cifar10", "digits")]
    rows = {name: committed(name) for name in names if (ROOT / "tests" / "reports" / name).is_dir()}
    every = [row for report in rows.values() for row in report]
    for what in ("clean", "robust"):
        assert all(row[f"{what}_worst"] <= row[f"{what}_average"] for row in every)
    below = [row["robust_average"] for row in every if row["robust_majority"] < row["robust_average"]]
    assert f"In {len(below)} rows of attacked images it is below, and in each of these the mean is at most" in text
    assert f"the mean is at most {max(below):.1f} %" in text
    above = [row for row in every if row["robust_majority"] > row["robust_average"]]
    assert len(above) > len([row for row in every if row not in above and row["robust_average"] > max(below)])
    clean = {
        name: row for name, report in rows.items() for row in report if row["clean_majority"] < row["clean_average"]
    }
    assert list(clean) == ["gdmp_cifar10"]
    (row,) = clean.values()
    assert row["n"] * (row["clean_average"] - row["clean_majority"]) == 50
    assert f"({row['clean_average']:.1f} and {row['clean_majority']:.1f} %) are half an image" in text


def test_generative_defenses_on_cifar10_are_as_told() -> None:
    """Which keep the known order, which one draw of 32 images disturbs, and whose gradients are not to be believed."""
    rows, text = readings_of("zoo_generative_cifar10"), flowing(RESULTS)
    stand = {name: {key: row["robust_accuracy"]["mean"] for key, row in each.items()} for name, each in rows.items()}
    clean = {name: row["oblivious"]["clean_accuracy"]["mean"] for name, row in rows.items()}
    attackers = ("adaptive", "surrogate", "bpda", "oblivious")
    ordered = {
        name
        for name, each in stand.items()
        if len({*each.values()}) > 3 and [each[a] for a in attackers] == sorted(each[a] for a in attackers)
    }
    assert ordered == {"GDMP", "ScoreOpt-N"}
    gdmp, last = ([stand[name][attacker] for attacker in attackers] for name in ("GDMP", "ScoreOpt-N"))
    assert "({:.1f}, {:.1f}, {:.1f} and {:.1f} % stand)".format(*gdmp) in text
    assert "ScoreOpt-N ({:.1f}, {:.1f}, {:.1f} and {:.1f} %), whose gradients are true".format(*last) in text
    draws = {row["threat_model"]: row for row in committed("diffpure_cifar10")}
    exact, follower, averaged = (draws[name] for name in ("adaptive", "surrogate", "adaptive-eot"))
    assert (exact["robust_accuracy"] * exact["n"], follower["robust_accuracy"] * follower["n"]) == (400, 300)
    assert exact["robust_average"] == follower["robust_average"]
    assert (
        f"both leave {exact['robust_average']:.1f} %, and with EOT he leaves {averaged['robust_average']:.1f} %" in text
    )
    adp = stand["ADP"]
    assert adp["bpda"] == adp["adaptive"]
    assert (
        f"of one draw ({adp['bpda']:.1f} %), and the surrogate leaves {adp['surrogate']:.1f} %, one image more" in text
    )
    assert f"EOT leaves {adp['adaptive-eot']:.1f} %" in text
    means = {row["threat_model"]: row["robust_average"] for row in committed("adp_cifar10")}
    assert [means[each] for each in attackers] == sorted(means[each] for each in attackers)
    assert "in order: {:.1f}, {:.1f}, {:.1f} and {:.1f} %.".format(*(means[each] for each in attackers)) in text
    score = stand["ScoreOpt-O"]
    right = rows["ScoreOpt-O"]["bpda"]["clean_accuracy"]["mean"]
    assert f"{score['bpda']:.1f} % stand against it, more than are right unattacked ({right:.1f} %)" in text
    assert f"gradients leave {score['adaptive']:.1f} %" in text
    alarms = [committed(f"{name}_cifar10")[0]["alarms"] for name in ("scoreopt", "scoreopt_n")]
    assert alarms == [["finite differences"], []]
    told = f"{clean['FlowPure']:.1f} % of the clean images, {stand['FlowPure']['oblivious']:.1f} % of the attacked ones"
    assert told in text
    equal = row_under("maep_generative_cifar10", "oblivious")
    low, high = equal["robust_ci95"]
    assert (
        f"keeps {equal['clean_accuracy']:.1f} % of the same 500 images clean and {equal['robust_accuracy']:.1f} % "
        f"[{low:.1f}, {high:.1f}] under AutoAttack, oblivious" in text
    )
    assert equal["robust_accuracy"] == max(equal["robust_accuracy"], *(each["oblivious"] for each in stand.values()))
    followed = {name: row_under("maep_generative_cifar10", name, "pgd-20") for name in ("bpda", "adaptive")}
    assert f"BPDA leaves {followed['bpda']['robust_accuracy']:.1f} % of {followed['bpda']['n']}" in text
    assert followed["adaptive"]["robust_accuracy"] == 0
    assert {name for name, each in stand.items() if each["adaptive"] == 0} == {"GDMP", "FlowPure"}
    left = (
        f"{clean['DiffPure']:.1f} % of clean images are left by DiffPure and {clean['ScoreOpt-O']:.1f} % by ScoreOpt-O"
    )
    assert left in text


@pytest.mark.parametrize(("name", "alarms"), [("alone", set()), ("rounding", {"gradients", "square"}),
                                              ("jpeg", {"gradients", "square"})])  # fmt: skip
def test_masked_gradients_were_caught(name: str, alarms: set[str]) -> None:
    """The committed reports say which is which: a classifier alone, and behind defenses that mask gradients."""
    report = json.loads((ROOT / "tests" / "reports" / f"masking_{name}" / "report.json").read_text())
    raised = {finding["check"] for finding in report["honesty"]["none"]["findings"] if finding["level"] == "alarm"}
    assert alarms <= raised
    assert bool(alarms) == bool(raised)


def test_the_table_at_the_same_cost_is_the_committed_one() -> None:
    """Row by row; and as the text says, in each seed the plain CNN is ahead at every cost, and MAEP gains least."""
    assert table("same_budget") == same_budget_lines()
    systems, costs = ("MAEP", "MAEP refined", "plain CNN", "DISCO"), ("4.5", "18", "72")
    of_maep = []
    for seed, name in enumerate(SAME_BUDGET):
        assert f"seeds=[{seed}]" in json.loads((ROOT / f"tests/reports/ablation/{name}.json").read_text())["command"]
        rows = {row: each[""]["robust_accuracy"] for row, each in readings_of(name).items()}
        left = {system: [rows[f"{system}, {cost} TFLOP"] for cost in costs] for system in systems}
        for number in range(len(costs)):
            others = [left[system][number]["interval"][1] for system in ("MAEP", "DISCO")]
            assert left["plain CNN"][number]["interval"][0] > max(others)
            assert left["plain CNN"][number]["mean"] > left["MAEP refined"][number]["mean"]
        gains = {system: each[2]["mean"] - each[0]["mean"] for system, each in left.items()}
        most = sorted(systems, key=lambda system, gains=gains: gains[system])[-2:]  # type: ignore[misc]
        assert {*most} == {"DISCO", "MAEP refined"}
        assert min(gains, key=lambda system, gains=gains: gains[system]) == "MAEP"  # type: ignore[misc]
        of_maep.append(gains["MAEP"])
    assert (min(of_maep), max(of_maep)) == pytest.approx((-3, 5), abs=0.5), "loses three points or gains five"
    clean, robust = (
        {name: fmean(each) for name, each in over_seeds(SAME_BUDGET, "", measure).items()}
        for measure in ("clean_accuracy", "robust_accuracy")
    )
    text = flowing(RESULTS)
    gained = {name: robust[f"{name}, 72 TFLOP"] - robust[f"{name}, 4.5 TFLOP"] for name in systems}
    assert max(gained, key=lambda name: gained[name]) == "DISCO"
    for name in ("plain CNN", "DISCO"):
        assert f"({robust[f'{name}, 4.5 TFLOP']:.1f} to {robust[f'{name}, 72 TFLOP']:.1f} %)" in text
    maep = clean["MAEP, 72 TFLOP"], robust["MAEP, 72 TFLOP"]
    assert "a clean image ({:.1f} %), and so cannot keep an attacked one ({:.1f} %)".format(*maep) in text
    refined = robust["MAEP refined, 72 TFLOP"]
    gap = robust["plain CNN, 72 TFLOP"] - refined
    assert f"within {gap:.1f} points of the CNN ({refined:.1f} %)" in text


def test_what_a_classifier_learns_of_what_a_denoiser_makes() -> None:
    """NIM-MAE's, finetuned, keeps more of clean and of attacked images; the page says that a check of it is red."""
    report = json.loads((ROOT / "tests/reports/nim_cifar10_classifier/report.json").read_text())
    rows, text = {row["threat_model"]: row for row in report["results"]}, flowing(RESULTS)
    blind, knowing = rows["oblivious"], rows["adaptive-eot"]
    assert (blind["attack"], blind["n"], knowing["attack"], knowing["n"]) == ("autoattack-standard", 1000, "pgd-20", 64)
    told = "has {:.1f} % of clean images right behind it and {:.1f} % of those that AutoAttack made"
    assert told.format(blind["clean_accuracy"], blind["robust_accuracy"]) in text
    assert f"which by itself has {blind['undefended_clean_accuracy']:.1f} % of the clean ones" in text
    told = "leaves {:.1f} % of 64 (PGD-20 over four draws), and {:.1f} % in all of four further draws"
    assert told.format(knowing["robust_accuracy"], knowing["robust_worst"]) in text
    before = readings_of("zoo_cifar10_reconstruction")["NIM-MAE"]["oblivious"]
    for measure in ("clean_accuracy", "robust_accuracy"):
        assert blind[measure] > before[measure]["mean"] + 15
    red = {each["check"] for each in report["honesty"]["nim-cifar10"]["findings"] if each["level"] == "alarm"}
    assert red == {"loss against steps"}
    report = json.loads((ROOT / "tests/reports/nim_cifar10_classifier_published/report.json").read_text())
    assert "classifier.purified_noise=30/255" in report["environment"]["command"]
    rows = {row["threat_model"]: row for row in report["results"]}
    told = "it has {clean_accuracy:.1f} and {robust_accuracy:.1f} %, and ".format(**rows["oblivious"])
    assert f"{told}{rows['adaptive-eot']['robust_accuracy']:.1f} % are left" in text
