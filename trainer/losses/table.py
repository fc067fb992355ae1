"""Room `trainer/`, the table of losses: name, function, arguments with their defaults, what the trainer must compute.

No torch here: the functions are imported when a round starts. Adding a loss is one function, one row, one test.
"""

from trainer.losses.method import Method, Need, choice, number

REFERENCE: frozenset[Need] = frozenset({"reference"})
BETA = number(0.1, "Strength of the pull towards the reference; higher keeps the policy closer to it.", gt=0)

METHODS: dict[str, Method] = {
    "dpo": Method(
        kind="pairs",
        function="trainer.losses.contrastive:dpo",
        paper="Rafailov et al. 2023, arXiv:2305.18290",
        about="Raises the chosen response's log-ratio to the reference above the rejected one's.",
        needs=REFERENCE,
        arguments={"beta": BETA},
    ),
    "nll": Method(
        kind="pairs",
        function="trainer.losses.likelihood:nll",
        paper="Pang et al. 2024, arXiv:2404.19733",
        about="Raises the chosen response's likelihood; usually added to another loss.",
        arguments={
            "normalise": choice("response", "Divide by the response's own length, or not at all.", "sum"),
        },
    ),
}
