"""One trace for each cell or layer, on our library: what one would write by hand."""

from __future__ import annotations

import nnsight
import torch
from torch import Tensor

from ..workloads import REPEAT_PROMPT, Workload
from . import Play
from .by_ours import Contestant as Ours
from .readings import describe


class Contestant(Ours):
    """Our library without its ways to be fast."""

    def patchscope(self, load: Workload) -> Play:
        """A trace for each layer, with a row for each source."""

        @torch.inference_mode()
        def work() -> Tensor:
            model = self.model
            rows = torch.arange(len(load.prompts))
            said: list[Tensor] = []
            with model.trace(list(load.prompts)):
                states = nnsight.save([model.layers_output[layer][:, -1] for layer in range(model.num_layers)])
            for layer, state in enumerate(states):
                with model.trace([REPEAT_PROMPT] * len(load.prompts)):
                    hidden = model.layers_output[layer].clone()
                    hidden[rows, -1] = state
                    model.layers_output[layer] = hidden
                    logits = nnsight.save(model.logits[:, -1])
                said.append(logits)
            return torch.stack(said, dim=1)

        return Play(work, describe)

    def grid(self, load: Workload) -> Play:
        """A trace for each cell."""

        @torch.inference_mode()
        def work() -> Tensor:
            model = self.model
            clean, corrupted = load.prompts
            with model.trace(clean):
                states = nnsight.save([model.layers_output[layer][0] for layer in range(model.num_layers)])
                reference = nnsight.save(model.logits[0, -1].log_softmax(-1))
            found: list[Tensor] = []
            for layer, whole in enumerate(states):
                for position, state in enumerate(whole):
                    with model.trace(corrupted):
                        hidden = model.layers_output[layer].clone()
                        hidden[0, position] = state
                        model.layers_output[layer] = hidden
                        logits = nnsight.save(model.logits[0, -1])
                    found.append((reference.exp() * (reference - logits.log_softmax(-1))).sum())
            return torch.stack(found)

        return Play(work, Tensor.tolist)
