from judges import Example, PointwiseJudge, Prompt, Response, Verdict


class ShortAnswer(PointwiseJudge):
    """Right if the response names the known answer, in at most `most` characters."""

    most: int = 40

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        if prompt.target is None:
            return Verdict.abstain("the prompt has no known answer")
        text = response.text.strip()
        short = len(text) <= self.most
        named = prompt.target.lower() in text.lower()
        why = f"{len(text)} characters, {prompt.target} {'named' if named else 'not named'}"
        return Verdict.of(short and named, why=why, well_formed=short)

    def known_examples(self) -> list[Example]:
        return [Example.on("Paris", "It is Paris.", 1.0), Example.on("Paris", "Paris, " * 20, 0.0)]
