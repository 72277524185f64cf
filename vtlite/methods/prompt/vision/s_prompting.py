"""S-Prompting: one set of prompts and one head for each domain, and features that say which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from vtlite.backbones.base import features
from vtlite.data.items import as_items, batches
from vtlite.method import Backbone, Method, Predictor, Train, Tuned
from vtlite.methods.prompt.vision.tokens import Given, pass_through
from vtlite.methods.prompt.vision.vpt_deep import usual_blocks
from vtlite.storage import VTError
from vtlite.task import Stream, Task


class PerDomain(Predictor):
    """A frozen ViT with prompts and a head for each of S domains: inputs -> the answer of the
    domain whose keys are nearest, L1, to the features without prompts."""

    keys: Tensor
    known: Tensor

    def __init__(
        self, backbone: Backbone, heads: nn.ModuleList, task: Task, start: Tensor, keys: int
    ) -> None:
        super().__init__(backbone, heads, task)
        self.prompts = nn.ParameterList(start.unbind(0))  # S times [P, D]
        self.register_buffer("keys", torch.zeros(len(heads), keys, backbone.num_features))
        self.register_buffer("known", torch.zeros(len(heads), dtype=torch.bool))
        self.given = Given()
        self.learning: int | None = None  # the domain that is being learnt

    @torch.no_grad()
    def queries(self, inputs: Tensor) -> Tensor:
        """Features without prompts, of length one; of a clip, of the mean over its frames: [B,
        D]."""
        clips = getattr(inputs, "ndim", 4) == 5
        found = features(self.backbone, inputs.flatten(0, 1) if clips else inputs)
        found = found.unflatten(0, inputs.shape[:2]).mean(1) if clips else found
        return F.normalize(found, dim=-1)

    def domains(self, inputs: Tensor) -> Tensor | int:
        """The number of each input's domain [B], of the first where none is known yet; or the one
        of all: the one that is being learnt."""
        if self.learning is not None or len(self.prompts) == 1:
            return self.learning or 0
        far = (self.queries(inputs)[:, None, None] - self.keys).abs().sum(-1)  # [B, S, K]
        return far.amin(-1).masked_fill(~self.known, torch.inf).argmin(-1)

    def seen(self, inputs: Tensor, domains: Tensor | int) -> Tensor:
        """What the heads read, with the prompts of the domains."""
        if isinstance(domains, Tensor) and inputs.ndim == 5:
            domains = domains.repeat_interleave(inputs.shape[1])  # for each frame
        self.given.value = (
            self.prompts[domains]
            if isinstance(domains, int)
            else torch.stack([*self.prompts])[domains]  # [B, P, D]
        )
        try:
            return self.read(self.backbone, inputs)
        finally:
            self.given.value = None

    def features(self, inputs: Tensor) -> Tensor:
        return self.seen(inputs, self.domains(inputs))

    def forward(self, inputs: Tensor) -> Any:
        domains, heads = self.domains(inputs), cast(nn.ModuleList, self.head)
        x = self.seen(inputs, domains)
        if isinstance(domains, int):
            return heads[domains](x)
        return chosen([head(x) for head in heads], domains)


def chosen(answers: list[Any], domains: Tensor) -> Any:
    """Of the answers of all heads, tensors [B, ...] or dicts of such, that of each input's own."""
    if isinstance(answers[0], dict):
        return {name: chosen([a[name] for a in answers], domains) for name in answers[0]}
    return torch.stack(answers, 1)[torch.arange(len(domains), device=domains.device), domains]


@dataclass
class SPrompting(Method):
    """Learn the domains one after another, each with prompts and a head of its own; keep a few
    centres of its features, by which the domain of a test image is found. Nothing is rehearsed.

        s(x) = argmin_s min_k |q(x) - c_(s, k)|_1,   q(x) = f(x) / |f(x)|;   answer = head_s(f(x; P_s)),   P_s [num_prompts, D], c_(s, k) by K-means on q of the domain's images

    f is the frozen backbone; the prompts enter at the first block, as in VPT-shallow, and start
    from U(-v, v), v = 1 / sqrt(D). A `Stream` is learnt stage by stage, another task is a single
    domain. Wang, Huang, Hong, "S-Prompts Learning with Pre-trained Transformers: An Occam's Razor
    for Domain Incremental Learning", NeurIPS 2022, arXiv 2207.12819;
    github.com/iamwangyabin/S-Prompts, whose form for image networks this is (S-iPrompts);
    S-liPrompts has CLIP's texts with learned contexts as heads. On ViT-B/16: 7,680 parameters a
    domain, a head, and 5 centres of 768 numbers that are kept, not trained.
    """

    lr = 1e-2

    starts_elsewhere = "random prompts take part in every softmax from the first step"
    unmergeable = "its prompts are chosen for each image"

    num_prompts: int = 10  # tokens of each domain
    centres: int = 5  # kept of each domain's features

    def __post_init__(self) -> None:
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(self.centres >= 1, "centres", "an integer of at least 1")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        usual_blocks(backbone, "s_prompting", "which it runs with and without prompts")
        stages = task.stages if isinstance(task, Stream) and task.stages else (task,)
        heads = nn.ModuleList(stage.head(backbone) for stage in stages)
        start = torch.empty(len(stages), self.num_prompts, backbone.embed_dim)
        start.uniform_(-(backbone.embed_dim**-0.5), backbone.embed_dim**-0.5)
        network = PerDomain(backbone, heads, task, start, self.centres)
        pass_through(backbone, "s_prompting", network.given, self.num_prompts)
        return network

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        network = model.network
        if (s := network.learning) is None:
            return super().groups(model)
        return [{"params": [network.prompts[s], *network.head[s].parameters()]}]

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        for s, stage in enumerate(self.stages(model.task, task)):
            model.network.learning = s
            train(model, stage.train, val=stage.val)
            train.once(model, partial(self.remember, model, s, stage.train))
        model.network.learning = None

    def stages(self, own: Task, given: Task) -> tuple[Task, ...]:
        """The domains in their order. Raises `VTError` where other images are given for them."""
        if not (isinstance(own, Stream) and own.stages):
            return (given,)
        expected = None if own.train is None else as_items(own.train, "training")
        if getattr(given.train, "data", given.train) is not getattr(expected, "data", expected):
            raise VTError(
                "s_prompting: expected to train on the stages of its task, found other images; "
                "make a vtlite.task.Stream of them, and tune for it"
            )
        return own.stages

    def remember(self, model: Tuned, s: int, data: Any) -> None:
        """Keep the centres of a domain's features as its keys; fewer images are each a centre."""
        network: Any = model.network
        device, data = network.keys.device, as_items(data, "training")
        queries = torch.cat([network.queries(x.to(device)).cpu() for x, _ in batches(data, 200)])
        if len(queries) > self.centres:
            means = KMeans(self.centres, n_init=10, random_state=0).fit(queries.float().numpy())
            queries = torch.from_numpy(means.cluster_centers_)
        places = torch.arange(self.centres) % len(queries)
        network.keys[s] = queries[places].to(network.keys)
        network.known[s] = True
