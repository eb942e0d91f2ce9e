"""Runs commands, each in a child of this process, which has torch loaded already: the slowest part of a start, once."""

import json
import os
import runpy
import sys
import traceback
from importlib.metadata import entry_points

MODULES = {"pytest": "pytest", "pytest-benchmark": "pytest_benchmark"}


def main():
    # What every run imports.
    from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM  # noqa: F401

    # But no plugin of pytest, which warns unless it is the one to import it.
    plugins = {point.module.partition(".")[0] for point in entry_points(group="pytest11")}
    for name in [name for name in sys.modules if name.partition(".")[0] in plugins]:
        del sys.modules[name]

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            run(**order)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def run(program, arguments, folder, environment, out, err):
    """Become that command: its output goes into two files."""
    code = 1
    try:
        os.chdir(folder)
        os.environ.update(environment)
        for number, path in enumerate((os.devnull, out, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        # As `python -m` has it, in place of this file's folder.
        sys.path[0] = folder
        sys.argv = [program, *arguments]
        if program in MODULES:
            runpy.run_module(MODULES[program], run_name="__main__", alter_sys=True)
        else:
            from pytest_infer.cli.main import app

            app(prog_name=program)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as an interpreter shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
