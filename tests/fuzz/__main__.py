"""Fuzz the command line, or one reader with atheris, guided by coverage, for some minutes.

    python -m tests.fuzz cli --minutes 10 [--seed 0]
    python -m tests.fuzz data --minutes 10 --corpus DIR

For the command line see command_line. For readers:

atheris is not among the project's requirements: `pip install atheris` into any environment that has
alignkit. A crash is anything raised but an AlignkitError, an input that takes more than two seconds
of processor time, or one that takes more than a gigabyte. The input is left in the corpus as
`crash-…`; put it among FOUND in tests/test_fuzz_targets.py, and mend what it shows.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

TARGETS = ("data", "recipe", "manifest", "checkpoint", "model")
MOST_SECONDS = 2.0
MOST_MEMORY = 1 << 30


def main() -> None:
    """Read the options, write the seeds, and hand over to libFuzzer, which never returns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=(*TARGETS, "cli"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--corpus", type=Path, help="inputs of readers are kept here")
    parser.add_argument("--seed", type=int, default=0, help="cli: all cases follow from it")
    parser.add_argument("--start", type=int, default=0, help="cli: number of the first case")
    parser.add_argument("--case", type=int, help="cli: this case alone")
    parser.add_argument("--only", metavar="COMMAND", help="cli: this command alone: 'data check'")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-found"), help="cli: what is found")
    given = parser.parse_args()
    if given.target == "cli":
        from tests.fuzz.command_line import fuzz

        sys.exit(fuzz(vars(given)))
    if given.corpus is None:
        parser.error("--corpus DIR is needed")
    with_coverage(given)


def with_coverage(given: argparse.Namespace) -> None:
    """Instrument the readers and fuzz one of them; never returns."""
    import atheris

    with atheris.instrument_imports(include=["alignkit", "yaml"]):
        import alignkit.data.checks.file_check
        import alignkit.data.read
        import alignkit.model.check
        import alignkit.recipe.file  # noqa: F401
        import alignkit.run.estimate
        import alignkit.run.plan

        if given.target == "checkpoint":
            import alignkit.training.checkpoints  # noqa: F401
    # Behind the block above: what is imported before it is not instrumented.
    from tests.fuzz.mutate import changed
    from tests.fuzz.targets import one_input

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        place = Path(scratch)

        def run(content: bytes) -> None:
            began, before = time.process_time(), peak_memory()
            one_input(given.target, content, place)
            spent, grown = time.process_time() - began, peak_memory() - before
            if spent > MOST_SECONDS:
                raise TimeoutError(f"{spent:.1f} seconds for {len(content)} bytes")
            if grown > MOST_MEMORY:
                raise MemoryError(f"{grown >> 20} MiB for {len(content)} bytes")

        def mutate(content: bytes, most: int, seed: int) -> bytes:
            draw = random.Random(seed)
            if given.target in ("data", "recipe") or draw.random() < 0.5:
                return bytes(atheris.Mutate(content, most))
            return changed(content, draw)[:most]

        arguments = libfuzzer_arguments(given.target, given.corpus, given.minutes)
        atheris.Setup(arguments, run, custom_mutator=mutate)
        atheris.Fuzz()


def peak_memory() -> int:
    """The most bytes this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def libfuzzer_arguments(target: str, corpus: Path, minutes: float) -> list[str]:
    """The command line of libFuzzer, with seeds and a dictionary written for it."""
    from tests.fuzz.seeds import SEEDS, WORDS

    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(SEEDS[target]):
        (corpus / f"seed-{number}").write_bytes(content)
    dictionary = corpus.with_suffix(".dict")
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
    return [
        sys.argv[0],
        str(corpus),
        f"-dict={dictionary}",
        f"-artifact_prefix={corpus}/",
        f"-max_total_time={60 * minutes:.0f}",
        "-rss_limit_mb=8192",  # what the fuzzer itself keeps grows with every input
        "-timeout=30",
        "-max_len=4096",
        "-print_final_stats=1",
    ]


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    main()
