#!/usr/bin/env python3
"""A transformer that PyTorch trains on a GPU, and every number that the library gives of it, computed again by PyTorch in fp64.

    FGS_LIB=build/lib/libforgetscope.so python3 tests/gpu/torch_step.py [--device cpu]

Two tasks in sequence, every step sampled, raw pointers and PyTorch's own stream. --device cpu tries the script itself, in
host memory. Without a GPU that PyTorch can use it says so and skips. Ends with the line `N passed, M failed, K skipped`.
"""

import argparse
import sys
import traceback

import torch
import torch.nn.functional as F

import on_torch

LAYERS, WIDTH, HEADS, BYTES, LENGTH, BATCH = 2, 64, 4, 256, 32, 16
STEPS, REFERENCES, QUERY = 4, 8, 3
# Sums in fp32 of up to 64 terms and in fp64 above: docs/statistics/README.md. Cosines near zero are sums that cancel.
RELATIVE, COSINE = 1e-5, 1e-5


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.output = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.wide, self.narrow = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        n, length, _ = x.shape
        h = self.norm1(x)
        q, k, v = (part(h).view(n, length, HEADS, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, WIDTH)
        x = x + self.output(mixed)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.position = torch.nn.Embedding(BYTES, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = torch.nn.Linear(WIDTH, BYTES, bias=False)

    def hidden(self, bytes_):
        x = self.embedding(bytes_) + self.position.weight[: bytes_.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x

    def loss(self, bytes_):
        return F.cross_entropy(self.head(self.hidden(bytes_[:, :-1])).flatten(0, 1), bytes_[:, 1:].flatten())


def spec(name):
    """What the library is told of a tensor: the heads of queries are bands of rows."""
    if name.startswith("blocks."):
        fields = {"layer": int(name.split(".")[1])}
        return {**fields, "role": QUERY, "head_count": HEADS} if ".query." in name else fields
    return {}


def text(path):
    return torch.tensor(list(open(path, "rb").read()), dtype=torch.long)


def batch(data, generator, device):
    at = torch.randint(len(data) - LENGTH - 1, (BATCH,), generator=generator)
    return torch.stack([data[i:i + LENGTH + 1] for i in at]).to(device)


def flat(tensors):
    return {name: tensor.detach().double().flatten().clone() for name, tensor in tensors}


class Run:
    """The training, with its records and with what PyTorch knows of it: gradients, parameters, references, snapshots."""

    def __init__(self, device):
        torch.manual_seed(20260118)
        generator = torch.Generator().manual_seed(7)
        model = Transformer().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        texts = {"prose": text(on_torch.__file__), "code": text(fgs_source())}
        self.gradients, self.before, self.after, self.hidden = {}, {}, {}, []
        model.loss(batch(texts["prose"], generator, device)).backward()  # gradients get their memory
        probe = batch(texts["prose"], generator, device)[:, :-1]
        with on_torch.Measured(model, spec) as measured:
            measured.bind_gradients()
            number = 0
            for task, data in texts.items():
                measured.scope.task_begin(task)
                for _ in range(STEPS):
                    measured.step_begin(number)
                    optimizer.zero_grad(set_to_none=False)
                    model.loss(batch(data, generator, device)).backward()
                    measured.gradients_ready()
                    self.gradients[number] = flat((n, p.grad) for n, p in model.named_parameters())
                    self.before[number] = flat(model.named_parameters())
                    optimizer.step()
                    measured.step_end()
                    self.after[number] = flat(model.named_parameters())
                    number += 1
                if task == "prose":
                    sums = None
                    for _ in range(REFERENCES):
                        optimizer.zero_grad(set_to_none=False)
                        model.loss(batch(data, generator, device)).backward()
                        measured.reference_add(task, BATCH)
                        now = flat((n, p.grad) for n, p in model.named_parameters())
                        sums = now if sums is None else {n: sums[n] + now[n] for n in now}
                    self.reference = {name: value / REFERENCES for name, value in sums.items()}
                    self.snapshot = flat(model.named_parameters())
                # The probe of the first task, at the end of both. Of each sequence every fourth token: a strided view.
                with torch.no_grad():
                    rows = model.hidden(probe)[:, ::LENGTH // 4]
                measured.scope.probe("prose")
                measured.scope.batch(*rows.shape[:2])
                measured.scope.probe_hidden(0, on_torch.Tensor(rows), on_torch.stream(device))
                measured.scope.probe_end()
                self.hidden.append(rows.double().clone())
                measured.task_end()
            self.records = measured.scope.records()
            self.ids = {number: name for name, number in measured.ids.items()}

    def of(self, kind, level):
        found = [record for record in self.records if record.kind == kind and record.level == level]
        assert found, f"no records of {kind} at {level}"
        return found

    def subject(self, record, values):
        """The elements of `values` that the record is about."""
        if record.level == "model":
            return torch.cat(list(values.values()))
        whole = values[self.ids[record.tensor]]
        return whole if record.level == "tensor" else whole.view(HEADS, -1)[record.slice & 0xFFFF]


def fgs_source():
    return on_torch.fgs.__file__


def cosine(x, y):
    return (x @ y / x.norm() / y.norm()).item()


def close(record, key, expected, relative=0.0, absolute=0.0):
    found = record[key]
    assert abs(found - expected) <= relative * abs(expected) + absolute, f"{record}: {key} {found}, not {expected}"


def test_norms_of_gradients(run):
    for level in ("model", "tensor", "head"):
        for record in run.of("gradient", level):
            close(record, "norm", run.subject(record, run.gradients[record.step]).norm().item(), RELATIVE)


def test_interference_with_the_earlier_task(run):
    for level in ("model", "tensor", "head"):
        for record in run.of("interference", level):
            g, r = run.subject(record, run.gradients[record.step]), run.subject(record, run.reference)
            if g.norm() == 0 or r.norm() == 0:
                continue
            close(record, "cosine", cosine(g, r), absolute=COSINE)
            close(record, "dot", (g @ r).item(), absolute=COSINE * (g.norm() * r.norm()).item())


def test_conflicts_of_sign(run):
    for level in ("model", "tensor", "head"):
        for record in run.of("interference", level):
            # The library's reference is a mean in fp32: signs of what is nearly zero are the rounding's.
            g, r = run.subject(record, run.gradients[record.step]), run.subject(record, run.reference)
            sure = r.abs() > 1e-6 * r.abs().max()
            opposing = int(((g * r < 0) & sure).sum())
            unsure = int((~sure).sum())
            assert opposing <= record["conflicts"] <= opposing + unsure, f"{record}: {opposing} to {opposing + unsure}"


def test_drift_from_the_snapshot(run):
    for level in ("model", "tensor", "head"):
        for record in run.of("drift", level):
            now, then = run.subject(record, run.after[record.step]), run.subject(record, run.snapshot)
            if then.norm() > 0:
                close(record, "relative", ((now - then).norm() / then.norm()).item(), RELATIVE, 1e-9)


def test_updates_and_their_alignment(run):
    for record in run.of("update", "model"):
        step = run.subject(record, run.after[record.step]) - run.subject(record, run.before[record.step])
        close(record, "updates", (step @ step).item(), 2 * RELATIVE)
    for record in run.of("alignment", "model"):
        step = run.subject(record, run.after[record.step]) - run.subject(record, run.before[record.step])
        close(record, "cosine", cosine(step, run.subject(record, run.reference)), absolute=COSINE)


def test_cka_of_the_probe(run):
    """Debiased (Song et al. 2012), a block for the k-th tokens of all sequences."""
    sums = torch.zeros(3, dtype=torch.float64)
    for place in range(run.hidden[0].shape[1]):
        then, now = (rows[:, place] for rows in run.hidden)
        k, l = (x @ x.T * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device)) for x in (then, now))
        sums += len(k) * torch.tensor([hsic(k, l), hsic(k, k), hsic(l, l)])
    record = [record for record in run.records if record.kind == "representation"][-1]
    close(record, "cka", (sums[0] / (sums[1] * sums[2]).sqrt()).item(), absolute=1e-5)


def hsic(k, l):
    n = len(k)
    sums = (k * l).sum() + k.sum() * l.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (k @ l).sum()
    return (sums / n / (n - 3)).item()


def test_nothing_was_left_out(run):
    assert not [record for record in run.records if record.kind == "fault"]
    assert len([record for record in run.records if record.kind == "step"]) == 2 * STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    device = torch.device(parser.parse_args().device)
    tests = {name: test for name, test in globals().items() if name.startswith("test_")}
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"skipped: PyTorch {torch.__version__} has no GPU here\n0 passed, 0 failed, {len(tests)} skipped")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    run, failed = Run(device), 0
    for name, test in tests.items():
        try:
            test(run)
            print(f"ok    {name}")
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}")
    print(f"{len(tests) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
