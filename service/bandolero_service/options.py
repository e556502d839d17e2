"""Options that commands share: where they work, whose, and what they read."""

from pathlib import Path
from typing import Annotated

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
    typer.Option(help="Take no file in of which more is refused: 1% (exit code 4)."),
]
RowsTenantOption = Annotated[
    str | None, typer.Option(help="Whose rows these are. Default: their tenant_id.")
]


def place_of(store: str | None, data_dir: Path | None, lake: str | None) -> Place:
    """Where a command works, by its options and the environment."""
    return Place(read_settings(store=store, data_dir=data_dir, lake=lake))
