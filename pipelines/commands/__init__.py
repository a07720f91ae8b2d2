"""The one command line: `pipelines VERB …`.

A verb is a file of this folder: the file's name is the verb, the first line of its docstring its help, and only the verb that was said
is imported, so that `pipelines --help` answers at once. A verb's file answers

    arguments(parser)       what may be said (`--json` is added here, for every verb)
    answer(args) -> dict    the work; the dict is what `--json` prints, as the only thing on stdout
    show(answer)            the same for people
    status(answer) -> int   optional: the exit status of an answer that is not an error (a failed `verify` is 4)

Errors become exit statuses here and nowhere else (docs/exit_codes.md). With `--json` whatever a library prints goes to stderr: the real
stdout is set aside before the work begins.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pipelines.format.errors import HeadwaterError, InputError, StorageError

# The order in which a new user meets them; a verb that is not named here is listed after these.
_ORDER = ["demo", "run", "stages", "stats", "inspect", "view", "verify", "trace", "status", "gc", "forget", "doctor"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status; without `argv`, as the program, leave with it."""
    if argv is not None:
        return _guarded(list(argv))
    code = _guarded(sys.argv[1:])
    # Arrow's pools may still be starting threads when a short command ends, and the C++ runtime then aborts it: 1 to 6 of 100 short commands
    # ended with status 134 (pyarrow 26). Exit handlers run (Ray's and logging's are among them); static destructors do not.
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 128:  # who asked to stop has been told how to go on, and is not kept waiting by exit handlers
        atexit._run_exitfuncs()
    os._exit(code)


def _guarded(words: list[str]) -> int:
    as_json = "--json" in words
    with _data_channel(as_json) as data:
        try:
            return _run(words, as_json, data)
        except HeadwaterError as error:
            return _failed(error, as_json, data)
        except KeyboardInterrupt:
            return _failed(_Interrupted("stopped"), as_json, data)
        except BrokenPipeError:
            # The reader has gone (`| head`): what a shell expects, without a traceback when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 141
        except OSError as error:
            trouble = StorageError(error.strerror or str(error), where=error.filename, next="check space and permissions: pipelines doctor")
            return _failed(trouble, as_json, data)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except Exception as error:
            import traceback

            traceback.print_exc()
            bug = HeadwaterError(f"{type(error).__name__}: {error}", next="this is a bug in headwater; the traceback above says where")
            return _failed(bug, as_json, data)


def verbs() -> dict[str, str]:
    """Each verb and its one line of help, read from the files without importing them."""
    found = {}
    for path in Path(__file__).parent.glob("[!_]*.py"):
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        found[path.stem] = text.partition("\n")[0].rstrip(".")
    rank = {name: i for i, name in enumerate(_ORDER)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def _run(words: list[str], as_json: bool, data: Any) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        data.write(_help())
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        data.write(f"headwater {version('headwater')}\n")
        return 0
    verb = _verb(words[0])
    name = words[0]
    parser = _Parser(prog=f"pipelines {name}", description=(verb.__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    verb.arguments(parser)
    args, rest = parser.parse_known_args(words[1:])
    if rest and not parser.get_default("takes_rest"):
        parser.unknown(rest[0])
    args.rest = rest
    args.command = ["pipelines", *words]
    answer = verb.answer(args)
    if as_json:
        data.write(json.dumps(_finite(answer), allow_nan=False, default=str) + "\n")
    else:
        verb.show(answer)
        sys.stdout.flush()
    return verb.status(answer) if hasattr(verb, "status") else 0


def _verb(name: str) -> ModuleType:
    known = [path.stem for path in Path(__file__).parent.glob("[!_]*.py")]
    if name not in known:
        from pipelines.plugins import nearest

        near = nearest(name, known)
        raise InputError("there is no such verb", found=name, allowed=", ".join(verbs()), next=f"pipelines {near}" if near else "pipelines --help")
    return import_module(f"pipelines.commands.{name}")


def _help() -> str:
    known = verbs()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {text}" for name, text in known.items()]
    return (
        "usage: pipelines VERB …\n\nFrom raw files to the answer: which data, in which amounts, makes one model better at which thing?\n\n"
        + "\n".join(lines)
        + "\n\nEvery verb takes --help and --json. Data goes to stdout, progress to stderr. Exit statuses: docs/exit_codes.md\n"
        "The trainer on its own: torchrun --nproc-per-node N -m trainer RUN.yaml\n"
    )


class _Interrupted(HeadwaterError):
    exit = 130


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one tree of errors, one form of JSON, one exit status for usage."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(allow_abbrev=False, **rest)

    def error(self, message: str) -> NoReturn:
        raise InputError(message, where="the command line", next=f"{self.prog} --help")

    def unknown(self, word: str) -> NoReturn:
        from pipelines.plugins import nearest

        options = sorted(self._option_string_actions)
        near = nearest(word.partition("=")[0], options)
        hint = f"did you mean {near}?" if near else f"{self.prog} --help"
        raise InputError("this is not understood", where="the command line", found=word, allowed=", ".join(options), next=hint)


@contextmanager
def _data_channel(as_json: bool) -> Iterator[Any]:
    """The stream for data. With --json, file descriptor 1 itself points at stderr meanwhile, for child processes and C libraries too."""
    if not as_json:
        yield sys.stdout
        return
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w", encoding="utf-8") as data, redirect_stdout(sys.stderr):
            yield data
    finally:
        os.dup2(real, 1)
        os.close(real)


def _finite(x: Any) -> Any:
    """JSON has no NaN and no infinity: a figure that does not exist is null."""
    if isinstance(x, dict):
        return {str(key): _finite(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _failed(error: HeadwaterError, as_json: bool, data: Any) -> int:
    from pipelines.terminal import clean

    if as_json:
        data.write(json.dumps({"error": error.as_dict()}) + "\n")
    print(f"{type(error).__name__.lstrip('_')}: {clean(error)}", file=sys.stderr)
    return error.exit
