"""A loss that cannot be trained from what a rule makes is refused when the config is loaded, with the way out."""

import re
from typing import Any

import pytest

from loop.config.checks import check
from loop.config.fit import OF_DATA, why_unfit
from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.config.settings import Config
from loop.pairing.pair_rules import PAIR_RULES
from loop.pairing.single_rules import SINGLE_RULES
from trainer.losses.table import METHODS
from trainer.settings import TrainSettings


def unfit(rule: str, loss: Any, **pairs: Any) -> str | None:
    needed = {"negative_column": "bad"} if rule == "d2o" else {}
    return why_unfit(PairsConfig(rule=rule, **needed, **pairs), TrainSettings(loss=loss), n=16)


@pytest.mark.parametrize(
    ("rule", "loss"),
    [
        ("correct_vs_wrong", "dpo_nll"),
        ("best_vs_worst", "rebel"),
        ("rso", "slic"),
        ("sppo", "sppo"),
        ("sppo", "sppo_single"),
        ("best_vs_worst", "kto"),
        ("spin", "dpo"),
        ("xpo", "xpo"),
        ("dno_prct", "dpo"),
        ("labels", "kto"),
        ("labels", "bco"),
        ("labels", [{"name": "npo"}, {"name": "sft"}]),
        ("scored", "dro_v"),
        ("spo", "spo"),
        ("spo", "nash_md"),
        ("ranked", "plackett_luce"),
        ("ranked", "infonca"),
        ("d2o", "d2o"),
        ("negatives", "npo"),
        ("negatives", "simnpo"),
    ],
)
def test_what_the_papers_train_fits(rule, loss):
    assert unfit(rule, loss) is None


@pytest.mark.parametrize(
    ("rule", "loss", "said"),
    [
        ("labels", "dpo", "over pairs, and the rule makes singles; set pairs.rule to best_vs_worst"),
        ("ranked", "kto", "over singles, and the rule makes groups; set pairs.rule to labels"),
        ("labels", "infonca", "over groups, and the rule makes singles; set pairs.rule to ranked"),
        ("labels", "dro_v", "it needs scores, which the rule does not give; set pairs.rule to scored"),
        ("best_vs_worst", "spo", "it needs win rates as scores, which the rule does not give; set pairs.rule to spo"),
        ("scored", "nash_md", "set pairs.rule to spo"),
        ("spin", "sppo", "it needs win rates, which the rule does not give; set pairs.rule to sppo"),
        ("sppo", "xpo", "it needs to know which response the reference sampled"),
        ("negatives", "kto", "gives bad responses only; use npo or simnpo"),
        ("d2o", "plackett_luce", "no ranking; set pairs.rule to ranked"),
        ("ranked", "d2o", "set pairs.rule to d2o"),
        ("scored", "kto", "it needs good and bad responses"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(rule, loss, said):
    text = unfit(rule, loss)
    assert text is not None
    assert said in text


def test_a_gold_answer_has_no_win_rate():
    assert unfit("best_vs_worst", "sppo") is None
    text = unfit("best_vs_worst", "sppo", gold_fallback=True)
    assert text is not None
    assert "gold_fallback false" in text


def test_every_way_out_leads_out():
    for rule in RULES:
        for name in METHODS:
            text = unfit(rule, name)
            suggested = re.search(r"set pairs.rule to (\w+)", text or "")
            if suggested:
                assert unfit(suggested[1], name) is None, (rule, name, suggested[1])
            elif text:
                assert rule == "negatives", (rule, name)


def test_every_loss_can_be_trained_from_some_rule():
    for name in METHODS:
        assert any(unfit(rule, name) is None for rule in RULES), name


def test_half_of_the_responses_come_from_the_reference_where_the_rule_contrasts_them(settings):
    del settings["pairs"], settings["train"]
    halves = settings["sampling"] | {"from_reference": True}
    check(Config(**settings | {"sampling": halves}, pairs={"rule": "xpo"}, train={"loss": "xpo"}))
    with pytest.raises(ValueError, match=r"no other rule does; set sampling\.from_reference to false"):
        check(Config(**settings | {"sampling": halves}))
    with pytest.raises(ValueError, match=r"set sampling\.from_reference to true"):
        check(Config(**settings, pairs={"rule": "xpo"}))
    with pytest.raises(ValueError, match=r"one half from the reference, and sampling.n is 3; make it even"):
        check(Config(**settings | {"sampling": halves | {"n": 3}}, pairs={"rule": "xpo"}))


def test_the_table_names_every_rule_and_no_other_need():
    assert RULES.keys() == PAIR_RULES.keys() | SINGLE_RULES.keys()
    assert {name for name, rule in RULES.items() if rule.kind == "pairs"} == PAIR_RULES.keys()
    assert frozenset().union(*(rule.gives for rule in RULES.values())) == OF_DATA


def test_a_campaigns_config_is_refused(settings):
    del settings["pairs"], settings["train"]
    check(Config(**settings))
    with pytest.raises(ValueError, match=r"the loss kto cannot be trained from pairs\.rule ranked"):
        check(Config(**settings, pairs={"rule": "ranked"}, train={"loss": "kto"}))
    with pytest.raises(ValueError, match=r"pairs.rso_keep=8 would accept all of sampling.n=4 responses"):
        check(Config(**settings, pairs={"rule": "rso"}))
    with pytest.raises(ValueError, match=r"train.warm_start imitates the chosen responses"):
        check(Config(**settings, pairs={"rule": "spo"}, train={"loss": "spo", "warm_start": {}}))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({"rule": "d2o"}, "name the column of the prompts that holds it in pairs.negative_column"),
        ({"rule": "sppo", "gold_fallback": True}, "gold_fallback is for the rules correct_vs_wrong"),
        ({"gold_fallback": True, "gold_score": 0.5}, "gold_score 0.5 lies below correct_at 1"),
        ({"rule": "labels", "max_length_gap": 5}, "max_length_gap compares the responses of a pair"),
        ({"length_penalty": 0.1}, "length_penalty is for the rules best_vs_worst"),
        ({"rule": "rso", "lengths": "nearest"}, "lengths is for the rules correct_vs_wrong, best_vs_worst"),
        ({"negative_column": "bad"}, "negative_column is for the rules d2o, negatives"),
    ],
)
def test_settings_that_mean_nothing_to_the_rule_are_refused(pairs, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        PairsConfig(**pairs)
