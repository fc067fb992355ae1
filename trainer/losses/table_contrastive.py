"""Table rows of the losses over `Δ` (functions in `contrastive.py`). No torch here."""

from trainer.losses.method import Method, Need, choice, number

REFERENCE: frozenset[Need] = frozenset({"reference"})
PULL = "Strength of the pull towards the reference; higher keeps the policy closer to it."
BETA = number(0.1, PULL, gt=0)

ROWS: dict[str, Method] = {
    "dpo": Method(
        paper="Rafailov et al. 2023, arXiv:2305.18290",
        about="Raises the chosen response's log-ratio to the reference above the rejected one's.",
        needs=REFERENCE,
        arguments={"beta": BETA},
        notes="Sums of token log-probs. Also the loss of SPIN (its λ is `beta`), of DNO-Prct and RSO's sigmoid-norm "
        "(`beta: 0.05`). TRL's `label_smoothing` made it `cdpo` until February 2026 and is ignored since.",
    ),
    "cdpo": Method(
        paper="Mitchell 2023, A note on DPO with noisy preferences",
        about="DPO with smoothed labels: pulls the margin to a finite target.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "label_smoothing": number(0.1, "Assumed share of wrong labels; higher lowers the target.", ge=0, lt=0.5),
        },
        notes="Published as a note and as `label_smoothing` of the original DPO code. RLHFlow uses 0.1, HALOs 0.2.",
    ),
    "robust": Method(
        paper="Chowdhury et al. 2024, arXiv:2403.00409",
        about="DPO whose expectation is that of clean labels when a known share of them is flipped.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "label_smoothing": number(0.1, "Share of flipped labels; higher trusts each label less.", ge=0, lt=0.5),
        },
        notes="The form in TRL (`robust`). Not bounded below: its gradient never vanishes.",
    ),
    "dno": Method(
        paper="Rosset et al. 2024, arXiv:2404.03715",
        about="DPO with soft labels from the difference of both win rates.",
        needs=REFERENCE | {"win_rates"},
        arguments={"eta": number(0.1, "The paper's η; DPO's `beta`.", gt=0)},
        notes="The paper's ideal step (eq. 8). What the paper trains, DNO-Prct, is `dpo` on pairs filtered by score.",
    ),
    "gpo": Method(
        paper="Tang et al. 2024, arXiv:2402.05749",
        about="Any classification loss of the margin: DPO, IPO and hinge are members.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "shape": choice(
                "logistic",
                "The classification loss.",
                "hinge",
                "squared",
                "exponential",
                "truncated_quadratic",
                "savage",
            ),
        },
        notes="`squared` is IPO with `beta` = 2τ, times `beta`². The best `beta` differs per shape: compare at equal "
        "slope in 0. `savage` is not convex; `exponential` has no gradient below a margin of -30.",
    ),
    "hinge": Method(
        paper="Liu et al. 2023 (RSO), arXiv:2309.06657",
        about="Hinge of the margin: pairs that are far enough apart no longer count.",
        needs=REFERENCE,
        arguments={"beta": number(0.05, "The paper's γ; higher requires a smaller difference of log-ratios.", gt=0)},
        notes="RSO's hinge-norm, the `hinge` of TRL and torchtune's RSOLoss. SLiC has no reference: see `slic`.",
    ),
    "ipo": Method(
        paper="Azar et al. 2023, arXiv:2310.12036",
        about="Regresses the difference of log-ratios to a fixed target, which bounds it.",
        needs=REFERENCE,
        arguments={
            "tau": number(0.1, "Target 1/(2τ); higher keeps the policy closer to the reference. `beta` in TRL.", gt=0),
            "normalise": choice("mean", "Log-ratios as means over a response's tokens, or as sums.", "sum"),
        },
        notes="Eq. 17 is written with sums (OpenRLHF, original DPO code); the authors' results reportedly use means "
        "(TRL, HALOs, LLaMA-Factory, oat). With means, τ sets a gap per token: tune it for each convention.",
    ),
    "online_ipo": Method(
        paper="Calandriello et al. 2024, arXiv:2403.08635",
        about="IPO with the probability of the preference, on two samples of the policy.",
        needs=REFERENCE | {"probability"},
        arguments={"tau": number(1.0, "Target (2p-1)/(2τ); higher keeps the policy closer to the reference.", gt=0)},
        notes="Sums of token log-probs. With certain preferences it is `ipo` with `normalise: sum`.",
    ),
    "r_dpo": Method(
        paper="Park et al. 2024, arXiv:2403.19159",
        about="DPO in which a length difference explains part of the preference.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "alpha": number(0.01, "Margin per token that the chosen response is longer; higher shortens.", ge=0),
        },
        notes="Sums, as in the paper; oat's `LR_DPO` adds the same term to token means.",
    ),
    "dpo_norm": Method(
        paper="Lambert et al. 2024 (Tülu 3), arXiv:2411.15124",
        about="DPO over means of token log-ratios, so that length does not add to the margin.",
        needs=REFERENCE,
        arguments={
            "beta": number(
                5.0, "As in `dpo`, but larger by about a response's length, because log-ratios are per token.", gt=0
            )
        },
        notes="`sigmoid_norm` in TRL. Not RSO's sigmoid-norm, which is `dpo`.",
    ),
    "f_dpo": Method(
        paper="Wang et al. 2023, arXiv:2309.16240",
        about="DPO with another divergence from the reference instead of the reverse KL.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "divergence": choice("reverse_kl", "The divergence.", "forward_kl", "js_divergence", "alpha_divergence"),
            "alpha": number(
                0.5, "For `alpha_divergence`: near 0 is the reverse KL, near 1 the forward KL.", gt=0, lt=1
            ),
        },
        notes="α as in the paper; TRL's is 1 - α. Exponents are held at 80; a response beyond that has no gradient.",
    ),
    "exo": Method(
        paper="Ji et al. 2024, arXiv:2402.00856",
        about="Reverse KL from the policy's preference to a smoothed label.",
        needs=REFERENCE,
        arguments={
            "beta": BETA,
            "label_smoothing": number(1e-3, "For `normalised`: the rejected response's label.", gt=0, lt=0.5),
            "labels": choice("normalised", "Log-labels log(1-ε) and log ε, or 0 and -10 (`official`).", "official"),
        },
        notes="TRL normalises the labels; the authors' code has 0 and -10. Their scripts set beta by dataset: 0.5 for "
        "HH and TL;DR, 0.1 for IMDB, as in the paper. Badly ranked pairs have no gradient, unlike in DPO.",
    ),
    "discopop": Method(
        paper="Lu et al. 2024, arXiv:2406.08414",
        about="A loss found by search: logistic below a margin of 0, exponential above.",
        needs=REFERENCE,
        arguments={
            "beta": number(0.05, PULL, gt=0),
            "tau": number(0.05, "Width of the transition between both losses.", gt=0, le=1),
        },
        notes="As in TRL: the gradient flows through the mixing weight. Not convex.",
    ),
    "rebel": Method(
        paper="Gao et al. 2024, arXiv:2404.16767",
        about="Regresses the difference of log-ratios to the difference of scores.",
        needs=REFERENCE | {"scores"},
        arguments={
            "eta": number(1.0, "Step size; higher moves further for the same difference of scores.", gt=0),
            "form": choice("paper", "The paper's scale, or that of the authors' code: η² times as much.", "code"),
        },
        notes="Paper and code differ by the factor η², i.e. in learning rate. The reference is the previous iterate.",
    ),
    "xpo": Method(
        paper="Xie et al. 2024, arXiv:2405.21046",
        about="DPO with a bonus for making a sample of the reference less likely: exploration.",
        needs=REFERENCE | {"origin"},
        arguments={
            "beta": BETA,
            "alpha": number(1e-5, "Weight of the bonus, which is a sum over tokens; higher explores more.", ge=0),
        },
        notes="The paper gives schedules for α; TRL uses 1e-5, oat 5e-6. The bonus is not bounded below.",
    ),
}
