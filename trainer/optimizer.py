"""The optimizer of a round by name, its states as flat tensors for checkpoints, and the learning rate of a step, which
depends on the step alone, so resuming needs no state of a scheduler."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.choices import Arguments, Moment, not_installed, shape
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.settings import TrainSettings

Parameters = Mapping[str, nn.Parameter]


class Optimizer:
    """One or two optimizers of torch, each for its part of the parameters."""

    def __init__(self, parameters: Parameters, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.names = {id(parameter): name for name, parameter in parameters.items()}

    def step(self, rate: float) -> None:
        """Update the weights at this learning rate, and drop the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                if isinstance(group["lr"], Tensor):  # torchao's, which compiles the update
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def states(self) -> dict[str, Tensor]:
        """Every tensor of the states, by the parameter's name and the state's, divided by `|`."""
        flat: dict[str, Tensor] = {}
        for part in self.parts:
            for parameter, entry in part.state.items():
                for key, value in entry.items():
                    label = f"{self.names[id(parameter)]}|{key}"
                    if hasattr(value, "__tensor_flatten__") and hasattr(value, "codes"):
                        flat |= {f"{label}|{name}": getattr(value, name).clone() for name in value.tensor_attrs}
                    elif value is not None:
                        flat[label] = value
        return flat

    def load(self, flat: Mapping[str, Tensor]) -> None:
        """Put the states of a checkpoint back."""
        by_name: dict[str, dict[str, Any]] = {}
        for label, value in flat.items():
            name, key, *inner = label.split("|")
            entry = by_name.setdefault(name, {})
            if inner:
                entry.setdefault(key, {})[inner[0]] = value
            else:
                entry[key] = value
        for part in self.parts:
            listed = [parameter for group in part.param_groups for parameter in group["params"]]
            entries = {at: by_name.get(self.names[id(parameter)]) for at, parameter in enumerate(listed)}
            state = {at: _quantised(entry) for at, entry in entries.items() if entry is not None}
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def make_optimizer(learner: Learner, settings: TrainSettings) -> Optimizer:
    """The optimizer of the settings. TrainerError if its package is not installed."""
    name, arguments = settings.chosen_optimizer
    if missing := not_installed(name):
        raise TrainerError(missing)
    parameters = learner.parameters()
    matrices = _hidden_matrices(learner) if name == "muon" else set()
    first = [parameter for key, parameter in parameters.items() if key in matrices or name != "muon"]
    rest = [parameter for key, parameter in parameters.items() if key not in matrices and name == "muon"]
    parts = [MAKERS[name](first, settings, arguments)] if first else []
    return Optimizer(parameters, [*parts, *([_adamw(rest, settings, {})] if rest else [])])


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Rate of step 0 ... total - 1: linear warm-up, then the schedule, which ends just after the last step."""
    warmup = math.ceil(settings.warmup_share * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    name, arguments = settings.chosen_schedule
    return settings.learning_rate * shape(name, arguments, Moment(step, warmup, total, settings.learning_rate))


def _adamw(parameters: list[nn.Parameter], settings: TrainSettings, arguments: Arguments) -> torch.optim.Optimizer:
    """The fused kernel is the fastest on CPU and CUDA and repeats exactly."""
    return torch.optim.AdamW(parameters, **_adam_arguments(settings), fused=True)


def _adamw_8bit(parameters: list[nn.Parameter], settings: TrainSettings, arguments: Arguments) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(parameters, **_adam_arguments(settings), **arguments)
    return made


def _muon(parameters: list[nn.Parameter], settings: TrainSettings, arguments: Arguments) -> torch.optim.Optimizer:
    """With updates scaled to the size of AdamW's, so that both parts share one learning rate."""
    lr, decay = settings.learning_rate, settings.weight_decay
    return torch.optim.Muon(parameters, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw", **arguments)


def _sgd(parameters: list[nn.Parameter], settings: TrainSettings, arguments: Arguments) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, **arguments)


def _adafactor(parameters: list[nn.Parameter], settings: TrainSettings, arguments: Arguments) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, **arguments)


MAKERS: dict[str, Callable[[list[nn.Parameter], TrainSettings, Arguments], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "muon": _muon,
    "sgd": _sgd,
    "adafactor": _adafactor,
}


def _adam_arguments(settings: TrainSettings) -> dict[str, Any]:
    return {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }


def _hidden_matrices(learner: Learner) -> set[str]:
    """Names of the matrices between embeddings and output head."""
    networks = [learner.model, *([] if learner.value is None else [learner.value])]
    apart = {
        id(module.weight) for network in networks for module in network.modules() if isinstance(module, nn.Embedding)
    }
    model: Any = learner.model
    if (head := model.get_output_embeddings()) is not None:
        apart |= {id(parameter) for parameter in head.parameters()}
    return {
        name
        for name, parameter in learner.parameters().items()
        if parameter.dim() == 2 and min(parameter.shape) > 1 and id(parameter) not in apart
    }


def _quantised(entry: dict[str, Any]) -> dict[str, Any]:
    """The states of a parameter, with torchao's tensors of 8 bits made of their parts; the first moment has signs."""
    found = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            from torchao.optim.subclass_8bit import OptimState8bit

            value = OptimState8bit(value["codes"], value["scale"], value["qmap"], key == "exp_avg")
        found[key] = value
    return found
