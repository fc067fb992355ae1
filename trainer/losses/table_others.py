"""Rows of the losses over groups, over single responses, and over all pairs of a step at once. No torch here."""

from trainer.losses.method import Method, Need, choice, flag, number, rows_of
from trainer.losses.table_contrastive import BETA, PULL, REFERENCE

LABELLED: frozenset[Need] = frozenset({"reference", "labels"})
SCORED: frozenset[Need] = frozenset({"reference", "scores"})
WINNING: frozenset[Need] = SCORED | {"shares"}
SMALL_BETA = number(0.01, PULL, gt=0)
DESIRABLE = number(1.0, "Weight of good responses; weight times count of good over bad should be 1 to 4/3.", ge=0)
UNDESIRABLE = number(1.0, "Weight of bad responses; higher pushes them down harder.", ge=0)
SCORE_TEMPERATURE = number(1.0, "Temperature of the scores; higher spreads the weight over more responses.", gt=0)
SMOOTHING = number(0.0, "Probability that a label is wrong; higher trusts the pairs less.", ge=0, lt=0.5)

GROUPS: dict[str, Method] = {
    "plackett_luce": Method(
        paper="Rafailov et al. 2023, arXiv:2305.18290, appendix A.3",
        about="DPO for a whole ranking: each response is chosen out of those that are left.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "choices": choice("all", "Every choice of the ranking, or only that of the best response.", "best"),
            "normalise": choice("sum", "Sum over the choices, or their mean so that long lists weigh no more.", "mean"),
        },
        notes="The likelihood of the whole ranking; all-pairs DPO is another likelihood, which counts longer lists "
        "more. Ties have no order here: break or drop them. No defaults are published for language models.",
    ),
    "d2o": Method(
        paper="Duan et al. 2024, arXiv:2403.03419",
        about="Pushes a labelled bad response (the last of its group) below the model's own samples (the others).",
        needs=REFERENCE,
        arguments={
            "beta": number(0.1, "Weight of the own samples' mean log-ratio.", gt=0),
            "alpha": number(0.1, "Weight of the bad response's log-ratio; higher pushes it down harder.", gt=0),
        },
        notes="Eq. 3 of the second version, after notes on it; both of its reference models are the one reference, as "
        "in its experiments. The paper uses 11 own samples.",
    ),
    "exo_rw": Method(
        paper="Ji et al. 2024, arXiv:2402.00856",
        about="EXO on scored responses: reverse KL from the policy's shares to those of the scores.",
        needs=SCORED,
        arguments={
            "beta": number(0.5, PULL, gt=0),
            "beta_r": number(0.5, "Temperature of the scores; higher spreads the target over more responses.", gt=0),
        },
        notes="The authors' `exo-rw`. Their scripts set both temperatures by dataset: 0.5 for HH and TL;DR, which are "
        "the defaults here, and 0.1 for IMDB, as in the paper; for pairs see `exo`. Both tails are flat: a group in "
        "the wrong order has almost no gradient.",
    ),
    "infonca": Method(
        paper="Chen et al. 2024, arXiv:2402.05369",
        about="Cross-entropy from the scores' shares to the policy's; with two responses and hard labels this is DPO.",
        needs=SCORED,
        arguments={"beta": SMALL_BETA, "alpha": SCORE_TEMPERATURE},
        notes="The authors' code divides the scores by `temperature_alpha`, as `alpha` does here; its settings are "
        "1e-4 to 1e-3. It adds 0.01 to the first response's label as a tie-break, which this does "
        "not.",
    ),
    "nca_rw": Method(
        paper="Chen et al. 2024, arXiv:2402.05369",
        about="NCA on scored responses: raises good ones in absolute terms and holds all of them down.",
        needs=SCORED,
        arguments={"beta": SMALL_BETA, "alpha": SCORE_TEMPERATURE},
        notes="The form over K scored responses; for pairs see `nca`. `alpha` and the tie-break as in `infonca`.",
    ),
}

SINGLES: dict[str, Method] = {
    "kto": Method(
        function="trainer.losses.stepwise:kto",
        paper="Ethayarajh et al. 2024, arXiv:2402.01306",
        about="Moves good responses above and bad ones below a reference point; flat for those far from it.",
        needs=LABELLED | {"mismatched", "step"},
        arguments={"beta": BETA, "desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE},
        notes="The reference point is the mean over the mismatched responses of the whole step, at least 0 (TRL "
        "shifts the responses within a device's batch; the old `kto_pair` took the other half of the pairs, "
        "another estimator). Steps of less than 16 make it noise.",
    ),
    "apo_zero_unpaired": Method(
        paper="D'Oosterlinck et al. 2024, arXiv:2408.06266",
        about="KTO with its reference point at 0: no mismatched responses to score.",
        needs=LABELLED,
        arguments={"beta": BETA, "desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE},
        notes="TRL's loss type of KTOTrainer; for pairs see `apo_zero`, the sum of both halves.",
    ),
    "bco": Method(
        function="trainer.losses.stepwise:bco",
        update="trainer.losses.stepwise:bco_update",
        paper="Jung et al. 2024, arXiv:2404.04656",
        about="A classifier of good and bad responses by their implicit reward, shifted by its running mean.",
        needs=LABELLED | {"step"},
        arguments={
            "beta": SMALL_BETA,
            "momentum": number(0.9, "Of the running means; higher follows the rewards more slowly.", ge=0, lt=1),
        },
        notes="Keeps the shift, as the paper; TRL's `bco_pair` dropped it, and its BCOTrainer takes the plain mean "
        "over all past steps (momentum is ours). The weights for prompts of bad responses (UDM) are weights of "
        "the data.",
    ),
    "sft": Method(
        paper="the baseline Preferred-FT of Rafailov et al. 2023, arXiv:2305.18290",
        about="Raises the likelihood of good responses: a control, or the retain term added to `npo` and `simnpo`.",
        needs=frozenset({"labels"}),
        takes="good",
        arguments={"normalise": choice("response", "Divide by the response's own length, or not at all.", "sum")},
        notes="Each response weighs the same whatever its length; token-weighted means of other trainers do not.",
    ),
    "retain_kl": Method(
        paper="Zhang et al. 2024, arXiv:2404.05868",
        about="Keeps the policy's token distributions on good responses close to the reference's; added to `npo`.",
        needs=frozenset({"labels", "sequence_kl"}),
        takes="good",
        notes="KL(reference || policy) per token as in the authors' code, but each response weighs the same.",
    ),
    "npo": Method(
        paper="Zhang et al. 2024, arXiv:2404.05868",
        about="Unlearns bad responses: DPO without the chosen one.",
        needs=LABELLED,
        takes="bad",
        arguments={"beta": number(0.1, "Higher stops sooner; towards 0 it becomes gradient ascent.", gt=0)},
        notes="Used alone it harms general ability: add `sft` (weight 1 in the authors' code) or `retain_kl` on good "
        "responses.",
    ),
    "simnpo": Method(
        paper="Fan et al. 2024, arXiv:2410.07163",
        about="Unlearns bad responses by their mean token log-prob, without a reference.",
        needs=frozenset({"labels"}),
        takes="bad",
        arguments={
            "beta": number(2.5, "Higher stops sooner for responses that have become unlikely.", gt=0),
            "gamma": number(0.0, "Margin; higher pushes responses down further.", ge=0),
            "gamma_times_beta": flag(False, "Multiply gamma by beta, as the authors' code does."),
        },
        notes="The paper's form; the authors' TOFU code has gamma inside the factor beta (`gamma_times_beta`), "
        "subtracts it from the mean loss, and weights the loss 0.1375 relative to the retain term.",
    ),
    "dro_v": Method(
        paper="Richemond et al. 2024, arXiv:2405.19107",
        about="Regression of score minus value on the log-ratio; a value network is trained together with the policy.",
        needs=SCORED | {"value"},
        arguments={"tau": number(1.0, "Strength of the pull towards the reference; higher keeps closer.", gt=0)},
        notes="The policy's gradient is divided by tau, as the paper trains. One value for each prompt (the paper's "
        "best is one at each position). Normalise the scores to mean 0, variance 1. Elsewhere `DRO` often "
        "means other losses.",
    ),
    "spo": Method(
        paper="Swamy et al. 2024, arXiv:2401.04056; Wu et al. 2024, arXiv:2405.00675",
        about="Self-play with win rates as scores in [0, 1]: each log-ratio is pulled to eta times (win rate - 1/2).",
        needs=WINNING,
        arguments={"eta": number(1000.0, "A win rate of 1 pulls the log-ratio to eta / 2.", gt=0)},
        notes="The paper optimises the win rate over the prompt's other responses by reinforcement learning; for "
        "language models no setting is published, and this is SPPO's regression, with its eta. Scores other "
        "than win rates are wrong here. Not Single-stream Policy Optimization, also called SPO.",
    ),
    "nash_md": Method(
        paper="Munos et al. 2023, arXiv:2312.00886",
        about="Policy gradient of the win probability minus the log-ratio to the reference.",
        needs=WINNING,
        arguments={"tau": number(0.008, "Strength of the pull towards the reference; higher keeps closer.", gt=0)},
        notes="The score is the probability that the response beats its opponent; it is valid only as far as "
        "the responses are the policy's own, so keep rounds short. Win rates over own samples make it the paper's "
        "self-play (mixture 0); the geometric mixture as opponent is a matter of sampling. Default tau of "
        "arXiv:2403.08635.",
    ),
    "nash_md_token": Method(
        paper="Munos et al. 2023, arXiv:2312.00886, as in TRL",
        about="`nash_md` in which each token is weighted by its own log-ratio instead of the response's.",
        needs=WINNING | {"tokens"},
        arguments={"tau": number(0.008, "Strength of the pull towards the reference; higher keeps closer.", gt=0)},
        notes="TRL's form; the paper sums the log-ratio over the response. Otherwise as `nash_md`.",
    ),
}

PAIRS: dict[str, Method] = {
    "beta_dpo": Method(
        update="trainer.losses.stepwise:beta_dpo_update",
        paper="Wu et al. 2024, arXiv:2407.08639",
        about="DPO whose beta grows with the mean gap of the step's kept pairs: those whose gap is not unusual.",
        needs=REFERENCE | {"step", "random"},
        arguments={
            "beta": number(0.1, "Beta at the running mean of the gap.", gt=0),
            "alpha": number(0.6, "How strongly beta follows the kept pairs' mean gap; 0 keeps it constant.", ge=0),
            "keep": number(0.8, "Share of the step's pairs that the filter keeps; 1 keeps all.", gt=0, le=1),
            "momentum": number(0.9, "Of the running mean and spread; higher follows more slowly.", ge=0, lt=1),
            "bias_correction": flag(False, "Correct the running mean and spread for their start at 0."),
        },
        notes="As the authors' code: the gap has no factor beta (the paper uses the reward discrepancy), beta follows "
        "the mean gap of the kept pairs, and the running values, over all pairs, are updated before they are used. "
        "Without bias_correction beta is too high in the first 20 steps or so, and the filter keeps the pairs nearest "
        "to 0.",
    ),
    "aot": Method(
        paper="Melnyk et al. 2024, arXiv:2406.05882",
        about="DPO with policy and reference margins matched by rank over the whole step.",
        needs=REFERENCE | {"step"},
        arguments={"beta": SMALL_BETA, "label_smoothing": SMOOTHING},
        notes="Paired form; TRL called the unpaired one `aot_pair` until February 2026. TRL sorts a device's "
        "micro-batch, this the whole step. Weights of pairs have no meaning in the paper; here they go with the "
        "policy margin.",
    ),
    "aot_unpaired": Method(
        paper="Melnyk et al. 2024, arXiv:2406.05882",
        about="DPO with chosen and rejected log-ratios matched by rank over the whole step, whatever their pairs.",
        needs=REFERENCE | {"step"},
        arguments={"beta": SMALL_BETA, "label_smoothing": SMOOTHING},
        notes="Unpaired form, over the chosen and the rejected responses of the step's pairs. Otherwise as `aot`; "
        "weights go with the chosen response.",
    ),
    "tr_dpo": Method(
        function="trainer.losses.contrastive:tr_dpo",
        paper="Gorbatovski et al. 2024, arXiv:2404.09656",
        about="DPO whose reference follows the policy during the round.",
        needs=REFERENCE | {"moving_reference"},
        arguments={
            "beta": number(0.05, PULL, gt=0),
            "alpha": number(0.6, "Share of the policy in the new reference; 1 copies it (hard update).", gt=0, le=1),
            "tau": number(512, "Optimizer steps between updates; a shorter round is plain DPO.", ge=1, multiple_of=1),
        },
        notes="Soft (alpha below 1) and hard (alpha 1) updates share one clock, as in TRL; how often the paper's soft "
        "update comes is not certain. Distance to the first reference is no longer bounded by beta.",
    ),
}

ROWS: dict[str, Method] = {
    **rows_of("listwise", "groups", GROUPS),
    **rows_of("singles", "singles", SINGLES),
    **rows_of("stepwise", "pairs", PAIRS),
}
