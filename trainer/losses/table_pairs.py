"""Rows of the losses over pairs, except those over `Δ` (`table_contrastive.py`). No torch here."""

from trainer.losses.method import Method, choice, flag, number, rows_of
from trainer.losses.table_contrastive import BETA, PULL, REFERENCE
from trainer.losses.table_contrastive import ROWS as CONTRASTIVE_ROWS

NLL = choice(
    "response", "Divide by the response's own length, by the mean length in the step, or not at all.", "step", "sum"
)
ETA = number(1000.0, "Targets are η(P - 1/2); higher moves further. 1/`beta` in TRL and the authors' code.", gt=0)
COMBINE = choice("sum", "Add both squares (paper), or take their mean (authors' code).", "mean")

LOG_RATIO_ROWS: dict[str, Method] = {
    "dpop": Method(
        paper="Pal et al. 2024, arXiv:2402.13228",
        about="DPO that does not let the chosen response fall below the reference.",
        needs=REFERENCE,
        arguments={
            "beta": number(0.3, PULL, gt=0),
            "penalty": number(
                50.0, "The paper's λ: penalty per nat by which the chosen response is below the reference.", ge=0
            ),
        },
        notes="oat agrees with the paper; turbo-alignment has 0.1 for λ. With 50 the gradients need clipping.",
    ),
    "sppo": Method(
        paper="Wu et al. 2024, arXiv:2405.00675",
        about="Regresses each log-ratio to the response's win rate over the prompt's responses.",
        needs=REFERENCE | {"win_rates"},
        arguments={"eta": ETA, "combine": COMBINE},
        notes="Win rates as estimated by the paper, a response against itself counting 1/2. The paper adds both "
        "squares, the authors' code takes their mean.",
    ),
    "sppo_hard": Method(
        paper="Wu et al. 2024, arXiv:2405.00675",
        about="SPPO with win rates 1 and 0.",
        needs=REFERENCE,
        arguments={"eta": ETA, "combine": COMBINE},
        notes="As in TRL, which adds both squares.",
    ),
    "sppo_single": Method(
        paper="Wu et al. 2024, arXiv:2405.00675",
        about="SPPO with the probability of this one preference.",
        needs=REFERENCE | {"probability"},
        arguments={"eta": ETA, "combine": COMBINE},
        notes="Only in the authors' code, which takes the mean of both squares.",
    ),
    "apo_zero": Method(
        paper="D'Oosterlinck et al. 2024, arXiv:2408.06266",
        about="Chosen up, rejected down: for chosen responses that are better than the policy's own.",
        needs=REFERENCE,
        arguments={"beta": BETA},
        notes="The form in TRL.",
    ),
    "apo_down": Method(
        paper="D'Oosterlinck et al. 2024, arXiv:2408.06266",
        about="Both down, rejected further: for chosen responses that are worse than the policy's own.",
        needs=REFERENCE,
        arguments={"beta": BETA},
        notes="The form in TRL. It lowers the chosen response on purpose.",
    ),
    "nca": Method(
        paper="Chen et al. 2024, arXiv:2402.05369",
        about="Raises the chosen response's own likelihood to a cap while it lowers the rejected one's.",
        needs=REFERENCE,
        arguments={"beta": number(0.01, PULL, gt=0)},
        notes="The pair form with hard labels. The authors' code adds 0.01 to the first response's label.",
    ),
    "bco_pair": Method(
        paper="Jung et al. 2024, arXiv:2404.04656",
        about="Two classifiers, chosen against 0 and rejected against 0.",
        needs=REFERENCE,
        arguments={"beta": BETA},
        notes="As in TRL's DPO: without the shift (a running mean of rewards) of the paper and LLaMA-Factory.",
    ),
    "mpo": Method(
        paper="Wang et al. 2024, arXiv:2411.10442",
        about="DPO, BCO and NLL in one weighted sum.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "preference_weight": number(0.8, "Weight of `dpo`.", ge=0),
            "quality_weight": number(0.2, "Weight of `bco_pair`.", ge=0),
            "nll_weight": number(1.0, "Weight of `nll`.", ge=0),
            "normalise": NLL,
        },
        notes="BCO without its shift, as in TRL, whose NLL is a mean over tokens (`normalise: step`).",
    ),
}

TOKEN_LEVEL_ROWS: dict[str, Method] = {
    "tdpo1": Method(
        paper="Zeng et al. 2024, arXiv:2404.11999",
        about="DPO with the difference of both responses' KL to the reference in the margin.",
        needs=REFERENCE | {"sequence_kl"},
        arguments={"beta": BETA},
        notes="Rewards a high KL of the chosen response, which `tdpo2` avoids. The default of the authors' code.",
    ),
    "tdpo2": Method(
        paper="Zeng et al. 2024, arXiv:2404.11999",
        about="The same with a weight, and no gradient through the chosen response's KL.",
        needs=REFERENCE | {"sequence_kl"},
        arguments={
            "beta": BETA,
            "alpha": number(0.5, "Weight of the KL difference; 0 is DPO, higher keeps KLs low.", ge=0),
        },
        notes="The README of the authors' code presents it as the default, its config does not.",
    ),
    "wpo": Method(
        paper="Zhou et al. 2024, arXiv:2406.11827",
        about="DPO in which pairs that the policy is unlikely to sample count less.",
        needs=REFERENCE | {"collision"},
        arguments={"beta": number(0.01, PULL, gt=0), "clamp": flag(True, "Limit the weight of a pair to 1.")},
        notes="The authors' code limits the weight to 1, TRL no longer does.",
    ),
    "ld_dpo": Method(
        paper="Liu et al. 2024, arXiv:2409.06411",
        about="DPO in which the longer response's surplus tokens count less.",
        needs=REFERENCE | {"tokens"},
        arguments={
            "beta": BETA,
            "alpha": number(0.5, "Weight of the surplus tokens; 1 is DPO, 0 ignores them.", ge=0, le=1),
            "apply_to": choice("both", "Policy and reference, or the policy only.", "policy"),
        },
        notes="TRL applies it to both; older TRL and LLaMA-Factory to the policy only, so margins do not start at 0.",
    ),
}

REFERENCE_FREE_ROWS: dict[str, Method] = {
    "slic": Method(
        paper="Zhao et al. 2023, arXiv:2305.10425",
        about="Hinge of the difference of log-probs, plus the chosen response's likelihood.",
        arguments={
            "delta": number(1.0, "Margin in nats, between sums; higher requires more.", ge=0),
            "nll_weight": number(0.1, "Weight of the chosen response's likelihood, a sum over its tokens.", ge=0),
        },
        notes="The regularisation target is the chosen response; the paper also uses a separate one and does not state "
        "λ (HALOs: 0.1). TRL's `hinge` is not SLiC but `hinge`.",
    ),
    "hinge_raw": Method(
        paper="Liu et al. 2023 (RSO), arXiv:2309.06657",
        about="Hinge of the difference of log-probs, without a reference.",
        arguments={"gamma": number(0.05, "Higher requires a smaller difference of log-probs.", gt=0)},
        notes="The paper calls it hinge; in TRL `hinge` has a reference, as here.",
    ),
    "cpo": Method(
        paper="Xu et al. 2024, arXiv:2401.08417",
        about="DPO without a reference, plus the chosen response's likelihood.",
        arguments={
            "beta": number(0.1, "Scale of the difference of log-probs; higher requires less of it.", gt=0),
            "nll_weight": number(1.0, "Weight of the chosen response's likelihood; `cpo_alpha` in TRL.", ge=0),
            "normalise": NLL,
        },
        notes="The paper's NLL is a sum, TRL's a mean over the batch's tokens (`step`). The trainer in ALMA's "
        "repository now computes another method, ARPO.",
    ),
    "simpo": Method(
        paper="Meng et al. 2024, arXiv:2405.14734",
        about="Pushes mean token log-probs apart by a margin, without a reference.",
        arguments={
            "beta": number(2.0, "Scale of the difference of mean log-probs.", gt=0),
            "gamma_beta_ratio": number(0.25, "Target margin in nats per token; higher requires more.", ge=0),
        },
        notes="The margin is a ratio, as in the authors' code and HALOs; TRL's, LLaMA-Factory's and fairseq2's `gamma` "
        "is `beta` times that.",
    ),
    "orpo": Method(
        paper="Hong et al. 2024, arXiv:2403.07691",
        about="Likelihood of the chosen response plus the log odds ratio of both.",
        arguments={"odds_weight": number(0.1, "The paper's λ, `beta` in TRL: weight of the odds ratio.", ge=0)},
        notes="NLL over the response's tokens, as in LLaMA-Factory; the authors' code and TRL include the prompt, and "
        "TRL takes one mean over all tokens.",
    ),
    "nll": Method(
        paper="Pang et al. 2024, arXiv:2404.19733",
        about="Raises the chosen response's likelihood; usually added to another loss.",
        arguments={"normalise": NLL},
        notes="`response`: paper, OpenRLHF, LLaMA-Factory, oat. `step`: TRL (`sft`) and fairseq2, there over a "
        "micro-batch. `sum`: NeMo-RL. Added to `dpo` it is the loss of Iterative RPO, and of RPO (arXiv:2405.16436).",
    ),
    "unlikelihood": Method(
        paper="Welleck et al. 2019, arXiv:1908.04319, as a baseline of arXiv:2305.18290",
        about="Chosen likelihood up, rejected likelihood down, without a bound.",
        arguments={"alpha": number(0.1, "Weight of the rejected response; towards 1 text degenerates.", ge=0, le=1)},
        notes="The form of DPO's experiments, which lowers log π rather than raising log(1 - π); their α is not known.",
    ),
}

ROWS: dict[str, Method] = {
    **rows_of("contrastive", "pairs", CONTRASTIVE_ROWS),
    **rows_of("log_ratios", "pairs", LOG_RATIO_ROWS),
    **rows_of("token_level", "pairs", TOKEN_LEVEL_ROWS),
    **rows_of("reference_free", "pairs", REFERENCE_FREE_ROWS),
}
