"""Room judges, one question to a language model: a prompt and its response(s) come in, texts for a template go out."""

from collections.abc import Sequence
from dataclasses import dataclass

from judges.contract import Prompt, Response
from judges.llm_template import code_for, fenced

CUT_OFF = "\n(It was cut off here, at its length limit.)"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the model once: about these responses, in this order, for the so-manieth time."""

    prompt: Prompt
    responses: tuple[Response, ...]
    vote: int

    def code(self, key: str, columns: Sequence[str]) -> str:
        """The code of the marks: of the question's key, and in none of the texts that are shown."""
        shown = (str(self.prompt.columns.get(name)) for name in columns)
        texts = (response.text for response in self.responses)
        return code_for(key, [conversation(self.prompt), str(self.prompt.target), *shown, *texts])

    def shown(self, names: Sequence[str], code: str) -> list[str]:
        """The responses between their marks; one that was cut off is said to be."""
        return [
            fenced(name, response.text, code) + (CUT_OFF if response.finish_reason == "length" else "")
            for name, response in zip(names, self.responses, strict=True)
        ]


def conversation(prompt: Prompt) -> str:
    """What was asked: the text of a single message, or all messages with their roles."""
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt.messages)
