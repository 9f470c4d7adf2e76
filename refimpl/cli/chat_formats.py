"""How a conversation is written for the models that were tuned on one.

None of these models brings a template in its files: the forms stand in their model cards and in the programs that
trained them, which are named with each.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from refimpl.cli import terminal
from refimpl.errors import InputError, quote


@dataclass(frozen=True)
class ChatFormat:
    """The text around what is said.

    A conversation is `system`, then for each turn `before`, what the user says, `between`, the reply and `after`.
    The model is asked where `between` has just been written.

    Args:
        name: of the format.  models: whose it is.
        before, between, after: see above.  The last reply has no `after` yet.
        stops: what the model writes when it goes on for the user; a reply ends before it.
        system: around the system text, which stands at `{}`; None: the format has no place for one.
        default_system: the system text where nobody gives one.
        line_break: what the model reads and writes for a line break, where its tokenizer knows none.
        names: a model is known by all words of one of these in its name.
    """

    name: str
    models: str
    before: str
    between: str
    after: str
    stops: tuple[str, ...] = ()
    system: str | None = None
    default_system: str = ""
    line_break: str | None = None
    names: tuple[tuple[str, ...], ...] = ()

    def opening(self, system: str) -> str:
        """What stands before the first turn."""
        return self.system.format(self._said(system)) if system and self.system is not None else ""

    def turn(self, user: str) -> str:
        """What the model reads before it replies."""
        return self.before + self._said(user) + self.between

    def shown(self, text: str) -> str:
        """A reply as people read it."""
        return text if self.line_break is None else text.replace(self.line_break, "\n")

    def _said(self, text: str) -> str:
        return text if self.line_break is None else text.replace("\n", self.line_break)


PLAIN = ChatFormat(
    name="plain",
    models="base models: you and the model write lines of one text in turns",
    before="",
    between="\n",
    after="\n",
    stops=("\n",),
    system="{}\n",
)

FORMATS = (
    # https://huggingface.co/rinna/japanese-gpt-neox-3.6b-instruction-ppo
    ChatFormat(
        name="rinna",
        models="rinna/japanese-gpt-neox-3.6b-instruction-sft, -sft-v2, -ppo",
        before="ユーザー: ",
        between="<NL>システム: ",
        after="<NL>",
        stops=("<NL>ユーザー:",),
        line_break="<NL>",
        names=(("japanese-gpt-neox", "instruction"),),
    ),
    # https://huggingface.co/rinna/bilingual-gpt-neox-4b-instruction-ppo
    ChatFormat(
        name="rinna-bilingual",
        models="rinna/bilingual-gpt-neox-4b-instruction-sft, -ppo",
        before="ユーザー: ",
        between="\nシステム: ",
        after="\n",
        stops=("\nユーザー:",),
        names=(("bilingual-gpt-neox", "instruction"),),
    ),
    # https://huggingface.co/line-corporation/japanese-large-lm-3.6b-instruction-sft
    ChatFormat(
        name="line",
        models="line-corporation/japanese-large-lm-3.6b-instruction-sft",
        before="ユーザー: ",
        between="\nシステム: ",
        after="\n",
        stops=("\nユーザー:", " ユーザー:"),  # its tokenizer makes a space of a line break
        names=(("japanese-large-lm", "instruction"),),
    ),
    # https://github.com/databrickslabs/dolly, training/consts.py
    ChatFormat(
        name="dolly",
        models="databricks/dolly-v2-3b, -7b, -12b",
        before="### Instruction:\n",
        between="\n\n### Response:\n",
        after="\n\n### End\n\n",
        stops=("### End", "### Instruction:"),
        system="{}\n\n",
        default_system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        names=(("dolly",),),
    ),
    # https://github.com/LAION-AI/Open-Assistant, model/model_training/custom_datasets/formatting.py
    ChatFormat(
        name="oasst",
        models="OpenAssistant/oasst-sft-1-pythia-12b, oasst-sft-4-pythia-12b-epoch-3.5",
        before="<|prompter|>",
        between="<|endoftext|><|assistant|>",
        after="<|endoftext|>",
        stops=("<|endoftext|>", "<|prompter|>"),
        system="<|system|>{}<|endoftext|>",
        names=(("oasst",),),
    ),
    # https://huggingface.co/togethercomputer/RedPajama-INCITE-Chat-3B-v1
    ChatFormat(
        name="redpajama",
        models="togethercomputer/RedPajama-INCITE-Chat-3B-v1, RedPajama-INCITE-7B-Chat",
        before="<human>: ",
        between="\n<bot>:",
        after="\n",
        stops=("\n<human>:", "<human>:"),
        names=(("redpajama", "chat"),),
    ),
    PLAIN,
)

BY_NAME = {form.name: form for form in FORMATS}


def format_of(name: str | None, model: str) -> ChatFormat:
    """The format of that name; without one, that of the model, by its name.  Raises: InputError."""
    if name is None:
        words = model.lower()
        known = (form for form in FORMATS for parts in form.names if all(part in words for part in parts))
        return next(known, PLAIN)
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        raise InputError(
            "unknown prompt format",
            found=quote(name),
            allowed=", ".join(BY_NAME),
            hint=f"Did you mean {near[0]}?" if near else "--format help shows them.",
        )
    return BY_NAME[name]


def listing() -> str:
    """All formats, with a conversation in each."""
    parts = []
    for form in FORMATS:
        text = form.opening(form.default_system or ("SYSTEM" if form.system else ""))
        text += form.turn("USER") + "REPLY" + form.after + form.turn("USER")
        shown = "".join(f"    {line}\n" for line in text.split("\n"))
        parts.append(f"{form.name}: {form.models}\n{shown}")
    return terminal.visible("\n".join(parts))
