"""The text side of prompts: class names among learned vectors, read by the frozen text tower.

    text of class c = [start, v_1 ... v_M, name_c, end],   or with the name in the middle or in front

Letters: C classes, M vectors in a context, D the width of the text tower, E that of the features.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import CLIP
from vtlite.backbones.tokenizer import WordTokenizer, words_of
from vtlite.method import Method, short
from vtlite.methods.adapter.two_towers import FixedTexts
from vtlite.storage import VTError, said
from vtlite.task import Classification, Task

Position = Literal["end", "middle", "front"]  # where the class name stands


class Texts(nn.Module):
    """Contexts [..., C or 1, M, D] -> text features [..., C, E], not normalised yet, in one pass of
    the frozen text tower.

    What is made from the class names is made anew for other names, and no part of a delta.
    """

    words: Tensor
    order: Tensor
    end: Tensor

    def __init__(
        self, clip: CLIP, names: tuple[str, ...], num_context: int, position: Position = "end"
    ) -> None:
        super().__init__()
        self.tower, self.projection = clip.text, clip.text_projection
        tokens = clip.tokenize([name.replace("_", " ") for name in names])
        ends, M = tokens.argmax(-1), num_context
        longest = int(ends.max())
        if M + longest + 1 > clip.text.context:
            raise VTError(
                f"expected texts of at most {clip.text.context} tokens, found {M} context vectors, "
                f"start, end and {longest - 1} of {names[int(ends.argmax())]!r}; take a shorter "
                "context or name"
            )
        before = {"end": M, "middle": M // 2, "front": 0}[position]
        order = []  # places in [v_1 ... v_M, start, name, end, padding]
        for end in ends.tolist():
            vectors, name = list(range(M)), list(range(M + 1, M + end))
            text = [M, *vectors[:before], *name, *vectors[before:], M + end]
            order.append(text + [M + end] * (longest - end))  # behind the end nothing is read
        self.register_buffer(
            "words", clip.embed(tokens[:, : longest + 1]).detach(), persistent=False
        )
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("end", M + ends, persistent=False)

    def forward(self, contexts: Tensor) -> Tensor:
        sets, C = contexts.shape[:-3], len(self.words)
        parts = (contexts.expand(*sets, C, -1, -1), self.words.expand(*sets, -1, -1, -1))
        rows = torch.cat(parts, dim=-2).flatten(0, -3)  # [sets C, M + L, D]
        order = self.order.repeat(len(rows) // C, 1)
        embedded = rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
        features = self.tower(embedded, self.end.repeat(len(rows) // C)) @ self.projection
        return features.unflatten(0, (*sets, C))


class PromptedHead(nn.Module):
    """Image features [B, E] -> logits [B, C]: exp(logit_scale) times the cosine with the text of
    each class, whose context trains."""

    scale: Tensor

    def __init__(self, texts: Texts, context: nn.Parameter, scale: Tensor) -> None:
        super().__init__()
        self.texts, self.context = texts, context
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        g = F.normalize(self.texts(self.context), dim=-1)
        return self.scale * F.normalize(f, dim=-1) @ g.T

    def merged(self) -> FixedTexts:
        """What is left when nothing trains any more: the texts are constants."""
        return FixedTexts(F.normalize(self.texts(self.context), dim=-1), self.scale)


def expect_context(method: Method, num_context: int, position: str) -> None:
    """Raise the one-sentence error for a context out of its range."""
    method.expect(num_context >= 1, "num_context", "an integer of at least 1")
    wanted = ("end", "middle", "front")
    method.expect(position in wanted, "position", '"end", "middle" or "front"')


def temperature(clip: CLIP) -> Tensor:
    """The frozen exp(logit_scale)."""
    return clip.logit_scale.detach().exp()


def first_context(clip: CLIP, *shape: int, words: str = "", std: float = 0.02) -> nn.Parameter:
    """Contexts [*shape, D] to start from: drawn from N(0, std^2), or the embedded `words` in the
    last places of each and zeros before them.

    Raises `VTError` where there are more words than places (the last of `shape`).
    """
    D, places = clip.text.embed_dim, shape[-1]
    if not words:
        return nn.Parameter(std * torch.randn(*shape, D))
    tokens = clip.tokenize([words])
    found = clip.embed(tokens[:, 1 : int(tokens.argmax())]).detach()[0]
    if len(found) > places:
        raise VTError(
            f"expected at most {places} words to start a context of {places} vectors from, found "
            f"{len(found)} tokens in {words!r}; shorten it, or take a longer context"
        )
    context = torch.zeros(*shape, D)
    context[..., places - len(found) :, :] = found
    return nn.Parameter(context)


def class_names(
    clip: CLIP, task: Task, method: Method, *kinds: type[Task], others: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The names of the task's classes, and of `others` that its images don't show.

    `kinds` are those of tasks that the method takes, a classification if none are given. Raises `VTError` for a task of another kind, or one whose names can't tell its classes apart;
    warns of words that the text tower does not know.
    """
    name, names, kinds = short(method.key), task.classes, kinds or (Classification,)
    if not isinstance(task, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise VTError(
            f"{name}: expected a {wanted}, whose classes have names, found a "
            f"{type(task).__name__}; choose another method"
        )
    if not task.name and names == tuple(str(i) for i in range(len(names))):
        raise VTError(
            f"{name}: expected a task whose classes have names, found {len(names)} numbered ones; "
            f'pass vt.load_task(...), or {kinds[0].__name__}(name="pets", classes=("cat", "dog"))'
        )
    if len(names) < 2:
        raise VTError(
            f"{name}: expected at least two classes to tell apart, found {said(names[0])} alone; "
            "name another"
        )
    names = (*names, *others)
    if "" in (plain := [" ".join(words_of(n.replace("_", " "))) for n in names]):
        raise VTError(
            f"{name}: expected class names of words, found {said(names[plain.index('')])} as that "
            f"of class {plain.index('')}; name what its images show"
        )
    seen: dict[str, str] = {}
    for each, words in zip(names, plain, strict=True):
        if words in seen:
            raise VTError(
                f"{name}: expected a name of its own for each class, found {said(each)} beside "
                f"{said(seen[words])}; give one of them another"
            )
        seen[words] = each
    warn_of_unknown(clip, names, name)
    return names


def warn_of_unknown(clip: CLIP, names: tuple[str, ...], method: str) -> None:
    """Warn of words that are not in the vocabulary; byte pairs spell every word."""
    tokenizer: Any = clip.tokenizer
    if not isinstance(tokenizer, WordTokenizer):
        return
    words = {w: n for n in names for w in words_of(n.replace("_", " "))}
    unknown = [f"{w!r} in {n!r}" for w, n in words.items() if w not in tokenizer.number]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        warnings.warn(
            f"{method}: the text tower does not know {', '.join(unknown[:5])}{more}; it reads each "
            "as <unknown>, alike in all names, so use words it knows or one context per class",
            stacklevel=2,
        )
