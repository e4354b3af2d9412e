"""Reasoning between <think> and </think> before the answer, as DeepSeek, Qwen and others write it, told apart from the answer.

What comes out depends on the text alone, not on how it is cut into pieces.
"""

from dataclasses import dataclass

from quire.text.detokenizer import overlap

BEGIN, END = "<think>", "</think>"
MARKS = (BEGIN, END)


@dataclass(frozen=True)
class Split:
    """New text: of the reasoning, and of the answer."""

    reasoning: str = ""
    answer: str = ""


def shows_reasoning(template: str) -> bool:
    """Whether the model of this chat template may reason so."""
    return BEGIN in template or END in template


def has_begun(prompt: str) -> bool:
    """Whether the output of this prompt is reasoning from its first character on."""
    return prompt.rstrip().endswith(BEGIN)


class ThinkSplitter:
    """Splits one output.

    prompt  of which this is the output: its end tells whether the model is already reasoning
    """

    def __init__(self, prompt: str = "") -> None:
        self._mark = END if has_begun(prompt) else BEGIN  # what is looked for; "" = nothing any more
        self._held = ""
        self._at_start = True  # whitespace here is not shown: of the reasoning, or of the answer after it
        self.reasoned = self._mark == END  # there is reasoning, if only an empty one

    def push(self, text: str) -> Split:
        """What is certain after this much more text."""
        reasoning = ""
        text = self._held + text
        self._held = ""
        if self._mark == BEGIN:
            if text.lstrip()[: len(BEGIN)] != BEGIN[: len(text.lstrip())]:
                self._mark, self._at_start = "", False  # it begins with its answer
            elif len(text.lstrip()) < len(BEGIN):
                self._held = text
                return Split()
            else:
                self._mark, text = END, text.lstrip()[len(BEGIN) :]
                self.reasoned = True
        if self._mark == END:
            reasoning, text = self._push_reasoning(text)
        return Split(reasoning, self._shown(text) if not self._mark else "")

    def finish(self) -> Split:
        """The rest, when the text has ended."""
        held, self._held = self._held, ""
        return Split(reasoning=held) if self._mark == END else Split(answer=held)

    def _push_reasoning(self, text: str) -> tuple[str, str]:
        """Reasoning that is certain, and the answer after it."""
        at = text.find(END)
        if at >= 0:
            reasoning = self._shown(text[:at])
            self._mark, self._at_start = "", True
            return reasoning, text[at + len(END) :]
        held = overlap(text, END)
        self._held = text[len(text) - held :]
        return self._shown(text[: len(text) - held]), ""

    def _shown(self, text: str) -> str:
        """The text without the line breaks that stand at its start."""
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        return text
