"""The judge contract: groups in, one verdict per response out; an abstention or an error never becomes a number."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from judges.context import JudgeContext, LocalModel, Usage
from judges.types import Example, Group, JudgeError, Prompt, Response, Verdict, describe, finite, unclosed


class Judge(BaseModel):
    """Base class: fields are the judge's arguments, validated when the config loads; the call returns verdicts. Derive
    from `PointwiseJudge` to judge single responses, from `PairwiseJudge` to compare two, from this class to see all
    together."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: ClassVar[str] = "1"
    """Incremented in a built-in judge whenever a score would change; a custom judge is versioned by its source."""

    costly: ClassVar[bool] = False
    """Whether a verdict costs money or minutes: then it is cached, and the same content is never judged again."""

    incidental: ClassVar[frozenset[str]] = frozenset()
    """Names of arguments that never change a verdict (a time limit) and so are not part of the fingerprint."""

    examples: ClassVar[tuple[Example, ...]] = ()
    """Known right and wrong answers, run by `self_test` before a campaign starts."""

    _context: JudgeContext = PrivateAttr(default_factory=JudgeContext)
    _identity: str = PrivateAttr(default="")

    @property
    def context(self) -> JudgeContext:
        """What the loop provides."""
        return self._context

    def bind(self, context: JudgeContext) -> None:
        """Called by the loop before judging, for this judge and its members."""
        self._context = context
        for member in self.members():
            member.bind(context)

    @property
    def needs(self) -> frozenset[str]:
        """What the loop must provide: `generate` (the policy), `engine` (`local_model`), `log_probs`, or nothing."""
        return frozenset[str]().union(*(member.needs for member in self.members()))

    @property
    def local_model(self) -> LocalModel | None:
        """The model to run in a separate engine, if `needs` contains `engine`."""
        return None

    def ready(self) -> None:
        """Raise JudgeError if the judge lacks something: a key, a library, a model. Makes no request."""
        for member in self.members():
            member.ready()

    def check_prompt(self, prompt: Prompt) -> None:
        """JudgeError if the prompt lacks what the judge needs, such as a target; called for each prompt before anything
        is sampled."""
        for member in self.members():
            member.check_prompt(prompt)

    def rest(self) -> None:
        """Called by the loop before training: free device memory until the next call."""
        for member in self.members():
            member.rest()

    @property
    def content_version(self) -> str:
        """What else decides a score, as part of the fingerprint: a template's hash, the members' versions."""
        return ""

    def cost(self, usage: Usage) -> float | None:
        """Cost of the usage in money; None if no price is set."""
        return None

    @property
    def longest_call(self) -> tuple[int, int, int]:
        """For a judge that asks a model: tokens of its own text in a question, responses shown, tokens of a reply."""
        return 0, 1, 0

    def calls_at_most(self, responses: int) -> int:
        """Maximum number of calls for a group of `responses`, votes and orders included."""
        return responses

    def known_examples(self) -> Sequence[Example]:
        """The examples for this judge as configured."""
        return self.examples

    def members(self) -> "Sequence[Judge]":
        """The judges that this one is made of; each is also tested before a campaign."""
        return ()

    @property
    def compares(self) -> bool:
        """Whether responses are judged against each other, so that all of a prompt's must be judged together."""
        return any(member.compares for member in self.members())

    def paid_for(self) -> "Iterator[Judge]":
        """The costly judges among this one and its members."""
        if self.costly:
            yield self
        for member in self.members():
            yield from member.paid_for()

    @abstractmethod
    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        """Return one list per group with one verdict per response, both in the given order."""


class PointwiseJudge(Judge):
    """A judge of single responses: implement `one`."""

    isolated: ClassVar[bool] = False
    """Whether `one` runs in child processes that can be killed: for foreign code that may hang, crash or eat memory.
    Such verdicts are not cached: a judge is isolated or `costly`, not both."""

    time_limit: ClassVar[float] = 10.0
    """Isolated: seconds that one response may take; then it gets an error and its process is killed."""

    memory_limit: ClassVar[float] = 2.0
    """Isolated: GiB of memory that a child process may use (on Linux); a response that needs more gets an error."""

    instant: ClassVar[bool] = False
    """Whether `one` costs next to nothing: then it is tried on an empty response to each prompt before anything is
    sampled, and a JudgeError is told at once."""

    def check_prompt(self, prompt: Prompt) -> None:
        if self.instant:
            self.judged(prompt, Response("", "", "stop"))

    @abstractmethod
    def one(self, prompt: Prompt, response: Response) -> Verdict | float | bool:
        """Judge one response; a plain number is a score, a bool is 1.0 or 0.0."""

    def warm_up(self) -> None:
        """Import what `one` needs; called once in each child process of an isolated judge before it judges."""

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        return [[self.judged(group.prompt, response) for response in group.responses] for group in groups]

    def judged(
        self, prompt: Prompt, response: Response, passing: tuple[type[BaseException], ...] = (JudgeError,)
    ) -> Verdict:
        """The verdict of `one`; an error if it raises, unless the exception is one of `passing`."""
        self.context.on_item(f"response {response.id}")
        try:
            verdict = self.one(prompt, response)
            return verdict if type(verdict) is Verdict else Verdict.of(finite(verdict, "what one() returns"))
        except passing:
            raise  # JudgeError: the data or the arguments are at fault, not this response
        except (Exception, SystemExit) as error:  # noqa: BLE001  the boundary to foreign code: a failure is no score
            return Verdict.error(describe(error, near=type(self).one.__code__.co_filename))
        finally:
            self.context.on_item("")


class BatchJudge(PointwiseJudge):
    """A judge of the answers of single responses, many in one call: implement `many`."""

    @abstractmethod
    def many(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        """One verdict per prompt and response, in order; the responses hold no thoughts."""

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        return self([Group(prompt, (response,))])[0][0]

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        items = [(group.prompt, response) for group in groups for response in group.responses]
        verdicts = iter(self.many([(prompt, one.alone) for prompt, one in items if one.answer is not None]))
        found = iter([unclosed("abstain") if one.answer is None else next(verdicts) for _, one in items])
        return [[next(found) for _ in group.responses] for group in groups]
