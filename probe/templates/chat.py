"""The chat template of a tokenizer as a ``Template``: rendered in a process of its own, within limits, on one day.

A chat template is a program that comes with a model. It runs in jinja's sandbox, which keeps it from files and from
Python, but lets it loop for days or multiply strings until memory is full. So it runs in a process that is ended after
some seconds of work and may take only so much memory.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from functools import lru_cache
from typing import Any, Literal

from probe.templates.template import Bos, Template

DATE = "2025-04-10"
"""The day on which every chat template is rendered: that of OpenUnlearning's configuration of Llama 3."""

_QUESTION, _ANSWER = "QUESTION-GOES-HERE", "ANSWER-GOES-HERE"
# What rows may look like: blanks at both ends, several lines, markup.
_ODD = "  Is {it}\n\n<b>so</b>? "

# Seconds of work, bytes of memory beside what Python itself takes, and characters of a rendered text.
SECONDS, BYTES, CHARACTERS = 3.0, 1 << 30, 1_000_000

_CHILD = """
import json, signal, sys
from datetime import datetime
from transformers.utils import chat_template_utils

asked = json.load(sys.stdin)
dated = []

class Day(datetime):
    @classmethod
    def now(cls, tz=None):
        dated.append(True)
        return cls.fromisoformat(asked["date"])

chat_template_utils.datetime = Day
try:
    import resource
    with open("/proc/self/statm") as handle:
        taken = int(handle.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + asked["bytes"],) * 2)
except (ImportError, OSError, ValueError):
    pass
if hasattr(signal, "setitimer"):
    signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
texts, fault = [], None
try:
    for conversation, generation in asked["conversations"]:
        text, _ = chat_template_utils.render_jinja_template(
            conversations=[conversation], chat_template=asked["template"], add_generation_prompt=generation,
            **asked["tokens"],
        )
        if len(text[0]) > asked["characters"]:
            raise MemoryError
        texts.append(text[0])
except MemoryError:
    fault = "memory"
except Exception as error:
    fault = f"{type(error).__name__}: {error}"[:200]
json.dump({"texts": texts, "fault": fault, "dated": bool(dated)}, sys.stdout)
"""


def chat_template(
    tokenizer: Any,
    *,
    system: str | None = None,
    bos: Bos = "auto",
    convention: Literal["template", "open-unlearning"] = "template",
) -> tuple[Template, str | None]:
    """The tokenizer's chat template: one question of a user, one answer of the assistant.

    Prompt and end are what the template writes around an answer in a whole conversation, so that the tokens are those
    of ``apply_chat_template``; no bos is put before them but what the template writes itself. A template that asks for
    the date is told ``DATE``.

    Args:
        tokenizer: with a chat template.
        system: the system's message; None for none, where many templates write one of their own.
        bos: ``"always"`` puts a bos before what the template writes.
        convention: of the ``Template``.

    Returns:
        the template, and the date it was told, None if it did not ask.

    Raises:
        ValueError: no chat template, one that fails, takes too long or too much memory, that alters questions or
            answers, shows them more or less than once, or leaves out the system's message.

    >>> tokenizer = copy.deepcopy(s.tokenizer)
    >>> tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    >>> template, date = probe.chat_template(tokenizer)
    """
    source = _source(tokenizer)
    tokens = json.dumps(tokenizer.special_tokens_map)
    before: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]

    def turns(question: str, *answers: str) -> list[dict[str, str]]:
        return [
            *before,
            {"role": "user", "content": question},
            *({"role": "assistant", "content": answer} for answer in answers),
        ]

    asked = [
        (turns(_QUESTION, _ANSWER), False),
        (turns(_QUESTION), True),
        (turns(_ODD + _QUESTION + _ODD, _ODD + _ANSWER + _ODD), False),
    ]
    (whole, opened, odd), dated = rendered(source, tokens, json.dumps(asked))
    if whole.count(_QUESTION) != 1 or whole.count(_ANSWER) != 1 or whole.index(_QUESTION) > whole.index(_ANSWER):
        raise ValueError(
            "--template chat: the chat template shows question or answer more or less than once, or in another order; "
            "pass --prompt and --answer"
        )
    if system is not None and system.strip() not in whole:
        raise ValueError("--system: the chat template does not show a system message; pass --prompt instead")
    prompt, end = whole.split(_ANSWER)
    made = Template(
        prompt.replace(_QUESTION, "{question}"),
        "{answer}",
        end or None,
        bos="never" if bos == "auto" else bos,
        convention=convention,
    )
    for stripped in (False, True):
        found = Template(made.prompt, made.answer, made.end, made.bos, stripped, convention=convention)
        if found.asked(_ODD + _QUESTION + _ODD) + found.answered(_ODD + _ANSWER + _ODD) + end == odd:
            break
    else:
        raise ValueError("--template chat: the chat template alters questions or answers; pass --prompt and --answer")
    if opened != prompt:
        _warn_opening(opened, prompt)
    return found, DATE if dated else None


@lru_cache(maxsize=64)
def rendered(
    source: str,
    tokens: str,
    conversations: str,
    *,
    seconds: float = SECONDS,
    memory: int = BYTES,
) -> tuple[tuple[str, ...], bool]:
    """Conversations as a chat template writes them, in a process of its own; whether it asked for the date.

    Time is limited everywhere (work on Unix, the clock elsewhere), memory on Linux.

    Args:
        source: the chat template.
        tokens: the tokenizer's special tokens by name, as JSON.
        conversations: pairs of messages and whether a generation prompt is added, as JSON.
        seconds: of work.
        memory: bytes beside what Python itself takes.

    Raises:
        ValueError: the template fails, works longer, or takes more memory.
    """
    asked = {
        "template": source,
        "tokens": json.loads(tokens),
        "conversations": json.loads(conversations),
        "date": DATE,
        "seconds": seconds,
        "bytes": memory,
        "characters": CHARACTERS,
    }
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            # -P: a file of the working folder must not be taken for a module.
            [sys.executable, "-P", "-c", _CHILD],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            # Beyond work there is waiting on a machine that others use too.
            timeout=60 + 10 * seconds,
            env=quiet,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(_beyond(f"does not end within {60 + 10 * seconds:.0f} s")) from None
    if done.returncode == -getattr(signal, "SIGPROF", 0):
        raise ValueError(_beyond(f"does not end within {seconds:g} s of work"))
    if done.returncode:
        raise ValueError(_beyond(f"ends its process (exit {done.returncode}): {done.stderr.strip()[-120:]!r}"))
    found = json.loads(done.stdout)
    if found["fault"] == "memory":
        raise ValueError(_beyond(f"takes more than {memory >> 20} MB, or writes more than {CHARACTERS} characters"))
    if found["fault"]:
        raise ValueError(f"--template chat: the chat template fails ({found['fault']}); pass --prompt and --answer")
    return tuple(found["texts"]), found["dated"]


def _source(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("--template chat: the tokenizer has no chat template; choose another, or pass --prompt")
    found: str = tokenizer.get_chat_template()
    return found


def _beyond(what: str) -> str:
    way_out = "mend chat_template.jinja, or pass --prompt and --answer"
    return f"--template chat: the tokenizer's chat template {what}; {way_out}"


def _warn_opening(opened: str, prompt: str) -> None:
    a, b = opened.split(_QUESTION)[-1][-60:], prompt.split(_QUESTION)[-1][-60:]
    warnings.warn(
        f"the chat template opens an answer with {a!r}, and writes {b!r} before one that is given; the second is used, "
        "where text is generated too",
        stacklevel=4,
    )
