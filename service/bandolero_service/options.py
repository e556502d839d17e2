"""Options that commands share: where they work, whose, and what they read."""

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Concatenate

import typer

from bandolero_service.commands import Place
from bandolero_service.settings import read_settings

StoreOption = Annotated[
    str | None,
    typer.Option(help="`embedded`, or redis://… of a Redis or Valkey server."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Embedded store, lake, spool, secret. Default ./.bandolero"),
]
LakeOption = Annotated[
    str | None, typer.Option(help="Folder or s3://… of the lake. Default DATA_DIR/lake")
]
TenantOption = Annotated[
    str | None, typer.Option(help="Whose; may be left out where there is only one.")
]

PathsArgument = Annotated[
    list[str],
    typer.Argument(help="Parquet, CSV or JSON lines files, folders, or s3://…"),
]
MappingOption = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="YAML: what the files' columns are."
    ),
]
MaxRefusedOption = Annotated[
    str | None,
    typer.Option(
        help="Take no file in of which more is refused: 1% or 0.01 (exit code 4)."
    ),
]
RowsTenantOption = Annotated[
    str | None, typer.Option(help="Whose rows these are. Default: their tenant_id.")
]


def placed(command: Callable[Concatenate[Place, ...], None]) -> Callable[..., None]:
    """Give a command, as its first argument, the place that its options name.

    They stand in its signature for typer to read: every command has the same.
    """

    @wraps(command)
    def run(
        store: str | None, data_dir: Path | None, lake: str | None, **own: Any
    ) -> None:
        command(_place(store, data_dir, lake), **own)

    _, *own = signature(command).parameters.values()
    options = [*own, *signature(_place).parameters.values()]
    run.__signature__ = Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _place(
    store: StoreOption = None, data_dir: DataDirOption = None, lake: LakeOption = None
) -> Place:
    """Where a command works, by its options and the environment."""
    return Place(read_settings(store=store, data_dir=data_dir, lake=lake))
