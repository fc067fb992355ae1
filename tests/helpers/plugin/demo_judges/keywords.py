"""Judge "keywords": how many of the words one expects are there?"""

from demo_judges.counting import found
from judges import Example, PointwiseJudge, Prompt, Response


class Keywords(PointwiseJudge):
    """The share of the expected words that the response holds."""

    words: tuple[str, ...] = ("because", "therefore")
    """Words that are expected; each counts alike."""

    examples = (Example.on(None, "So it is, because it must.", 0.5, {}),)

    def one(self, prompt: Prompt, response: Response) -> float:
        return found(self.words, response.text) / len(self.words)
