"""The `moonlet` command. Each command parses its options, imports what it needs and calls one function.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. The functions called return an exit code or None for 0;
bad input is an `InputError`, printed as one line. With `--json` a command prints one JSON document on stdout and
nothing else.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from moonlet.errors import InputError

app = typer.Typer(
    help="moonlet: a small Kimi, trained and served from scratch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="moonlet")
    except InputError as error:
        print(f"moonlet: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors", "tokenizers", "tiktoken"):
            raise
        print(f"moonlet: this needs {error.name}: pip install 'moonlet[model]'", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        # typer has turned Ctrl-C into this exit code by now
        if stop.code == 130:
            print("moonlet: interrupted; the same command resumes", file=sys.stderr)
        raise


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="a recipe, such as recipes/quickstart.toml")],
    out: Annotated[Path | None, typer.Option("--out", help="the run's folder [default: runs/ and its name]")] = None,
    from_stage: Annotated[str | None, typer.Option("--from", help="the first stage to run")] = None,
    until: Annotated[str | None, typer.Option("--until", help="the last stage to run")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, may be repeated")] = None,
) -> None:
    """Run the stages of a recipe in order. Finished ones are skipped, an interrupted one resumes."""
    from moonlet.run import run

    raise typer.Exit(run(recipe, out, from_stage, until, overrides or []) or 0)


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="a model folder, or the URL of a server")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="answer this once and exit")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the one answer as a JSON document")] = False,
    name: Annotated[str | None, typer.Option("--model", help="which of a server's models [default: its first]")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, help="0 = the likeliest token")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="longest answer of one turn")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="the same answer each time")] = None,
) -> None:
    """Talk to a model in the terminal, with tools. Piped input is one prompt."""
    from moonlet.agent.terminal import main

    code = main(model, prompt, as_json, model=name, temperature=temperature, max_tokens=max_tokens, seed=seed)
    raise typer.Exit(code)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="a model folder, such as runs/quickstart/model")],
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port to listen on; 0 = any free")] = 8000,
    weights: Annotated[str, typer.Option("--weights", help="fp32, packed (4-bit experts), int8, int4, gpu")] = "fp32",
    scratch: Annotated[Path | None, typer.Option("--scratch", help="keep the experts on this folder's disk")] = None,
    draft: Annotated[bool, typer.Option("--draft/--no-draft", help="guess with its draft.safetensors")] = True,
    cache: Annotated[int, typer.Option("--cache", min=1, help="MiB for conversations and their snapshots")] = 1024,
    snapshots: Annotated[str, typer.Option("--snapshots", help="KDA states in snapshots: fp32, bf16")] = "fp32",
) -> None:
    """Serve a model over HTTP."""
    from moonlet.engine.request import Limits
    from moonlet.server.app import serve

    serve(model, host, port, weights, scratch, draft, Limits(memory=cache << 20, snapshots=snapshots))


@app.command()
def draft(
    model: Annotated[Path, typer.Argument(help="the model folder of a run, such as runs/quickstart/model")],
    out: Annotated[Path | None, typer.Option("--out", help="the file [default: draft.safetensors in it]")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="of training")] = 240,
) -> None:
    """Train a draft for a model, which `serve` then guesses with."""
    from moonlet.draft import main

    main(model, out, steps)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="a model folder, such as runs/quickstart/model")],
    tasks: Annotated[str | None, typer.Option("--tasks", help="names with commas between [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the results as one JSON document")] = False,
) -> None:
    """Measure a model on held-out items."""
    from moonlet.evals.measure import main

    names = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    raise typer.Exit(main(model, names, as_json) or 0)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="a model folder, such as runs/quickstart/model")],
    to: Annotated[str, typer.Option("--to", help="hf, mxfp4, int4 (folders) or gguf (a file for llama.cpp)")],
    out: Annotated[Path, typer.Option("--out", help="the folder or file to write")],
    kind: Annotated[str, typer.Option("--type", help="gguf: f32, f16, bf16, q8_0, q4_0, mxfp4 or int4")] = "f32",
) -> None:
    """Write a model in another form."""
    from moonlet.engine.export import export

    print("\n".join(export(model, to, out, kind)))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a folder in a published layout, of any size")],
    to: Annotated[str, typer.Option("--to", help="int4, mxfp4 or bf16: what its routed experts become")],
    out: Annotated[Path, typer.Option("--out", help="the folder to write")],
) -> None:
    """Put a checkpoint's experts on another grid, file by file, and say what it costs."""
    from moonlet.engine.convert import convert

    print("\n".join(convert(checkpoint, to, out)))


@app.command()
def fit(
    model: Annotated[str | None, typer.Argument(help="a model folder or a preset [default: all presets]")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="of the machine or card, such as 24GB")] = None,
    context: Annotated[int, typer.Option("--context", min=1, help="tokens of a stream")] = 131072,
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as one JSON document")] = False,
) -> None:
    """Say what a model takes in memory, and what fits."""
    from moonlet import fit as fits

    size = None if memory is None else fits.memory_bytes(memory)
    found = [fits.facts(name, size, context) for name in ([model] if model else fits.PRESETS)]
    if as_json:
        print(json.dumps(found[0] if model else found, indent=2))
    elif model or size is None:
        print("\n\n\n".join("\n".join(fits.lines(f)) for f in found))
    else:
        print("\n".join(fits.presets(found)))


@app.command()
def board(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="DIR, or query SQL, import FROM, export, compact, push")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port to listen on; 0 = any free")] = 6060,
    token: Annotated[str | None, typer.Option("--token", help="asked of every client; needed off this machine")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="certificate, PEM")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="its private key, PEM")] = None,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", help="a further Host name to answer")] = None,
    alerts: Annotated[Path | None, typer.Option("--alerts", help="rules, TOML")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="export: the file; import: the folder of runs")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="import: go on as the source grows")] = False,
    to: Annotated[str | None, typer.Option("--to", help="push: the address of the board")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="the folder of runs")] = Path("runs"),
) -> None:
    """Serve the page of every run below a folder, or work on their logs: see docs/tracker.md."""
    from moonlet.tracker.board import main

    options = {"host": host, "port": port, "token": token, "tls": (tls_cert, tls_key), "hosts": allow_host or []}
    raise typer.Exit(main(arguments or [], runs, out, follow, alerts, to, **options))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as one JSON document")] = False,
) -> None:
    """Say what this machine has and what is missing."""
    from moonlet.doctor import lines, report

    facts = report()
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines(facts)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="roofline, kda, train-step, decode, ...: a script of benchmarks/")],
) -> None:
    """Measure the speed of a part on this machine. What follows the name goes to the script; -h there lists it."""
    from moonlet.bench import main

    raise typer.Exit(main(name, context.args))
