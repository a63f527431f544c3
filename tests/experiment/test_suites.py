"""suites.py: what counts as the worst case stays within the threat model, and a stronger suite leaves nothing out."""

from itertools import combinations

import pytest

from aart_lib.experiment.suites import CURVE, FREE_QUERIES, FREE_VIDEOS, SUITES, suite
from aart_lib.threats import NORMS, ThreatModel

THREAT = ThreatModel("linf", 0.1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SUITES)
def test_only_attacks_within_the_threat_model_count_and_all_others_are_beyond_it(name, norm):
    threat = ThreatModel(norm, 0.1)
    within, beyond = suite(name, threat, surrogates=("other",))
    assert all((attack.first or attack).threat == attack.threat == threat for attack in within.values())
    assert all(attack.threat != threat for attack in beyond.values())
    assert not set(within) & set(beyond)


def test_each_suite_holds_the_one_before():
    suites = {name: suite(name, THREAT) for name in SUITES}
    for held, holder in (("quick", "standard"), ("standard", "strong"), ("quick", "splice"), ("splice", "strong")):
        for few, many in zip(suites[held], suites[holder], strict=True):
            assert few.keys() <= many.keys(), (held, holder)
            assert held != "standard" or few.items() <= many.items()


def test_the_strong_suite_has_the_attacks_of_the_interface():
    within, beyond = suite("strong", THREAT, surrogates=("trades", "other-seed"))
    assert set(within) >= {
        *("noise", "fgsm", "pgd", "pgd-10", "pgd-50", "pgd-100", "pgd-margin", "pgd-targeted", "pgd-gap"),
        *("apgd", "label-free", "gradient-free", "transfer-trades", "transfer-other-seed"),
    }
    assert sum(name.startswith("adaptive-") for name in within) >= 5
    assert set(beyond) >= {"pgd@2", "pgd-margin@2", "apgd@2", "frames-1", "frames-2", "frames-4"}
    assert (within["pgd"].steps, within["pgd"].restarts) == (20, 2)
    free = within["gradient-free"]
    assert (free.search, free.steps) == ("random", FREE_QUERIES) and (FREE_VIDEOS, FREE_QUERIES) == (200, 1000)


def test_no_two_attacks_of_the_strong_suite_are_the_same():
    within, beyond = suite("strong", THREAT)
    assert [pair for pair in combinations([*within.values(), *beyond.values()], 2) if pair[0] == pair[1]] == []


def test_names_tell_the_budget():
    _, beyond = suite("strong", THREAT)
    for name, attack in beyond.items():
        kind, _, factor = name.partition("@")
        expected = THREAT.times(float(factor or 0))
        if kind.startswith("splice-"):
            expected = THREAT.spliced()
        elif kind.startswith("frames-"):
            expected = ThreatModel("linf", THREAT.few().epsilon, int(kind.split("-")[1]))
        assert attack.threat == expected, name
    assert {name for name in beyond if name.startswith("curve@")} == {f"curve@{x:g}" for x in CURVE["strong"]}
