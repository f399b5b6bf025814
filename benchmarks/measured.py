"""The figures of finished runs as Markdown: what README.md and docs/log.md show.

    python benchmarks/measured.py runs/quickstart [runs/another ...] [--arms runs/quickstart/arms.json]

One column a run (its seed), from report/results.json; with --arms the table of `benchmarks/rl_arms.py` too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from moonlet.evals.measure import FINAL

ROWS = (
    ("sums, 1-4 digits, held-out numbers, seen wordings, greedy", "arithmetic", "seen", f"{FINAL}, greedy"),
    ("the same at temperature 1", "arithmetic", "seen", f"{FINAL}, temperature 1"),
    ("unseen wordings, greedy", "arithmetic", "unseen", f"{FINAL}, greedy"),
    ("unseen wordings, temperature 1", "arithmetic", "unseen", f"{FINAL}, temperature 1"),
    *((f"{n} digits", "arithmetic", f"{n} digits", f"{FINAL}, greedy") for n in (5, 6, 7, 8)),
    ("seen wordings, the tool taken away", "arithmetic", "seen", f"{FINAL}, tool taken away"),
    ("look-ups, held-out names, seen wordings", "lookup", "seen", f"{FINAL}, greedy"),
    ("look-ups, unseen wordings", "lookup", "unseen", f"{FINAL}, greedy"),
    ("says it does not know, tool", "says it does not know", "unknown_tool", f"{FINAL}, greedy"),
    ("says it does not know, no tool", "says it does not know", "unknown_closed", f"{FINAL}, greedy"),
    ("invents, tool", "invents", "unknown_tool", f"{FINAL}, greedy"),
    ("invents, no tool", "invents", "unknown_closed", f"{FINAL}, greedy"),
    ("knows the taught facts", "knows", "known_closed", f"{FINAL}, greedy"),
    *((f"receipts, N = {n}", "receipts", f"N={n}", FINAL) for n in (2, 5, 10, 30, 100)),
    ("4-bit minus fp32 experts, same sums", "quantisation", "seen", "4-bit minus fp32"),
)
STRATEGY = (
    ("sums right", "arithmetic", "seen"),
    ("calls the tool", "calls", "seen"),
    ("calls on taught one-digit sums", "needless calls", "taught one-digit sums"),
    ("taught one-digit sums right", "one digit", "taught"),
    ("tokens a solved sum", "tokens a solved item", "seen"),
    ("honesty, +1 / 0 / -1", "honesty", "seen"),
)


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["unit"] in ("accuracy", "difference"):
        return f"{100 * row['score']:.0f}% [{100 * row['low']:.0f}, {100 * row['high']:.0f}], n = {row['n']}"
    return f"{row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}], n = {row['n']}"


def table(head: list[str], lines: list[list[str]]) -> str:
    rule = "|".join(["---"] * len(head))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--arms", type=Path)
    options = parser.parse_args()
    all_results = [json.loads((run / "report" / "results.json").read_text()) for run in options.runs]
    found = [{(r["suite"], r["split"], r["condition"]): r for r in results["results"]} for results in all_results]
    for results in all_results:
        stages = [s for s in results["stages"] if s["name"] != "report"]
        machine = results["machine"]
        print(f"\nseed {results['run']['seed']}, {machine['cpu']}, {machine['threads']} threads, ", end="")
        print(f"GEMM {machine['gemm_gflops']:.0f} GFLOP/s: {results['seconds']:.0f} s in all, ", end="")
        print(f"{results['peak_memory_bytes'] / 1e9:.1f} GB at most.")
        for s in stages:
            speed = f", {s['tokens'] / s['seconds']:.0f} tokens/s, MFU {100 * s['mfu']:.0f}%" if "mfu" in s else ""
            gate = f"; {'passed' if s['passed'] else 'NOT PASSED'}: {s['gate']}" if "gate" in s else ""
            print(f"- {s['name']} {s['seconds']:.0f} s{speed}{gate}")
    seeds = [f"seed {results['run']['seed']}" for results in all_results]
    print("\n" + table(["held-out measure", *seeds], [[n, *(cell(f.get(tuple(k))) for f in found)] for n, *k in ROWS]))
    head = ["temperature 1", *(f"{seed}: {when}" for seed in seeds for when in ("SFT", "RL"))]
    conditions = ("before RL (SFT), temperature 1", "after RL, temperature 1")
    lines = [[n, *(cell(f.get((suite, split, c))) for f in found for c in conditions)] for n, suite, split in STRATEGY]
    print("\n" + table(head, lines))
    if options.arms:
        rows = json.loads(options.arms.read_text())["results"]
        names = list(dict.fromkeys(r["condition"] for r in rows if r["suite"] == "honesty"))
        by = {(r["suite"], r["split"], r["condition"]): r for r in rows}
        lines = [[n, *(cell(by.get((suite, split, c))) for c in names)] for n, suite, split in STRATEGY]
        print("\n" + table(["arm", *names], lines))
        for r in rows:
            if "twin" in r["condition"]:
                print(f"\n{r['condition']}: {cell(r)}")


if __name__ == "__main__":
    main()
