"""`pytest-infer experts`: which experts were used, and how far prompts agree about them; the census as a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.analysis.experts import recorded
from pytest_infer.analysis.experts import source as usage
from pytest_infer.analysis.experts.source import UsageSource
from pytest_infer.cli.plain import Command, Group
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, say, screen, wrote
from pytest_infer.errors import InferError, OptionError, StorageError
from pytest_infer.report.formats import EXPERTS, Format
from pytest_infer.report.views import UsedExperts
from pytest_infer.storage.files import publishing

_SHOW = "show"
_RUN = "Number, commit, branch, tag, path, baseline:NAME, latest~1; or a census file."


class _Shown(Group):
    """Commands, of which `show` is meant where none is named: `experts latest` is `experts show latest`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what follows the name."""
        named = args and (args[0] in self.commands or args[0] in self.get_help_option_names(ctx))
        # A shell that completes the first word is to see all commands.
        as_is = named or (ctx.resilient_parsing and not args)
        return super().parse_args(ctx, args if as_is else [_SHOW, *args])


experts = typer.Typer(
    cls=_Shown,
    add_completion=False,
    help="Show the experts a run used (`experts RUN`, see `experts show --help`), or carry a census over.",
)


class Whose(StrEnum):
    """Which tokens are counted."""

    DECODE = "decode"
    PREFILL = "prefill"
    BOTH = "both"


class Division(StrEnum):
    """What the overlap is between."""

    PROMPT = "prompt"
    TAG = "tag"
    GROUP = "group"


@experts.command(_SHOW, cls=Command)
def show_experts(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)] = "latest",
    *,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    phase: Annotated[Whose, typer.Option("--phase", help="Generated tokens, the prompts' own, or both.")] = (
        Whose.DECODE
    ),
    by: Annotated[Division, typer.Option("--by", help="What the overlap is between.")] = Division.PROMPT,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Hottest and coldest experts listed.")] = 8,
    form: Annotated[Format, offered(EXPERTS)] = Format.TERMINAL,
    storage: Storage = None,
) -> None:
    """Show the experts a run used: hottest and coldest, a map, skew beside chance, and who shares a hot set."""
    try:
        found = usage_of(run, storage, keyword)
        if found is None:
            raise typer.Exit(Exit.NOTHING.value)
        _write(found, phase, by, top, form)
    except InferError as error:
        refuse(error)


@experts.command("export", cls=Command)
def export_experts(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="NAME.json, a census; NAME.pt, SGLang's counts.")],
    *,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    storage: Storage = None,
) -> None:
    """Write the census of a run to a file, which `experts` and `placement` take on any machine."""
    try:
        found = usage_of(run, storage, keyword)
        if found is None:
            raise typer.Exit(Exit.NOTHING.value)
        write(file, found, [site.expert_bytes for site in found.sites])
        wrote(file, f"wrote {file}: {_told(found)}")
    except InferError as error:
        refuse(error)


@experts.command("import", cls=Command)
def import_experts(
    dumps: Annotated[
        list[Path],
        typer.Argument(metavar="DUMP...", help="SGLang's recordings (.pt), vLLM's responses (.json, .jsonl)."),
    ],
    *,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Whose it is: folder, GGUF file, bundled name, hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The census to write.")] = Path(
        "census.json"
    ),
) -> None:
    """Make a census of what SGLang or vLLM recorded; each recording or response is a prompt of it."""
    # Imported late, as are those below: other commands and --help need no numpy.
    from pytest_infer.analysis.doctor import weights  # noqa: PLC0415
    from pytest_infer.analysis.experts import imported, layout  # noqa: PLC0415
    from pytest_infer.engines.checkpoint import source  # noqa: PLC0415

    try:
        held = source.find(model)
        sites = layout.sites(held, weights.tensors_of(held))
        found = usage.of_census(imported.census(dumps, sites, held.name), output)
        write(output, found, [None] * len(sites))
        wrote(output, f"wrote {output}: {_told(found)}")
    except InferError as error:
        refuse(error)


def usage_of(run: str, storage: Path | None, keyword: str | None) -> UsageSource | None:
    """Return the usage of a stored run, or of a census file; None, having said why, where the run recorded none.

    Raises:
        StorageError: there is no such run or file, it is damaged, or holds several models.
    """
    if usage.is_census(Path(run)):
        return usage.of_file(Path(run), keyword)
    chosen = open_history(storage).select(run)
    rows, left_out = recorded.recorded(chosen, keyword)
    for line in left_out:
        say(f"left out: {line}")
    if not rows:
        say(recorded.why_nothing(chosen, keyword))
        return None
    return usage.of_run(chosen, rows)


def write(path: Path, found: UsageSource, expert_bytes: list[int | None], phase: str = Whose.DECODE.value) -> None:
    """Write a census: `.pt` as SGLang's recorder does, of one phase; else as JSON, of both.

    Raises:
        OptionError: it cannot be written, or a layer has several sets of experts.
    """
    from pytest_infer.report.placement import exports  # noqa: PLC0415

    if path.suffix == ".pt":
        from pytest_infer.analysis.experts import imported  # noqa: PLC0415
        from pytest_infer.analysis.experts.census import Phase  # noqa: PLC0415

        content = imported.file_of_counts(found, Phase(phase))
    else:
        content = exports.census(found, expert_bytes).encode()
    try:
        with publishing(path) as file:
            file.write(content)
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from error


def _told(found: UsageSource) -> str:
    from pytest_infer.report.experts.terminal import how_many  # noqa: PLC0415

    prompts = "1 prompt" if len(found.prompts) == 1 else f"{len(found.prompts)} prompts"
    prefill, decode = (
        sum(getattr(one.census, f"{phase}_tokens") for one in found.prompts) for phase in ("prefill", "decode")
    )
    experts_ = f"{how_many(found.sites)} of {found.sites[0].experts} experts"
    return f"{prompts}, {prefill} + {decode} tokens, {experts_}, {found.model or 'unknown model'}"


def _write(found: UsageSource, phase: Whose, by: Division, top: int, form: Format) -> None:
    from pytest_infer.analysis.experts import suite  # noqa: PLC0415
    from pytest_infer.analysis.experts.census import Phase, tokens  # noqa: PLC0415

    view = suite.view(found.prompts, Phase(phase.value), suite.By(by.value))
    if not tokens(view.census, view.phase):
        other = "decode" if phase is Whose.PREFILL else "prefill"
        raise StorageError(f"run {found.label} has no {phase.value} tokens; try --phase {other}")
    if by is not Division.PROMPT and not view.overlap.names:
        raise StorageError(f"no prompt of run {found.label} has a {by.value}; give them some in the suite file")
    out(EXPERTS[form](UsedExperts(view=view, source=found, top=top), screen()))
