#!/usr/bin/env python3
"""Writes the newest figures of benches/results into the GPU section of docs/performance.md.

    table.py            writes the section
    table.py --check    writes nothing; fails if the section is not what the newest figures make

What was not measured is said to be so.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs/performance.md", ROOT / "benches/results"
BEGIN, END = "<!-- Written by benches/gpu/table.py: begin -->", "<!-- end -->"
SIZES = ("0.1 B parameters", "1 B parameters", "7 B parameters")
PASSES = {
    "bf16 gradient: norms, sketch": "gradient pass, {}",
    "bf16 gradient and exact fp32 reference: all sums": "gradient pass with an exact reference, {}",
    "bf16 parameters before the update, against their copy": "parameter pass before the update, {}",
    "bf16 parameters after the update, against copy and snapshot": "parameter pass after the update with a snapshot, {}",
}
ABSENT = "not measured"


def number(value):
    """Three significant digits, without an exponent."""
    digits = max(0, 2 - (len(str(int(abs(value)))) - 1)) if abs(value) >= 1 else 2
    return f"{value:,.{digits}f}"


class Figures:
    def __init__(self, result):
        self.by_name = {figure["name"]: figure for figure in result.get("figures", [])}

    def cell(self, name, prefix="", suffix=""):
        figure = self.by_name.get(name)
        if figure is None:
            return ABSENT
        if "skipped" in figure:
            return f"left out: {figure['skipped']}"
        low, high = number(figure["low"]), number(figure["high"])
        spread = f" ({low} to {high})" if low != high else ""
        return f"{prefix}{number(figure['value'])}{suffix}{spread}"

    def shares(self, name):
        return self.cell(f"{name}: share of the copy")

    def whole_step(self):
        """The name of the PyTorch step without the instrument, which says how large the model is."""
        return next((name for name in self.by_name if name.endswith("M parameters")), "")


def section(result):
    figures = Figures(result)
    if result:
        head = (f"{result['device']}, driver {result['driver']}, PyTorch {result.get('torch', 'not there')}, {result['date']}, "
                f"commit {result['commit']}.")
    else:
        head = "No figures yet: `make bench-gpu` measures them on a machine with a GPU."
    step = figures.whole_step()
    lines = [BEGIN, head, "", "| memory | |", "|---|---|"]
    for label, name in (("copy by the driver, bytes read plus written", "copy by the driver, read plus written"),
                        ("copy by a kernel", "copy by a kernel, read plus written"), ("read by a kernel", "read by a kernel")):
        lines.append(f"| {label} | {figures.cell(name, suffix=' GB/s')} |")
    lines += ["", "| pass, as share of the better copy's bytes a second | " + " | ".join(SIZES) + " |", "|---|---|---|---|"]
    for label, name in PASSES.items():
        lines.append(f"| {label} | " + " | ".join(figures.shares(name.format(size)) for size in SIZES) + " |")
    lines += ["", "| host time, 1,000 tensors, one earlier task | |", "|---|---|"]
    for label, name, unit in (("first sampled step, which makes the plans", "host: first sampled step, 1000 tensors", " µs"),
                              ("sampled step, all three calls", "host: sampled step, 1000 tensors", " µs"),
                              ("`fgs_gradients_ready` of it", "host: fgs_gradients_ready, sampled, 1000 tensors", " µs"),
                              ("`fgs_step_end` of it", "host: fgs_step_end, sampled, 1000 tensors", " µs"),
                              ("step that is not sampled", "host: step that is not sampled, 1000 tensors", " ns")):
        lines.append(f"| {label} | {figures.cell(name, suffix=unit)} |")
    lines += ["", f"| added to a PyTorch step of GPT-2's small size ({figures.cell(step, suffix=' ms')}) | |", "|---|---|"]
    for label, name in (("forgetscope, every step", "PyTorch step, forgetscope, every 1: added"),
                        ("forgetscope, every 10th step", "PyTorch step, forgetscope, every 10: added"),
                        ("loop of `cosine_similarity`, every step", "PyTorch step, cosine_similarity loop: added"),
                        ("`torch._foreach_mul` and `_foreach_norm`, every step", "PyTorch step, _foreach: added")):
        lines.append(f"| {label} | {figures.cell(name, suffix=' %')} |")
    return "\n".join([*lines, END])


def newest():
    results = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")] if RESULTS.exists() else []
    return max(results, key=lambda result: result["date"], default={})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the section is old")
    check = parser.parse_args().check
    page = PAGE.read_text()
    if BEGIN not in page or END not in page:
        sys.exit(f"table.py: {PAGE} has no place for the figures: {BEGIN}")
    before, rest = page.split(BEGIN, 1)
    written = before + section(newest()) + rest.split(END, 1)[1]
    if check and written != page:
        sys.exit("table.py: docs/performance.md has not the newest figures: run benches/gpu/table.py")
    if not check:
        PAGE.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
